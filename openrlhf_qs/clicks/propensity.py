r"""How much each position is examined, estimated from clicks alone, and what a log can tell about it.

Under the position-based model a suggestion :math:`s` under the context :math:`c` at position :math:`k` is clicked with
probability :math:`\theta_k \gamma_{c,s}`: it is examined, and it attracts. Here :math:`\theta_1 = 1`, so the others
are relative to the top. In: counts of shows and clicks by (context, suggestion, position), from
:func:`openrlhf_qs.clicks.shows.shown_counts`.

No estimator is right on every log. :mod:`openrlhf_qs.clicks.diagnosis` says whether the order was random, whether a
click above takes clicks from below, and whether the gap between positions depends on how attractive a suggestion is;
:func:`estimate` chooses accordingly, runs a second estimator beside the first, and says in ``findings`` where the two
disagree or the log cannot tell. For the assumptions of each, and how they do where the truth is known, see
docs/POSITION_BIAS.md.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

import numpy as np
import polars as pl

from openrlhf_qs.clicks.diagnosis import (
    MIN_CONTEXTS,
    TRUSTED,
    Diagnosis,
    Line,
    diagnose,
    is_moved,
    trusted_places,
    untold_places,
)
from openrlhf_qs.clicks.reading_on import if_users_differ, reading_on, visits
from openrlhf_qs.clicks.shows import shown_counts
from openrlhf_qs.statistics.intervals import Z_95

METHODS = {
    "auto": "as the log allows: ctr if the order is random, pbm if it was chosen, cascade if a click above takes "
    "clicks from below, trust if the gap between positions depends on attraction",
    "ctr": "click-through rate divided by the top's; right if the order shown is random",
    "harvest": "the same suggestions of a conversation, at the top and at that position; right under any ranker",
    "pbm": "position-based model by EM over the suggestions that moved; right under any ranker, all positions at once",
    "cascade": "reading from the top that may end at a click: ctr or pbm if nothing above was clicked, times how "
    "often that is so",
    "trust": "one line per position: how much its clicks grow with attraction, and what trust in it alone adds; "
    "right under any ranker, but refused if too few suggestions recur",
    "none": "every position is treated like the top: no correction",
}
DEFAULT_METHOD = "auto"
PLACES = ("trust", "average", "unless_clicked")  # what an estimate may say about each position besides its examination
MAX_WEIGHT = 5.0
TAKES_CLICKS = 0.5  # odds ratio of a click with and without one above, below which reading ends at a click
DIFFER = 1.0  # deviation of users in log-odds of a click that intervals allow for, where a log cannot tell it
KNOWN = 2.0  # upper over lower end of an interval, above which a position is called unknown


class Propensities(NamedTuple):
    """Examination of each position relative to the top, whose own is 1; ``low`` and ``high`` bound 95 %.

    ``method`` is the estimator; ``findings`` are sentences: what speaks against it, and what the log cannot tell;
    ``order`` is that of :class:`Diagnosis`. ``trust`` is, for each position, the probability of a click that the
    position brings whatever is shown there: all 0, or missing, except with the method ``trust``. The probability of a
    click is ``trust + value * attraction``. ``unless_clicked`` is, with the method ``cascade``, how much each position
    is examined if nothing above was clicked; below a click nothing is.
    ``average`` is by how much suggestions are clicked less at a position on average: with the method ``trust`` that of
    the position-based model, for users of a single number per position; with ``cascade`` ``value`` times by how much
    less users who read on click.
    """

    values: list[float]
    low: list[float]
    high: list[float]
    method: str = ""
    findings: tuple[str, ...] = ()
    order: str = ""
    trust: tuple[float, ...] = ()
    unless_clicked: tuple[float, ...] = ()
    average: tuple[float, ...] = ()

    @property
    def looks(self) -> list[float]:
        """What a show at each position counts where clicks are divided by it, after subtracting ``trust``."""
        return self.values if self.trust else list(self.average) or self.values


def examination_propensities(log: pl.DataFrame, method: str = DEFAULT_METHOD) -> list[float]:
    """The examination of each position of ``log`` by one of ``METHODS``, > 0, the first is 1."""
    return estimate_log(log, method).values


def estimate_log(log: pl.DataFrame, method: str = DEFAULT_METHOD, n_positions: int = 0) -> Propensities:
    """:func:`estimate` of the impressions of ``log``, with its users."""
    n_positions = n_positions or log["clicks"].list.len().max() or 0
    return estimate(shown_counts(log), method, n_positions=n_positions, users=visits(log))


def estimate(
    counts: pl.DataFrame,
    method: str = DEFAULT_METHOD,
    max_weight: float = MAX_WEIGHT,
    n_positions: int = 0,
    users: pl.DataFrame | None = None,
) -> Propensities:
    """Estimate by one of ``METHODS``, with intervals and findings.

    Args:
        users: of the same impressions, :func:`openrlhf_qs.clicks.reading_on.visits`; only ``cascade`` needs them.
        max_weight: what a click counts at most, in clicks at the top; the remaining bias is among the findings.
        n_positions: of the log. A position missing from ``counts``, because it only ever repeats what is shown above,
            gets the value of the position above it, and a finding; 0: as many as ``counts`` has.

    Raises:
        ValueError: the counts do not allow that method; ``auto`` always finds one.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method of propensities {method!r}; known: {', '.join(METHODS)}")
    places = counts["position"].unique().sort().to_list()
    if places != list(range(1, max(n_positions, len(places)) + 1)):
        dense = counts.with_columns(pl.col("position").replace_strict(places, range(1, len(places) + 1)))
        if users is not None:
            on_dense = {
                name: pl.Series(np.searchsorted(places, users[name], side="right")) for name in ("n_places", "n_open")
            }
            users = users.with_columns(**on_dense)
        found = estimate(dense, method, max_weight, users=users)
        return _with_silent_places(found, places, max(n_positions, *places))
    known = diagnose(counts)
    if method == "auto":
        found, second = _chosen(counts, known, users)
    else:
        found, second = _by(method, counts, known, users), None
    findings = [*_of_estimate(found, second), *_of_cap(found.values, max_weight)]
    if method == "auto":
        found = _allowing_for_trust(found, known)
    findings = (*found.findings, *_of_diagnosis(known, found, method == "auto"), *findings)
    return found._replace(findings=findings, order=known.order)


def _with_silent_places(found: Propensities, places: list[int], n_positions: int) -> Propensities:
    """``found``, which is for ``places``, for all positions up to ``n_positions``."""
    above = [bisect.bisect_right(places, place) - 1 for place in range(1, n_positions + 1)]
    silent = [place for place in range(1, n_positions + 1) if place not in places]
    values, low, high = ([side[index] for index in above] for side in found[:3])
    for place in silent:
        low[place - 1], high[place - 1] = 0.0, 1.0
    sentence = (
        f"position {', '.join(map(str, silent))} is empty or only repeats what is shown above, so nothing tells how "
        "often it is examined: it counts as the position above it, and other findings count the positions without it"
    )
    others = {name: tuple(getattr(found, name)[index] for index in above) for name in PLACES if getattr(found, name)}
    return found._replace(values=values, low=low, high=high, findings=(sentence, *found.findings), **others)


def _chosen(
    counts: pl.DataFrame, known: Diagnosis, users: pl.DataFrame | None
) -> tuple[Propensities, Propensities | None]:
    """The estimator that fits the log, and another one that must agree with it if both are right."""
    if known.odds_ratio and known.odds_ratio[2] < TAKES_CLICKS:
        return _by("cascade", counts, known, users), None
    if trusted_places(known) and (trusting := _tried("trust", counts, known)):
        return trusting, None
    if known.order != "chosen":
        found, second = _by("ctr", counts, known), _tried("pbm", counts, known)
        # If little recurs, the second one knows too little to contradict the first.
        return found, second if second and _unknown_places(second) == [] else None
    found = _tried("pbm", counts, known)
    if found is None or _unknown_places(found):
        sentence = (
            "the order was chosen, and too few suggestions moved to tell how often each position is examined: nothing "
            "is corrected; show a share of the impressions in random order, or choose --propensity yourself"
        )
        return _by("none", counts, known)._replace(findings=(sentence,)), None
    return found, _tried("harvest", counts, known)


def _tried(method: str, counts: pl.DataFrame, known: Diagnosis) -> Propensities | None:
    try:
        return _by(method, counts, known)
    except ValueError:
        return None


def _allowing_for_trust(found: Propensities, known: Diagnosis) -> Propensities:
    """``found`` with intervals that also cover the slopes of the lines, at the positions where it cannot be excluded
    that the gap to the top depends on attraction. If the log has no lines, such a position may be examined as much as
    the top, because trust in the top only ever makes the estimates of lower positions too low. If nothing is
    corrected, all positions may be.
    """
    low, high = list(found.low), list(found.high)
    if found.method == "none":
        return found._replace(low=[1.0, *[0.0] * len(low[1:])])
    if found.method not in ("ctr", "pbm"):
        return found
    for place in untold_places(known, len(low), TRUSTED):
        slope = known.lines[place - 2].slope.interval() if known.lines else (-np.inf, np.inf)
        if not np.isfinite(slope).all():
            slope = (low[place - 1], 1.0)
        low[place - 1], high[place - 1] = min(low[place - 1], max(slope[0], 0.0)), max(high[place - 1], slope[1])
    return found._replace(low=low, high=high)


def _by(method: str, counts: pl.DataFrame, known: Diagnosis, users: pl.DataFrame | None = None) -> Propensities:
    if method == "cascade":
        found = by_cascade(counts, known.order, users)
    elif method == "trust":
        found = by_trust(counts, known.lines)
    elif method == "none":
        ones = [1.0] * counts["position"].max()
        found = Propensities(ones, ones, ones)
    else:
        found = ESTIMATORS[method](counts)
    return found._replace(method=method)


def _unknown_places(found: Propensities) -> list[int]:
    bounds = zip(found.low, found.high, strict=True)
    return [place for place, (low, high) in enumerate(bounds, start=1) if not high <= KNOWN * low]


def _of_diagnosis(known: Diagnosis, found: Propensities, is_auto: bool) -> list[str]:
    """What the origin of the log says against an estimate; ``is_auto``: its intervals allow for trust."""
    findings, held = [], "; the intervals allow for it" if is_auto else ""
    if known.order == "chosen":
        findings.append(
            f"the order was chosen: a suggestion that is shown again has the same position in {known.same_place:.0%} "
            f"of cases; in a random order that would be {known.by_chance:.0%}"
            + ("; ctr mistakes quality for attention: use pbm" if found.method == "ctr" else "")
        )
    if known.order == "unknown" and found.method in ("ctr", "cascade"):
        findings.append(
            "too few suggestions were shown at several positions to tell whether the order was random; if it was "
            "chosen, good suggestions at the top look like attention, and the estimates of lower positions are too low"
        )
    if known.odds_ratio and known.odds_ratio[2] < TAKES_CLICKS:
        findings.append(
            f"a click above takes clicks from below (odds ratio {known.odds_ratio[0]:.2f}): users stop reading at a "
            "click" + ("" if found.method == "cascade" else "; use cascade")
        )
        if found.method == "cascade":
            findings.append(
                "preference pairs from such a log still favour a higher position, by .09 to .14 in log-odds on "
                "simulated logs (data --pairs_from click_rates: by .05 to .08)"
            )
    elif trusted := trusted_places(known):
        shares = [
            "{:+.0%} of its clicks, {:+.0%} to {:+.0%}".format(*known.fixed_share[place - 2]) for place in trusted
        ]
        places = ", ".join(f"{place} ({share})" for place, share in zip(trusted, shares, strict=True))
        what = f"one number per position is right only for the average suggestion, and some .1 to .2 too low{held}"
        if found.method == "trust":
            brought = " ".join(f"{chance:.3f}" for chance in found.trust)
            what = f"each position has a line, with a click probability of {brought} whatever is shown there"
        findings.append(
            f"the gap between the top and position {places} depends on how attractive a suggestion is, as if the top "
            f"is trusted: {what}"
        )
    elif found.method != "none" and (untold := untold_places(known, len(found.values))):
        places = ", ".join(map(str, untold))
        would = "if it is, one number per position is right only for the average suggestion, and some .1 to .2 too low"
        if slopes := _slopes(known.lines):
            numbers = [f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in zip(*slopes[:3], strict=True)]
            would = f"if it is, lower positions count {', '.join(numbers[1:])}, with --propensity trust"
        findings.append(
            "too few suggestions were shown at several positions to tell whether the top is trusted more than "
            f"position {places}: {would}{held}"
        )
    return findings


def _of_estimate(found: Propensities, second: Propensities | None) -> list[str]:
    """What an estimate says against itself."""
    findings = []
    unknown = _unknown_places(found)
    if unknown:
        places = ", ".join(f"{place} ({found.low[place - 1]:.2f} to {found.high[place - 1]:.2f})" for place in unknown)
        findings.append(f"{found.method} cannot tell how often position {places} is examined: give a larger log")
    above = [place for place, value in enumerate(found.values, start=1) if value > 1]
    if above:
        findings.append(
            f"position {', '.join(map(str, above))} seems to be examined more than the top: look for rows of one user "
            "or duplicate rows"
        )
    if second is not None:
        apart = [
            f"{place} ({found.low[place - 1]:.2f} to {found.high[place - 1]:.2f} by {found.method}, "
            f"{second.low[place - 1]:.2f} to {second.high[place - 1]:.2f} by {second.method})"
            for place in range(2, min(len(found.values), len(second.values)) + 1)
            if found.low[place - 1] > second.high[place - 1] or found.high[place - 1] < second.low[place - 1]
        ]
        if apart:
            findings.append(
                f"two estimators disagree on position {', '.join(apart)}: one of their assumptions is wrong"
            )
    return findings


def _of_cap(values: list[float], max_weight: float) -> list[str]:
    """The remaining bias at positions where a click may count ``max_weight`` at most.

    Of two equally attractive suggestions, the one at the top is clicked alone ``1 / value`` times as often as the one
    at that position, whose clicks count ``max_weight``: so it gets ``1 / (1 + value * max_weight)`` of the weight.
    """
    capped = [(place, value) for place, value in enumerate(values, start=1) if 1 / value > max_weight]
    if not capped:
        return []
    places = ", ".join(f"{place} ({max_weight:g} instead of {1 / value:.1f})" for place, value in capped)
    wins = ", ".join(f"{1 / (1 + value * max_weight):.1%}" for _, value in capped)
    return [
        f"a click at position {places} counts less than its inverse propensity: of two equally attractive "
        f"suggestions, the one at the top has {wins} of the weight of their pairs, where half is right"
    ]


def by_trust(counts: pl.DataFrame, lines: list[Line] | None) -> Propensities:
    r"""One line per position: what is shown there is clicked with probability :math:`\alpha_k\gamma+\beta_k`.

    The model of Agarwal et al. (2019), *Addressing Trust Bias for Unbiased Learning-to-Rank*, in the affine form of
    Vardasbi et al. (2020), arXiv:2008.10242: a position is examined and then trusted, so what attracts nobody is
    clicked there too. A click log does not identify examination and trust separately, only the lines, up to the zero
    and the unit of :math:`\gamma`. The unit is that of a click at the top, :math:`\alpha_1=1`. The zero is where the
    least trusted position is not clicked at all, so that every :math:`\beta_k\ge0`.

    Raises:
        ValueError: too few suggestions recurred at two positions to determine the lines.
    """
    found = _slopes(lines)
    if found is None:
        raise ValueError(
            "too few suggestions were shown at two positions, or too few times, to tell trust from attention: give a "
            "larger log, or use pbm for the propensities"
        )
    # Click probabilities at the top of what is not clicked at each position.
    zeros = [0.0, *(-line.intercept / line.slope.value for line in lines)]
    return found._replace(
        trust=tuple(float(slope * (max(zeros) - zero)) for slope, zero in zip(found.values, zeros, strict=True)),
        average=tuple(by_position_based_model(counts).values),
    )


def _slopes(lines: list[Line] | None) -> Propensities | None:
    """The slopes of the lines with their intervals; None where they are unknown."""
    if lines is None:
        return None
    bounds = [(1.0, 1.0), *(line.slope.interval() for line in lines)]
    low, high = ([bound[side] for bound in bounds] for side in (0, 1))
    found = Propensities([1.0, *(line.slope.value for line in lines)], low, high)
    return None if min(low) <= 0 or _unknown_places(found) else found


class _Estimate(NamedTuple):
    """``logs [k]`` of the positions' examination; ``influence [contexts, k]``, what each of ``contexts`` adds to their
    error; ``variances [k]``, those of a model in which all clicks are independent."""

    logs: np.ndarray
    contexts: np.ndarray
    influence: np.ndarray
    variances: np.ndarray

    def with_interval(self) -> Propensities:
        """Clustered by context, because users of one conversation see the same; with few contexts, by the model."""
        return _with_interval(self.logs, self.interval_variances())

    def interval_variances(self) -> np.ndarray:
        """``[k]``, of ``logs``."""
        many = len(self.contexts) >= MIN_CONTEXTS
        return (self.influence**2).sum(0) if many else self.variances

    def times(self, other: _Estimate) -> _Estimate:
        """The estimate of the product, whose errors are correlated."""
        contexts = np.union1d(self.contexts, other.contexts)
        influence = np.zeros((len(contexts), len(self.logs)))
        for one in (self, other):
            influence[np.searchsorted(contexts, one.contexts)] += one.influence
        return _Estimate(self.logs + other.logs, contexts, influence, self.variances + other.variances)


def by_cascade(counts: pl.DataFrame, order: str, users: pl.DataFrame | None = None) -> Propensities:
    """For users who read from the top and may stop at a click: how often each position is reached.

    If nothing above was clicked, a position is examined as under the position-based model, so its examination is
    estimated from those shows alone, and multiplied by the share of shows in which nothing above was clicked. Users
    who read on are those who click less; recurring ``users`` tell by how much
    (:mod:`openrlhf_qs.clicks.reading_on`). If they do not, the interval allows for it and a finding says so.
    """
    still_open = counts.with_columns(n_shown="n_open", n_clicked="n_first").filter(pl.col("n_shown") > 0)
    try:
        found = _position_based_model(still_open)
    except ValueError:
        if order == "chosen":
            raise
        found = None
    # In a random order, click rates stand in where too little moved. They do not hold suggestions against themselves:
    # that conversations which are clicked more are less often still open is then a part of how users differ.
    within = True
    if order != "chosen" and (found is None or _unknown_places(found.with_interval())):
        found, within = _click_rates(still_open), False
    is_open = _rates(counts, "n_open", "n_shown")
    reached = found.times(is_open)
    uncorrected = reached.with_interval()
    places = {"unless_clicked": tuple(np.exp(found.logs).tolist()), "average": tuple(uncorrected.values)}
    shown = counts.group_by("position").agg(pl.col("n_clicked", "n_shown").sum()).sort("position")
    rate = ((shown["n_clicked"] + 1) / (shown["n_shown"] + 2)).to_numpy()
    attraction = np.clip(rate / np.exp(reached.logs), 1e-4, 0.9)
    less = None if users is None else reading_on(users, np.exp(reached.logs), np.exp(is_open.logs), within)
    if less is not None and not _unknown_places(_with_interval(less.logs, less.variances)):
        # What attracts less is clicked less again, where users differ in log-odds; if they do not, it is not. The
        # intervals hold both.
        at_place = less.logs * (1 - attraction) / (1 - attraction[0])
        variances = reached.interval_variances() + less.variances
        ways = [_with_interval(reached.logs - logs, variances) for logs in (at_place, less.logs)]
        low, high = (side([way[n] for way in ways], axis=0).tolist() for n, side in ((1, np.min), (2, np.max)))
        numbers = ", ".join(f"{one:.2f}" for one in np.exp(at_place[1:]))
        finding = (
            f"judging by their other turns, users who read on to lower positions click {numbers} times as often as "
            "all users would, so these positions are examined that much more than their clicks suggest"
        )
        return ways[0]._replace(low=low, high=high, findings=(finding,), **places)
    allowed = if_users_differ(attraction, DIFFER)
    high = (np.array(uncorrected.high) / np.exp(allowed)).tolist()
    more = ", ".join(f"{one:.2f}" for one in np.exp(-allowed[1:]))
    finding = (
        "too few users recur to tell how much they differ, and users who read on are those who click less: if users "
        f"differ by a standard deviation of {DIFFER:g} in log-odds, lower positions are examined {more} times as "
        "often, which the intervals allow for; give user_id in more rows"
    )
    return uncorrected._replace(high=high, findings=(finding,), **places)


def by_click_rates(counts: pl.DataFrame) -> Propensities:
    """Click-through rate of each position over that of the top.

    Right if the order shown is random. If a ranker puts the better ones on top, it mistakes their quality for
    attention, and is too low for lower positions. Each rate is smoothed by one click in two shows, so none is 0; with
    few contexts the interval is Katz's, for the logarithm of a ratio of two rates.
    """
    return _click_rates(counts).with_interval()


def _click_rates(counts: pl.DataFrame) -> _Estimate:
    rates = _rates(counts, "n_clicked", "n_shown", prior=1)
    variances = np.where(np.arange(len(rates.logs)) > 0, rates.variances + rates.variances[0], 0.0)
    return rates._replace(
        logs=rates.logs - rates.logs[0], influence=rates.influence - rates.influence[:, :1], variances=variances
    )


def _rates(counts: pl.DataFrame, part: str, whole: str, prior: int = 0) -> _Estimate:
    """The share that ``part`` has of ``whole`` at each position, smoothed by ``prior`` in twice as many."""
    context, number = np.unique(counts["context"].to_numpy(), return_inverse=True)
    place = counts["position"].to_numpy() - 1
    some, of = (counts[name].to_numpy().astype(float) for name in (part, whole))
    n_some, n = np.maximum(np.bincount(place, some) + prior, 0.5), np.bincount(place, of) + 2 * prior
    rate = n_some / n
    at_place = number * len(rate) + place
    influence = np.bincount(at_place, (some - rate[place] * of) / n_some[place], len(context) * len(rate))
    influence = influence.reshape(len(context), len(rate))
    return _Estimate(np.log(rate), context, influence, 1 / n_some - 1 / n)


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
                f"{len(both)} moved: give a larger log, or use click rates for the propensities (ctr)"
            )
        spread = ((n * n_1 * (c + c_1) - c * c_1 * (n + n_1)) / (n + n_1) ** 2).sum()
        logs.append(np.log(here / there))
        variances.append(spread / (here * there))
    return _with_interval(np.array(logs), np.array(variances))


def by_position_based_model(counts: pl.DataFrame) -> Propensities:
    """Maximum likelihood of the position-based model over suggestions that moved.

    Clicks are taken as Poisson counts of mean ``n_shown * theta * gamma``. Then the attraction of each suggestion
    drops out, however rarely it was shown; EM with Bernoulli clicks fits attractions to single clicks and puts all
    positions near 1 (measured in docs/CLICK_LOG.md). All positions are compared with all others, not the top alone.
    The interval is that of the sandwich estimate, which asks no click to be Poisson (White 1982).
    """
    return _position_based_model(counts).with_interval()


def _position_based_model(counts: pl.DataFrame) -> _Estimate:
    moved = counts.filter(is_moved(counts))
    n_positions = counts["position"].max()
    clicked_at = moved.group_by("position").agg(pl.col("n_clicked").sum()).filter(pl.col("n_clicked") > 0)
    if clicked_at.height < n_positions:
        raise ValueError(
            f"only {clicked_at.height} of {n_positions} positions have a click on a suggestion that was also shown "
            "elsewhere: give a larger log, or use click rates for the propensities (ctr)"
        )
    suggestion = moved["suggestion"].rank("dense").to_numpy().astype(int) - 1
    context, number = np.unique(moved["context"].to_numpy(), return_inverse=True)
    place = moved["position"].to_numpy() - 1
    shown, clicked = moved["n_shown"].to_numpy().astype(float), moved["n_clicked"].to_numpy().astype(float)
    theta = _poisson_maximum(suggestion, place, shown, clicked, np.ones(n_positions))
    # Given a suggestion's clicks, they fall on the positions by shows times examination.
    looked_at = shown * theta[place]
    share = looked_at / np.bincount(suggestion, looked_at)[suggestion]
    expected = np.bincount(suggestion, clicked)[suggestion] * share
    shares = np.zeros((suggestion.max() + 1, n_positions))
    shares[suggestion, place] = share
    information = np.diag(np.bincount(place, expected, n_positions))
    information -= (shares * np.bincount(suggestion, clicked)[:, None]).T @ shares
    inverse = np.zeros((n_positions, n_positions))
    inverse[1:, 1:] = np.linalg.pinv(information[1:, 1:])  # the top is 1 by definition
    score = np.bincount(number * n_positions + place, clicked - expected, len(context) * n_positions)
    return _Estimate(np.log(theta), context, score.reshape(len(context), n_positions) @ inverse, np.diag(inverse))


def attraction_at_the_top(log: pl.DataFrame) -> float:
    """Click-through rate of the top position, smoothed: how many suggestions attract if all are examined."""
    clicks = log["clicks"].list.first()
    return (clicks.sum() + 1) / (len(clicks) + 2)


def inverse_propensity(propensity: float, max_weight: float = MAX_WEIGHT) -> float:
    """What a click at that position counts, in clicks at the top: ``1 / propensity``, at most ``max_weight``."""
    if not propensity > 0 or not max_weight > 0:
        raise ValueError(f"propensity {propensity} and max_weight {max_weight} must both be > 0")
    return min(1 / propensity, max_weight)


def _poisson_maximum(
    suggestion: np.ndarray, position: np.ndarray, shown: np.ndarray, clicked: np.ndarray, theta: np.ndarray
) -> np.ndarray:
    """``theta [n_positions]``, the first 1, from counts ``[rows]`` of each (suggestion, position), by EM.

    In turn: each suggestion's attraction is its clicks over its examined shows, and each position's examination its
    clicks over the shows that attract.
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
    half = Z_95 * np.sqrt(variances)
    return Propensities(*(np.exp(part).tolist() for part in (logs, logs - half, logs + half)))


ESTIMATORS = {
    "ctr": by_click_rates,
    "harvest": by_moved_suggestions,
    "pbm": by_position_based_model,
}
