"""How good a ranking is: GAUC, Recall@3, NDCG@3, CTR@3, and how far its chances can be trusted: ECE.

Relevance is what was clicked, 0 or 1, or, where somebody can tell it, the chance of a click; both in ``[0, 1]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import cluster_half_width, ratio_of_means

AT = 3


def group_auc(scores: np.ndarray, relevance: np.ndarray, there: np.ndarray | None = None) -> np.ndarray:
    r"""The area under the ROC curve within each row, ``[n]``; nan where a row has nothing to compare.

    :math:`\sum_{ij}r_i(1-r_j)[s_i>s_j]/\sum_{i\ne j}r_i(1-r_j)`, ties half: for 0/1 the usual AUC, for chances its
    expectation over independent clicks, numerator and denominator apart.

    Args:
        scores, relevance: ``[n, candidates]``.
        there: ``[n, candidates]``, bool: what counts; None is all.
    """
    there = np.ones(scores.shape, dtype=bool) if there is None else there
    found = np.full(len(scores), np.nan)
    for row, (s, r, t) in enumerate(zip(scores, relevance, there, strict=True)):
        s, r = s[t], r[t]
        good, bad = r[:, None], 1 - r[None, :]
        pairs = good * bad
        np.fill_diagonal(pairs, 0)
        total = pairs.sum()
        if total > 1e-9:
            right = (s[:, None] > s[None, :]) + 0.5 * (s[:, None] == s[None, :])
            found[row] = (pairs * right).sum() / total
    return found


def at_top(scores: np.ndarray, relevance: np.ndarray, examination: Sequence[float]) -> dict[str, np.ndarray]:
    """``recall`` (share of the relevance among the first three), ``ndcg`` (gain: relevance, Järvelin and Kekäläinen
    2002) and ``ctr`` (expected clicks on the three as they stand), ``[n]`` each; nan without any relevance."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :AT]
    gain = np.take_along_axis(relevance, top, axis=1)
    ideal = -np.sort(-relevance, axis=1)[:, :AT]
    discount = 1 / np.log2(np.arange(2, top.shape[1] + 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "recall": gain.sum(1) / relevance.sum(1),
            "ndcg": (gain * discount).sum(1) / (ideal * discount).sum(1),
            "ctr": (gain * np.asarray(examination)[: top.shape[1]]).sum(1),
        }


def summary(values: Mapping[str, np.ndarray], users: np.ndarray) -> dict[str, dict[str, Any]]:
    """Mean of each with half its 95 % interval, by user; rows that are nan are left out and counted in ``n``."""
    found = {}
    for name, value in values.items():
        there = ~np.isnan(value)
        half = None
        if len(set(users[there])) > 1:
            half = cluster_half_width(value[there], Clusters.of(list(users[there])))
        found[name] = {
            "mean": float(value[there].mean()) if there.any() else None,
            "half": half,
            "n": int(there.sum()),
        }
    return found


def gains(
    arm: Mapping[str, np.ndarray],
    over: Mapping[str, np.ndarray],
    best: Mapping[str, np.ndarray] | None,
    users: np.ndarray,
) -> dict[str, dict[str, float | None]]:
    """How much better one arm is than another on the same visits, with half the 95 % interval, by user.

    Args:
        arm, over, best: metric to its value for each visit, ``[n]``; ``best`` is the oracle's, None where there is
            none: then a GAUC of 1 is what can be reached.

    Returns:
        ``gauc_error``, the share of the other arm's GAUC error, up to ``best``, that is gone; ``ndcg``, the
        difference; ``ctr``, the relative difference. Each with ``mean`` and ``half``, None where it cannot be told.
    """
    reach = 1.0 if best is None else best["gauc"]
    terms = {
        "gauc_error": (arm["gauc"] - over["gauc"], reach - over["gauc"]),
        "ndcg": (arm["ndcg"] - over["ndcg"], np.ones(len(users))),
        "ctr": (arm["ctr"] - over["ctr"], over["ctr"]),
    }
    found: dict[str, dict[str, float | None]] = {}
    for name, (numerator, denominator) in terms.items():
        there = ~np.isnan(numerator) & ~np.isnan(denominator)
        found[name] = {"mean": None, "half": None}
        if len(set(users[there])) > 1 and denominator[there].mean() > 0:
            clusters = Clusters.of(list(users[there]))
            ratio, half = ratio_of_means(numerator[there], denominator[there], clusters)
            found[name] = {"mean": ratio, "half": half}
    return found


def calibration_error(chance: np.ndarray, clicked: np.ndarray, n_bins: int = 10, seed: int = 0) -> dict[str, float]:
    """``ece`` of chances ``[n]`` against clicks, in bins of equal size, and its ``floor``: the mean ECE that a
    perfectly calibrated model of the same chances has on as many rows, by 200 draws."""
    rng = np.random.default_rng(seed)
    floor = [_ece(chance, rng.random(len(chance)) < chance, n_bins) for _ in range(200)]
    return {"ece": _ece(chance, clicked, n_bins), "floor": float(np.mean(floor))}


def _ece(chance: np.ndarray, clicked: np.ndarray, n_bins: int) -> float:
    parts = np.array_split(np.argsort(chance, kind="stable"), n_bins)
    return float(
        sum(len(part) * abs(chance[part].mean() - clicked[part].mean()) for part in parts if len(part)) / len(chance)
    )
