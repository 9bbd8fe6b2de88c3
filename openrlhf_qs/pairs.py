"""Preference pairs: of two suggestions shown together, the clicked one is chosen, the other one rejected.

In: a click log. Out: weighted pairs in messages form, from which the Gaussian reward model is trained. What stands
higher is looked at more, so a click at a low place says more: ``position_policy`` is what is made of that.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from openrlhf_qs.click_log import MESSAGES, clicks_by_position, text_key
from openrlhf_qs.prompt import suggestion_messages

POSITION_POLICIES = {
    "all": "every pair, all the same",
    "skip_above": "only pairs whose rejected suggestion stood above the chosen one, so that it was surely passed over",
    "ipw": "every pair, weighted by 1 / examination propensity of the chosen one's position",
}
SCHEMA = {
    "impression_id": pl.String,
    "chosen": MESSAGES,  # the conversation with the suggestion as the user's next turn
    "rejected": MESSAGES,
    "chosen_position": pl.Int64,  # from 1, the top one
    "rejected_position": pl.Int64,
    "weight": pl.Float64,  # mean 1 over all pairs
}


def preference_pairs(
    log: pl.DataFrame,
    position_policy: str = "ipw",
    propensities: Sequence[float] | None = None,
    max_weight: float = 5.0,
) -> pl.DataFrame:
    """Every (clicked, not clicked) pair of each impression that ``position_policy`` lets through.

    The pairs of one impression share a weight of 1, so that one with many suggestions counts no more; ``ipw``
    multiplies each by :func:`inverse_propensity` of the chosen one's position. A text that was clicked elsewhere in
    the same impression is never rejected.

    Args:
        log: see :mod:`openrlhf_qs.click_log`.
        position_policy: one of ``POSITION_POLICIES``.
        propensities: of each position from the top; ``None`` takes :func:`examination_propensities` of ``log``.
            Only ``ipw`` looks at them.
        max_weight: the most that one click may count under ``ipw``, in clicks at the top.

    Returns:
        Columns as in ``SCHEMA``, in the order of the log.

    Raises:
        ValueError: an unknown policy, a bad or missing propensity, or no pair at all.
    """
    if position_policy not in POSITION_POLICIES:
        raise ValueError(f"unknown position policy {position_policy!r}; known: {', '.join(POSITION_POLICIES)}")
    n_positions = log["clicks"].list.len().max() or 0
    factors = [1.0] * n_positions
    if position_policy == "ipw":
        propensities = examination_propensities(log) if propensities is None else propensities
        if len(propensities) < n_positions:
            raise ValueError(f"{len(propensities)} propensities for {n_positions} positions; give one for each")
        factors = [inverse_propensity(p, max_weight) for p in propensities]

    rows = []
    for impression_id, conversation, suggestions, clicks in log.select(
        "impression_id", "conversation", "suggestions", "clicks"
    ).iter_rows():
        pairs = _positions(suggestions, clicks, position_policy)
        for chosen, rejected in pairs:
            rows.append(
                (
                    impression_id,
                    suggestion_messages(conversation, suggestions[chosen]),
                    suggestion_messages(conversation, suggestions[rejected]),
                    chosen + 1,
                    rejected + 1,
                    factors[chosen] / len(pairs),
                )
            )
    if not rows:
        raise ValueError(
            f"no pair of a clicked and another suggestion in {log.height} impressions under position policy "
            f"{position_policy!r}; give a larger log or the policy 'all'"
        )
    pairs = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return pairs.with_columns(pl.col("weight") / pl.col("weight").mean())


def examination_propensities(log: pl.DataFrame) -> list[float]:
    """How much each position is looked at, relative to the top one: its click-through rate over that of position 1.

    That is right where the order shown is random. Where a ranker puts the better ones on top, it takes their quality
    for attention and comes out too low for the lower places: then shuffle some impressions and give this those alone,
    or use the policy ``skip_above``.

    Returns:
        One a position, > 0, the first is 1. Each rate is smoothed by one click in two shows, so none is 0.
    """
    positions = clicks_by_position(log)
    rates = ((positions["n_clicked"] + 1) / (positions["n_shown"] + 2)).to_list()
    return [rate / rates[0] for rate in rates]


def inverse_propensity(propensity: float, max_weight: float = 5.0) -> float:
    """What a click at that place counts, in clicks at the top: ``1 / propensity``, at most ``max_weight``."""
    if not propensity > 0 or not max_weight > 0:
        raise ValueError(f"propensity {propensity} and max_weight {max_weight} must both be > 0")
    return min(1 / propensity, max_weight)


def _positions(suggestions: Sequence[str], clicks: Sequence[int], position_policy: str) -> list[tuple[int, int]]:
    """(chosen, rejected) of one impression, as positions from 0."""
    keys = [text_key(suggestion) for suggestion in suggestions]
    clicked = [position for position, click in enumerate(clicks) if click]
    clicked_keys = {keys[position] for position in clicked}
    passed_over = [position for position, key in enumerate(keys) if key not in clicked_keys]
    return [(c, r) for c in clicked for r in passed_over if r < c or position_policy != "skip_above"]
