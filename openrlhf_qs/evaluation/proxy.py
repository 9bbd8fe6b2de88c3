"""The reward that a policy was trained on (proxy) against what it stands in for, the click probability (gold).

In: for each policy, the composite reward and the click probability under the same conversations. Out: the mean of
both, and whether users click more where the later policy has a higher reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import cluster_half_width

N_BINS = 8  # of the conversations, by how the reward changed
MIN_CONTEXTS = 10  # of a bin


def proxy_against_gold(
    proxy: Mapping[str, np.ndarray], gold: Mapping[str, np.ndarray], before: str, after: str, clusters: Clusters
) -> dict[str, Any]:
    """What ``metrics.json`` has as ``proxy``.

    Args:
        proxy: arm to ``[n]``, its composite reward under each conversation; nan where a part failed.
        gold: arm to ``[n]``, its click probability there.
        before, after: the arms between which the change is measured.
        clusters: ``[n]``.

    Returns:
        ``arms``, each with the means ``proxy`` and ``gold``; ``before``, ``after``; ``n_contexts``; ``correlation`` of
        the two changes over the conversations (Spearman's, None where one of them does not vary); ``bins`` of equally
        many conversations by the change of the proxy, with the mean changes ``proxy`` and ``gold``, ``ci95`` of the
        latter, and ``n_contexts``.
    """
    from scipy.stats import spearmanr

    rose, clicked = proxy[after] - proxy[before], gold[after] - gold[before]
    known = np.flatnonzero(np.isfinite(rose))
    varies = len(known) > 2 and np.ptp(rose[known]) > 0 and np.ptp(clicked[known]) > 0
    order = known[np.argsort(rose[known], kind="stable")]
    bins = []
    for rows in np.array_split(order, max(1, min(N_BINS, len(order) // MIN_CONTEXTS))):
        part = clusters[rows]
        if part.n_clusters < 2:
            continue
        mean, half = float(clicked[rows].mean()), cluster_half_width(clicked[rows], part)
        bins.append(
            {
                "proxy": float(rose[rows].mean()),
                "gold": mean,
                "ci95": [mean - half, mean + half],
                "n_contexts": len(rows),
            }
        )
    return {
        "arms": {name: {"proxy": float(np.nanmean(proxy[name])), "gold": float(gold[name].mean())} for name in proxy},
        "before": before,
        "after": after,
        "n_contexts": len(known),
        "correlation": float(spearmanr(rose[known], clicked[known]).statistic) if varies else None,
        "bins": bins,
    }
