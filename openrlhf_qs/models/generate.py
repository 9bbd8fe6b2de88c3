"""Let a policy answer conversations, with vLLM, and say how likely its answers are under a reference.

In: JSON Lines with a ``conversation`` a row. Out: JSON Lines ``{"conversation", "response", "finish_reason"}``
(``length`` where it was cut at ``--max_new_tokens``), and ``log_ppl`` (nats per token under ``--reference``, its end
counted) where a reference is given.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.task import read_task
from openrlhf_qs.models.engine import load_engine, sample
from openrlhf_qs.models.reference import reference_log_ppl


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", required=True, help="folder or hub name of the policy")
    parser.add_argument(
        "--reference", default="", help="policy that gives log_ppl, mostly the SFT policy; default: none"
    )
    parser.add_argument(
        "--reference_temperature", type=float, default=1.0, help="at which log_ppl is measured; default 1"
    )
    parser.add_argument("--prompts", required=True, metavar="FILE", help="JSON Lines with a conversation a row")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--n_max", type=int, default=2000, help="distinct conversations, the first ones; default 2000")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="tokens a response may have; default 64")
    parser.add_argument("--n_samples", type=int, default=1, help="responses to each conversation; default 1")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling, as in training; default 1")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    if args.n_samples < 1:
        raise ValueError(f"--n_samples {args.n_samples}: give 1 or more")
    asked = list(
        {conversation_key(row["conversation"]): row["conversation"] for row in read_json_lines(args.prompts)}.values()
    )
    asked = [c for c in asked[: args.n_max] for _ in range(args.n_samples)]
    rows = generate(args.policy, asked, args.max_new_tokens, args.temperature, args.seed)
    if args.reference:
        conversations, responses = [row["conversation"] for row in rows], [row["response"] for row in rows]
        log_ppl = reference_log_ppl(args.reference, conversations, responses, args.reference_temperature)
        rows = [row | {"log_ppl": value} for row, value in zip(rows, log_ppl, strict=True)]
    write_json_lines(args.out, rows)
    print(f"{len(rows)} responses of {args.policy} in {args.out}")


def generate(
    policy: str, conversations: Sequence[Sequence[Message]], max_new_tokens: int, temperature: float, seed: int
) -> list[dict[str, Any]]:
    """One sampled response a conversation: ``conversation``, ``response``, ``finish_reason``.

    A conversation that leaves no room for a response is left out and said so. ValueError where ``policy`` is no model,
    or none is left.
    """
    llm, task = load_engine(policy, seed), read_task(policy)
    prompts = [task.messages(conversation) for conversation in conversations]
    answers = sample(llm, prompts, max_new_tokens, temperature, progress=True)
    rows = [
        {"conversation": conversation, "response": answer[0].text, "finish_reason": answer[0].finish_reason}
        for conversation, answer in zip(conversations, answers, strict=True)
        if not isinstance(answer, str)
    ]
    left_out = [answer for answer in answers if isinstance(answer, str)]
    if left_out:
        print(f"left out: {len(left_out)} of {len(answers)} prompts are too long, the first: {left_out[0]}")
    if not rows:
        raise ValueError(
            f"{policy}: no conversation leaves room for a response; {(left_out or ['none was given'])[0]}"
        )
    return rows
