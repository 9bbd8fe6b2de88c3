"""``openrlhf-qs benchmark cold-start``: what a model's first suggestions are worth, by template and temperature.

Conversations of many topics: a hundred that were written for this (``conversations.tsv``, question and answer), and
conversations of the built-in world. Judged by rules that know no model: whether an answer is well formed, whether its
three texts differ, and whether each shares a word with its conversation (:mod:`openrlhf_qs.form.topic`). And by a
sentence embedder that neither wrote nor chose them: whether each is nearer to its own conversation than to nearly all
others. Where suggestions are chosen from several answers, the first of these is judged beside them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

import numpy as np
from rich.table import Table

from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.response import N_SUGGESTIONS, response_regex
from openrlhf_qs.form.topic import on_topic
from openrlhf_qs.models.embedder import embed, load_embedder
from openrlhf_qs.models.engine import Answer, load_engine, sample
from openrlhf_qs.sft.cold_start import chosen, read_template
from openrlhf_qs.world.click_log import contexts

SHARES = ("well_formed", "all_on_topic", "on_topic", "all_near")
NEAR = 0.95  # share of the other conversations that a suggestion must be farther from than from its own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="folder, hub name, smollm2 or GGUF file; default smollm2")
    parser.add_argument(
        "--template",
        nargs="+",
        default=["instruction", "follow_up", "examples"],
        metavar="NAME|FILE",
        help="as in cold-start, one or several; default instruction follow_up examples",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        metavar="T",
        default=[0.3, 0.7, 1.0],
        help="one or several; default 0.3 0.7 1",
    )
    parser.add_argument("--n_answers", type=int, nargs="+", default=[1], help="answers to choose from; default 1")
    parser.add_argument(
        "--constrained_enable", action="store_true", help="allow only lists of questions when decoding"
    )
    parser.add_argument("--n_conversations", type=int, default=30, help="conversations, at most 300; default 30")
    parser.add_argument(
        "--embedder",
        default="minilm",
        metavar="NAME",
        help="sentence embeddings that tell whether suggestions are close to their conversation: folder, hub "
        "name or minilm (default); empty: only rules",
    )
    parser.add_argument(
        "--out", default="", metavar="FILE", help="file for each conversation and its answer, for inspection"
    )
    parser.add_argument("--seed", type=int, default=0, help="vLLM's seed; default 0")


def run(args: argparse.Namespace) -> None:
    """Ask with each template at each temperature; print a line each as it is there, and the table."""
    asked = conversations()[: args.n_conversations]
    near = Near(load_embedder(args.embedder), asked) if args.embedder else None
    table = Table(
        "template", "temperature", "answers", "well formed, different", "all on topic", "on topic", "all near", "s"
    )
    llm = load_engine(args.model, args.seed)
    rows = []
    for name, temperature, n_answers in (
        (name, temperature, n) for name in args.template for temperature in args.temperature for n in args.n_answers
    ):
        template = read_template(name)
        started = time.monotonic()
        answers = sample(
            llm,
            [template.messages(conversation, N_SUGGESTIONS) for conversation in asked],
            128,
            temperature,
            n_answers,
            regex=response_regex(N_SUGGESTIONS) if args.constrained_enable else "",
        )
        seconds = f"{time.monotonic() - started:.0f}"
        found = taken(asked, answers, n_answers)
        of = {f"first of {n_answers}": (taken(asked, answers, 1), ""), str(n_answers): (found, seconds)}
        for said, (some, s) in list(of.items())[n_answers == 1 :]:
            told = judged(asked, some, near)
            shares = [f"{told[key]:.0%}" if key in told else "" for key in SHARES]
            table.add_row(template.name, str(temperature), said, *shares, s)
            print(f"{template.name} at {temperature}, answers {said}: {told}{s and f', {s} s'}", flush=True)
        rows += [
            {"template": template.name, "temperature": temperature, "n_answers": n_answers}
            | {"conversation": one, "answer": answer, "first": some if isinstance(some, str) else some[0].text}
            for one, answer, some in zip(asked, found, answers, strict=True)
        ]
    print_table(table)
    if args.out:
        write_json_lines(args.out, rows)


def taken(
    asked: Sequence[Sequence[Message]], answers: Sequence[list[Answer] | str], n: int
) -> list[tuple[str, ...] | str]:
    """For each conversation the suggestions out of its first ``n`` answers, or what was wrong with them."""
    return [
        chosen(some if isinstance(some, str) else some[:n], N_SUGGESTIONS, one)
        for some, one in zip(answers, asked, strict=True)
    ]


class Near:
    """Conversations as vectors: which of a few texts are nearer to their own one than to nearly all others."""

    def __init__(self, embedder: Any, conversations: Sequence[Sequence[Message]]) -> None:
        """
        Args:
            embedder: from :func:`openrlhf_qs.models.embedder.load_embedder`.
        """
        self.embedder = embedder
        texts = ["\n".join(message["content"] for message in one) for one in conversations]
        self.vectors = embed(embedder, texts).astype(np.float32)

    def __call__(self, own: Sequence[int], texts: Sequence[str]) -> np.ndarray:
        """``[n]`` of bool: whether text ``i`` has a larger cosine with conversation ``own[i]`` than with the share
        ``NEAR`` of the others."""
        distinct = list(dict.fromkeys(texts))
        vectors = dict(zip(distinct, embed(self.embedder, distinct).astype(np.float32), strict=True))
        cosines = np.array([vectors[text] for text in texts]) @ self.vectors.T
        farther = (cosines < cosines[np.arange(len(texts)), own][:, None]).sum(axis=1)
        return farther >= NEAR * (len(self.vectors) - 1)


def judged(
    asked: Sequence[Sequence[Message]], found: Sequence[tuple[str, ...] | str], near: Near | None = None
) -> dict[str, float]:
    """Shares of the conversations: ``well_formed``, with three that differ; ``all_on_topic``, all three of which share
    a word with it besides. ``on_topic``: share of the suggestions of well-formed answers. With ``near`` also
    ``all_near``: share of the well-formed answers all of whose suggestions are near their conversation."""
    well_formed = [(place, answer) for place, answer in enumerate(found) if not isinstance(answer, str)]
    topical = [[on_topic(asked[place], text) for text in answer] for place, answer in well_formed]
    n_texts = sum(map(len, topical))
    told = {
        "well_formed": round(len(well_formed) / len(asked), 3),
        "all_on_topic": round(sum(map(all, topical)) / len(asked), 3),
        "on_topic": round(sum(map(sum, topical)) / n_texts, 3) if n_texts else 0.0,
    }
    if near is not None and well_formed:
        own = [place for place, answer in well_formed for _ in answer]
        of_texts = near(own, [text for _, answer in well_formed for text in answer])
        told["all_near"] = round(float(of_texts.reshape(len(well_formed), N_SUGGESTIONS).all(axis=1).mean()), 3)
    return told


def conversations() -> list[list[Message]]:
    """Three hundred: each written one is followed by two of the built-in world."""
    lines = files("openrlhf_qs.benchmark").joinpath("conversations.tsv").read_text(encoding="utf-8").splitlines()
    written = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in (line.split("\t") for line in lines)
    ]
    simulated = contexts(2 * len(written), seed=0)
    return list(chain.from_iterable(zip(written, simulated[::2], simulated[1::2], strict=True)))
