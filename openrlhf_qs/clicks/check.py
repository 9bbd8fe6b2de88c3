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
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from rich.table import Table

from openrlhf_qs.clicks import repeats
from openrlhf_qs.clicks.batches import ENGINES, Batch, Problem, Problems, log_files, map_log
from openrlhf_qs.clicks.click_log import ON_ERROR, clicks_by_position
from openrlhf_qs.clicks.propensity import DEFAULT_METHOD, METHODS, Propensities, estimate
from openrlhf_qs.clicks.reading_on import VISITS, visits
from openrlhf_qs.clicks.repeats import MIN_ROWS, HeavyUser, frequent_texts, heavy_users, row_hashes
from openrlhf_qs.clicks.rows import contexts
from openrlhf_qs.clicks.shows import COUNTS, added_up, shows
from openrlhf_qs.clicks.verdicts import LEVELS, Verdict, verdicts, worst
from openrlhf_qs.files.printable import counted, print_table
from openrlhf_qs.files.whole import write_whole
from openrlhf_qs.form.keys import text_keys
from openrlhf_qs.form.language import in_users_language
from openrlhf_qs.form.prompt import Message, last_question
from openrlhf_qs.form.text import language, script
from openrlhf_qs.statistics.intervals import wilson_interval

MAX_COUNTS = 2_000_000  # rows of the sample that propensities are estimated from
MAX_HASHES = 4_000_000  # compared at once
SHOWN_USERS = 5  # with the most rows
N_READ = 200  # rows whose languages are looked at
CONTROL = r"[\x00-\x08\x0e-\x1b\x1f\x7f-\x9f\u{202d}\u{202e}]"  # moves a cursor, or turns the text behind it round
RARE = 0.01  # share of the users' messages below which a language is not named


class PolicyCounts(NamedTuple):
    """Of the impressions of one policy, n suggestions and c clicks each: their number and sums."""

    n_impressions: int
    n: int
    c: int
    cc: int
    cn: int
    nn: int


@dataclass(frozen=True)
class Summary:
    """What is kept of a batch.

    Attributes:
        positions: see :func:`openrlhf_qs.clicks.click_log.clicks_by_position`.
        n_impressions, n_clicked, n_repeating: rows, rows with a click, rows that show one text twice.
        n_control: rows with a suggestion in which ``CONTROL`` is found.
        fields: see :class:`openrlhf_qs.clicks.batches.Batch`.
        lines: of the good rows, from 1 in the batch; with ``ids`` in the same order.
        ids, conversations, users: hashes; of users those of the rows that have one.
        counts: see :func:`openrlhf_qs.clicks.shows.shows`.
        visits: see :func:`openrlhf_qs.clicks.reading_on.visits`.
        rows: hashes of all but the id, see :func:`openrlhf_qs.clicks.repeats.row_hashes`.
        heavy, texts: users with many rows, texts that many rows show.
        n_suggestions, n_turns: rows by how many suggestions they show, and by how many messages they have.
        n_pairs: of a clicked suggestion and one without a click.
        sample: hash, conversation and suggestions of the rows with the smallest hashes.
    """

    positions: pl.DataFrame
    n_impressions: int
    n_clicked: int
    n_repeating: int
    n_control: int
    fields: frozenset[str]
    policies: dict[str, PolicyCounts]
    first: datetime | None
    last: datetime | None
    lines: np.ndarray
    ids: np.ndarray
    conversations: np.ndarray
    users: np.ndarray
    counts: pl.DataFrame
    visits: pl.DataFrame
    rows: np.ndarray
    heavy: list[HeavyUser]
    texts: list[tuple[str, int]]
    n_suggestions: dict[int, int]
    n_turns: dict[int, int]
    n_pairs: int
    sample: list[tuple[int, list[Message], list[str]]]
    problems: list[Problem]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log",
        nargs="+",
        metavar="FILE",
        help="click log: .jsonl or .json (one impression per line), optionally .gz, or .parquet; globs work too",
    )
    parser.add_argument(
        "--on_error",
        choices=ON_ERROR,
        default="raise",
        help=f"what to do with bad rows. {_choices(ON_ERROR)}; default raise",
    )
    parser.add_argument("--engine", choices=ENGINES, default="polars", help=f"{_choices(ENGINES)}; default polars")
    parser.add_argument(
        "--propensity",
        choices=METHODS,
        metavar="NAME",
        default=DEFAULT_METHOD,
        help=f"estimator of each position's examination. {_choices(METHODS)}; default {DEFAULT_METHOD}",
    )
    parser.add_argument(
        "--fail_on",
        choices=LEVELS[LEVELS.index("warn") :],
        help="exit with status 1 if the worst finding is this or worse; default: status 0, whatever is found",
    )
    parser.add_argument("--json", action="store_true", help="print the description as JSON")
    parser.add_argument("--html", metavar="FILE", help="also write it as a page, with a chart of clicks by position")


def run(args: argparse.Namespace) -> None:
    """Check the log and print what is in it; ValueError names bad rows. Ends with status 1 as ``--fail_on`` asks."""
    label = "" if args.json else "checking"
    found = check_log(args.log, args.on_error, args.engine, args.propensity, label)
    if args.html:
        from openrlhf_qs.clicks.check_page import page  # matplotlib takes a second

        write_whole(Path(args.html), page(found))
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print_table(_table(found))
    if args.fail_on and LEVELS.index(found["verdict"]) >= LEVELS.index(args.fail_on):
        sys.exit(1)


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
        ``clicked_share`` (of the impressions, those with a click), ``ctr`` (here and below clicks per suggestion
        shown), ``positions`` (one each: ``n_shown``, ``n_clicked``, ``ctr``, ``ctr_ci95``, ``examination`` and
        ``examination_ci95`` relative to the top), ``propensity`` (the method, or why it failed), ``order``
        (``random``, ``chosen`` or ``unknown``), ``click_entropy`` (bits, over positions; ``click_entropy_max`` if
        all get equally many), ``n_repeating`` (impressions that show one text twice), ``n_control``
        (impressions with a suggestion in which ``CONTROL`` is found), ``fields`` (names that are in the files),
        ``n_doubles`` (rows that are there before, but for their id), ``n_conversations_again`` (those with more than
        one impression), ``n_pairs``, ``n_suggestions`` and ``n_turns`` (impressions by their number), ``languages``
        (of ``N_READ`` impressions at most: ``users``, shares of their last messages, ``scripts`` of the suggestions,
        ``other_than_users``, the share of the suggestions in another language or script), ``frequent_texts``,
        ``policies`` (each with ``n_impressions``, ``ctr`` and ``ctr_ci95``, impressions taken as independent),
        ``first``, ``last``, ``skipped``, the bad rows by reason, ``checks``, see
        :class:`openrlhf_qs.clicks.verdicts.Verdict`, ``verdict``, the worst of them, and ``findings``, the sentences
        of those that do not pass.

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
    rows = batch.rows.with_columns(context=contexts(batch.rows))
    repeating = rows["suggestions"].list.n_unique() < rows["suggestions"].list.len()
    return Summary(
        positions=clicks_by_position(rows),
        n_impressions=rows.height,
        n_clicked=int((rows["clicks"].list.max() == 1).sum()),
        n_repeating=int(repeating.sum()),
        n_control=int(rows["suggestions"].list.eval(pl.element().str.contains(CONTROL)).list.any().sum()),
        fields=batch.fields,
        policies=_by_policy(rows),
        first=rows["timestamp"].min(),
        last=rows["timestamp"].max(),
        lines=rows["line"].to_numpy(),
        ids=rows["impression_id"].hash().to_numpy(),
        conversations=rows["context"].to_numpy(),
        users=rows["user_id"].drop_nulls().hash().to_numpy(),
        counts=shows(rows),
        visits=visits(rows),
        rows=row_hashes(rows).to_numpy(),
        heavy=heavy_users(rows),
        texts=frequent_texts(rows, repeating),
        n_suggestions=dict(rows["suggestions"].list.len().value_counts().iter_rows()),
        n_turns=dict(rows["conversation"].list.len().value_counts().iter_rows()),
        n_pairs=_n_pairs(rows, repeating),
        sample=_sample(rows),
        problems=batch.problems,
    )


def _by_policy(rows: pl.DataFrame) -> dict[str, PolicyCounts]:
    n, c = pl.col("clicks").list.len().cast(pl.Int64), pl.col("clicks").list.sum().cast(pl.Int64)
    sums = (
        rows.lazy()
        .select(policy=pl.col("policy").fill_null("unknown"), n=n, c=c)
        .group_by("policy")
        .agg(pl.len(), *(one.sum().alias(name) for name, one in _PRODUCTS.items()))
    )
    return {policy: PolicyCounts(*counts) for policy, *counts in sums.collect().iter_rows()}


_N, _C = pl.col("n"), pl.col("c")
_PRODUCTS = {"n": _N, "c": _C, "cc": _C * _C, "cn": _C * _N, "nn": _N * _N}


def _n_pairs(rows: pl.DataFrame, repeating: pl.Series) -> int:
    """Where no text stands twice it is a product, which is faster."""
    n_clicked = rows["clicks"].list.sum().cast(pl.Int64)
    n_pairs = int((n_clicked * (rows["clicks"].list.len() - n_clicked)).filter(~repeating).sum())
    some = rows.select("suggestions", "clicks").filter(repeating & (n_clicked > 0))
    shown = some.with_row_index("row").explode("suggestions", "clicks")
    of_texts = shown.group_by("row", text_keys(shown["suggestions"])).agg(pl.col("clicks").cast(pl.Int64).sum())
    of_rows = of_texts.group_by("row").agg(clicked=pl.col("clicks").sum(), passed_over=(pl.col("clicks") == 0).sum())
    return n_pairs + int((of_rows["clicked"] * of_rows["passed_over"]).sum())


def _sample(rows: pl.DataFrame) -> list[tuple[int, list[Message], list[str]]]:
    hashes = rows["impression_id"].hash()
    few = pl.DataFrame({"hash": hashes, "row": pl.int_range(rows.height, eager=True)}).bottom_k(N_READ, by="hash")
    some = rows.select("conversation", "suggestions")[few["row"]]
    return list(zip(few["hash"].to_list(), some["conversation"].to_list(), some["suggestions"].to_list(), strict=True))


class Total:
    """The sum of the summaries of all batches of a log, in constant memory."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)
        self._problems = Problems(files)
        self._n_impressions = self._n_clicked = self._n_repeating = self._n_control = 0
        self._fields: set[str] = set()
        self._policies: dict[str, PolicyCounts] = {}
        self._n_suggestions, self._n_turns, self._texts = Counter[int](), Counter[int](), Counter[str]()
        self._n_pairs = 0
        self._sample: list[tuple[int, list[Message], list[str]]] = []
        self._times: list[datetime] = []  # the first and the last
        self._shown, self._clicked = np.zeros(0, int), np.zeros(0, int)
        self._ids, self._conversations, self._users = SpilledHashes(), SpilledHashes(), SpilledHashes()
        self._rows, self._heavy = SpilledHashes(), Counter[str]()
        self._lines = SpilledHashes()  # of the rows whose ids are in _ids
        self._places: list[tuple[int, int, int]] = []  # of each batch: rows before it, its file, lines before it
        self._counts, self._keep_below = pl.DataFrame(schema=COUNTS), 2**64 - 1
        self._visits, self._keep_users_below = pl.DataFrame(schema=VISITS), 2**64 - 1

    def add(self, path: str, line: int, summary: Summary) -> None:
        """Add the summary of a batch that comes after ``line`` lines of ``path``."""
        self._problems.add(path, line, summary.problems)
        self._places.append((self._n_impressions, self._files.index(path), line))
        self._n_impressions += summary.n_impressions
        self._n_clicked += summary.n_clicked
        self._n_repeating += summary.n_repeating
        self._n_control += summary.n_control
        self._fields |= summary.fields
        for policy, counts in summary.policies.items():
            before = self._policies.get(policy, (0,) * len(counts))
            self._policies[policy] = PolicyCounts(*map(sum, zip(before, counts, strict=True)))
        self._n_suggestions.update(summary.n_suggestions)
        self._n_turns.update(summary.n_turns)
        self._texts.update(dict(summary.texts))
        self._n_pairs += summary.n_pairs
        self._sample = sorted([*self._sample, *summary.sample], key=lambda one: one[0])[:N_READ]
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
        self._add_visits(summary.visits)

    def description(self, on_error: str, propensity: str) -> dict[str, Any]:
        """See :func:`check_log`."""
        for again, first in self._ids.repeated():
            self._problems.add_duplicate(*self._place(again), *self._place(first))
        if on_error == "raise":
            self._problems.raise_any(self._n_impressions)
        skipped = dict(self._problems.counts)
        if not self._n_impressions:
            where = self._files[0] if len(self._files) == 1 else f"{self._files[0]} and {len(self._files) - 1} more"
            found = f"it has no good rows; bad ones by reason: {skipped}" if skipped else "it has no rows"
            raise ValueError(f"{where}: {found}; give a click log, one impression per row")
        method, order, examination, findings = propensity, "unknown", None, []
        try:
            counts, n_positions = added_up(self._counts), len(self._shown)
            examination = estimate(counts, propensity, n_positions=n_positions, users=self._visits)
            method, order, findings = examination.method, examination.order, list(examination.findings)
        except ValueError as error:
            method = f"{propensity}: {error}"
        of_users, of_conversations = self._users.frequencies(), self._conversations.frequencies()
        n_users, n_doubles = sum(of_users.values()), self._n_impressions - self._rows.n_distinct()
        heavy = [HeavyUser(*one) for one in self._heavy.most_common(SHOWN_USERS)]
        n_clicks, share = int(self._clicked.sum()), self._clicked / max(self._clicked.sum(), 1)
        found = {
            "files": self._files,
            "n_impressions": self._n_impressions,
            "n_conversations": sum(of_conversations.values()),
            "n_conversations_again": sum(n for times, n in of_conversations.items() if times > 1),
            "n_users": n_users,
            "n_doubles": n_doubles,
            "n_clicks": n_clicks,
            "n_pairs": self._n_pairs,
            "n_suggestions": dict(sorted(self._n_suggestions.items())),
            "n_turns": dict(sorted(self._n_turns.items())),
            "clicked_share": self._n_clicked / self._n_impressions,
            "ctr": n_clicks / int(self._shown.sum()),
            "positions": [self._position(index, examination) for index in range(len(self._shown))],
            "propensity": method,
            "order": order,
            "click_entropy": max(0.0, float(-(share[share > 0] * np.log2(share[share > 0])).sum())),
            "click_entropy_max": math.log2(len(share)),
            "n_repeating": self._n_repeating,
            "n_control": self._n_control,
            "fields": sorted(self._fields),
            "frequent_texts": dict(self._texts.most_common(SHOWN_USERS)),
            "languages": _languages([(conversation, texts) for _, conversation, texts in self._sample]),
            "policies": {name: _policy(counts) for name, counts in sorted(self._policies.items())},
            "first": self._times[0].isoformat(),
            "last": self._times[1].isoformat(),
            "skipped": skipped,
        }
        sentences = {
            "repeats": repeats.findings(self._n_impressions, _median(of_users), n_doubles, heavy),
            "examination": findings,
        }
        checks = verdicts(found | sentences)
        return found | {
            "checks": [one._asdict() for one in checks],
            "verdict": worst(checks),
            "findings": [one.sentence for one in checks if one.level != "pass"],
        }

    def _position(self, index: int, examination: Propensities | None) -> dict[str, Any]:
        shown, clicked = int(self._shown[index]), int(self._clicked[index])
        return {
            "n_shown": shown,
            "n_clicked": clicked,
            "ctr": clicked / shown,
            "ctr_ci95": list(wilson_interval(clicked / shown, shown)),
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

    def _add_visits(self, visits: pl.DataFrame) -> None:
        """Keep those of a sample of the users, which is halved whenever it grows too large."""
        visits = visits.filter(pl.col("user") <= self._keep_users_below)
        self._visits = pl.concat([self._visits, visits], rechunk=False)
        while self._visits.height > MAX_COUNTS:
            self._keep_users_below //= 2
            self._visits = self._visits.filter(pl.col("user") <= self._keep_users_below)


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

    def frequencies(self) -> dict[int, int]:
        """How many of the numbers are there once, how many twice and so on; sorted."""
        found: Counter[int] = Counter()
        for hashes, _ in self._shares():
            found.update(dict(pl.Series(hashes).value_counts()["count"].value_counts(name="n").iter_rows()))
        return dict(sorted(found.items()))

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


def _median(frequencies: dict[int, int]) -> float:
    """Of sorted numbers with how often each is there; 0 where there is none."""
    middle, seen = sum(frequencies.values()) / 2, 0
    for value, n in frequencies.items():
        seen += n
        if seen >= middle:
            return value
    return 0


def _policy(counts: PolicyCounts) -> dict[str, Any]:
    """Clicks per suggestion shown, with Wilson's interval of as many independent shows as are worth the impressions.

    Their number is that at which a share has the variance of the ratio of the two sums over impressions.
    """
    ctr = counts.c / counts.n
    variance = (counts.cc - 2 * ctr * counts.cn + ctr**2 * counts.nn) / counts.n**2
    n = ctr * (1 - ctr) / variance if variance > 1e-12 else counts.n
    return {"n_impressions": counts.n_impressions, "ctr": ctr, "ctr_ci95": list(wilson_interval(ctr, n))}


def _languages(sample: Sequence[tuple[Sequence[Message], Sequence[str]]]) -> dict[str, Any]:
    """What languages users write, what scripts suggestions are in, and how many are in another than their user's."""
    suggestions = [(conversation, text) for conversation, texts in sample for text in texts]
    written = Counter(script(text).lower() or "none" for _, text in suggestions)
    told = sample if len(sample) >= MIN_ROWS else []  # what tells languages takes half a second to load
    asked = [language(last_question(conversation)) for conversation, _ in told]
    known = Counter(filter(None, asked))
    other = sum(not in_users_language(conversation, text) for conversation, texts in told for text in texts)
    return {
        "users": {code: n / known.total() for code, n in known.most_common() if n >= RARE * known.total()},
        "n_users_unknown": len(asked) - known.total(),
        "scripts": {name: n / written.total() for name, n in written.most_common() if n >= RARE * written.total()},
        "other_than_users": other / max(len(suggestions), 1),
    }


def _sum(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    n = max(len(one), len(other))
    return np.pad(one, (0, n - len(one))) + np.pad(other, (0, n - len(other)))


def _table(found: dict[str, Any]) -> Table:
    """What :func:`check_log` found, for the terminal."""
    table = Table(title=f"click log: {', '.join(found['files'])}", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("", overflow="fold")
    table.add_row("impressions", f"{found['n_impressions']:,}", f"{found['first']} to {found['last']}")
    table.add_row("conversations", f"{found['n_conversations']:,}", "distinct")
    table.add_row("users", f"{found['n_users']:,}", "")
    table.add_row("clicks", f"{found['n_clicks']:,}", f"{found['clicked_share']:.1%} of the impressions have one")
    table.add_row("CTR per suggestion", f"{found['ctr']:.4f}", "clicks per suggestion shown")
    entropy, most = found["click_entropy"], found["click_entropy_max"]
    table.add_row("click entropy", f"{entropy:.3f}", f"bits, over positions; {most:.3f} if clicks were uniform")
    table.add_row("repetitions", f"{found['n_repeating']:,}", "impressions that show the same text twice")
    table.add_section()
    for number, place in enumerate(found["positions"], start=1):
        looked_at = ""
        if place["examination"] is not None:
            low, high = place["examination_ci95"]
            looked_at = f"examined {place['examination']:.3f} ({low:.3f} to {high:.3f}) times as often as the top"
        low, high = place["ctr_ci95"]
        rate = f"{low:.4f} to {high:.4f}"
        looked_at = f"{rate}; {looked_at}" if number > 1 and looked_at else f"{rate}: CTR per suggestion"
        table.add_row(f"position {number}", f"{place['ctr']:.4f}", looked_at)
    table.add_row("", "", f"by {found['propensity']}; 95 % intervals")
    table.add_section()
    for policy, one in found["policies"].items():
        low, high = one["ctr_ci95"]
        n = counted(one["n_impressions"], "impression")
        shown = f"{policy}: {n}, {low:.4f} to {high:.4f}: CTR per suggestion"
        table.add_row("policy", f"{one['ctr']:.4f}", shown)
    for reason, n in found["skipped"].items():
        table.add_row("skipped", f"{n:,}", reason)
    table.add_section()
    for check in found["checks"]:
        one = Verdict(**check)
        hurts = f" [{', '.join(one.stages)}]" if one.stages else ""
        table.add_row(one.about, one.level, one.sentence + hurts)
    table.add_row("overall", found["verdict"], "the worst of these; in brackets: the stages that a finding affects")
    return table


def _choices(choices: dict[str, str]) -> str:
    return "; ".join(f"{name}: {what}" for name, what in choices.items()).replace("%", "%%")
