"""``openrlhf-qs log check``: is a click log fit for use, and what is in it.

The log is read in batches and each is boiled down to counts, so memory does not grow with it: what must be compared
over the whole log (ids, conversations, users) is hashed to 8 bytes and kept in a temporary file, and propensities by
suggestions that moved are estimated from a sample of the conversations.
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from openrlhf_qs.clicks import repeats
from openrlhf_qs.clicks.batches import ENGINES, Batch, Problem, Problems, log_files, map_log
from openrlhf_qs.clicks.click_log import ON_ERROR, clicks_by_position
from openrlhf_qs.clicks.propensity import (
    COUNTS,
    DEFAULT_METHOD,
    METHODS,
    Propensities,
    added_up,
    estimate,
    shown_counts,
)
from openrlhf_qs.clicks.repeats import HeavyUser, heavy_users, row_hashes
from openrlhf_qs.clicks.rows import contexts

MAX_COUNTS = 2_000_000  # rows of the sample that propensities are estimated from
MAX_HASHES = 4_000_000  # compared at once
SHOWN_USERS = 5  # with the most rows


@dataclass(frozen=True)
class Summary:
    """What is kept of a batch.

    Attributes:
        positions: see :func:`openrlhf_qs.clicks.click_log.clicks_by_position`.
        n_impressions, n_clicked, n_repeating: rows, rows with a click, rows that show one text twice.
        lines: of the good rows, from 1 in the batch; with ``ids`` in the same order.
        ids, conversations, users: hashes; of users each once.
        counts: see :func:`openrlhf_qs.clicks.propensity.shown_counts`.
        rows: hashes of all but the id, see :func:`openrlhf_qs.clicks.repeats.row_hashes`.
        heavy: users with many rows.
    """

    positions: pl.DataFrame
    n_impressions: int
    n_clicked: int
    n_repeating: int
    policies: dict[str, int]
    first: datetime | None
    last: datetime | None
    lines: np.ndarray
    ids: np.ndarray
    conversations: np.ndarray
    users: np.ndarray
    counts: pl.DataFrame
    rows: np.ndarray
    heavy: list[HeavyUser]
    problems: list[Problem]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log",
        nargs="+",
        metavar="FILE",
        help="click log: .jsonl or .json (one impression a line), either with .gz, or .parquet; globs too",
    )
    parser.add_argument(
        "--on_error",
        choices=ON_ERROR,
        default="raise",
        help=f"what to do about bad rows. {_choices(ON_ERROR)}; default raise",
    )
    parser.add_argument("--engine", choices=ENGINES, default="polars", help=f"{_choices(ENGINES)}; default polars")
    parser.add_argument(
        "--propensity",
        choices=METHODS,
        default=DEFAULT_METHOD,
        help=f"how it is estimated how much each position is looked at. {_choices(METHODS)}; default {DEFAULT_METHOD}",
    )
    parser.add_argument("--json", action="store_true", help="print the description as JSON")


def run(args: argparse.Namespace) -> None:
    """Check the log and print what is in it; ValueError names bad rows."""
    label = "" if args.json else "checking"
    found = check_log(args.log, args.on_error, args.engine, args.propensity, label)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        Console(markup=False, emoji=False).print(_table(found))


def check_log(
    paths: Sequence[str | Path],
    on_error: str = "raise",
    engine: str = "polars",
    propensity: str = DEFAULT_METHOD,
    label: str = "",
) -> dict[str, Any]:
    """Check a log and describe it, in constant memory.

    Args:
        paths, on_error, engine: as for :func:`openrlhf_qs.clicks.click_log.read_click_log`. A row whose
            impression_id was seen before is counted as skipped, but is in the figures.
        propensity: one of :data:`openrlhf_qs.clicks.propensity.METHODS`.
        label: of the progress bar; empty shows none.

    Returns:
        Ready for JSON: ``files``, ``n_impressions``, ``n_conversations`` (different ones), ``n_users``, ``n_clicks``,
        ``clicked_share`` (of the impressions, those with a click), ``ctr``, ``positions`` (one each: ``n_shown``,
        ``n_clicked``, ``ctr``, ``examination`` and ``examination_ci95`` relative to the top), ``propensity`` (the
        method, or why it failed), ``click_entropy`` (bits, of where clicks fall; ``click_entropy_max`` where all
        places get as many), ``n_repeating`` (impressions that show one text twice), ``n_doubles`` (rows
        that are there before, but for their id), ``policies``, ``first``, ``last``, ``skipped``, the bad rows by
        reason, and ``findings``, sentences on what speaks against the log or the estimate.

    Raises:
        ValueError: the first 20 bad rows, unless ``on_error`` is ``skip``; files of different schemas; no good row.
    """
    files = log_files(paths)
    total = Total(files)
    for result in map_log(files, summarise, engine, label):
        total.add(result.path, result.line, result.value)
    return total.description(on_error, propensity)


def summarise(batch: Batch) -> Summary:
    """Boil a batch down to counts and hashes."""
    rows = batch.rows
    return Summary(
        positions=clicks_by_position(rows),
        n_impressions=rows.height,
        n_clicked=int((rows["clicks"].list.max() == 1).sum()),
        n_repeating=int((rows["suggestions"].list.n_unique() < rows["suggestions"].list.len()).sum()),
        policies=dict(rows.group_by(pl.col("policy").fill_null("unknown")).len().iter_rows()),
        first=rows["timestamp"].min(),
        last=rows["timestamp"].max(),
        lines=rows["line"].to_numpy(),
        ids=rows["impression_id"].hash().to_numpy(),
        conversations=contexts(rows).to_numpy(),
        users=rows["user_id"].drop_nulls().unique().hash().to_numpy(),
        counts=shown_counts(rows),
        rows=row_hashes(rows).to_numpy(),
        heavy=heavy_users(rows),
        problems=batch.problems,
    )


class Total:
    """The sum of the summaries of all batches of a log, in constant memory."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)
        self._problems = Problems(files)
        self._n_impressions = self._n_clicked = self._n_repeating = 0
        self._policies: Counter[str] = Counter()
        self._times: list[datetime] = []  # the first and the last
        self._shown, self._clicked = np.zeros(0, int), np.zeros(0, int)
        self._ids, self._conversations, self._users = SpilledHashes(), SpilledHashes(), SpilledHashes()
        self._rows, self._heavy = SpilledHashes(), Counter[str]()
        self._lines = SpilledHashes()  # of the rows whose ids are in _ids
        self._places: list[tuple[int, int, int]] = []  # of each batch: rows before it, its file, lines before it
        self._counts, self._keep_below = pl.DataFrame(schema=COUNTS), 2**64 - 1

    def add(self, path: str, line: int, summary: Summary) -> None:
        """Add the summary of a batch that comes after ``line`` lines of ``path``."""
        self._problems.add(path, line, summary.problems)
        self._places.append((self._n_impressions, self._files.index(path), line))
        self._n_impressions += summary.n_impressions
        self._n_clicked += summary.n_clicked
        self._n_repeating += summary.n_repeating
        self._policies.update(summary.policies)
        times = [time for time in (*self._times, summary.first, summary.last) if time]
        self._times = [min(times), max(times)] if times else []
        self._shown = _sum(self._shown, summary.positions["n_shown"].to_numpy())
        self._clicked = _sum(self._clicked, summary.positions["n_clicked"].to_numpy())
        self._lines.add(summary.lines)
        self._ids.add(summary.ids)
        self._conversations.add(summary.conversations)
        self._users.add(summary.users)
        self._rows.add(summary.rows)
        self._heavy.update(dict(summary.heavy))
        self._add_counts(summary.counts)

    def description(self, on_error: str, propensity: str) -> dict[str, Any]:
        """See :func:`check_log`."""
        for again, first in self._ids.repeated():
            self._problems.add_duplicate(*self._place(again), *self._place(first))
        if on_error == "raise":
            self._problems.raise_any()
        skipped = dict(self._problems.counts)
        if not self._n_impressions:
            raise ValueError(f"{self._files[0]}: no good row; bad ones by reason: {skipped or 'none'}")
        method, examination, findings = propensity, None, []
        try:
            examination = estimate(added_up(self._counts), propensity)
            method, findings = examination.method, list(examination.findings)
        except ValueError as error:
            method = f"{propensity}: {error}"
        n_users, n_doubles = self._users.n_distinct(), self._n_impressions - self._rows.n_distinct()
        heavy = [HeavyUser(*one) for one in self._heavy.most_common(SHOWN_USERS)]
        n_clicks, share = int(self._clicked.sum()), self._clicked / max(self._clicked.sum(), 1)
        return {
            "files": self._files,
            "n_impressions": self._n_impressions,
            "n_conversations": self._conversations.n_distinct(),
            "n_users": n_users,
            "n_doubles": n_doubles,
            "n_clicks": n_clicks,
            "clicked_share": self._n_clicked / self._n_impressions,
            "ctr": n_clicks / int(self._shown.sum()),
            "positions": [self._position(index, examination) for index in range(len(self._shown))],
            "propensity": method,
            "click_entropy": float(-(share[share > 0] * np.log2(share[share > 0])).sum()),
            "click_entropy_max": math.log2(len(share)),
            "n_repeating": self._n_repeating,
            "policies": dict(sorted(self._policies.items())),
            "first": self._times[0].isoformat(),
            "last": self._times[1].isoformat(),
            "skipped": skipped,
            "findings": [*repeats.findings(self._n_impressions, n_users, n_doubles, heavy), *findings],
        }

    def _position(self, index: int, examination: Propensities | None) -> dict[str, Any]:
        shown, clicked = int(self._shown[index]), int(self._clicked[index])
        return {
            "n_shown": shown,
            "n_clicked": clicked,
            "ctr": clicked / shown,
            "examination": examination and examination.values[index],
            "examination_ci95": examination and [examination.low[index], examination.high[index]],
        }

    def _place(self, row: int) -> tuple[int, int]:
        """File and line of a good row."""
        before = bisect.bisect_right(self._places, row, key=lambda place: place[0]) - 1
        _, file, line = self._places[before]
        return file, line + self._lines[row]

    def _add_counts(self, counts: pl.DataFrame) -> None:
        """Keep those of a sample of the contexts, which is halved whenever it grows too large."""
        counts = counts.filter(pl.col("context") <= self._keep_below)
        self._counts = pl.concat([self._counts, counts], rechunk=False)
        if self._counts.height > MAX_COUNTS:
            self._counts = added_up(self._counts)
        while self._counts.height > MAX_COUNTS // 2:
            self._keep_below //= 2
            self._counts = self._counts.filter(pl.col("context") <= self._keep_below)


class SpilledHashes:
    """Any number of 8-byte numbers in a temporary file; ``hashes[n]`` is the one that was added as the ``n``-th."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()
        self._n = 0

    def add(self, hashes: np.ndarray) -> None:
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(hashes, dtype=np.uint64).tobytes())
        self._n += len(hashes)

    def __getitem__(self, row: int) -> int:
        self._file.seek(8 * row)
        return int(np.frombuffer(self._file.read(8), dtype=np.uint64)[0])

    def n_distinct(self) -> int:
        return sum(pl.Series(hashes).n_unique() for hashes, _ in self._shares())

    def repeated(self) -> list[tuple[int, int]]:
        """(row, the first row with the same number), in order, of all that were there before."""
        found = []
        for hashes, rows in self._shares():
            if pl.Series(hashes).n_unique() == len(hashes):
                continue
            order = np.argsort(hashes, kind="stable")
            hashes, rows = hashes[order], rows[order]
            new = np.concatenate([[True], hashes[1:] != hashes[:-1]])
            first = rows[np.flatnonzero(new)][np.cumsum(new) - 1]
            found += zip(rows[~new].tolist(), first[~new].tolist(), strict=True)
        return sorted(found)

    def _shares(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All numbers with their rows, in shares of about ``MAX_HASHES`` that have no number in common."""
        n_shares = self._n // MAX_HASHES + 1
        for share in range(n_shares):
            hashes, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
            for start in range(0, self._n, MAX_HASHES):
                self._file.seek(8 * start)
                read = np.frombuffer(self._file.read(8 * MAX_HASHES), dtype=np.uint64)
                mine = np.flatnonzero(read % n_shares == share) if n_shares > 1 else np.arange(len(read))
                hashes.append(read[mine])
                rows.append(mine + start)
            if self._n:
                yield np.concatenate(hashes), np.concatenate(rows)


def _sum(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    n = max(len(one), len(other))
    return np.pad(one, (0, n - len(one))) + np.pad(other, (0, n - len(other)))


def _table(found: dict[str, Any]) -> Table:
    """What :func:`check_log` found, for the terminal."""
    table = Table(title=f"click log: {', '.join(found['files'])}", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("", overflow="fold")
    table.add_row("impressions", f"{found['n_impressions']:,}", f"{found['first']} to {found['last']}")
    table.add_row("conversations", f"{found['n_conversations']:,}", "different ones")
    table.add_row("users", f"{found['n_users']:,}", "")
    table.add_row("clicks", f"{found['n_clicks']:,}", f"{found['clicked_share']:.1%} of the impressions have one")
    table.add_row("click-through rate", f"{found['ctr']:.4f}", "clicks per suggestion shown")
    entropy, most = found["click_entropy"], found["click_entropy_max"]
    table.add_row("click entropy", f"{entropy:.3f}", f"bits, of where clicks fall; {most:.3f} if places were alike")
    table.add_row("repetitions", f"{found['n_repeating']:,}", "impressions that show one text twice")
    table.add_section()
    for number, place in enumerate(found["positions"], start=1):
        looked_at = ""
        if place["examination"]:
            low, high = place["examination_ci95"]
            looked_at = f"looked at {place['examination']:.3f} ({low:.3f} to {high:.3f}) times as often as the top"
        table.add_row(f"position {number}", f"{place['ctr']:.4f}", looked_at if number > 1 else "click-through rate")
    table.add_row("", "", f"by {found['propensity']}; 95 % intervals")
    table.add_section()
    for policy, n in found["policies"].items():
        table.add_row("policy", f"{n:,}", policy)
    for reason, n in found["skipped"].items():
        table.add_row("skipped", f"{n:,}", reason)
    if found["findings"]:
        table.add_section()
    for sentence in found["findings"]:
        table.add_row("finding", "", sentence)
    return table


def _choices(choices: dict[str, str]) -> str:
    return "; ".join(f"{name}: {what}" for name, what in choices.items()).replace("%", "%%")
