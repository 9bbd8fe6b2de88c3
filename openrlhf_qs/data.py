"""The stage ``data``: a click log to everything the later stages read.

In: a click log. Out, under ``--out``:

- ``sft.jsonl``: conversations of the training split with all their suggestions; an SFT dataset plugin picks three
- ``pairs.jsonl``, ``pairs.heldout.jsonl``: preference pairs of the training and of the held-out split
- ``prompts.jsonl``: one prompt for each conversation of the training split; its ``label`` is the conversation as JSON
- ``fusion.jsonl``, ``heldout.jsonl``: the impressions of those splits, as a click log
- ``log.json``: what was read, written and left out, and the examination propensities
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from openrlhf_qs.click_log import (
    Splits,
    conversation_keys,
    describe,
    read_click_log,
    split_by_conversation,
    write_click_log,
)
from openrlhf_qs.files import write_json_lines
from openrlhf_qs.pairs import POSITION_POLICIES, examination_propensities, preference_pairs
from openrlhf_qs.prompt import policy_messages
from openrlhf_qs.sft_set import sft_candidates


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log",
        required=True,
        metavar="FILE",
        help="click log: .jsonl or .json (one impression a line), either with .gz, or .parquet",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to; files of these names go")
    parser.add_argument(
        "--heldout_share",
        type=float,
        default=0.2,
        help="share of the conversations that no training sees, for the evaluation; default 0.2",
    )
    parser.add_argument(
        "--fusion_share",
        type=float,
        default=0.1,
        help="share of the conversations kept to fit the weights of the rewards, which must not be those that the "
        "reward model was trained on; default 0.1",
    )
    parser.add_argument(
        "--position_policy",
        choices=POSITION_POLICIES,
        default="ipw",
        help="what is made of people looking at the top first. "
        + "; ".join(f"{name}: {what}" for name, what in POSITION_POLICIES.items())
        + "; default ipw",
    )
    parser.add_argument("--seed", type=int, default=0, help="another one gives another split; default 0")


def run(args: argparse.Namespace) -> None:
    """Read the log, split it, write every file; ValueError where a split has nothing to offer."""
    console, out = Console(), Path(args.out)
    with console.status("reading the click log") as status:
        log = read_click_log(args.log)
        splits = split_by_conversation(log, args.heldout_share, args.fusion_share, args.seed)
        _check_clicks(splits)
        propensities = examination_propensities(splits.train)

        status.update("making preference pairs")
        pairs, pairs_heldout = (
            preference_pairs(split, args.position_policy, propensities) for split in (splits.train, splits.heldout)
        )
        status.update("gathering SFT candidates")
        candidates = sft_candidates(splits.train, propensities)
        prompts = list(_prompts(splits.train))

        status.update("writing")
        write_json_lines(out / "sft.jsonl", candidates)
        write_json_lines(out / "pairs.jsonl", pairs.iter_rows(named=True))
        write_json_lines(out / "pairs.heldout.jsonl", pairs_heldout.iter_rows(named=True))
        write_json_lines(out / "prompts.jsonl", prompts)
        write_click_log(splits.fusion, out / "fusion.jsonl")
        write_click_log(splits.heldout, out / "heldout.jsonl")
        summary = {
            "options": {name: getattr(args, name) for name in ("log", "position_policy", "seed")}
            | {"heldout_share": args.heldout_share, "fusion_share": args.fusion_share},
            "log": describe(log),
            "splits": {name: describe(split) for name, split in splits._asdict().items()},
            "propensities": propensities,
            "written": {
                "sft.jsonl": len(candidates),
                "pairs.jsonl": pairs.height,
                "pairs.heldout.jsonl": pairs_heldout.height,
                "prompts.jsonl": len(prompts),
                "fusion.jsonl": splits.fusion.height,
                "heldout.jsonl": splits.heldout.height,
            },
            "left_out": {
                "conversations_without_click": len(prompts) - len(candidates),
                "impressions_without_pair": splits.train.height - pairs["impression_id"].n_unique(),
                "impressions_without_pair_heldout": splits.heldout.height - pairs_heldout["impression_id"].n_unique(),
            },
        }
        write_json_lines(out / "log.json", [summary])  # last: where it is, all the others are
    console.print(_table(summary, out))


def _check_clicks(splits: Splits) -> None:
    for name, split in splits._asdict().items():
        if not split["clicks"].list.max().sum():
            n_conversations = sum(conversation_keys(part).n_unique() for part in splits)
            raise ValueError(
                f"no click in the {name} split, {split.height} impressions; {n_conversations} conversations in all: "
                "give a larger log, larger shares or another --seed"
            )


def _prompts(log: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """One row for each different conversation, in the order they are first seen."""
    first_of_each = log.filter(conversation_keys(log).is_first_distinct())
    for conversation in first_of_each["conversation"].to_list():
        label = json.dumps(conversation, ensure_ascii=False)
        yield {"prompt": policy_messages(conversation), "label": label}


def _table(summary: dict[str, Any], out: Path) -> Table:
    """What was read, written and left out; the numbers are those of ``log.json``."""
    log, splits, written, left_out = (summary[part] for part in ("log", "splits", "written", "left_out"))

    def numbers(part: dict[str, Any]) -> str:
        return f"{part['n_conversations']:,} conversations, {part['n_impressions']:,} impressions"

    ctr = " ".join(f"{rate:.3f}" for rate in log["ctr_by_position"])
    policy = summary["options"]["position_policy"]
    table = Table(title=f"data: {summary['options']['log']} to {out}", title_justify="left")
    table.add_column("")
    table.add_column("rows", justify="right")
    table.add_column("what", overflow="fold")
    table.add_row("read", f"{log['n_impressions']:,}", f"{numbers(log)}; click-through by position {ctr}")
    table.add_section()
    for name, what in {
        "sft.jsonl": "conversations with their candidates",
        "pairs.jsonl": f"preference pairs, position policy {policy}",
        "pairs.heldout.jsonl": "preference pairs never trained on",
        "prompts.jsonl": f"train: {numbers(splits['train'])}",
        "fusion.jsonl": f"fusion: {numbers(splits['fusion'])}",
        "heldout.jsonl": f"heldout: {numbers(splits['heldout'])}",
    }.items():
        table.add_row(name, f"{written[name]:,}", what)
    table.add_section()
    reason = "all or none clicked" if policy != "skip_above" else "no click below one passed over"
    table.add_row("left out of sft", f"{left_out['conversations_without_click']:,}", "conversations without any click")
    table.add_row("left out of pairs", f"{left_out['impressions_without_pair']:,}", f"train impressions: {reason}")
    table.add_row("", f"{left_out['impressions_without_pair_heldout']:,}", f"held-out impressions: {reason}")
    return table
