r"""Preference pairs: of two suggestions under one conversation, the clicked one is chosen, the other one rejected.

In: a click log. Out: weighted pairs in messages form, from which the Gaussian reward model is trained. Either within
an impression (:func:`preference_pairs`), or between all that a conversation was shown (:func:`click_rate_pairs`).

What stands higher is looked at more; ``position_policy`` is what is made of that. ``ipw`` corrects both sides under
the position-based model (:mod:`openrlhf_qs.clicks.propensity`): position :math:`k` is looked at with probability
:math:`\theta_k`, and a suggestion then attracts with probability :math:`\gamma`. A click on the chosen one counts
:math:`1/\theta_c`. No click on the rejected one counts by the probability that it was disliked, not overlooked,
:math:`P(\text{not attractive} \mid \text{no click at } r) = (1-\gamma)/(1-\theta_r\gamma)`, by Bayes' rule. The
expected weight of a pair is then :math:`\gamma_c(1-\gamma_r)`, whatever the positions. We do not know each
:math:`\gamma_r` and take the average, which is the click-through rate at the top; the factor stays within
:math:`[1-\gamma, 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from openrlhf_qs.clicks.click_log import text_keys
from openrlhf_qs.clicks.propensity import (
    MAX_WEIGHT,
    attraction_at_the_top,
    examination_propensities,
    inverse_propensity,
)
from openrlhf_qs.clicks.rows import MESSAGES

POSITION_POLICIES = {
    "all": "every pair, all the same",
    "skip_above": "only pairs whose rejected suggestion stood above the chosen one, so that it was surely passed over",
    "adjacent": "only pairs of neighbours, which are looked at almost alike",
    "ipw": "every pair; a click by 1 / examination of its place, no click by the probability that it was disliked",
}
DEFAULT_POLICY = "ipw"
PRIOR_SHOWS = 5.0  # shows at the log's average that every suggestion's click rate starts with
SCHEMA = {
    "impression_id": pl.String,  # of pairs by click rates: the conversation's hash, so that its rows go together
    "chosen": MESSAGES,  # the conversation with the suggestion as the user's next turn
    "rejected": MESSAGES,
    "chosen_position": pl.Int64,  # from 1, the top one; null for pairs by click rates
    "rejected_position": pl.Int64,
    "weight": pl.Float64,  # mean 1 over all pairs
    "label": pl.Float64,  # probability that the chosen one is the better one; 1 for single clicks
}


def preference_pairs(
    log: pl.DataFrame,
    position_policy: str = DEFAULT_POLICY,
    propensities: Sequence[float] | None = None,
    max_weight: float = MAX_WEIGHT,
) -> pl.DataFrame:
    """Every (clicked, not clicked) pair of each impression that ``position_policy`` lets through.

    The pairs of one impression share a weight of 1, so that one with many suggestions counts no more; ``ipw`` then
    multiplies each by the two factors above. A text that was clicked elsewhere in the same impression is never
    rejected, and one that stands there twice is rejected once, where it stands first.

    Args:
        log: see :mod:`openrlhf_qs.clicks.click_log`.
        position_policy: one of ``POSITION_POLICIES``.
        propensities: of each position from the top; ``None`` takes
            :func:`openrlhf_qs.clicks.propensity.examination_propensities` of ``log``. Only ``ipw`` looks at them.
        max_weight: the most that one click may count under ``ipw``, in clicks at the top.

    Returns:
        Columns as in ``SCHEMA``, in the order of the log; ``label`` is 1.

    Raises:
        ValueError: an unknown policy, a bad or missing propensity, or no pair at all.
    """
    if position_policy not in POSITION_POLICIES:
        raise ValueError(f"unknown position policy {position_policy!r}; known: {', '.join(POSITION_POLICIES)}")
    n_positions = log["clicks"].list.len().max() or 0
    chosen_factors = rejected_factors = [1.0] * n_positions
    if position_policy == "ipw":
        propensities = examination_propensities(log) if propensities is None else propensities
        if len(propensities) < n_positions:
            raise ValueError(f"{len(propensities)} propensities for {n_positions} positions; give one for each")
        chosen_factors = [inverse_propensity(p, max_weight) for p in propensities]
        attraction = attraction_at_the_top(log)
        rejected_factors = [disliked_probability(p, attraction) for p in propensities]

    some = log.filter(pl.col("clicks").list.max() == 1, pl.col("clicks").list.min() == 0)
    pairs = _positions(some, position_policy)
    if pairs.is_empty():
        raise ValueError(
            f"no pair of a clicked and another suggestion in {log.height} impressions under position policy "
            f"{position_policy!r}; give a larger log or the policy 'all'"
        )
    share = 1 / pl.len().over("row")
    weight = share * _factor("chosen_position", chosen_factors) * _factor("rejected_position", rejected_factors)
    return _written(some, pairs.with_columns(weight=weight, label=1.0))


def click_rate_pairs(
    log: pl.DataFrame, propensities: Sequence[float] | None = None, prior_shows: float = PRIOR_SHOWS
) -> pl.DataFrame:
    """Every two suggestions of a conversation that differ in click-through rate, over all its impressions.

    A suggestion's rate is its clicks over the shows that were looked at (the sum of its places' propensities),
    smoothed by ``prior_shows`` at the average rate. With rates a and b, ``label`` is a / (a + b): the probability
    that a click that falls on one of them falls on the chosen one. The weight is the number of clicks that this rests
    on; each suggestion's clicks are shared out over its pairs, so that every click counts once.

    Args:
        log: see :mod:`openrlhf_qs.clicks.click_log`.
        propensities: of each position; ``None`` as in :func:`preference_pairs`.

    Returns:
        Columns as in ``SCHEMA``; a pair without a click on either side is left out.

    Raises:
        ValueError: a missing propensity, or no pair at all.
    """
    propensities = examination_propensities(log) if propensities is None else propensities
    looked_at, context = _factor("position", propensities), pl.col("conversation").hash()
    rates = (
        _shown(log)
        .with_columns(looked_at=looked_at, context=context)
        .group_by("context", "key", maintain_order=True)
        .agg(pl.col("row", "text").first(), pl.col("looked_at").sum(), pl.col("click").sum().cast(pl.Float64))
    )
    average = rates["click"].sum() / max(rates["looked_at"].sum(), 1e-9)
    rates = rates.with_columns(
        rate=(pl.col("click") + prior_shows * average) / (pl.col("looked_at") + prior_shows),
        per_pair=pl.col("click") / (pl.len().over("context") - 1),
    )
    pairs = (
        rates.join(rates, on="context", suffix="_rejected")
        .filter(pl.col("rate") > pl.col("rate_rejected"), pl.col("click") + pl.col("click_rejected") > 0)
        .with_columns(row=pl.col("row").first().over("context"))
        .sort("row", "rate", descending=[False, True], maintain_order=True)
    )
    if pairs.is_empty():
        raise ValueError(
            f"no two suggestions of one conversation differ in clicks in {log.height} impressions; give a larger log"
        )
    pairs = pairs.select(
        "row",
        chosen="text",
        rejected="text_rejected",
        chosen_position=pl.lit(None, pl.Int64),
        rejected_position=pl.lit(None, pl.Int64),
        weight=pl.col("per_pair") + pl.col("per_pair_rejected"),
        label=pl.col("rate") / (pl.col("rate") + pl.col("rate_rejected")),
    )
    return _written(log.with_columns(impression_id=pl.format("context-{}", context)), pairs)


def disliked_probability(propensity: float, attraction: float) -> float:
    """The probability that a suggestion without a click does not attract, and was not just overlooked.

    Args:
        propensity: that its place is looked at, relative to the top; above 1 counts as 1.
        attraction: of an average suggestion that is looked at, in [0, 1).
    """
    return (1 - attraction) / (1 - min(propensity, 1.0) * attraction)


def _shown(log: pl.DataFrame) -> pl.DataFrame:
    """One row a suggestion: ``conversation``, ``row`` from 0, ``position`` from 1, ``text``, ``click``, ``key``."""
    shown = log.select(
        "conversation",
        row=pl.int_range(pl.len()),
        position=pl.int_ranges(1, pl.col("clicks").list.len() + 1),
        text="suggestions",
        click="clicks",
    ).explode("position", "text", "click")
    return shown.with_columns(key=text_keys(shown["text"]))


def _positions(log: pl.DataFrame, position_policy: str) -> pl.DataFrame:
    """``row``, ``chosen``, ``rejected`` (texts) and their positions, of all pairs that the policy lets through."""
    shown = _shown(log.select("suggestions", "clicks", conversation=pl.lit(None)))
    clicked = shown.filter(pl.col("click") == 1)
    new = pl.struct("row", "key").is_first_distinct()
    passed_over = shown.filter(new, pl.col("click") == 0).join(clicked, on=["row", "key"], how="anti")
    chosen = clicked.select("row", chosen="text", chosen_position="position")
    rejected = passed_over.select("row", rejected="text", rejected_position="position")
    gap = pl.col("chosen_position") - pl.col("rejected_position")
    let_through = {"skip_above": gap > 0, "adjacent": gap.abs() == 1}.get(position_policy, pl.lit(True))
    pairs = chosen.join(rejected, on="row").filter(let_through)
    return pairs.sort("row", "chosen_position", "rejected_position")


def _factor(position: str, factors: Sequence[float]) -> pl.Expr:
    """The factor of that position; ``factors`` from the top."""
    return pl.col(position).replace_strict(range(1, len(factors) + 1), list(factors), return_dtype=pl.Float64)


def _written(log: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """``pairs`` of texts with the conversations of their ``row`` in ``log``, weights of mean 1."""
    found = log.select("impression_id", "conversation")[pairs["row"]]
    return pairs.select(
        found["impression_id"],
        *(_with_turn(found["conversation"], pairs[name]).alias(name) for name in ("chosen", "rejected")),
        "chosen_position",
        "rejected_position",
        pl.col("weight") / pl.col("weight").mean(),
        "label",
    )


def _with_turn(conversations: pl.Series, texts: pl.Series) -> pl.Series:
    """Each conversation with its text as the user's next turn; ``pl.concat_list`` takes three times as long."""
    messages = conversations.explode()
    turns = texts.to_frame("content").select(pl.struct(role=pl.lit("user"), content="content")).to_series()
    lengths = conversations.list.len().to_numpy().astype(np.int64)
    order = np.insert(np.arange(len(messages)), np.cumsum(lengths), len(messages) + np.arange(len(turns)))
    flat = pl.concat([messages, turns.cast(messages.dtype)]).gather(order).to_arrow()
    # By Polars, not by Arrow, which would import pandas to read a NumPy array: a quarter of a second.
    offsets = pl.Series(np.concatenate([[0], np.cumsum(lengths + 1)])).to_arrow()
    return pl.from_arrow(pa.LargeListArray.from_arrays(offsets, flat))
