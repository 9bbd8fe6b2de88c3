"""The SFT set: for each conversation, every suggestion that was shown under it, and how well it did.

In: a click log. Out: rows ``{"conversation", "candidates"}``; an SFT dataset plugin makes three suggestions of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from openrlhf_qs.click_log import conversation_keys, text_key
from openrlhf_qs.pairs import inverse_propensity

# Shows at the log's average that every text starts with: one lucky click does not yet make a good suggestion.
PRIOR_SHOWS = 5.0


def sft_candidates(log: pl.DataFrame, propensities: Sequence[float]) -> list[dict[str, Any]]:
    """Merge the impressions of each conversation; those without any click are left out.

    Args:
        log: see :mod:`openrlhf_qs.click_log`.
        propensities: of each position from the top, see :func:`openrlhf_qs.pairs.examination_propensities`.

    Returns:
        One row a conversation, in the order they are first seen: ``{"conversation": messages, "candidates": [{"text",
        "n_shown", "n_clicked", "weight"}]}``. Texts that differ in case or white space only are one candidate, in the
        form seen first. ``weight`` is clicks per show, each click counted by its inverse propensity (at most 5),
        smoothed by ``PRIOR_SHOWS`` shows at the log's average; the highest comes first.
    """
    factors = [inverse_propensity(p) for p in propensities]
    n_shown, weighted_clicks = 0, 0.0
    rows: dict[str, tuple[list[dict[str, str]], dict[str, dict[str, Any]]]] = {}
    impressions = log.select("conversation", "suggestions", "clicks").iter_rows()
    for key, (conversation, suggestions, clicks) in zip(conversation_keys(log), impressions, strict=True):
        _, candidates = rows.setdefault(key, (conversation, {}))
        for suggestion, click, factor in zip(suggestions, clicks, factors[: len(clicks)], strict=True):
            candidate = candidates.setdefault(
                text_key(suggestion), {"text": suggestion.strip(), "n_shown": 0, "n_clicked": 0, "weight": 0.0}
            )
            candidate["n_shown"] += 1
            candidate["n_clicked"] += click
            candidate["weight"] += click * factor
            n_shown += 1
            weighted_clicks += click * factor

    average = weighted_clicks / max(n_shown, 1)
    for _, candidates in rows.values():
        for candidate in candidates.values():
            shows = candidate["n_shown"] + PRIOR_SHOWS
            candidate["weight"] = (candidate["weight"] + PRIOR_SHOWS * average) / shows
    return [
        {"conversation": conversation, "candidates": sorted(candidates.values(), key=lambda c: -c["weight"])}
        for conversation, candidates in rows.values()
        if any(candidate["n_clicked"] for candidate in candidates.values())
    ]
