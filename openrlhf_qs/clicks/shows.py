"""What each suggestion was shown and clicked at each position: the counts from which examination is estimated.

In: a click log. Out: columns as in ``COUNTS``. A text that stands a second time in an impression is left out: nobody
clicks what was said before, wherever it stands.
"""

from __future__ import annotations

import polars as pl

from openrlhf_qs.clicks.rows import contexts

COUNTS = {
    "context": pl.UInt64,  # hash of the conversation
    "suggestion": pl.UInt64,  # hash of the conversation and the text
    "position": pl.Int64,  # from 1, the top one
    "n_shown": pl.Int64,
    "n_clicked": pl.Int64,
    "n_open": pl.Int64,  # shows without a click above
    "n_first": pl.Int64,  # clicks without a click above
}


def shown_counts(log: pl.DataFrame) -> pl.DataFrame:
    """Shows and clicks of each suggestion of ``log`` at each position; columns as in ``COUNTS``, in no order."""
    return added_up(shows(log))


def shows(log: pl.DataFrame) -> pl.DataFrame:
    """Each show of ``log`` with its clicks; columns as in ``COUNTS``, for :func:`added_up`."""
    shown = (
        log.select(
            "suggestions",
            "clicks",
            context=contexts(log),
            impression=pl.int_range(pl.len()),
            position=pl.int_ranges(1, pl.col("clicks").list.len() + 1),
            top=pl.col("clicks").list.arg_max() + 1,
            any=pl.col("clicks").list.max() == 1,
        )
        .explode("suggestions", "clicks", "position")
        .with_columns(suggestion=pl.struct("context", "suggestions").hash())
        .filter(pl.struct("impression", "suggestion").is_first_distinct())
    )
    click = pl.col("clicks").cast(pl.Int64)
    is_open = (~pl.col("any") | (pl.col("position") <= pl.col("top"))).cast(pl.Int64)
    return shown.select(
        "context",
        "suggestion",
        "position",
        n_shown=pl.lit(1, pl.Int64),
        n_clicked=click,
        n_open=is_open,
        n_first=is_open * click,
    )


def added_up(counts: pl.DataFrame) -> pl.DataFrame:
    """One row for each (context, suggestion, position) of counts that were put together."""
    names = ("context", "suggestion", "position")
    return counts.group_by(names).agg(pl.exclude(names).sum()).select(*COUNTS)
