r"""How much each position is looked at, from clicks alone.

Under the position-based model a suggestion :math:`s` under the context :math:`c` at position :math:`k` is clicked with
probability :math:`\theta_k \gamma_{c,s}`: it is looked at, and it attracts. Here :math:`\theta_1 = 1`, so the others
are relative to the top. In: counts of shows and clicks by (context, suggestion, position), from :func:`shown_counts`.
A text that stands a second time in an impression is left out: nobody clicks what was said before, wherever it stands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from openrlhf_qs.clicks.rows import contexts

COUNTS = {
    "context": pl.UInt64,  # hash of the conversation
    "suggestion": pl.UInt64,  # hash of the conversation and the text
    "position": pl.Int64,  # from 1, the top one
    "n_shown": pl.Int64,
    "n_clicked": pl.Int64,
}
METHODS = {
    "ctr": "click-through rate over that of the top; right where the order shown is random",
    "harvest": "the same suggestions of a conversation at the top and at that place; right under any ranker",
    "pbm": "position-based model by EM over the suggestions that moved; right under any ranker, all places at once",
}
DEFAULT_METHOD = "ctr"
MAX_WEIGHT = 5.0
_Z95 = 1.959964


class Propensities(NamedTuple):
    """Examination of each position relative to the top, whose own is 1; ``low`` and ``high`` bound 95 %."""

    values: list[float]
    low: list[float]
    high: list[float]


def shown_counts(log: pl.DataFrame) -> pl.DataFrame:
    """Shows and clicks of each suggestion of ``log`` at each position; columns as in ``COUNTS``, in no order."""
    shown = (
        log.select(
            "suggestions",
            "clicks",
            context=contexts(log),
            impression=pl.int_range(pl.len()),
            position=pl.int_ranges(1, pl.col("clicks").list.len() + 1),
        )
        .explode("suggestions", "clicks", "position")
        .filter(pl.struct("impression", "suggestions").is_first_distinct())
    )
    return added_up(
        shown.select(
            "context",
            "position",
            suggestion=pl.struct("context", "suggestions").hash(),
            n_shown=pl.lit(1, pl.Int64),
            n_clicked=pl.col("clicks").cast(pl.Int64),
        )
    )


def added_up(counts: pl.DataFrame) -> pl.DataFrame:
    """One row for each (context, suggestion, position) of counts that were put together."""
    names = ("context", "suggestion", "position")
    return counts.group_by(names).agg(pl.col("n_shown", "n_clicked").sum()).select(*COUNTS)


def examination_propensities(log: pl.DataFrame, method: str = DEFAULT_METHOD) -> list[float]:
    """The examination of each position of ``log`` by one of ``METHODS``, > 0, the first is 1."""
    return estimate(shown_counts(log), method).values


def estimate(counts: pl.DataFrame, method: str = DEFAULT_METHOD) -> Propensities:
    """Estimate by one of ``METHODS``, with intervals; ValueError where the counts do not allow it."""
    if method not in METHODS:
        raise ValueError(f"unknown method of propensities {method!r}; known: {', '.join(METHODS)}")
    return {"ctr": by_click_rates, "harvest": by_moved_suggestions, "pbm": by_position_based_model}[method](counts)


def by_click_rates(counts: pl.DataFrame) -> Propensities:
    """Click-through rate of each position over that of the top.

    Right where the order shown is random. Where a ranker puts the better ones on top, it takes their quality for
    attention, and comes out too low for the lower places. Each rate is smoothed by one click in two shows, so none is
    0; the interval is Katz's, of the logarithm of a ratio of two rates.
    """
    sums = counts.group_by("position").agg(pl.col("n_shown", "n_clicked").sum()).sort("position")
    shown, clicked = sums["n_shown"].to_numpy() + 2, sums["n_clicked"].to_numpy() + 1
    rate, variance = clicked / shown, 1 / clicked - 1 / shown
    return _with_interval(np.log(rate / rate[0]), np.where(np.arange(len(rate)) > 0, variance + variance[0], 0))


def by_moved_suggestions(counts: pl.DataFrame) -> Propensities:
    """Intervention harvesting with the top as pivot: only suggestions that were shown at the top and at that position.

    Each (context, suggestion) is a stratum, so its quality cancels out; the strata are put together by Mantel and
    Haenszel's ratio of rates, with the variance of Greenland and Robins (1985) for its logarithm. The idea is that of
    Agarwal et al., arXiv:1812.05161.
    """
    top = counts.filter(pl.col("position") == 1).select("suggestion", n_1="n_shown", c_1="n_clicked")
    logs, variances = [0.0], [0.0]
    for position in range(2, counts["position"].max() + 1):
        both = counts.filter(pl.col("position") == position).join(top, on="suggestion")
        n, c, n_1, c_1 = (both[name].to_numpy().astype(float) for name in ("n_shown", "n_clicked", "n_1", "c_1"))
        here, there = (c * n_1 / (n + n_1)).sum(), (c_1 * n / (n + n_1)).sum()
        if not (here and there):
            raise ValueError(
                f"no clicks on suggestions that were shown both at the top and at position {position}; "
                f"{len(both)} moved: give a larger log, or take the propensities by click rates (ctr)"
            )
        spread = ((n * n_1 * (c + c_1) - c * c_1 * (n + n_1)) / (n + n_1) ** 2).sum()
        logs.append(np.log(here / there))
        variances.append(spread / (here * there))
    return _with_interval(np.array(logs), np.array(variances))


def by_position_based_model(counts: pl.DataFrame, n_resamples: int = 40, seed: int = 0) -> Propensities:
    """Maximum likelihood of the position-based model over suggestions that moved, with a bootstrap over contexts.

    Clicks are taken as Poisson counts of mean ``n_shown * theta * gamma``. Then the attraction of each suggestion
    drops out, however rarely it was shown; EM with Bernoulli clicks fits attractions to single clicks and puts all
    positions near 1 (measured in docs/CLICK_LOG.md). All positions are compared with all others, not the top alone.

    Args:
        n_resamples: of the contexts, for the interval.
        seed: of the bootstrap.
    """
    moved = counts.filter(pl.col("position").n_unique().over("suggestion") > 1)
    n_positions = counts["position"].max()
    clicked_at = moved.group_by("position").agg(pl.col("n_clicked").sum()).filter(pl.col("n_clicked") > 0)
    if clicked_at.height < n_positions:
        raise ValueError(
            f"only {clicked_at.height} of {n_positions} positions have a click on a suggestion that was also shown "
            "elsewhere: give a larger log, or take the propensities by click rates (ctr)"
        )
    suggestion, context = (moved[name].rank("dense").to_numpy().astype(int) - 1 for name in ("suggestion", "context"))
    position = moved["position"].to_numpy() - 1
    shown, clicked = moved["n_shown"].to_numpy().astype(float), moved["n_clicked"].to_numpy().astype(float)
    values = _poisson_maximum(suggestion, position, shown, clicked, np.ones(n_positions))
    rng, logs = np.random.default_rng(seed), []
    for _ in range(n_resamples):
        times = rng.poisson(1.0, context.max() + 1)[context]
        logs.append(np.log(_poisson_maximum(suggestion, position, times * shown, times * clicked, values)))
    return _with_interval(np.log(values), np.var(logs, axis=0))


def attraction_at_the_top(log: pl.DataFrame) -> float:
    """Click-through rate of the top position, smoothed: how many suggestions attract, where all are looked at."""
    clicks = log["clicks"].list.first()
    return (clicks.sum() + 1) / (len(clicks) + 2)


def inverse_propensity(propensity: float, max_weight: float = MAX_WEIGHT) -> float:
    """What a click at that place counts, in clicks at the top: ``1 / propensity``, at most ``max_weight``."""
    if not propensity > 0 or not max_weight > 0:
        raise ValueError(f"propensity {propensity} and max_weight {max_weight} must both be > 0")
    return min(1 / propensity, max_weight)


def _poisson_maximum(
    suggestion: np.ndarray, position: np.ndarray, shown: np.ndarray, clicked: np.ndarray, theta: np.ndarray
) -> np.ndarray:
    """``theta [n_positions]``, the first 1, from counts ``[rows]`` of each (suggestion, position), by EM.

    In turn: each suggestion's attraction is its clicks over the shows that were looked at, and each position's
    examination its clicks over the shows that attract.
    """
    clicks_of, clicks_at = np.bincount(suggestion, clicked), np.bincount(position, clicked, len(theta))
    for _ in range(200):
        gamma = clicks_of / np.maximum(np.bincount(suggestion, shown * theta[position]), 1e-12)
        updated = np.maximum(clicks_at, 0.5) / np.maximum(np.bincount(position, shown * gamma[suggestion]), 1e-12)
        updated /= updated[0]
        theta, change = updated, np.abs(updated / theta - 1).max()
        if change < 1e-6:
            break
    return theta


def _with_interval(logs: np.ndarray, variances: np.ndarray) -> Propensities:
    half = _Z95 * np.sqrt(variances)
    return Propensities(*(np.exp(part).tolist() for part in (logs, logs - half, logs + half)))
