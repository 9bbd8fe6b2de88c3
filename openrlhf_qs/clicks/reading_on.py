r"""Those who read on past a place without a click are those who click less: by how much, from their other turns.

Where reading ends at a click, a place is seen by those alone who clicked nothing above it. Clicks there, over the
shows where nothing above was clicked, then say how much the place is looked at, times how much less its readers click
than all users do. One impression cannot tell the two apart. Other impressions of the same user can: how often those
who read on at place :math:`k` click at the top in their other turns, over how often all do.

In: a click log with users, or with conversations of several turns, whose root then stands for the user. Out:
:class:`ReadingOn`, of which :func:`openrlhf_qs.clicks.propensity.by_cascade` makes use.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from openrlhf_qs.clicks.rows import contexts

VISITS = {
    "user": pl.UInt64,  # hash; of a row without user_id that of its conversation's first user message
    "is_root": pl.Boolean,  # whether it is such a message
    "context": pl.UInt64,
    "top": pl.Int64,  # clicks at the top, 0 or 1
    "n_places": pl.Int64,
    "n_open": pl.Int64,  # places without a click above
}
MIN_USERS = 30  # who come again, below which nothing is told


class ReadingOn(NamedTuple):
    """``logs [k]``: of the rate at which those who read on at a place click, over that of all users; ``variances``."""

    logs: np.ndarray
    variances: np.ndarray


def visits(log: pl.DataFrame) -> pl.DataFrame:
    """A row an impression of ``log``; columns as in ``VISITS``. Rows of whom nothing is known are left out."""
    known = log["user_id"] if "user_id" in log.columns else pl.repeat(None, log.height, dtype=pl.String, eager=True)
    n_places = pl.col("clicks").list.len().cast(pl.Int64)
    until = pl.when(pl.col("clicks").list.max() == 1).then(pl.col("clicks").list.arg_max() + 1)
    rows = log.select(
        user=known.hash(),
        is_root=known.is_null(),
        context=contexts(log),
        top=pl.col("clicks").list.first().cast(pl.Int64),
        n_places=n_places,
        n_open=until.cast(pl.Int64).fill_null(n_places),
    )
    first = pl.element().filter(pl.element().struct.field("role") == "user").first()
    roots = log.select("conversation").filter(known.is_null())
    of_roots = rows.filter("is_root").with_columns(
        user=roots.select(pl.col("conversation").list.eval(first).list.first().hash()).to_series()
    )
    return pl.concat([rows.filter(~pl.col("is_root")), of_roots.filter(roots["conversation"].list.len() > 0)])


def reading_on(
    visits: pl.DataFrame, clicked: np.ndarray, n_open: np.ndarray, within_contexts: bool
) -> ReadingOn | None:
    """How much less those click who read on at each place.

    Args:
        visits: columns as in ``VISITS``.
        clicked: ``[k]``, how often a suggestion is clicked at each place, in clicks of the same at the top.
        n_open: ``[k]``, the share of the shows at each place without a click above.
        within_contexts: whether other turns are held against what other users did in the same context, so that what
            is shown to a user says nothing of him; where contexts never come again, that cannot be had, and then a
            conversation that is clicked more is as a user who clicks more.

    Returns:
        None where too few users come again. Every impression counts once, however often its user comes again; errors
        are clustered by user.
    """
    # Two impressions in one state of a conversation are two users', or one who comes again: then it is nobody's.
    again = pl.struct("user", "context").is_duplicated().any().over("user")
    some = visits.filter(~(pl.col("is_root") & again))
    if within_contexts:
        both = ["context", "user"]
        n_others = pl.len().over("context").cast(pl.Int64) - pl.len().over(both)
        clicks = pl.col("top").sum().over("context") - pl.col("top").sum().over(both)
        some = some.with_columns(n_others=n_others, expected=clicks / n_others).filter(pl.col("n_others") > 0)
    else:
        some = some.with_columns(expected=pl.lit(1.0))
    # What is clicked more counts more, as it does among the clicks that examination is estimated from.
    some = some.with_columns(weight="expected")
    n_more = pl.len().over("user").cast(pl.Int64) - 1
    some = some.with_columns(
        clicks=(pl.col("top").sum().over("user") - pl.col("top")) / n_more,
        expected=(pl.col("expected").sum().over("user") - pl.col("expected")) / n_more,
    ).filter(n_more > 0)
    if some["user"].n_unique() < MIN_USERS:
        return None
    user = some["user"].rank("dense").to_numpy().astype(int) - 1
    weight, open_until, n_shown = (some[name].to_numpy() for name in ("weight", "n_open", "n_places"))
    clicks, expected = (weight * some[name].to_numpy() for name in ("clicks", "expected"))
    logs, variances = np.zeros(len(clicked)), np.zeros(len(clicked))
    passed, n_passed = np.ones(len(user)), 1.0  # read the place above and did not click it
    for place in range(2, len(clicked) + 1):
        # Who stopped reading before, without a click, was not chosen by what he passed over: he is no longer there.
        goes_on = min(clicked[place - 2] * np.exp(-logs[place - 2]) / n_passed, 1.0)
        passed = goes_on * passed - ((open_until == place - 1) & (n_shown > place - 1))
        n_passed = goes_on * n_passed - (n_open[place - 2] - n_open[place - 1])
        influence = np.zeros(user.max() + 1)
        for sign, here in ((1, passed * (n_shown >= place)), (-1, 1.0 * (n_shown >= place))):
            of_clicks, of_expected = (here * clicks).sum(), (here * expected).sum()
            if not (of_clicks > 0 and of_expected > 0 and n_passed > 0):
                return None
            logs[place - 1] += sign * np.log(of_clicks / of_expected)
            each = here * (clicks / of_clicks - expected / of_expected)
            influence += sign * np.bincount(user, each, len(influence))
        variances[place - 1] = (influence**2).sum()
    return ReadingOn(logs, variances)


def if_users_differ(attraction: np.ndarray, deviation: float) -> np.ndarray:
    """``logs [k]`` of :class:`ReadingOn`, if users differed by a normal ``deviation`` in log-odds, from how often what
    is looked at attracts at each place, ``attraction [k]``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    weights = weights / weights.sum()
    # The log-odds of the average user are below those of the average click, as for a sigmoid of a normal variable.
    centre = np.log(attraction / (1 - attraction)) * np.sqrt(1 + np.pi * deviation**2 / 8)
    chance = 1 / (1 + np.exp(-centre[:, None] - deviation * nodes))  # [k, nodes]
    passed = np.cumprod(np.vstack([np.ones(len(nodes)), 1 - chance[:-1]]), axis=0)
    return np.log((chance * passed) @ weights / ((chance @ weights) * (passed @ weights)))
