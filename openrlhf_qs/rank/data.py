"""``openrlhf-qs rank data``: a zero-query log to what the other steps read.

Out, under ``--out``: ``train.jsonl`` and ``heldout.jsonl``, the log cut by time; of the reasoner's half of the users
(:mod:`openrlhf_qs.rank.train`) ``sft.jsonl``, what they clicked as rows for ``openrlhf-qs sft --qs.sft_dataset
single``, ``prompts.jsonl``, the same as prompts for GRPO, and ``reasoner.jsonl``, the same as a click log whose
conversations are the features in words, of which the small policy's tokenizer is made; ``visits.jsonl``, the
conversations that need a query: the other half's, and those held out; ``instruction.txt``, what the reasoner is asked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from openrlhf_qs.clicks.click_log import read_click_log, write_click_log
from openrlhf_qs.files.whole import write_json_lines, write_whole
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import Task
from openrlhf_qs.rank.impressions import (
    FeatureCodes,
    Impressions,
    Intents,
    conversation_of,
    impressions_of,
    read_intents,
)

INSTRUCTION = "Write the question that this user came to ask."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", required=True, nargs="+", metavar="FILE", help="zero-query log")
    parser.add_argument("--intents", required=True, metavar="FILE", help="knowledge base: JSON Lines of id and text")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--heldout", type=float, default=0.2, help="share of the rows, the last ones; default 0.2")
    parser.add_argument("--n_heldout", type=int, default=2000, help="held-out visits that get a query; default 2000")
    parser.add_argument("--n_visits", type=int, default=0, help="visits of training that get a query; default all")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    intents, out = read_intents(args.intents), Path(args.out)
    rows = read_click_log(args.log).sort("timestamp")
    before, after = impressions_of(rows, intents).by_time(args.heldout)  # says what is wrong with the rows
    FeatureCodes.of(before.features)(after.features)  # and with their features, which the stage rank would find later
    is_shown = np.isin(np.arange(len(intents)), before.shown)
    is_reasoners = before.half(args.seed)
    own, others = before[is_reasoners & before.clicks.any(1)], before[~is_reasoners]
    if not len(own) or not others.clicks.any():
        raise ValueError("one half of the users has no clicks: give a longer log, with user_id")
    task = Task(1, INSTRUCTION, "text")
    write_whole(out / "instruction.txt", INSTRUCTION + "\n")
    write_json_lines(out / "sft.jsonl", sft_rows(own, intents))
    write_json_lines(out / "prompts.jsonl", prompt_rows(own, intents, task))
    as_words = [conversation_of(json.loads(text)) for text in rows["features"][: len(before)].to_list()]
    spoken = rows[: len(before)].with_columns(conversation=pl.Series(as_words)).drop("features")
    write_click_log(spoken.filter(is_reasoners).select(rows.drop("features").columns), out / "reasoner.jsonl")
    n_heldout = heldout_rows(len(after), args.n_heldout, args.seed)
    asked = others[np.arange(min(len(others), args.n_visits or len(others)))]
    visits = [*asked.features, *(after.features[n] for n in n_heldout)]
    write_json_lines(out / "visits.jsonl", ({"conversation": conversation_of(one)} for one in visits))
    write_click_log(rows[: len(before)], out / "train.jsonl")
    write_click_log(rows[len(before) :][n_heldout.tolist()], out / "heldout.jsonl")
    print(
        f"{len(before):,} impressions to train on, {int(before.clicks.sum()):,} clicks, of which {len(own):,} visits "
        f"teach the reasoner; {len(n_heldout):,} later visits held out; {int((~is_shown).sum())} of {len(intents)} "
        "intents are new in them"
    )


def heldout_rows(n: int, n_max: int, seed: int) -> np.ndarray:
    """Which of ``n`` held-out rows are kept, in their order."""
    return np.sort(np.random.default_rng([seed, n]).permutation(n)[: n_max or n])


def sft_rows(log: Impressions, intents: Intents) -> Iterator[dict]:
    """What was clicked, as the candidates of the features: each click counts by its examination, at most five times
    one at the top."""
    for features, shown, clicks in zip(log.features, log.shown, log.clicks, strict=True):
        candidates = [
            {"text": intents.texts[intent], "n_shown": 1, "n_clicked": 1, "weight": min(1 / theta, 5.0)}
            for intent, click, theta in zip(shown, clicks, log.examination, strict=True)
            if click
        ]
        yield {"conversation": conversation_of(features), "candidates": candidates}


def prompt_rows(log: Impressions, intents: Intents, task: Task) -> Iterator[dict]:
    """Prompts with their request as the label, which knows what was clicked."""
    for features, user, shown, clicks in zip(log.features, log.users, log.shown, log.clicks, strict=True):
        conversation = conversation_of(features)
        clicked = tuple(intents.texts[intent] for intent, click in zip(shown, clicks, strict=True) if click)
        label = Request(conversation, str(user), features, clicked).label()
        yield {"prompt": task.messages(conversation), "label": label}
