"""Rows that are there twice under different ids, and users with far too many rows: both move every figure of a log.

A double is one impression counted twice, so intervals are too narrow; a bot clicks by a rule of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from openrlhf_qs.clicks.rows import contexts

USER_SHARE = 0.02  # of the rows, above which a user is pointed out
MANY_TIMES = 5  # and only with so many times the rows of the median user
DOUBLE_SHARE = 0.01  # of the rows, above which doubles are pointed out
TEXT_SHARE = 0.05  # of the rows, above which a text that is shown in them is pointed out
MIN_ROWS = 100  # of fewer rows no share is: a small log has few users and few texts


class HeavyUser(NamedTuple):
    user_id: str
    n_rows: int


def row_hashes(rows: pl.DataFrame) -> pl.Series:
    """``[impressions]``: equal where all but the id is: when, who, under what, what was shown and what was clicked."""
    return rows.select(
        pl.struct("timestamp", "user_id", "suggestions", "clicks", context=contexts(rows)).hash()
    ).to_series()


def heavy_users(rows: pl.DataFrame, n_most: int = 20) -> list[HeavyUser]:
    """Those with the most rows, each with a hundredth or more."""
    of_each = rows["user_id"].drop_nulls().value_counts().filter(pl.col("count") >= 0.01 * rows.height)
    return [HeavyUser(*row) for row in of_each.top_k(n_most, by="count").iter_rows()]


def frequent_texts(rows: pl.DataFrame, repeating: pl.Series, n_most: int = 5) -> list[tuple[str, int]]:
    """The suggestions that the most rows show, each a hundredth of them or more, and in how many; ``repeating`` are
    the rows that show one twice."""
    texts = rows["suggestions"]
    once = pl.concat([texts.filter(~repeating), texts.filter(repeating).list.unique()])
    shown = once.explode().value_counts(name="n").filter(pl.col("n") >= 0.01 * rows.height)
    return list(shown.top_k(n_most, by="n").iter_rows())


def without_repeats(
    log: pl.DataFrame, max_per_user: int = 0, drop_doubles: bool = False
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The log without doubles and without what a user has beyond a number of rows, and how many went, by reason.

    Args:
        max_per_user: rows that each user keeps, the earliest ones; 0 keeps all. Rows without a user stay.
        drop_doubles: whether of rows that are equal but for their id the first stays alone.
    """
    counts: dict[str, int] = {}
    if max_per_user < 0:
        raise ValueError(f"--max_per_user {max_per_user}: give a number of rows, or 0 for no limit")
    if drop_doubles:
        first = row_hashes(log).is_first_distinct()
        counts["the same row under another id"] = int((~first).sum())
        log = log.filter(first)
    if max_per_user:
        rank = log.select(pl.col("timestamp").rank("ordinal").over("user_id")).to_series()
        kept = log["user_id"].is_null() | (rank <= max_per_user)
        counts["beyond --max_per_user"] = int((~kept).sum())
        log = log.filter(kept)
    return log, {reason: n for reason, n in counts.items() if n}


def findings(n_rows: int, median_rows: float, n_doubles: int, heavy: list[HeavyUser]) -> list[str]:
    """What is to be said of doubles and of users with too many rows.

    Args:
        n_rows: of the log.
        median_rows: of a user.
        n_doubles: rows that are there before, but for their id.
        heavy: those with the most rows; it may count some of a user's rows only.
    """
    found = []
    if n_doubles > DOUBLE_SHARE * n_rows:
        found.append(
            f"{n_doubles:,} rows ({n_doubles / n_rows:.0%}) are the same as another one except for their id: data "
            "--drop_doubles keeps one of each"
        )
    most = max(USER_SHARE * max(n_rows, MIN_ROWS), MANY_TIMES * median_rows)
    found += [
        f"user {one.user_id!r} has {one.n_rows:,} rows or more ({one.n_rows / n_rows:.0%}), too many for a person: "
        "data --max_per_user keeps the first of them"
        for one in heavy
        if one.n_rows > most
    ]
    return found
