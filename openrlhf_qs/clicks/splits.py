"""A click log in three parts, for training, the fusion weights and the evaluation; nothing is in two of them.

A conversation goes by its root, its first user message: its earlier turns, which are conversations of their own in the
log, fall in the same part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import polars as pl

from openrlhf_qs.form.keys import root_keys

SPLITS = {
    "conversation": "conversations by a hash of their first user message",
    "user": "users by a hash of their id; a conversation that two of them share stays with the first",
    "time": "training before a time, then fusion, then heldout; an ongoing conversation goes with its last impression",
}


class Splits(NamedTuple):
    """A log in three parts; no conversation is in two of them."""

    train: pl.DataFrame
    heldout: pl.DataFrame
    fusion: pl.DataFrame


def split_log(
    log: pl.DataFrame,
    by: str = "conversation",
    heldout: float = 0.2,
    fusion: float = 0.1,
    seed: int = 0,
    cuts: Sequence[datetime] | None = None,
) -> tuple[Splits, dict[str, int]]:
    """Split by one of ``SPLITS``.

    A hash decides, so a longer log or another order moves nothing; the shares are expectations: of few conversations
    or users, a part may get none.

    Args:
        heldout: share kept for evaluation, in [0, 1).
        fusion: share kept to fit the fusion weights, in [0, 1); the rest is for training.
        seed: another one gives another split, by conversation and by user.
        cuts: where fusion and heldout begin, by time; None cuts so that the parts have these shares of impressions.

    Returns:
        The parts, and counts: ``n_spanning``, the conversations that would have been in two parts, and ``n_left_out``,
        the impressions that are in none for it (by user only).

    Raises:
        ValueError: shares that leave nothing to train on, a log without users, cuts out of order.
    """
    if heldout < 0 or fusion < 0 or heldout + fusion >= 1:
        raise ValueError(f"heldout share {heldout}, fusion share {fusion}: both must be >= 0 and their sum below 1")
    if by not in SPLITS:
        raise ValueError(f"unknown split {by!r}; known: {', '.join(SPLITS)}")
    if cuts is not None and by != "time":
        raise ValueError(f"cuts are for a split by time, not by {by}")
    root = roots(log)
    if by == "conversation":
        part = _by_hash(root, heldout, fusion, seed)
        return _parts(log, part), {"n_spanning": 0, "n_left_out": 0}
    if by == "user":
        n_unknown = log["user_id"].null_count()
        if n_unknown:
            raise ValueError(f"{n_unknown} of {log.height} impressions have no user_id; split by conversation")
        part = _by_hash(log["user_id"], heldout, fusion, seed)
    else:
        part = _by_time(log["timestamp"], heldout, fusion, cuts)
    table = pl.DataFrame({"part": part, "root": root, "timestamp": log["timestamp"]})
    edge = pl.col("part").sort_by("timestamp")
    home = table.select((edge.first() if by == "user" else edge.last()).over("root")).to_series()
    counts = {"n_spanning": table.filter(part != home)["root"].n_unique(), "n_left_out": 0}
    if by == "user":
        return _parts(log, pl.select(pl.when(part == home).then(part)).to_series()), counts | {
            "n_left_out": int((part != home).sum())
        }
    return _parts(log, home), counts


def roots(log: pl.DataFrame) -> pl.Series:
    """What hangs together: the conversation's root; before its first word the user, or what is known of one."""
    keys = root_keys(log["conversation"])
    if not (empty := log["conversation"].list.len() == 0).any():
        return keys
    known = pl.coalesce("user_id", "features", "impression_id")
    return log.select(pl.when(empty).then(pl.format("before the first word: {}", known)).otherwise(keys)).to_series()


# The parts: 0 is for training, 1 heldout, 2 fusion.
def _by_hash(keys: pl.Series, heldout: float, fusion: float, seed: int) -> pl.Series:
    distinct = keys.unique()
    place = pl.Series([_unit_hash(f"{seed}:{key}") for key in distinct], dtype=pl.Float64)
    part = pl.select(pl.when(place < heldout).then(1).when(place < heldout + fusion).then(2).otherwise(0)).to_series()
    return keys.replace_strict(distinct, part)


def _by_time(times: pl.Series, heldout: float, fusion: float, cuts: Sequence[datetime] | None) -> pl.Series:
    if cuts is None:
        in_order = times.sort()
        cuts = [
            in_order[min(int(len(times) * share), len(times) - 1)] for share in (1 - heldout - fusion, 1 - heldout)
        ]
    if len(cuts) != 2 or cuts[0] > cuts[1]:
        raise ValueError(
            f"cuts {[str(cut) for cut in cuts]}; give two times, where fusion begins and where heldout does"
        )
    return pl.select(pl.when(times >= cuts[1]).then(1).when(times >= cuts[0]).then(2).otherwise(0)).to_series()


def _parts(log: pl.DataFrame, part: pl.Series) -> Splits:
    return Splits(*(log.filter(part == number) for number in range(3)))


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that is the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48
