"""The click log: what was suggested under which conversation, and what was clicked.

In: JSON Lines (``.jsonl`` or ``.json``, also ``.gz``) or Parquet, one impression a row, in one file or several. Every
row is checked, and bad rows are reported together, by file and line, or left out and counted. Out: a Polars DataFrame
with the columns of ``SCHEMA``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from openrlhf_qs.clicks.batches import Batch, Problems, log_files, map_log
from openrlhf_qs.clicks.rows import REQUIRED, SCHEMA
from openrlhf_qs.files.whole import check_count, write_json_lines
from openrlhf_qs.form.keys import conversation_keys

__all__ = ["REQUIRED", "SCHEMA"]  # of a row, see openrlhf_qs.clicks.rows
ON_ERROR = {"raise": "name the first 20 and stop", "skip": "leave them out, and count them by reason"}


def read_click_log(
    paths: str | Path | Sequence[str | Path],
    on_error: str = "raise",
    engine: str = "polars",
    skipped: Counter[str] | None = None,
) -> pl.DataFrame:
    """Read and check a click log; fields the schema does not know are left out.

    Args:
        paths: files or globs: ``.jsonl``, ``.json`` (one object a line), either with ``.gz``, or ``.parquet``.
        on_error: one of ``ON_ERROR``: what to do about bad rows. Of rows with one impression_id the first is good.
        engine: one of :data:`openrlhf_qs.clicks.batches.ENGINES`.
        skipped: the rows that were left out are added here, by reason.

    Returns:
        One impression a row, in the order of the files, with the columns of ``SCHEMA``.

    Raises:
        ValueError: the first 20 bad rows as ``file:line: what; what to do``; a log without one click; Parquet
            files of different column types, whatever ``on_error`` says.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"unknown on_error {on_error!r}; known: {', '.join(ON_ERROR)}")
    files = log_files([paths] if isinstance(paths, str | Path) else paths)
    problems, frames = Problems(files), []
    for result in map_log(files, _whole, engine):
        problems.add(result.path, result.line, result.value.problems)
        place = {"file": pl.lit(files.index(result.path)), "line": pl.col("line") + result.line}
        frames.append(result.value.rows.with_columns(**place))
    rows = pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA | {"file": pl.Int32, "line": pl.Int64})
    first = rows["impression_id"].is_first_distinct()
    if not first.all():
        again = rows.filter(~first).join(
            rows.filter(first), on="impression_id", suffix="_first", maintain_order="left"
        )
        for places in again.select("file", "line", "file_first", "line_first").iter_rows():
            problems.add_duplicate(*places)
    if on_error == "raise":
        problems.raise_any(rows.height)
        for number, file in enumerate(files):
            check_count(file, int((rows["file"] == number).sum()))
    if skipped is not None:
        skipped.update(problems.counts)
    log = rows.filter(first).select(*SCHEMA)
    if not (log["clicks"].list.max() == 1).any():
        where = f"{files[0]}" + (f" and {len(files) - 1} more files" if len(files) > 1 else "")
        found = f"{log.height} impressions without a click" if log.height else "it has no rows"
        raise ValueError(f"{where}: {found}; give a log to learn from")
    return log


def _whole(batch: Batch) -> Batch:
    return batch


def write_click_log(log: pl.DataFrame, path: str | Path) -> None:
    """Write ``log`` as JSON Lines that :func:`read_click_log` reads back the same; what is null is left out."""
    write_json_lines(path, (_written_form(row) for row in log.iter_rows(named=True)))


def describe(log: pl.DataFrame) -> dict[str, Any]:
    """What is in ``log``, as numbers ready for JSON.

    Returns:
        ``n_impressions``, ``n_conversations`` (different ones), ``n_clicks``, ``clicked_share`` (of the impressions,
        those with a click), ``ctr`` (clicks per suggestion shown), ``ctr_by_position`` (the first is the top one),
        ``policies`` (impressions by policy; ``unknown`` where the log does not say), ``first`` and ``last`` timestamp.
    """
    positions = clicks_by_position(log)
    policies = log.group_by(pl.col("policy").fill_null("unknown")).len().sort("policy")
    return {
        "n_impressions": log.height,
        "n_conversations": conversation_keys(log["conversation"]).n_unique(),
        "n_clicks": positions["n_clicked"].sum(),
        "clicked_share": log["clicks"].list.max().mean(),
        "ctr": positions["n_clicked"].sum() / positions["n_shown"].sum(),
        "ctr_by_position": (positions["n_clicked"] / positions["n_shown"]).to_list(),
        "policies": dict(policies.iter_rows()),
        "first": log["timestamp"].min().isoformat(),
        "last": log["timestamp"].max().isoformat(),
    }


def clicks_by_position(log: pl.DataFrame) -> pl.DataFrame:
    """``n_shown`` and ``n_clicked`` of each position, the top one first."""
    n_positions = log["clicks"].list.len().max() or 0
    columns = [log["clicks"].list.get(position, null_on_oob=True) for position in range(n_positions)]
    counts = {"n_shown": [column.count() for column in columns], "n_clicked": [column.sum() for column in columns]}
    return pl.DataFrame(counts, schema={"n_shown": pl.Int64, "n_clicked": pl.Int64})


def _written_form(row: dict[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in row.items() if value is not None}
    row["timestamp"] = row["timestamp"].isoformat()
    return row | {name: json.loads(row[name]) for name in ("features", "meta") if name in row}
