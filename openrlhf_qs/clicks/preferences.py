r"""Preferences: what an impression showed, what was clicked, and the pairs that this makes, the clicked one chosen.

In: a click log. Out: one row an impression (:data:`SCHEMA`), from which the Gaussian reward model is trained: the
conversation once, the suggestions in the order shown, and weighted pairs of them. Impressions without a pair are rows
too: an objective that reads whole lists learns from them as well. Pairs are made either within an impression
(:func:`preferences`), or between all that a conversation was shown (:func:`click_rate_preferences`), then with one row
a conversation.

What stands higher is looked at more; ``position_policy`` is what is made of that. ``ipw`` corrects both sides under
the position-based model (:mod:`openrlhf_qs.clicks.propensity`): position :math:`k` is looked at with probability
:math:`\theta_k`, and a suggestion then attracts with probability :math:`\gamma`. A click on the chosen one counts
:math:`1/\theta_c`. No click on the rejected one counts by the probability that it was disliked, not overlooked,
:math:`P(\text{not attractive} \mid \text{no click at } r) = (1-\gamma)/(1-\theta_r\gamma)`, by Bayes' rule. The
expected weight of a pair is then :math:`\gamma_c(1-\gamma_r)`, whatever the positions. We do not know each
:math:`\gamma_r` and take the average, which is the click-through rate at the top; the factor stays within
:math:`[1-\gamma, 1]`.

Where places are trusted (``trust``), what does not attract is clicked too, with the chance :math:`\beta_k`, so that no
one number a place is right for all suggestions. Pairs of impressions take the one that is right on average
(``average``): the affine correction, which is right for each, would give some of them a weight below 0. Click rates,
and objectives that read whole lists, take each place's line as it is (Vardasbi et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from openrlhf_qs.clicks.click_log import clicks_by_position
from openrlhf_qs.clicks.propensity import (
    MAX_WEIGHT,
    attraction_at_the_top,
    examination_propensities,
    inverse_propensity,
)
from openrlhf_qs.clicks.rows import MESSAGES, contexts
from openrlhf_qs.files.whole import BadRow, raise_problems, read_json_lines, short, write_json_lines
from openrlhf_qs.form.keys import root_key, text_keys
from openrlhf_qs.form.prompt import check_messages

POSITION_POLICIES = {
    "all": "every pair, with equal weight",
    "skip_above": "only pairs whose rejected suggestion stood above the chosen one, so that it was surely passed over",
    "adjacent": "only pairs of neighbours, which are examined almost equally",
    "ipw": "every pair; a click weighs 1 / examination of its position, no click the probability that it was disliked",
}
DEFAULT_POLICY = "ipw"
# Shows at the log's average that every suggestion's click rate starts with: one lucky click makes no good suggestion.
PRIOR_SHOWS = 5.0
PAIR = pl.Struct(
    {
        "chosen": pl.Int64,  # places in suggestions, from 0
        "rejected": pl.Int64,
        "weight": pl.Float64,  # > 0, mean 1 over all pairs of a file
        "label": pl.Float64,  # probability that the chosen one is the better one; 1 for single clicks
    }
)
SCHEMA = {
    "impression_id": pl.String,  # of a conversation's click rates: its hash
    "conversation": MESSAGES,
    "user_id": pl.String,  # may be null
    "suggestions": pl.List(pl.String),  # in the order shown
    "clicks": pl.List(pl.Float64),  # 0 or 1; of many shows their number, or their share where that is all one knows
    "positions": pl.List(pl.Int64),  # from 1, the top one; null where there was no one place
    "examination": pl.List(pl.Float64),  # how often it was looked at, in looks at the top; null where nobody knows
    "pairs": pl.List(PAIR),  # in a file: [chosen, rejected, weight, label]
}  # and, where places are trusted, ``trust``: of each suggestion the clicks that its place brought by itself
UNREAD = 1e-6  # looks at what stands below the click that ended the reading: its logarithm must be finite
N_DIGITS = 6  # of weights and labels in a file


def preferences(
    log: pl.DataFrame,
    position_policy: str = DEFAULT_POLICY,
    propensities: Sequence[float] | None = None,
    max_weight: float = MAX_WEIGHT,
    trust: Sequence[float] = (),
    average: Sequence[float] = (),
    unless_clicked: Sequence[float] = (),
) -> pl.DataFrame:
    """Every impression, with each (clicked, not clicked) pair of it that ``position_policy`` lets through.

    The pairs of one impression share a weight of 1, so that one with many suggestions counts no more; ``ipw`` then
    multiplies each by the two factors above. A text that was clicked elsewhere in the same impression is never
    rejected, and one that stands there twice is rejected once, where it stands first.

    Args:
        log: see :mod:`openrlhf_qs.clicks.click_log`; ``user_id`` may be missing.
        position_policy: one of ``POSITION_POLICIES``.
        propensities: of each position from the top; ``None`` takes
            :func:`openrlhf_qs.clicks.propensity.examination_propensities` of ``log``. Only the weights of ``ipw``
            depend on them.
        max_weight: the most that one click may count under ``ipw``, in clicks at the top.
        average: of each position the one number that pairs are weighed by; none: ``propensities``.
        unless_clicked: where reading ends at a click, how much each position is looked at with no click above it;
            none: reading goes on. Of a suggestion below a click nothing is known then but the average attraction at
            its place. One above was surely looked at, but that it was not clicked is also why the place of the click
            was reached: the examination of that place has the average share of it already. So under ``ipw`` both
            count by one minus that average.
        trust: of each position the chance of a click that the place brings whatever stands there; none: 0.

    Returns:
        Columns as in ``SCHEMA``, in the order of the log; ``label`` is 1. With ``trust`` a column of that name more;
        with ``unless_clicked`` the examination of each row is that up to its first click, and ``UNREAD`` below.

    Raises:
        ValueError: an unknown policy, a bad or missing propensity, or no pair at all.
    """
    if position_policy not in POSITION_POLICIES:
        raise ValueError(f"unknown position policy {position_policy!r}; known: {', '.join(POSITION_POLICIES)}")
    n_positions = log["clicks"].list.len().max() or 0
    propensities = list(examination_propensities(log) if propensities is None else propensities)
    if len(propensities) < n_positions:
        raise ValueError(f"{len(propensities)} propensities for {n_positions} positions; give one for each")
    chosen_factors = rejected_factors = [1.0] * n_positions
    if position_policy == "ipw":
        one_number, attraction = list(average) or propensities, attraction_at_the_top(log)
        chosen_factors = [inverse_propensity(p, max_weight) for p in one_number]
        rejected_factors = [disliked_probability(p, attraction) for p in one_number]
        if unless_clicked:
            rejected_factors = [disliked_probability(0.0, one) for one in attraction_by_place(log, one_number)]

    pairs = pair_places(log, position_policy)
    if pairs.is_empty():
        raise ValueError(
            f"no impression out of {log.height} gives a pair of a clicked and an unclicked suggestion under position "
            f"policy {position_policy!r}: {_why_no_pair(log)}"
        )
    share = 1 / pl.len().over("row")
    weight = share * _factor("chosen", chosen_factors) * _factor("rejected", rejected_factors)
    n_shown = pl.col("clicks").list.len()
    return log.select(
        "impression_id",
        "conversation",
        user_id=pl.col("user_id") if "user_id" in log.columns else pl.lit(None, pl.String),
        suggestions="suggestions",
        clicks=pl.col("clicks").cast(pl.List(pl.Float64)),
        positions=pl.int_ranges(1, n_shown + 1),
        examination=pl.lit(propensities, pl.List(pl.Float64)).list.head(n_shown)
        if not unless_clicked
        else _until_a_click(log, unless_clicked),
        **({"trust": pl.lit(list(trust), pl.List(pl.Float64)).list.head(n_shown)} if any(trust) else {}),
        pairs=_lists(pairs.with_columns(weight=weight, label=1.0), log.height),
    )


def _why_no_pair(log: pl.DataFrame) -> str:
    """What the impressions are like of which no pair can be made, and what to do."""
    if log["clicks"].list.len().max() == 1:
        return "each shows only one suggestion; compare those of one conversation: --pairs_from click_rates"
    if not pair_places(log, "all").is_empty():
        return "the policy 'all' allows some: --position_policy all"
    clicks = log["clicks"].list
    n_all, n_none = (clicks.min() == 1).sum(), (clicks.max() == 0).sum()
    return (
        f"in {n_all} everything shown was clicked, in {n_none} nothing, and {log.height - n_all - n_none} show one "
        "text several times; give a log that also has what was not clicked"
    )


def click_rate_preferences(
    log: pl.DataFrame,
    propensities: Sequence[float] | None = None,
    prior_shows: float = PRIOR_SHOWS,
    trust: Sequence[float] = (),
) -> pl.DataFrame:
    """One row a conversation, with every two of its suggestions that differ in click-through rate.

    A suggestion's rate is its clicks, without those that its places bring by themselves (``trust``), over the shows
    that were looked at (the sum of its places' propensities), smoothed by ``prior_shows`` at the average rate. With
    rates a and b, ``label`` is a / (a + b): the probability that a click that falls on one of them falls on the chosen
    one. The weight is the number of clicks that this rests on; each suggestion's clicks are shared out over its pairs,
    so that every click counts once.

    Args:
        log: see :mod:`openrlhf_qs.clicks.click_log`.
        propensities, trust: of each position, as in :func:`preferences`.

    Returns:
        Columns as in ``SCHEMA``, conversations in the order they are first seen: ``suggestions`` the different ones,
        ``clicks`` their clicks, ``examination`` the shows that were looked at; no ``user_id``, no ``positions``; with
        ``trust`` a column of the clicks that places brought. A pair without a click on either side is left out.

    Raises:
        ValueError: a missing propensity, or no pair at all.
    """
    propensities = examination_propensities(log) if propensities is None else propensities
    context = contexts(log)
    first = log.select("conversation", context=context).filter(context.is_first_distinct())
    number = context.replace_strict(first["context"], pl.Series(range(first.height)))
    rates = (
        _shown(log.with_columns(context=number))
        .with_columns(
            looked_at=_factor("place", propensities), trust=_factor("place", list(trust) or [0.0] * len(propensities))
        )
        .group_by("context", "key", maintain_order=True)
        .agg(pl.col("text").first(), pl.col("looked_at", "trust").sum(), pl.col("click").sum().cast(pl.Float64))
        .sort("context", maintain_order=True)
    )
    average = max((rates["click"] - rates["trust"]).sum(), 0.5) / max(rates["looked_at"].sum(), 1e-9)
    attracted = (pl.col("click") - pl.col("trust")).clip(lower_bound=0)
    rates = rates.with_columns(
        rate=(attracted + prior_shows * average) / (pl.col("looked_at") + prior_shows),
        per_pair=pl.col("click") / (pl.len().over("context") - 1),
        row="context",
        place=pl.int_range(pl.len()).over("context"),
    )
    pairs = (
        rates.join(rates, on="row", suffix="_rejected")
        .filter(pl.col("rate") > pl.col("rate_rejected"), pl.col("click") + pl.col("click_rejected") > 0)
        .sort("row", "rate", "rate_rejected", descending=[False, True, True], maintain_order=True)
    )
    if pairs.is_empty():
        raise ValueError(
            f"no two suggestions of one conversation differ in clicks in {log.height} impressions; give a larger log"
        )
    pairs = pairs.select(
        "row",
        chosen="place",
        rejected="place_rejected",
        weight=pl.col("per_pair") + pl.col("per_pair_rejected"),
        label=pl.col("rate") / (pl.col("rate") + pl.col("rate_rejected")),
    )
    lists = rates.group_by("row", maintain_order=True).agg("text", "click", "looked_at", "trust")
    return lists.select(
        impression_id=first.select(pl.format("context-{}", "context")).to_series(),
        conversation=first["conversation"],
        user_id=pl.lit(None, pl.String),
        suggestions="text",
        clicks="click",
        positions=pl.lit(None, pl.List(pl.Int64)),
        examination="looked_at",
        **({"trust": "trust"} if any(trust) else {}),
        pairs=_lists(pairs, lists.height),
    )


def _until_a_click(log: pl.DataFrame, unless_clicked: Sequence[float]) -> pl.Series:
    """How much each place of each row is looked at where reading ends at a click."""
    clicked = log["clicks"].list.max().to_numpy() == 1
    n_shown = log["clicks"].list.len().to_numpy()
    n_read = np.where(clicked, log["clicks"].list.arg_max().to_numpy() + 1, n_shown)
    lists = [[*unless_clicked[:read], *[UNREAD] * (n - read)] for read, n in zip(n_read, n_shown, strict=True)]
    return pl.Series(lists, dtype=pl.List(pl.Float64))


def attraction_by_place(log: pl.DataFrame, propensities: Sequence[float]) -> list[float]:
    """How often what is looked at is clicked at each place, smoothed."""
    counts = clicks_by_position(log)
    rates = (counts["n_clicked"] + 1) / (counts["n_shown"] + 2)
    return [min(rate / p, 1 - 1e-6) for rate, p in zip(rates, propensities, strict=False)]


def disliked_probability(propensity: float, attraction: float) -> float:
    """The probability that a suggestion without a click does not attract, and was not just overlooked.

    Args:
        propensity: that its place is looked at, relative to the top; above 1 counts as 1.
        attraction: of an average suggestion that is looked at, in [0, 1).
    """
    return (1 - attraction) / (1 - min(propensity, 1.0) * attraction)


# Files


def write_preferences(path: str | Path, table: pl.DataFrame) -> None:
    """Write a table with the columns of ``SCHEMA``, and maybe more, as JSON Lines that :func:`read_preferences` reads.

    The fullest row goes first: the ``datasets`` library, by which OpenRLHF reads the file, takes the type of a field
    from its first 10 MB, where an optional one might not be there once.
    """
    n_there = pl.sum_horizontal(pl.col(name).is_not_null() for name in table.columns)
    fullest = table.select((n_there * 2 + (pl.col("pairs").list.len() > 0)).arg_max()).item() if table.height else 0
    order = [fullest, *(row for row in range(table.height) if row != fullest)]
    write_json_lines(path, preference_rows(table[order]) if table.height else [])


def preference_rows(table: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of a table as they stand in a file."""
    clicks = table["clicks"].explode(empty_as_null=False)
    whole = (clicks == clicks.round()).all()
    for row in table.iter_rows(named=True):
        clicks, seen = row["clicks"], row["examination"]
        row["clicks"] = list(map(int, clicks)) if whole else clicks
        row["examination"] = seen and [round(one, N_DIGITS) for one in seen]
        if "trust" in row:
            row["trust"] = [round(one, N_DIGITS) for one in row["trust"]]
        row["pairs"] = [
            [pair["chosen"], pair["rejected"], round(pair["weight"], N_DIGITS), round(pair["label"], N_DIGITS)]
            for pair in row["pairs"]
        ]
        yield row


def read_preferences(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file, with and without pairs. ValueError names the first 20 bad ones."""
    rows = read_json_lines(path)
    if rows and not any("pairs" in row for row in rows):
        raise ValueError(f"{path}: no row has pairs; `openrlhf-qs data` makes preferences from a click log")
    check_preferences(rows, lambda number: f"{path}:{number}")
    return rows


def check_preferences(rows: Sequence[Mapping[str, Any]], where: Callable[[int], str]) -> None:
    """ValueError with the first 20 bad rows and pairs; ``where`` a row stands, by its number from 1."""
    raise_problems(
        [
            f"{where(number)}: {place}{what}"
            for number, row in enumerate(rows, start=1)
            for place, what in preference_problems(row)
        ]
    )


def preference_problems(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with a row as it stands in a file: where, ``pair 1: `` or, for the row as a whole, nothing; and
    what was found. Where the row as a whole is bad its pairs are not looked at."""
    try:
        check_messages(row.get("conversation"))
    except BadRow as error:
        return [("", str(error))]
    suggestions = row.get("suggestions")
    if not isinstance(suggestions, list) or not suggestions:
        return [("", f"suggestions {short(suggestions)}; give a list of texts, at least one")]
    for text in suggestions:
        if not isinstance(text, str) or not text.strip():
            return [("", f"suggestion {short(text)} has no text; leave the row out")]
    if not isinstance(row.get("impression_id"), str):
        return [("", "no impression_id; give each row its own")]
    for name in ("clicks", "positions", "examination", "trust"):
        values = row.get(name)
        if values is not None and not (len(values) == len(suggestions) and all(map(_is_finite, values))):
            return [("", f"{name} {short(values)} for {len(suggestions)} suggestions; give a number for each")]
    if not isinstance(row.get("pairs"), list):
        return [("", f"pairs {short(row.get('pairs'))}; give a list, which may be empty")]
    found = ((n, pair_problem(pair, suggestions)) for n, pair in enumerate(row["pairs"], start=1))
    return [(f"pair {n}: ", what) for n, what in found if what]


def pair_problem(pair: Any, suggestions: Sequence[str]) -> str:
    """What is wrong with a pair of a row; empty where nothing is."""
    if not isinstance(pair, list) or len(pair) != 4 or not all(map(_is_number, pair)):
        return f"{short(pair)}; give [chosen, rejected, weight, label]"
    chosen, rejected, weight, label = pair
    if not all(place in range(len(suggestions)) for place in (chosen, rejected)):
        return f"indices {chosen} and {rejected} with {len(suggestions)} suggestions; they count from 0"
    if suggestions[int(chosen)] == suggestions[int(rejected)]:
        return "chosen and rejected are the same; leave the pair out"
    if not 0 < weight < math.inf:
        return f"weight {weight}; give a number greater than 0, or leave the pair out"
    if not 0 <= label <= 1:
        return f"label {label}; give the probability, 0 to 1, that the chosen one is better"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


class Pairs(NamedTuple):
    """The pairs of many rows, ``[n]`` each: the row, the places of both in its suggestions, weight, label; the better
    one is chosen, so a label is at least 0.5."""

    row: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    weight: np.ndarray
    label: np.ndarray


def all_pairs(rows: Sequence[Mapping[str, Any]]) -> Pairs:
    """The pairs of rows of a file, in their order; one with a label below 0.5 is turned round."""
    row = np.repeat(np.arange(len(rows)), [len(one["pairs"]) for one in rows])
    values = np.array([pair for one in rows for pair in one["pairs"]], dtype=np.float64).reshape(-1, 4)
    turned = values[:, 3] < 0.5
    values[turned] = values[turned][:, [1, 0, 2, 3]]
    values[turned, 3] = 1 - values[turned, 3]
    return Pairs(row, *values[:, :2].T.astype(int), *values[:, 2:].T)


def cluster_of(row: Mapping[str, Any]) -> str:
    """The conversation that a row's pairs are of, or the impression where there is none."""
    return root_key(row["conversation"]) if row["conversation"] else str(row["impression_id"])


# Tables


def _shown(log: pl.DataFrame) -> pl.DataFrame:
    """One row a suggestion: ``context`` where there is one, ``row`` and ``place`` from 0, ``text``, ``click``,
    ``key``."""
    shown = log.select(
        *("context" for name in log.columns if name == "context"),
        row=pl.int_range(pl.len()),
        place=pl.int_ranges(0, pl.col("clicks").list.len()),
        text="suggestions",
        click="clicks",
    ).explode("place", "text", "click")
    return shown.with_columns(key=text_keys(shown["text"]))


def pair_places(log: pl.DataFrame, position_policy: str) -> pl.DataFrame:
    """``row``, ``chosen``, ``rejected`` (places from 0) of all pairs that the policy lets through, in order."""
    some = log.select("suggestions", "clicks", number=pl.int_range(pl.len())).filter(
        pl.col("clicks").list.max() == 1, pl.col("clicks").list.min() == 0
    )
    shown = _shown(some)
    clicked = shown.filter(pl.col("click") == 1)
    new = pl.struct("row", "key").is_first_distinct()
    passed_over = shown.filter(new, pl.col("click") == 0).join(clicked, on=["row", "key"], how="anti")
    chosen = clicked.select("row", chosen="place")
    rejected = passed_over.select("row", rejected="place")
    gap = pl.col("chosen") - pl.col("rejected")
    let_through = {"skip_above": gap > 0, "adjacent": gap.abs() == 1}.get(position_policy, pl.lit(True))
    pairs = chosen.join(rejected, on="row").filter(let_through).sort("row", "chosen", "rejected")
    return pairs.with_columns(row=some["number"].gather(pairs["row"]))


def _factor(place: str, factors: Sequence[float]) -> pl.Expr:
    """The factor of that place, from 0."""
    return pl.col(place).replace_strict(range(len(factors)), list(factors), return_dtype=pl.Float64)


def _lists(pairs: pl.DataFrame, n_rows: int) -> pl.Series:
    """``pairs``, those of a row together and the rows in order, as a list a row; weights of mean 1."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs["row"].to_numpy(), minlength=n_rows))])
    weighted = pairs.with_columns(pl.col("weight") / pl.col("weight").mean())
    values = weighted.select(pl.struct(pl.col(field.name).cast(field.dtype) for field in PAIR.fields)).to_series()
    # The offsets by Polars, not by Arrow, which would import pandas to read a NumPy array: a quarter of a second.
    return pl.from_arrow(pa.LargeListArray.from_arrays(pl.Series(offsets).to_arrow(), values.to_arrow()))
