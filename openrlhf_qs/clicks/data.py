"""The stage ``data``: a click log to everything the later stages read.

In: a click log. Out, under ``--out``:

- ``sft.jsonl``: conversations of the training split with all their suggestions; an SFT dataset plugin picks some
- ``preferences.jsonl``, ``preferences.calibration.jsonl``, ``preferences.heldout.jsonl``: impressions with their pairs
  (:mod:`openrlhf_qs.clicks.preferences`), of the training split, of the one that the fusion weights come from, and of
  the held-out split
- ``prompts.jsonl``: one prompt for each conversation of the training split; its ``label`` is the request as JSON
- ``fusion.jsonl``, ``heldout.jsonl``: the impressions of those splits, as a click log
- ``log.json``: what was read, skipped, written and left out, and the examination propensities; it is written last
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from openrlhf_qs.clicks.batches import ENGINES
from openrlhf_qs.clicks.candidates import click_candidates
from openrlhf_qs.clicks.click_log import ON_ERROR, describe, read_click_log, write_click_log
from openrlhf_qs.clicks.preferences import (
    DEFAULT_POLICY,
    POSITION_POLICIES,
    click_rate_preferences,
    preferences,
    write_preferences,
)
from openrlhf_qs.clicks.propensity import DEFAULT_METHOD, METHODS, PLACES, Propensities, estimate_log
from openrlhf_qs.clicks.repeats import findings, heavy_users, row_hashes, without_repeats
from openrlhf_qs.clicks.rows import contexts
from openrlhf_qs.clicks.splits import SPLITS, Splits, split_log
from openrlhf_qs.files.printable import from_here, print_table
from openrlhf_qs.files.run_folder import DataFolder
from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.form.keys import conversation_keys
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import Task, add_task_arguments, task_of

PAIR_SOURCES = {
    "impressions": "within an impression, the clicked suggestion with the others",
    "click_rates": "within a conversation, click-through rates over all its impressions, with soft labels",
}


OPTIONS = (
    "log",
    "position_policy",
    "seed",
    "heldout_share",
    "fusion_share",
    "on_error",
    "engine",
    "split",
    "time_cuts",
    "propensity",
    "pairs_from",
    "max_per_user",
    "drop_doubles",
    "n_suggestions",
    "prompt_template",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log",
        required=True,
        nargs="+",
        metavar="FILE",
        help="click log, in one file or several (globs work too): .jsonl or .json (one impression per line), "
        "optionally .gz, or .parquet",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="output folder; existing files with these names are replaced"
    )
    parser.add_argument(
        "--heldout_share",
        type=float,
        default=0.2,
        help="share of conversations reserved for the evaluation, which no training sees; default 0.2",
    )
    parser.add_argument(
        "--fusion_share",
        type=float,
        default=0.1,
        help="share of conversations reserved for fitting the reward weights; the reward model must not have "
        "been trained on them; default 0.1",
    )
    parser.add_argument(
        "--position_policy",
        choices=POSITION_POLICIES,
        default=DEFAULT_POLICY,
        help="how pairs within an impression account for position bias. "
        + "; ".join(f"{name}: {what}" for name, what in POSITION_POLICIES.items())
        + f"; default {DEFAULT_POLICY}",
    )
    for flag, choices, default, what in (
        ("--on_error", ON_ERROR, "raise", "what to do with bad rows"),
        ("--engine", ENGINES, "polars", "where the log is read and checked"),
        ("--split", SPLITS, "conversation", "what no two of the splits share"),
        ("--propensity", METHODS, DEFAULT_METHOD, "estimator of each position's examination"),
        ("--pairs_from", PAIR_SOURCES, "impressions", "what the preference pairs compare"),
    ):
        listed = "; ".join(f"{name}: {meaning}" for name, meaning in choices.items())
        parser.add_argument(flag, choices=choices, default=default, help=f"{what}. {listed}; default {default}")
    parser.add_argument(
        "--time_cuts",
        nargs=2,
        type=_time,
        metavar=("FUSION", "HELDOUT"),
        help="when these two splits begin under --split time, as in 2025-01-31T12:00:00Z; default: where the "
        "shares fall",
    )
    parser.add_argument(
        "--max_per_user",
        type=int,
        default=0,
        metavar="N",
        help="impressions kept per user, the earliest ones, because a bot has many; default 0, no limit",
    )
    parser.add_argument(
        "--drop_doubles", action="store_true", help="keep only the first of rows that differ only in their id"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another split; default 0")
    add_task_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Read the log, split it, write every file; ValueError where a split has nothing to offer."""
    console, out, task = Console(), DataFolder(args.out), task_of(args)
    with console.status("reading the click log") as status:
        skipped: Counter[str] = Counter()
        log, dropped = without_repeats(
            read_click_log(args.log, args.on_error, args.engine, skipped), args.max_per_user, args.drop_doubles
        )
        skipped.update(dropped)
        splits, moved = split_log(log, args.split, args.heldout_share, args.fusion_share, args.seed, args.time_cuts)
        _check_clicks(splits)
        n_positions = log["clicks"].list.len().max()
        examination = estimate_log(splits.train, args.propensity, n_positions)

        status.update("making preference pairs")
        files = (out.preferences, out.preferences_heldout, out.preferences_calibration)
        of_split = {file: _preferences(split, args, examination) for file, split in zip(files, splits, strict=True)}
        status.update("gathering SFT candidates")
        candidates = click_candidates(splits.train, examination.looks, examination.trust)
        prompts = list(_prompts(splits.train, task))

        status.update("writing")
        write_json_lines(out.sft, candidates)
        for file, table in of_split.items():
            write_preferences(file, table)
        write_json_lines(out.prompts, prompts)
        write_click_log(splits.fusion, out.fusion)
        write_click_log(splits.heldout, out.heldout)
        summary = {
            "options": {name: _plain(getattr(args, name)) for name in OPTIONS},
            "log": describe(log),
            "splits": {name: describe(split) for name, split in splits._asdict().items()},
            "propensities": examination.values,
            "propensities_ci95": list(zip(examination.low, examination.high, strict=True)),
            **{name: list(getattr(examination, name)) for name in PLACES},
            "propensity": examination.method,
            "findings": [*_repeats(log), *examination.findings],
            "skipped": dict(skipped),
            "written": {
                out.sft.name: len(candidates),
                **{file.name: table.height for file, table in of_split.items()},
                out.prompts.name: len(prompts),
                out.fusion.name: splits.fusion.height,
                out.heldout.name: splits.heldout.height,
            },
            "n_pairs": {file.name: int(table["pairs"].list.len().sum()) for file, table in of_split.items()},
            "left_out": {
                "conversations_without_click": len(prompts) - len(candidates),
                "impressions_of_two_splits": moved["n_left_out"],
            },
            "conversations_over_two_splits": moved["n_spanning"],
        }
        write_json_lines(out.log, [summary])  # last: where it is, all the others are
    print_table(_table(summary, out))


def _preferences(log: pl.DataFrame, args: argparse.Namespace, examination: Propensities) -> pl.DataFrame:
    if args.pairs_from == "click_rates":
        return click_rate_preferences(log, examination.looks, trust=examination.trust)
    more = {name: getattr(examination, name) for name in PLACES}
    return preferences(log, args.position_policy, examination.values, **more)


def _repeats(log: pl.DataFrame) -> list[str]:
    """What is to be said of doubles and of users with too many rows."""
    n_doubles = log.height - row_hashes(log).n_unique()
    n_of_each = log["user_id"].drop_nulls().value_counts()["count"]
    return findings(log.height, n_of_each.median() or 0, n_doubles, heavy_users(log))


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _plain(value: Any) -> Any:
    """An option as JSON has it; one file as its name alone."""
    if isinstance(value, list):
        return value[0] if len(value) == 1 else [str(one) for one in value]
    return value


def _check_clicks(splits: Splits) -> None:
    for name, split in splits._asdict().items():
        if not split["clicks"].list.max().sum():
            n_conversations = sum(conversation_keys(part["conversation"]).n_unique() for part in splits)
            raise ValueError(
                f"no click in the {name} split, {split.height} impressions; {n_conversations} conversations in all: "
                "give a larger log, larger shares or another --seed"
            )


def _prompts(log: pl.DataFrame, task: Task) -> Iterator[dict[str, Any]]:
    """One row for each different conversation, in the order they are first seen, with the user who had it first."""
    first_of_each = log.filter(contexts(log).is_first_distinct())
    for conversation, user_id, features in first_of_each.select("conversation", "user_id", "features").iter_rows():
        request = Request(conversation, user_id, json.loads(features or "{}"))
        yield {"prompt": task.messages(conversation), "label": request.label()}


def _table(summary: dict[str, Any], out: DataFolder) -> Table:
    """What was read, written and left out; the numbers are those of ``log.json``."""
    log, splits, written, left_out = (summary[part] for part in ("log", "splits", "written", "left_out"))

    def numbers(part: dict[str, Any]) -> str:
        return f"{part['n_conversations']:,} conversations, {part['n_impressions']:,} impressions"

    ctr = " ".join(f"{rate:.3f}" for rate in log["ctr_by_position"])
    policy = summary["options"]["position_policy"]
    files = summary["options"]["log"]
    read = ", ".join(map(from_here, [files] if isinstance(files, str) else files))
    table = Table(title=f"data: {read} to {from_here(out.path)}")
    table.add_column("")
    table.add_column("rows", justify="right")
    table.add_column("what", overflow="fold")
    table.add_row("read", f"{log['n_impressions']:,}", f"{numbers(log)}; click-through by position {ctr}")
    table.add_section()
    source = {"impressions": "impressions", "click_rates": "conversations"}[summary["options"]["pairs_from"]]
    made = f"position policy {policy}" if source == "impressions" else "from click rates"
    n_pairs = {name: f"{n:,} pairs, {made}" for name, n in summary["n_pairs"].items()}
    for file, what in {
        out.sft: "conversations with their candidates",
        out.preferences: f"{source} with {n_pairs[out.preferences.name]}",
        out.preferences_calibration: f"{n_pairs[out.preferences_calibration.name]}: for GaRM's temperature",
        out.preferences_heldout: f"{n_pairs[out.preferences_heldout.name]}: never trained on",
        out.prompts: f"train: {numbers(splits['train'])}",
        out.fusion: f"fusion: {numbers(splits['fusion'])}",
        out.heldout: f"heldout: {numbers(splits['heldout'])}",
    }.items():
        table.add_row(file.name, f"{written[file.name]:,}", what)
    table.add_section()
    table.add_row("left out of sft", f"{left_out['conversations_without_click']:,}", "conversations without any click")
    if left_out["impressions_of_two_splits"]:
        table.add_row("left out", f"{left_out['impressions_of_two_splits']:,}", "impressions that join two splits")
    for reason, n in summary["skipped"].items():
        table.add_row("skipped", f"{n:,}", f"rows: {reason}")
    table.add_section()
    places = ", ".join(f"{value:.3f}" for value in summary["propensities"])
    table.add_row("examination", "", f"{places}, relative to the top position, by {summary['propensity']}")
    for sentence in summary["findings"]:
        table.add_row("finding", "", sentence)
    return table
