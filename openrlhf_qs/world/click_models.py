"""How the users of the built-in world come from attraction to clicks: three click models, each with a known truth.

- ``pbm``, the position-based model: place ``k`` is looked at with the probability ``EXAMINATION[k]``, whatever else is
  shown, and what is attractive is then clicked (Richardson et al. 2007; Chuklin et al. 2015, *Click Models for Web
  Search*). The propensity estimators of this package assume it.
- ``cascade``: the user reads from the top and stops at the first click; without a click the next place is read with
  the probability ``LOOKS_ON`` (Craswell et al. 2008; the continuation is that of Chapelle and Zhang 2009). A click
  above takes clicks from below.
- ``trust``: what is at the top is trusted (Joachims et al. 2005; TrustPBM of Agarwal et al. 2019, *Addressing Trust
  Bias for Unbiased Learning-to-Rank*; in the affine form of Vardasbi et al. 2020, arXiv:2008.10242): a place that is
  looked at is clicked with the probability ``TRUST_ATTRACTIVE[k]`` where the suggestion is attractive, and
  ``TRUST_OTHER[k]`` where it is not. So the chance of a click is affine in the attraction,
  ``examination * (other + (attractive - other) * attraction)``, and what attracts nobody is clicked too.

In: attraction, ``[..., k]`` from the top. Out: chances of clicks, or clicks. Places below the eighth are never seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np

EXAMINATION = (1.0, 0.75, 0.55, 0.42, 0.33, 0.26, 0.21, 0.17)  # pbm, trust: probability that a place is looked at
LOOKS_ON = 0.75  # cascade: probability that the next place is read where this one was not clicked
# trust: chance of a click on what is looked at and attractive; on what is looked at and not attractive
TRUST_ATTRACTIVE = (0.98, 0.95, 0.90, 0.88, 0.87, 0.86, 0.85, 0.85)
TRUST_OTHER = (0.10, 0.04, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01)
CLICK_MODELS = ("pbm", "cascade", "trust")


def click_chances(model: str, attraction: Any) -> np.ndarray:
    """The chance of a click on each place, ``[..., k]`` from attractions of the same shape."""
    attraction = np.asarray(attraction, dtype=float)
    chances = np.zeros_like(attraction)
    n = min(attraction.shape[-1], len(EXAMINATION))
    seen = attraction[..., :n]
    if model == "pbm":
        chances[..., :n] = seen * EXAMINATION[:n]
    elif model == "trust":
        other, attractive = np.array(TRUST_OTHER[:n]), np.array(TRUST_ATTRACTIVE[:n])
        chances[..., :n] = (other + (attractive - other) * seen) * EXAMINATION[:n]
    elif model == "cascade":
        reached = np.ones(attraction.shape[:-1])
        for place in range(n):
            chances[..., place] = reached * seen[..., place]
            reached = reached * (1 - seen[..., place]) * LOOKS_ON
    else:
        raise ValueError(f"unknown click model {model!r}; known: {', '.join(CLICK_MODELS)}")
    return chances


def chance_of_a_click(model: str, attraction: Any) -> np.ndarray:
    """The chance of one or more clicks, ``[...]`` from attractions ``[..., k]`` of one user."""
    chances = click_chances(model, attraction)
    if model == "cascade":
        return chances.sum(-1)  # one click ends it
    return 1 - (1 - chances).prod(-1)


def draw_clicks(model: str, attraction: Any, rng: np.random.Generator) -> np.ndarray:
    """Clicks, 0 or 1, ``[k]``, of a user who finds the suggestions ``attraction``, ``[k]``, attractive."""
    chances = click_chances(model, attraction)
    if model != "cascade":
        return (rng.random(len(chances)) < chances).astype(int)
    clicks = np.zeros(len(chances), dtype=int)
    draw = rng.random()
    place = int(np.searchsorted(chances.cumsum(), draw, side="right"))
    if place < len(clicks):  # at most one click, on each place with its chance
        clicks[place] = 1
    return clicks


def truth(model: str, attraction: np.ndarray) -> dict[str, Any]:
    """What is true of clicks on impressions of this ``attraction``, ``[n, k]``: what an estimator should find.

    Returns:
        ``clicks``: the model; ``examination``: the share in which each place is looked at; and what else the model
        has: ``looks_on``, or ``trust_attractive`` and ``trust_other`` by place.
    """
    if model == "cascade":
        not_clicked = np.cumprod(1 - attraction, axis=1).mean(axis=0)
        reached = [1.0, *(LOOKS_ON**place * not_clicked[place - 1] for place in range(1, attraction.shape[1]))]
        return {"clicks": model, "examination": [round(float(share), 4) for share in reached], "looks_on": LOOKS_ON}
    n = attraction.shape[1]
    found: dict[str, Any] = {"clicks": model, "examination": list(EXAMINATION[:n])}
    if model == "trust":
        found |= {"trust_attractive": list(TRUST_ATTRACTIVE[:n]), "trust_other": list(TRUST_OTHER[:n])}
    return found
