"""``openrlhf-qs expect``: how long a stage will take, said before it begins, where a real model makes hours of it.

How much there is to do the recipe counts: responses that are taught, read and written, each with its conversation.
What one takes is measured here, by a pass of the model over texts as long as the run's own, with the threads that the
stage will have and beside whatever else the machine does at the moment. It is a guess; from the first step on the
progress says more (:mod:`openrlhf_qs.host.follow`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import read_task
from openrlhf_qs.models.resolve import resolve_model

N_TEXTS = 8  # of a pass, as many as of a training's micro-batch
# In passes over a text without the language model's head. SmolLM2-135M, 8 texts of 192 tokens, bfloat16, one thread:
# 1.03 s of processor time a pass, 1.30 s with the head, 5.6 s with loss and gradient, to which the optimiser comes.
TAUGHT, READ = 5.5, 1.25
WRITTEN = 1.0  # vLLM, many at once: 1,200 constrained answers to 300 conversations took 150 s of processor time
START_S = 30  # seconds of imports, loading and saving


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, metavar="DIR", help="run folder with a finished data stage")
    parser.add_argument("--stage", required=True, help="name at the beginning of the line")
    parser.add_argument("--policy", required=True, metavar="DIR", help="the model that the stage runs")
    for name, what in (
        ("taught", "the model is trained on, in all epochs"),
        ("read", "the model scores, or gives the likelihood of"),
        ("written", "vLLM writes with the model"),
    ):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            action="append",
            default=[],
            metavar="N [FILE [MOST]]",
            help=f"responses that {what}: N, or N per conversation of FILE, for at most MOST conversations; "
            "repeatable",
        )


def run(args: argparse.Namespace) -> None:
    """Measure, and print one line."""
    n_tokens, seconds = pace(RunFolder(args.run), args.policy)
    found = expected(
        n_tokens, seconds, *(sum(map(n_responses, some)) for some in (args.taught, args.read, args.written))
    )
    print(f"{args.stage}: {found}", flush=True)


def expected(n_tokens: int, seconds: float, n_taught: int, n_read: int, n_written: int) -> str:
    """How long it takes, and what.

    Args:
        n_tokens, seconds: as :func:`pace` finds them.
        n_taught, n_read, n_written: responses.
    """
    whole = START_S + seconds * (TAUGHT * n_taught + READ * n_read + WRITTEN * n_written)
    parts = (("trained on", n_taught), ("read", n_read), ("written", n_written))
    counted = ", ".join(f"{n:,} {what}" for what, n in parts if n)
    return f"{in_words(whole)} at the machine's current pace, for responses of {n_tokens} tokens: {counted}"


def n_responses(words: Sequence[str]) -> int:
    """``N [FILE [MOST]]`` in numbers. ValueError where it is something else."""
    try:
        n, file, most = int(words[0]), words[1] if len(words) > 1 else "", int(words[2]) if len(words) > 2 else None
    except ValueError:
        n, most = 0, 0
    if n < 1 or len(words) > 3:
        raise ValueError(
            f"{' '.join(words)}: give the number of responses, then, if you like, a file and a number of rows"
        )
    if not file:
        return n
    rows = read_json_lines(file)  # of which several may be impressions of one conversation
    distinct = {
        conversation_key(row["conversation"]) if "conversation" in row else place for place, row in enumerate(rows)
    }
    return n * min(len(distinct), len(distinct) if most is None else most)


def pace(folder: RunFolder, policy: str) -> tuple[int, float]:
    """Tokens of a prompt with its response, on average over the run's first prompts, and the seconds that a pass over
    one such text takes now."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    policy = resolve_model(policy)
    tokenizer, task = AutoTokenizer.from_pretrained(policy), read_task(policy)
    rows = read_json_lines(folder.data.prompts)[:N_TEXTS]
    prompts = [
        " ".join(message["content"] for message in task.messages(Request.of_label(row["label"]).conversation))
        for row in rows
    ]
    n_prompt = sum(map(len, tokenizer(prompts)["input_ids"])) / len(prompts)
    n_tokens = round(n_prompt) + int(folder.data.max_new_tokens.read_text())
    model = AutoModel.from_pretrained(policy, dtype=torch.bfloat16).eval()
    ids = torch.ones((len(prompts), n_tokens), dtype=torch.long)
    with torch.no_grad():
        model(ids[:1])  # the first pass of all sets up what the others use
        started = time.monotonic()
        model(ids)
    return n_tokens, (time.monotonic() - started) / len(prompts)


def in_words(seconds: float) -> str:
    """As exactly as it is known: ``about 40 s``, ``about 12 minutes``, ``about 3 hours``."""
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"
