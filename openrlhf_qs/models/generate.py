"""Let a policy answer conversations, with vLLM, and say how likely its answers are under a reference.

In: JSON Lines, a ``conversation`` a row, or ``prompts.jsonl``, in one or several files. Out, a file each: JSON Lines
``{"conversation", "response", "finish_reason", "temperature"}`` (``length`` where it was cut at ``--max_new_tokens``),
and where a reference is given ``log_ppl`` (nats per token under it, its end counted) with the
``reference_temperature``. The engine is loaded once, however many files and temperatures there are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_qs.files.printable import from_here
from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.form.language import in_users_language
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.request import read_conversations
from openrlhf_qs.form.task import RESPONSE_TOKENS, Task, read_task
from openrlhf_qs.models.engine import free_memory, load_engine, sample
from openrlhf_qs.models.reference import reference_log_ppl


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", required=True, help="folder or hub name of the policy")
    parser.add_argument(
        "--reference", default="", help="policy that gives log_ppl, usually the SFT policy; default: none"
    )
    parser.add_argument(
        "--reference_temperature", type=float, default=1.0, help="temperature at which log_ppl is measured; default 1"
    )
    parser.add_argument(
        "--prompts",
        required=True,
        nargs="+",
        metavar="FILE",
        help="JSON Lines with one conversation per row, or prompts.jsonl",
    )
    parser.add_argument("--out", required=True, nargs="+", metavar="FILE", help="one file for each of --prompts")
    parser.add_argument(
        "--n_max",
        type=int,
        nargs="+",
        default=[2000],
        help="distinct conversations, the first ones: a number for each of --prompts, or one for all; default 2000",
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=RESPONSE_TOKENS, help="maximum tokens per response; default 64"
    )
    parser.add_argument(
        "--temperature", type=float, nargs="+", default=[1.0], help="sampling temperature, one or several; default 1"
    )
    parser.add_argument(
        "--n_samples",
        type=int,
        nargs="+",
        default=[1],
        help="responses per conversation: a number for each --temperature, or one for all; default 1",
    )
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    prompts, temperatures = list(args.prompts), list(args.temperature)
    n_max = _one_each("--n_max", args.n_max, prompts, "--prompts")
    n_samples = _one_each("--n_samples", args.n_samples, temperatures, "--temperature")
    if len(args.out) != len(prompts):
        raise ValueError(f"--out has {len(args.out)} files for {len(prompts)} of --prompts; give one for each")
    if args.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens {args.max_new_tokens}: give 1 or more")
    if len(set(temperatures)) < len(temperatures) or min(temperatures) < 0:
        raise ValueError(f"--temperature {' '.join(map(str, temperatures))}: give different ones, 0 or more")
    files = [read_conversations(file)[:n] for file, n in zip(prompts, n_max, strict=True)]
    llm, task = load_engine(args.policy, args.seed), read_task(args.policy)
    written: list[list[dict[str, Any]]] = []
    for file, conversations in zip(prompts, files, strict=True):
        written.append([])
        for temperature, n in zip(temperatures, n_samples, strict=True):
            asked = [conversation for conversation in conversations for _ in range(n)]
            written[-1] += generate(llm, task, asked, args.max_new_tokens, temperature, args.policy, file)
    free_memory(llm)
    for out, rows in zip(args.out, written, strict=True):
        if args.reference:
            log_ppl = reference_log_ppl(
                args.reference,
                [row["conversation"] for row in rows],
                [row["response"] for row in rows],
                args.reference_temperature,
            )
            measured_at = {"reference_temperature": args.reference_temperature}
            rows = [row | {"log_ppl": value} | measured_at for row, value in zip(rows, log_ppl, strict=True)]
        write_json_lines(out, rows)
        print(f"{len(rows):,} responses of {args.policy} in {from_here(out)}")


def generate(
    llm: Any,
    task: Task,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    temperature: float,
    policy: str,
    file: str,
) -> list[dict[str, Any]]:
    """One sampled response a conversation: ``conversation``, ``response``, ``finish_reason``, ``temperature``.

    A conversation that leaves no room for a response is left out and said so. ValueError where none is left.
    """
    prompts = [task.messages(conversation) for conversation in conversations]
    words = f"responses of {Path(policy).name} at {temperature:g}"
    answers = sample(llm, prompts, max_new_tokens, temperature, progress=words, max_len=task.max_len)
    rows = [
        {
            "conversation": conversation,
            "response": answer[0].text,
            "finish_reason": answer[0].finish_reason,
            "temperature": temperature,
        }
        for conversation, answer in zip(conversations, answers, strict=True)
        if not isinstance(answer, str)
    ]
    left_out = [answer for answer in answers if isinstance(answer, str)]
    if left_out:
        print(f"left out: {len(left_out)} of {len(answers)} prompts are too long, the first: {left_out[0]}")
    n_other, n_suggestions = _other_languages(task, rows)
    if n_other:
        print(f"{n_other} of {n_suggestions} suggestions are clearly in another language or script than the user's")
    if not rows:
        raise ValueError(
            f"{policy} on {file}: no conversation leaves room for a response; {(left_out or ['none was given'])[0]}"
        )
    return rows


def _other_languages(task: Task, rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """How many suggestions are not in their user's language, and how many there are."""
    found = [
        in_users_language(row["conversation"], text)
        for row in rows
        for text in task.read(row["response"], row["finish_reason"]).suggestions
    ]
    return found.count(False), len(found)


def _one_each(flag: str, values: Sequence[int], of: Sequence[Any], of_flag: str) -> list[int]:
    """One number for each of ``of``; a single one stands for all. ValueError for another count, and below 1."""
    if min(values) < 1:
        raise ValueError(f"{flag} {min(values)}: give 1 or more")
    if len(values) not in (1, len(of)):
        raise ValueError(
            f"{flag} has {len(values)} values for {len(of)} of {of_flag}; give one for each, or one for all"
        )
    return list(values) * (len(of) if len(values) == 1 else 1)
