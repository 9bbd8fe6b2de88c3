"""CTR of the arms on parts of the held-out conversations: by number of turns, by the users' language, and by keys of
the log's ``meta``, such as topic or intent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openrlhf_qs.form.language import users_language, users_texts
from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import cluster_half_width

MIN_CONTEXTS = 20  # fewest conversations of a part for which a CTR is given
MAX_VALUES = 24  # a key of meta with more values does not define groups


def segments(
    context_ctr: Mapping[str, np.ndarray],
    conversations: Sequence[Sequence[Mapping[str, str]]],
    meta: Sequence[Mapping[str, Any]],
    clusters: Clusters,
    before: str,
    after: str,
) -> dict[str, dict[str, dict[str, Any]]]:
    """CTR of each arm on each part, and how it changed.

    Args:
        context_ctr: arm to ``[n]``, its CTR under each conversation.
        conversations, meta, clusters: ``[n]`` each.
        before, after: arms; the change from the one to the other is that on the same conversations.

    Returns:
        Key (``turns``, ``language``, then those of ``meta`` that tell groups) to value to ``n_contexts``, arm to
        ``ctr`` and ``ci95``, and ``change`` with ``change_ci95``. Values of fewer than ``MIN_CONTEXTS`` conversations,
        and keys with fewer than two values, are left out.
    """
    found = {}
    for key, values in groups(conversations, meta).items():
        parts = {}
        for value in sorted(set(values)):
            rows = np.array([one == value for one in values])
            if value and (part := clusters[rows]).n_clusters >= MIN_CONTEXTS:
                parts[value] = _part({arm: ctr[rows] for arm, ctr in context_ctr.items()}, part, before, after)
        if len(parts) > 1:
            found[key] = parts
    return found


def groups(
    conversations: Sequence[Sequence[Mapping[str, str]]], meta: Sequence[Mapping[str, Any]]
) -> dict[str, list[str]]:
    """By ``turns``, by ``language``, and by each key of ``meta`` that tells groups, the value of each row, ``[n]``;
    empty: none. The language is that of the user's messages, where ``meta`` does not say it."""
    columns = {"turns": [str(sum(m["role"] == "user" for m in conversation)) for conversation in conversations]}
    columns["language"] = [users_language(users_texts(conversation)) for conversation in conversations]
    for key in sorted({key for one in meta for key in one}):
        values = [one.get(key) for one in meta]
        told = {value for value in values if isinstance(value, str | int | bool)}
        if 2 <= len(told) <= MAX_VALUES:
            columns[key] = ["" if value is None else str(value) for value in values]
    return columns


def _part(context_ctr: Mapping[str, np.ndarray], clusters: Clusters, before: str, after: str) -> dict[str, Any]:
    part: dict[str, Any] = {"n_contexts": len(next(iter(context_ctr.values()))), "ctr": {}, "ci95": {}}
    for arm, ctr in context_ctr.items():
        half = cluster_half_width(ctr, clusters)
        part["ctr"][arm] = float(ctr.mean())
        part["ci95"][arm] = [max(float(ctr.mean()) - half, 0.0), min(float(ctr.mean()) + half, 1.0)]
    if before != after:
        changed = context_ctr[after] - context_ctr[before]
        half = cluster_half_width(changed, clusters)
        part["change"] = float(changed.mean())
        part["change_ci95"] = [part["change"] - half, part["change"] + half]
    return part
