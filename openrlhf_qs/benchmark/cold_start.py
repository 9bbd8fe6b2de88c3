"""``openrlhf-qs benchmark cold-start``: what a model's first suggestions are worth, by template and temperature.

Conversations of many topics: a hundred that were written for this (``conversations.tsv``, question and answer), and
conversations of the built-in world. Judged by rules that know no model: whether an answer is well formed, whether its
three texts differ, and whether each shares a word with its conversation (:mod:`openrlhf_qs.form.topic`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

from rich.console import Console
from rich.table import Table

from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.response import response_regex
from openrlhf_qs.form.topic import on_topic
from openrlhf_qs.models.engine import load_engine, sample
from openrlhf_qs.sft.cold_start import chosen, read_template
from openrlhf_qs.world.click_log import contexts

N_SUGGESTIONS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="folder, hub name, smollm2 or GGUF file; default smollm2")
    parser.add_argument(
        "--template",
        nargs="+",
        default=["instruction", "follow_up", "examples"],
        metavar="NAME|FILE",
        help="as of cold-start, one or several; default instruction follow_up examples",
    )
    parser.add_argument(
        "--temperature", type=float, nargs="+", default=[0.3, 0.7, 1.0], help="one or several; default 0.3 0.7 1"
    )
    parser.add_argument("--n_answers", type=int, nargs="+", default=[1], help="to choose from; default 1")
    parser.add_argument("--constrained_enable", action="store_true", help="decode nothing but a list of questions")
    parser.add_argument("--n_conversations", type=int, default=30, help="at most 300; default 30")
    parser.add_argument(
        "--out", default="", metavar="FILE", help="where each conversation and its answer go, to look at"
    )
    parser.add_argument("--seed", type=int, default=0, help="of vLLM; default 0")


def run(args: argparse.Namespace) -> None:
    """Ask with each template at each temperature; print a line each as it is there, and the table."""
    asked = conversations()[: args.n_conversations]
    table = Table(*("template", "temperature", "answers", "well formed, different", "all on topic", "on topic", "s"))
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
        seconds = time.monotonic() - started
        found = [chosen(some, N_SUGGESTIONS, one) for some, one in zip(answers, asked, strict=True)]
        told = judged(asked, found)
        shares = (told["well_formed"], told["all_on_topic"], told["on_topic"])
        table.add_row(template.name, str(temperature), str(n_answers), *(f"{x:.0%}" for x in shares), f"{seconds:.0f}")
        print(f"{template.name} at {temperature}, {n_answers} answers: {told}, {seconds:.0f} s", flush=True)
        rows += [
            {"template": template.name, "temperature": temperature, "n_answers": n_answers}
            | {"conversation": one, "answer": answer, "first": some if isinstance(some, str) else some[0].text}
            for one, answer, some in zip(asked, found, answers, strict=True)
        ]
    Console(markup=False).print(table)
    if args.out:
        write_json_lines(args.out, rows)


def judged(asked: Sequence[Sequence[Message]], found: Sequence[tuple[str, ...] | str]) -> dict[str, Any]:
    """Shares of the conversations: ``well_formed``, with three that differ; ``all_on_topic``, all three of which share
    a word with it besides. ``on_topic``: share of the suggestions of well-formed answers."""
    well_formed = [(one, answer) for one, answer in zip(asked, found, strict=True) if not isinstance(answer, str)]
    topical = [[on_topic(one, text) for text in answer] for one, answer in well_formed]
    n_texts = sum(map(len, topical))
    return {
        "well_formed": round(len(well_formed) / len(asked), 3),
        "all_on_topic": round(sum(map(all, topical)) / len(asked), 3),
        "on_topic": round(sum(map(sum, topical)) / n_texts, 3) if n_texts else 0.0,
    }


def conversations() -> list[list[Message]]:
    """Three hundred: each written one is followed by two of the built-in world."""
    lines = files("openrlhf_qs.benchmark").joinpath("conversations.tsv").read_text(encoding="utf-8").splitlines()
    written = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in (line.split("\t") for line in lines)
    ]
    simulated = contexts(2 * len(written), seed=0)
    return list(chain.from_iterable(zip(written, simulated[::2], simulated[1::2], strict=True)))
