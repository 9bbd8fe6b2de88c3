"""What a log can tell of its own order and of how its users read, before anything is estimated.

Was the order random? Does a click above take clicks from below? Does the gap between places depend on how attractive a
suggestion is, as where the top is trusted? In: the counts of :mod:`openrlhf_qs.clicks.shows`. Out:
:class:`Diagnosis`, by which :func:`openrlhf_qs.clicks.propensity.estimate` chooses.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import polars as pl

from openrlhf_qs.clicks.shows import COUNTS
from openrlhf_qs.statistics.intervals import Z_95

TOLERANCE = 0.05  # above chance, how often a suggestion that comes again may stand where it stood, in a random order
TRUSTED = 0.1  # share of a place's click rate that does not grow with attraction, from which it is said
UNTOLD = 0.3  # the same share, negative, from which a log that cannot exclude it is said not to tell
MIN_CONTEXTS = 30  # with suggestions at the top and at a place, below which there is no line
PRIOR_LOOKS = 5.0  # at the average click rate, with which the instrument of a line begins


class Ratio(NamedTuple):
    """``over / under``, and what each context brings to the errors of the two, ``influence [contexts, 2]``."""

    over: float
    under: float
    influence: np.ndarray

    @property
    def value(self) -> float:
        return self.over / self.under

    def interval(self, z: float = Z_95) -> tuple[float, float]:
        """Fieller's (1954): right however little is known of ``under``, and without bounds where that may be 0."""
        (vv_over, vv), (_, vv_under) = z**2 * self.influence.T @ self.influence
        square, both, rest = self.under**2 - vv_under, self.over * self.under - vv, self.over**2 - vv_over
        if square <= 0 or self.under <= 0:
            return -np.inf, np.inf
        root = np.sqrt(max(both**2 - square * rest, 0.0))
        return float((both - root) / square), float((both + root) / square)


class Line(NamedTuple):
    """The chance of a click at a place, ``slope * chance at the top + intercept``, and the intercept's ``share`` of
    the mean click rate there."""

    slope: Ratio
    intercept: float
    share: Ratio


class Diagnosis(NamedTuple):
    """What a log can tell of its own order and of how its users read.

    Attributes:
        order: ``random``, ``chosen``, or ``unknown`` where too little comes again to tell.
        same_place: of two shows of a suggestion in one context, the share at one place; ``by_chance`` what it is in a
            random order. None where nothing comes again.
        odds_ratio: of a click where something above was clicked against where nothing was, (value, low, high): 1 in
            the position-based model, above where users differ, below where a click above takes clicks from below.
        lines: how the click rate of each lower place goes with that of the top; None where too little comes again.
    """

    order: str
    same_place: float | None
    by_chance: float
    odds_ratio: tuple[float, float, float] | None
    lines: list[Line] | None

    @property
    def fixed_share(self) -> list[tuple[float, float, float]] | None:
        """Of the click rate of each lower place, the part that does not grow with attraction, (value, low, high) for
        places from the second: 0 in the position-based model, below 0 where the top is trusted. The intervals are of
        95 %, for all places at once. None where there are no lines."""
        if self.lines is None:
            return None
        z = NormalDist().inv_cdf(1 - 0.025 / len(self.lines))  # Bonferroni: one of seven is soon below 0 by chance
        return [(line.share.value, *line.share.interval(z)) for line in self.lines]


def diagnose(counts: pl.DataFrame) -> Diagnosis:
    """What ``counts`` can tell of the order shown and of how users read."""
    counts = with_numbered_contexts(counts)
    by_place = counts.group_by("position").agg(pl.col("n_shown").sum()).sort("position")["n_shown"].to_numpy()
    by_chance = float(((by_place / max(by_place.sum(), 1)) ** 2).sum())
    moved = is_moved(counts)
    again = (
        counts.filter(moved | (counts["n_shown"] > 1))
        .group_by("context", "suggestion")
        .agg(
            same=(pl.col("n_shown") * (pl.col("n_shown") - 1)).sum(),
            pairs=pl.col("n_shown").sum() * (pl.col("n_shown").sum() - 1),
        )
        .group_by("context")
        .agg(pl.col("same", "pairs").sum())
    )
    n_pairs = int(again["pairs"].sum())
    order, same_place = "unknown", None
    if n_pairs and len(by_place) > 1:
        same_place = float(again["same"].sum() / n_pairs)
        residual = (again["same"] - same_place * again["pairs"]).to_numpy()
        error = float(np.sqrt((residual**2).sum()) / n_pairs)
        # Of very few pairs the residuals say too little: chance alone gives at least this much.
        error = max(error, float(np.sqrt(by_chance * (1 - by_chance) * 2 / n_pairs)))
        if same_place + Z_95 * error < by_chance + TOLERANCE:
            order = "random"
        elif same_place - Z_95 * error > by_chance:
            order = "chosen"
    return Diagnosis(order, same_place, by_chance, _odds_ratio(counts), _lines(counts, moved, order))


def trusted_places(known: Diagnosis) -> list[int]:
    """The places whose gap to the top depends on attraction, as where the top is trusted."""
    shares = known.fixed_share or []
    return [place for place, (value, _, high) in enumerate(shares, start=2) if high < 0 and value < -TRUSTED]


def untold_places(known: Diagnosis, n_positions: int, share: float = UNTOLD) -> list[int]:
    """The places of whose clicks ``share`` may be trust in the top, for all that the log tells."""
    if known.fixed_share is None:
        return list(range(2, n_positions + 1))
    return [place for place, (_, low, _) in enumerate(known.fixed_share, start=2) if low < -share]


def with_numbered_contexts(counts: pl.DataFrame) -> pl.DataFrame:
    """``counts`` with contexts from 0 on in the place of hashes."""
    return counts.with_columns(pl.col("context").rank("dense").cast(pl.Int64) - 1)


def is_moved(counts: pl.DataFrame) -> pl.Series:
    """Whether each suggestion was shown at another place too, of counts that are added up. In most logs few were."""
    return counts["suggestion"].is_duplicated()


def _odds_ratio(counts: pl.DataFrame) -> tuple[float, float, float] | None:
    """Mantel and Haenszel's over the places below the top, with the variance of Robins, Breslow and Greenland."""
    below = (
        counts.filter(pl.col("position") > 1)
        .group_by("position")
        .agg(pl.col("n_shown", "n_clicked", "n_open", "n_first").sum())
    )
    shown, clicked, n_open, first = (below[name].to_numpy().astype(float) for name in list(COUNTS)[3:])
    after, without = clicked - first + 0.5, shown - n_open - (clicked - first) + 0.5
    first, nothing = first + 0.5, n_open - first + 0.5
    n = after + without + first + nothing
    if not len(n) or (shown - n_open).sum() == 0:
        return None
    p, q = (after + nothing) / n, (without + first) / n
    r, s = after * nothing / n, without * first / n
    value = r.sum() / s.sum()
    variance = (
        (p * r).sum() / (2 * r.sum() ** 2)
        + (p * s + q * r).sum() / (2 * r.sum() * s.sum())
        + (q * s).sum() / (2 * s.sum() ** 2)
    )
    half = Z_95 * float(np.sqrt(variance))
    return float(value), float(value * np.exp(-half)), float(value * np.exp(half))


def _lines(counts: pl.DataFrame, moved: pl.Series, order: str) -> list[Line] | None:
    """A line for each place below the top; None where the counts have none. In a random order there are two ways to
    them, of which the one with the narrower intervals is taken."""
    ways = [_lines_within(counts, moved), *([_lines_across(counts, moved)] if order == "random" else [])]
    found = [lines for lines in ways if lines is not None]
    return min(found, key=lambda lines: sum(np.ptp(line.share.interval()) for line in lines), default=None)


def _lines_within(counts: pl.DataFrame, moved: pl.Series) -> list[Line] | None:
    """Under any ranker: of suggestions that were shown at the top and at a place, the rates there.

    Both rates, of one suggestion at two places, are noisy, which would flatten the line. So the instrument (Wald 1940;
    Reiersol 1941) is how often the suggestion is clicked in all its other shows, whose noise is its own: for each
    pair of a show here and a show at the top, both are left out of it. Who is shown where may depend on how good it
    is, as each suggestion has its own line in expectation; standard errors are clustered by context.
    """
    n_positions, moved = counts["position"].max() or 0, counts.filter(moved)
    if n_positions < 2 or moved["position"].n_unique() < n_positions:
        return None
    context, shown, clicked = _by_suggestion(moved)
    rate = clicked / np.maximum(shown, 1)
    with np.errstate(divide="ignore"):
        weight = np.where((shown > 0) & (shown[:, :1] > 0), 1 / (1 / shown + 1 / shown[:, :1]), 0.0)
    least = min(len(np.unique(context[column > 0])) for column in weight.T)
    if least < MIN_CONTEXTS:
        return None
    # Shows count by about how much their place is looked at. Whatever these numbers, the lines come out right.
    looks = (weight * rate).sum(0) / np.maximum((weight * rate[:, :1]).sum(0), 1e-9)
    looked_at, n_clicks = shown @ looks, clicked.sum(1)
    all_looks = np.bincount(counts["position"] - 1, counts["n_shown"], n_positions) @ looks
    average = counts["n_clicked"].sum() / max(all_looks, 1e-9)
    lines = []
    for place in range(1, n_positions):
        rows = weight[:, place] > 0
        w, top, here = weight[rows, place], rate[rows, 0], rate[rows, place]
        others = np.maximum(looked_at[rows] - 1 - looks[place], 0.0) + PRIOR_LOOKS
        clicks = n_clicks[rows] + PRIOR_LOOKS * average
        # The means, over all pairs of a show at the top and one here, of the instrument and its products with both.
        instrument = (clicks - top - here) / others
        by_top, by_here = (top * (clicks - 1 - here) / others, here * (clicks - 1 - top) / others)
        w = w / w.sum()
        mean, mean_top, mean_here = w @ instrument, w @ top, w @ here
        of_top, of_here = top - mean_top, here - mean_here
        covariances = [w @ by_top - mean * mean_top, w @ by_here - mean * mean_here]
        if not covariances[0] or not mean_here:
            return None
        of_covariances = [
            by - w @ by - mean * of - at * (instrument - mean)
            for by, of, at in ((by_top, of_top, mean_top), (by_here, of_here, mean_here))
        ]
        influence = w[:, None] * np.column_stack([*of_covariances, of_top, of_here])
        summed = summed_within(context[rows], influence, context.max() + 1)
        lines.append(_line(*covariances, mean_top, mean_here, summed))
    return lines


def _line(of_top: float, of_here: float, mean_top: float, mean_here: float, influence: np.ndarray) -> Line:
    """The line whose slope is ``of_here / of_top``, two covariances with one instrument, through both means.

    ``influence [contexts, 4]`` is that of the four, in their order.
    """
    for_top, for_here, for_mean_top, for_mean_here = influence.T
    slope = Ratio(of_here, of_top, np.stack([for_here, for_top], axis=1))
    whole, taken = of_top * mean_here, of_here * mean_top  # of which the share is (whole - taken) / whole
    for_whole = for_top * mean_here + of_top * for_mean_here
    for_taken = for_here * mean_top + of_here * for_mean_top
    share = Ratio(whole - taken, whole, np.stack([for_whole - for_taken, for_whole], axis=1))
    return Line(slope, mean_here - slope.value * mean_top, share)


def _lines_across(counts: pl.DataFrame, moved: pl.Series) -> list[Line] | None:
    """In a random order: how the clicks of a show go with those of the other shows of the same suggestion.

    Their covariance at a place is the slope there, times what does not depend on the place: a ratio to that at the top
    is the line's slope, and its intercept follows from the mean rates. Two shows of a suggestion are enough, wherever
    they stood, where :func:`_lines_within` needs three, two of them at the places that are compared. Under a ranker
    what stands at a place differs in how attractive it is, and so the covariance does.
    """
    n_positions = counts["position"].max() or 0
    if n_positions < 2 or counts["position"].n_unique() < n_positions:
        return None
    context, place = counts["context"].to_numpy(), counts["position"].to_numpy() - 1
    of_shows, of_clicks = (counts[name].to_numpy().astype(float) for name in ("n_shown", "n_clicked"))
    n = np.bincount(place, of_shows)
    mean = np.bincount(place, of_clicks) / n
    n_contexts = context.max() + 1
    if not mean.all() or n_contexts < MIN_CONTEXTS:
        return None
    # What was shown once brings nothing to a covariance, and in most logs that is most.
    of_again, shown, clicked = _by_suggestion(counts.filter(moved | (counts["n_shown"] > 1)))
    looks = shown @ mean  # by about how much their places are looked at
    others = np.maximum(looks[:, None] - mean, 0.0) + PRIOR_LOOKS * mean[0]
    # Of a show here without a click, what the other shows have beyond their places' means; a click adds itself.
    beyond = (clicked.sum(1) - looks)[:, None] + mean
    products = np.where(shown > 0, (clicked * (beyond - 1) - mean * (shown * beyond - clicked)) / others, 0.0) / n
    covariance = products.sum(0)
    if not covariance[0]:
        return None
    shape, at_place = (n_contexts, n_positions), context * n_positions + place
    all_shown, all_clicked = (np.bincount(at_place, some, np.prod(shape)) for some in (of_shows, of_clicks))
    all_shown, all_clicked = all_shown.reshape(shape), all_clicked.reshape(shape)
    of_covariance = summed_within(of_again, products, n_contexts) - covariance * all_shown / n
    of_mean = (all_clicked - mean * all_shown) / n
    return [
        _line(
            *(covariance[0], covariance[place], mean[0], mean[place]),
            np.column_stack([of_covariance[:, [0, place]], of_mean[:, [0, place]]]),
        )
        for place in range(1, n_positions)
    ]


def _by_suggestion(counts: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each suggestion its context ``[n]``, and its shows and clicks at each place, ``[n, k]``."""
    suggestion = counts["suggestion"].rank("dense").to_numpy().astype(int) - 1
    shape, place = (suggestion.max(initial=-1) + 1, counts["position"].max() or 0), counts["position"].to_numpy() - 1
    context, shown, clicked = np.zeros(shape[0], dtype=int), np.zeros(shape), np.zeros(shape)
    context[suggestion] = counts["context"].to_numpy()
    shown[suggestion, place], clicked[suggestion, place] = counts["n_shown"].to_numpy(), counts["n_clicked"].to_numpy()
    return context, shown, clicked


def summed_within(contexts: np.ndarray, values: np.ndarray, n_contexts: int) -> np.ndarray:
    """``[n_contexts, columns]``: the sums of the rows of ``values [n, columns]`` by ``contexts [n]``."""
    return np.stack([np.bincount(contexts, column, n_contexts) for column in values.T], axis=1)
