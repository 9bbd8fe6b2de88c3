"""What was suggested under each conversation, and how well each suggestion did: the candidates of the SFT set.

In: a click log. Out: rows ``{"conversation", "candidates"}``, of which an SFT dataset picks three
(:mod:`openrlhf_qs.sft.candidates` reads them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from openrlhf_qs.clicks.preferences import PRIOR_SHOWS
from openrlhf_qs.clicks.propensity import inverse_propensity
from openrlhf_qs.clicks.rows import contexts
from openrlhf_qs.form.keys import text_key


def click_candidates(
    log: pl.DataFrame, propensities: Sequence[float], trust: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """Merge the impressions of each conversation; those without any click are left out.

    Args:
        log: see :mod:`openrlhf_qs.clicks.click_log`.
        propensities, trust: of each position from the top, see :mod:`openrlhf_qs.clicks.propensity`.

    Returns:
        One row a conversation, in the order they are first seen: ``{"conversation": messages, "candidates": [{"text",
        "n_shown", "n_clicked", "weight"}]}``. Texts that differ in case, white space or punctuation only (see
        :func:`openrlhf_qs.form.keys.text_key`) are one candidate, in the form seen first. ``weight`` is clicks per
        show, each click counted by its inverse propensity (at most 5), without those that places bring by themselves,
        smoothed by ``PRIOR_SHOWS`` shows at the log's average; the highest comes first.
    """
    factors = [inverse_propensity(p) for p in propensities]
    brought = list(trust) or [0.0] * len(factors)
    n_shown, weighted_clicks = 0, 0.0
    rows: dict[int, tuple[list[dict[str, str]], dict[str, dict[str, Any]]]] = {}
    impressions = log.select("conversation", "suggestions", "clicks").iter_rows()
    for key, (conversation, suggestions, clicks) in zip(contexts(log), impressions, strict=True):
        _, candidates = rows.setdefault(key, (conversation, {}))
        places = zip(suggestions, clicks, factors[: len(clicks)], brought[: len(clicks)], strict=True)
        for suggestion, click, factor, by_itself in places:
            candidate = candidates.setdefault(
                text_key(suggestion),
                {"text": suggestion.strip(), "n_shown": 0, "n_clicked": 0, "weight": 0.0},
            )
            candidate["n_shown"] += 1
            candidate["n_clicked"] += click
            candidate["weight"] += (click - by_itself) * factor
            n_shown += 1
            weighted_clicks += (click - by_itself) * factor

    average = weighted_clicks / max(n_shown, 1)
    for _, candidates in rows.values():
        for candidate in candidates.values():
            shows = candidate["n_shown"] + PRIOR_SHOWS
            candidate["weight"] = (max(candidate["weight"], 0.0) + PRIOR_SHOWS * average) / shows
    return [
        {"conversation": conversation, "candidates": sorted(candidates.values(), key=lambda c: -c["weight"])}
        for conversation, candidates in rows.values()
        if any(candidate["n_clicked"] for candidate in candidates.values())
    ]
