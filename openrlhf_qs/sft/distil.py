"""The stage ``distil``: sample many suggestions for each conversation from a teacher, for the student's SFT.

In: JSON Lines with a ``conversation`` a row, or the ``prompts.jsonl`` of the stage ``data``, and a teacher that was
trained on the SFT dataset ``single``. Out: one row a conversation, ``{"conversation", "candidates": [{"text",
"log_prob", "n_sampled"}], "left_out"}``, which SFT datasets read as they read ``sft.jsonl``.

A killed run goes on where it was. On several GPUs the conversations are shared out over Ray workers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.progress import track
from rich.table import Table

from openrlhf_qs.files.journal import Journal, job_keys, model_print
from openrlhf_qs.files.printable import from_here, print_table
from openrlhf_qs.form.keys import text_key
from openrlhf_qs.form.language import in_users_language
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.request import read_conversations
from openrlhf_qs.form.response import N_SUGGESTIONS, suggestion_problem
from openrlhf_qs.form.task import TEACHER, Task, read_task
from openrlhf_qs.models import own_ray
from openrlhf_qs.models.device import n_gpus
from openrlhf_qs.models.engine import Answer, free_memory, load_engine, sample

LEFT_OUT = {
    "cut_off": "ended by --max_new_tokens, not by the teacher",
    "malformed": "not one line of text with a letter in it, or with markup",
    "another_language": "clearly in another language or script than the user's last message",
    "prompt_too_long": "the conversation leaves no room for an answer",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", required=True, help="folder or hub name of the teacher")
    parser.add_argument("--n_max", type=int, default=0, help="distinct conversations, the first ones; default: all")
    add_sampling_arguments(parser, n_samples=16, max_new_tokens=32, temperature=1.0)


def add_sampling_arguments(
    parser: argparse.ArgumentParser, n_samples: int, max_new_tokens: int, temperature: float
) -> None:
    """What :func:`sample_candidates` reads, but for ``--teacher``, with these defaults; and ``--prompts``."""
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help="JSON Lines with one conversation per row, or data/prompts.jsonl",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON Lines to write, one row per conversation")
    parser.add_argument(
        "--n_samples", type=int, default=n_samples, help=f"answers per conversation; default {n_samples}"
    )
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=max_new_tokens,
        help=f"maximum tokens per answer; default {max_new_tokens}",
    )
    parser.add_argument(
        "--temperature", type=float, default=temperature, help=f"sampling temperature; default {temperature:g}"
    )
    parser.add_argument(
        "--chunk", type=int, default=256, help="conversations per batch; a kill loses at most one batch; default 256"
    )
    parser.add_argument(
        "--n_shards",
        type=int,
        default=0,
        help="engines that share the conversations; more than one run as Ray actors, on $RAY_ADDRESS if it is "
        "set; default: as many as the GPUs allow",
    )
    parser.add_argument("--tensor_parallel_size", type=int, default=1, help="GPUs per engine; default 1")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first engine; each further one adds 1; default 0"
    )


def run(args: argparse.Namespace) -> None:
    """Sample what is not sampled yet, write the file, show what came out and what was left out."""
    sample_candidates(args, Sampler, read_conversations(args.prompts)[: args.n_max or None]).finish()


def sample_candidates(
    args: argparse.Namespace, sampler: type[Sampler], conversations: Sequence[list[Message]]
) -> Journal:
    """Sample what is not sampled yet with that class of engines from ``--teacher``, and show what came out: the
    journal of ``--out``, with all of its rows, to be finished."""
    for name in ("n_samples", "max_new_tokens", "chunk", "tensor_parallel_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: give at least 1")
    options = Options(args.teacher, args.n_samples, args.max_new_tokens, args.temperature, args.tensor_parallel_size)
    job = {**options._asdict(), "teacher": model_print(args.teacher), "seed": args.seed}
    keys = job_keys(job, conversations)
    journal = Journal(args.out, keys)
    missing = journal.missing()
    by_key = dict(zip(keys, conversations, strict=True))
    chunks = [{key: by_key[key] for key in missing[n : n + args.chunk]} for n in range(0, len(missing), args.chunk)]
    if len(missing) < len(keys):
        print(f"continuing: {len(keys) - len(missing):,} of {len(keys):,} conversations are already sampled")
    started = time.monotonic()
    n_shards = min(args.n_shards or shards_at_hand(args.tensor_parallel_size), len(chunks))
    sampled = sample_on_ray if n_shards > 1 else sample_here
    for rows in track(sampled(sampler, options, chunks, args.seed, n_shards), "sampling", total=len(chunks)):
        journal.add(rows)
    elapsed_s = time.monotonic() - started
    n_texts = args.n_samples * sampler.task_of(args.teacher).n
    print_table(
        report_table(journal.rows(), n_texts, f"samples of {from_here(args.teacher)} in {from_here(args.out)}")
    )
    print(f"{len(missing) * args.n_samples:,} answers in {elapsed_s:.0f} s, including the engine's start")
    return journal


class Options(NamedTuple):
    """How the teacher is sampled; see the flags of the same names."""

    teacher: str
    n_samples: int
    max_new_tokens: int
    temperature: float
    tensor_parallel_size: int


class Sampler:
    """One engine with the teacher in it, in this process or as a Ray actor."""

    def __init__(self, options: Options, seed: int) -> None:
        self.options = options
        self.task = self.task_of(options.teacher)
        self.llm = load_engine(options.teacher, seed, options.tensor_parallel_size)

    @staticmethod
    def task_of(teacher: str) -> Task:
        """What it is asked: for one suggestion, whatever model it is."""
        task = read_task(teacher)
        return task if task.form == "text" else TEACHER

    def rows(self, chunk: Mapping[str, list[Message]]) -> dict[str, dict[str, Any]]:
        """A row for each conversation of ``chunk``, under its key."""
        answers = sample(
            self.llm,
            [self.task.messages(conversation) for conversation in chunk.values()],
            self.options.max_new_tokens,
            self.options.temperature,
            self.options.n_samples,
            max_len=self.task.max_len,
        )
        rows = {}
        for (key, conversation), outputs in zip(chunk.items(), answers, strict=True):
            if isinstance(outputs, str):
                n_texts = self.options.n_samples * self.task.n
                candidates, left_out = [], dict.fromkeys(LEFT_OUT, 0) | {"prompt_too_long": n_texts}
            else:
                candidates, left_out = merge_samples(self.suggestions(outputs), conversation)
            rows[key] = {"conversation": conversation, "candidates": candidates, "left_out": left_out}
        return rows

    def suggestions(self, answers: Sequence[Answer]) -> Iterator[tuple[str, float, bool]]:
        """What :func:`merge_samples` takes, of the teacher's answers to one conversation."""
        return ((one.text, one.mean_log_prob, one.finish_reason == "stop") for one in answers)


def merge_samples(
    samples: Iterable[tuple[str, float, bool]], conversation: Sequence[Message] = ()
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The different suggestions among the samples of one conversation, the likeliest first.

    Samples that :func:`openrlhf_qs.form.keys.text_key` makes equal are one candidate, in the likeliest of its
    forms.

    Args:
        samples: text; mean log-probability, nats per token, the end counted; whether the teacher ended it.
        conversation: what they were sampled for.

    Returns:
        ``[{"text", "log_prob", "n_sampled"}]``, and how many samples were left out for each reason of ``LEFT_OUT``.
    """
    candidates: dict[str, dict[str, Any]] = {}
    left_out = dict.fromkeys(LEFT_OUT, 0)
    for text, log_prob, ended in samples:
        if not ended or suggestion_problem(text):
            left_out["malformed" if ended else "cut_off"] += 1
            continue
        if not in_users_language(conversation, text):
            left_out["another_language"] += 1
            continue
        new = {"text": text.strip(), "log_prob": log_prob, "n_sampled": 0}
        known = candidates.setdefault(text_key(text), new)
        if log_prob > known["log_prob"]:
            known.update(text=new["text"], log_prob=log_prob)
        known["n_sampled"] += 1
    return sorted(candidates.values(), key=lambda candidate: -candidate["log_prob"]), left_out


def sample_here(
    sampler: type[Sampler], options: Options, chunks: Sequence[Mapping[str, list[Message]]], seed: int, n_shards: int
) -> Iterator[dict[str, dict[str, Any]]]:
    """The rows of each chunk, from one engine in this process; without a chunk no engine is started."""
    if not chunks:
        return
    engine = sampler(options, seed)
    for chunk in chunks:
        yield engine.rows(chunk)
    free_memory(engine.llm)


def sample_on_ray(
    sampler: type[Sampler], options: Options, chunks: Sequence[Mapping[str, list[Message]]], seed: int, n_shards: int
) -> Iterator[dict[str, dict[str, Any]]]:
    """The rows of each chunk, as they are finished, from ``n_shards`` engines. Which engine takes a chunk hangs on its
    number alone: with the same seed all is sampled as before."""
    own_ray.prepare_environment(loopback=n_gpus() == 0)  # before the import, which reads whether a token is asked for
    import ray

    if not ray.is_initialized():
        own_ray.start()
    on_gpus = ray.cluster_resources().get("GPU", 0) > 0
    actor = ray.remote(num_cpus=1, num_gpus=options.tensor_parallel_size if on_gpus else 0)(sampler)
    engines = [actor.remote(options, seed + shard) for shard in range(n_shards)]
    waiting = [engines[number % n_shards].rows.remote(chunk) for number, chunk in enumerate(chunks)]
    while waiting:
        finished, waiting = ray.wait(waiting)
        yield from ray.get(finished)
    for engine in engines:  # their GPUs are wanted for the model that is read next
        ray.kill(engine)


def shards_at_hand(tensor_parallel_size: int) -> int:
    """How many engines the GPUs of this host, or of the Ray cluster at ``$RAY_ADDRESS``, have room for; at least 1."""
    if not own_ray.is_own():
        import ray

        ray.init(ignore_reinit_error=True)
        n = int(ray.cluster_resources().get("GPU", 0))
    else:
        n = n_gpus()
    return max(1, n // tensor_parallel_size)


def report_table(rows: Iterable[Mapping[str, Any]], n_samples: int, title: str) -> Table:
    """How many samples became how many candidates, and why the others did not."""
    n_rows = n_candidates = n_few = 0
    left_out = dict.fromkeys(LEFT_OUT, 0)
    for row in rows:
        n_rows += 1
        n_candidates += len(row["candidates"])
        n_few += len(row["candidates"]) < N_SUGGESTIONS
        for reason, count in row["left_out"].items():
            left_out[reason] += count
    n = n_rows * n_samples
    table = Table("", "number", "what", title=title)
    table.columns[1].justify = "right"
    table.add_row("conversations", f"{n_rows:,}", f"{n_few:,} with fewer than {N_SUGGESTIONS} candidates")
    table.add_row("samples", f"{n:,}", f"{n_samples} a conversation")
    for reason, what in LEFT_OUT.items():
        table.add_row(f"  {reason}", f"{left_out[reason]:,}", what)
    repeated = n - sum(left_out.values()) - n_candidates
    table.add_row("  repeated", f"{repeated:,}", "the same except for case, punctuation and white space")
    table.add_row("candidates", f"{n_candidates:,}", f"{n_candidates / max(n_rows, 1):.1f} a conversation")
    return table
