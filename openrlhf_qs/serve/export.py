"""The log of a server as a click log: ``openrlhf-qs log export``, for ``log check``, ``ab`` and ``CLICK_LOG=``.

In: one or several folders of ``openrlhf-qs serve --log``, while the server runs too. Out: JSON Lines or Parquet, one
impression a row. Answers without a suggestion are no impressions and stay out; of an id that is in several folders the
first counts, with the events of all.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import replacing, write_json_lines
from openrlhf_qs.serve.live_log import (
    CLICK_WINDOW_S,
    Event,
    Impression,
    clicks_of,
    existing,
    read_log,
    unjoined_events,
)

FORMATS = (".jsonl", ".parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log",
        nargs="+",
        metavar="DIR",
        help="folder of openrlhf-qs serve --log; several if there were several machines",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="click log to write, .jsonl or .parquet")
    parser.add_argument(
        "--click_window_s",
        type=float,
        default=CLICK_WINDOW_S,
        help="seconds after which a click no longer counts; default 86400",
    )
    parser.add_argument(
        "--seen_only_enable",
        action="store_true",
        help="only impressions that a client reported as shown, or that have a click or a next message",
    )


def run(args: argparse.Namespace) -> None:
    if Path(args.out).suffix not in FORMATS:
        raise ValueError(f"--out {args.out}: give .jsonl or .parquet")
    for folder in args.log:
        existing(folder)
    counts: Counter[str] = Counter()
    rows = click_log_rows(args.log, args.click_window_s, args.seen_only_enable, counts)
    if Path(args.out).suffix == ".parquet":
        _write_parquet(args.out, list(rows))
    else:
        write_json_lines(args.out, rows)
    table = Table("", "", title=args.out)
    for name in ("impressions", "clicks", "answers without a suggestion", "not known to be seen", "late clicks"):
        table.add_row(name, f"{counts[name]:,}")
    print_table(table)


def click_log_rows(
    folders: Sequence[str | Path], window_s: float, seen_only: bool, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows in the schema of :mod:`openrlhf_qs.clicks.click_log`; what is counted is added to ``counts``."""
    elsewhere: dict[str, list[Event]] = {}
    for folder in folders if len(folders) > 1 else ():
        for event in unjoined_events(folder):
            elsewhere.setdefault(event.impression, []).append(event)
    known: set[str] = set()
    for folder in folders:
        for impression, events in read_log(folder):
            if impression.id in known:
                continue
            if len(folders) > 1:
                known.add(impression.id)
            events = [*events, *elsewhere.get(impression.id, ())]
            if not impression.suggestions:
                counts["answers without a suggestion"] += 1
                continue
            if seen_only and not events:
                counts["not known to be seen"] += 1
                continue
            clicks = clicks_of(impression, events, window_s)
            counts["impressions"] += 1
            counts["clicks"] += sum(clicks)
            counts["late clicks"] += sum(one.kind == "clicked" and one.at - impression.at > window_s for one in events)
            yield as_row(impression, events, clicks)


def as_row(impression: Impression, events: Sequence[Event], clicks: Sequence[int]) -> dict[str, Any]:
    """One row of a click log; ``meta.heard`` says what is known of what became of it: nothing where the list is empty,
    as after a chat that went on nowhere."""
    heard = sorted({one.kind for one in events})
    known = {"user_id": impression.user, "log_prob": impression.log_prob}
    return {
        "impression_id": impression.id,
        "timestamp": datetime.fromtimestamp(impression.at, UTC).isoformat(),
        "conversation": impression.conversation,
        "suggestions": impression.suggestions,
        "clicks": list(clicks),
        "policy": impression.policy,
        **{name: value for name, value in known.items() if value is not None},
        "meta": impression.meta | {"heard": heard} | ({"chat": impression.chat} if impression.chat else {}),
    }


def _write_parquet(path: str, rows: list[dict[str, Any]]) -> None:
    import json

    import polars as pl

    from openrlhf_qs.clicks.click_log import SCHEMA

    table = pl.DataFrame(
        [
            row | {"timestamp": datetime.fromisoformat(row["timestamp"]), "meta": json.dumps(row["meta"])}
            for row in rows
        ],
        schema=SCHEMA,
    )
    with replacing(path) as temporary:
        table.write_parquet(temporary)
