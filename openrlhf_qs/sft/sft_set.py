"""The SFT set: of each conversation's candidates those that an SFT dataset chose.

In: rows ``{"conversation", "candidates"}`` of a click log (:mod:`openrlhf_qs.clicks.candidates`), or of a teacher's
samples. Of these :func:`assemble` makes ``{"conversation", "suggestions", "chosen_from"}`` and a report; the stage
``sft`` calls it, and so does ``openrlhf-qs assemble``, which writes both for a look before any training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import read_json_lines, write_json_lines, write_whole
from openrlhf_qs.form.prompt import last_question
from openrlhf_qs.form.task import SUGGEST, Task
from openrlhf_qs.registry import SFT_DATASETS, add_plugin_arguments, check_options, load_plugins, parse_options
from openrlhf_qs.sft.candidates import shortened

N_SAMPLES = 10  # assembled rows that the report shows with what they were chosen from
SHOWN_SAMPLES = 3


def assemble(
    choose: Callable[[Sequence[Mapping[str, Any]], int], list[list[str] | None]],
    rows: Sequence[Mapping[str, Any]],
    task: Task = SUGGEST,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Let an SFT dataset choose the suggestions of a response for each row.

    Args:
        choose: the plugin; where it has a ``report``, that goes into ours.
        rows: ``{"conversation", "candidates"}``.
        task: what the response is to be.

    Returns:
        The rows that have enough, ``{"conversation", "suggestions", "chosen_from": texts}``, and the report: counts of
        rows, what the plugin reports, and the first ``N_SAMPLES`` assembled rows.

    Raises:
        ValueError: no row, a row without a conversation, or an answer that is no well-formed response.
    """
    for number, row in enumerate(rows, start=1):
        if not row.get("conversation"):
            raise ValueError(f"row {number} has no conversation; give a list of messages, at least one")
    answers = choose(rows, task.n)
    if len(answers) != len(rows):
        raise ValueError(f"the SFT dataset gave {len(answers)} answers to {len(rows)} rows; give one per row, or None")
    assembled = []
    for number, (row, suggestions) in enumerate(zip(rows, answers, strict=True), start=1):
        if suggestions is None:
            continue
        parsed = task.read(task.write(suggestions))
        if not parsed.well_formed:
            raise ValueError(
                f"row {number}: the SFT dataset's answer is not a response: {parsed.problem}; one that teaches "
                "suggestions one by one, as `single` for the teacher of recipes/distil.sh, assembles none"
            )
        texts = [candidate["text"] for candidate in row["candidates"]]
        assembled.append({"conversation": row["conversation"], "suggestions": suggestions, "chosen_from": texts})
    report = {"n_rows": len(rows), "n_assembled": len(assembled), **choose.report}
    return assembled, report | {"samples": assembled[:N_SAMPLES]}


def write_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """The report of :func:`assemble` as JSON."""
    write_whole(Path(path), json.dumps(report, ensure_ascii=False, indent=1) + "\n")


def report_table(title: str, report: Mapping[str, Any]) -> Table:
    """What was kept, what was dropped and why, with an example of each reason."""
    table = Table(title=title)
    table.add_column("")
    table.add_column("number", justify="right")
    table.add_column("share", justify="right")
    table.add_column("example", overflow="fold")
    counts = report.get("rows") or {
        "assembled": report["n_assembled"],
        "dropped": report["n_rows"] - report["n_assembled"],
    }
    for part, reasons in {"rows": counts, "candidates": report.get("candidates", {})}.items():
        n = sum(reasons.values())
        table.add_row(part, f"{n:,}", "", "", style="bold")
        for reason, count in reasons.items():
            examples = report["examples"].get(reason, []) if part == "candidates" else []
            table.add_row(f"  {reason}", f"{count:,}", f"{count / n:.1%}", _in_words(examples))
        table.add_section()
    return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``openrlhf-qs assemble``."""
    parser.add_argument(
        "file", metavar="FILE", help="JSON Lines of conversations and candidates, such as data/sft.jsonl"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="JSON Lines to write; the report goes beside it, as .report.json"
    )
    parser.add_argument("--sft_dataset", default="diverse", help="plugin that chooses them; default diverse")
    parser.add_argument("--n_suggestions", type=int, default=3, help="suggestions per response, 1 to 8; default 3")
    add_plugin_arguments(parser, options="of the plugin, as in diverse.method=dpp")


def run(args: argparse.Namespace) -> None:
    """Assemble the file, write the rows and the report, print both."""
    load_plugins(args.plugin)
    options = parse_options(args.option)
    check_options(options)
    choose = SFT_DATASETS.create(args.sft_dataset, **options.get(args.sft_dataset, {}))
    rows = read_json_lines(args.file)
    try:
        assembled, report = assemble(choose, rows, Task(args.n_suggestions))
    except ValueError as error:
        raise ValueError(f"{args.file}: {error}") from None
    out = Path(args.out)
    write_json_lines(out, assembled)
    write_report(out.with_suffix(".report.json"), {"sft_dataset": args.sft_dataset, "options": options, **report})
    for sample in report["samples"][:SHOWN_SAMPLES]:
        print_table(_sample_table(sample))
    print_table(report_table(f"assemble: {args.file} to {out}", report))


def _sample_table(sample: Mapping[str, Any]) -> Table:
    question = last_question(sample["conversation"])
    table = Table("", "candidate", title=shortened(question))
    taken = [(str(number), text) for number, text in enumerate(sample["suggestions"], start=1)]
    left = [("", text) for text in sample["chosen_from"] if text.strip() not in sample["suggestions"]]
    for number, text in taken + left:
        table.add_row(number, shortened(text), style="bold" if number else "dim")
    return table


def _in_words(examples: Sequence[Mapping[str, Any]]) -> str:
    if not examples:
        return ""
    because = examples[0].get("because_of")
    return examples[0]["text"] + (f"  (there is: {because})" if because else "")
