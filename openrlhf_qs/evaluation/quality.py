"""How valid, diverse and similar to clicked suggestions an arm's suggestions are, measured without users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz

from openrlhf_qs.evaluation.arms import Shown
from openrlhf_qs.form.keys import conversation_key, text_key
from openrlhf_qs.form.text import words
from openrlhf_qs.models.embedder import embed
from openrlhf_qs.sft import assembly
from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import cluster_half_width, t_interval

SAME_MEANING = 0.85  # cosine of two suggestions' vectors from which they mean the same
NEAR_DUPLICATE = 90  # token_set_ratio of rapidfuzz, 0 to 100, from which two suggestions say the same
N_GROUPS = 20  # of conversations, of which the jackknife leaves one out at a time


def response_quality(
    rows: Sequence[Shown], clicked: Mapping[str, Sequence[str]], embedder: Any = None
) -> dict[str, Any]:
    """The figures of an arm's suggestions that need no users; None if there is nothing to measure.

    Args:
        rows: the arm.
        clicked: from :func:`clicked_suggestions`.
        embedder: a ``SentenceTransformer``, for ``same_meaning``.

    Returns:
        ``n_responses``; ``malformed``, share that is not three suggestions with letters; ``distinct_1`` and
        ``distinct_2``, different words and word pairs per word and pair of the whole arm; ``near_duplicates``, share
        of responses with two suggestions that say the same in nearly the same words; ``same_meaning``, share of those
        with two whose vectors have a cosine of ``SAME_MEANING`` or more; ``self_similarity`` in [0, 1], how alike two
        suggestions of a response are, mean cosine of their character trigrams; ``words`` of a suggestion, mean;
        ``likeness`` in [0, 1], how like the clicked suggestion nearest to it a suggestion is, mean over the
        ``n_likeness`` suggestions under a conversation with a click; ``log_ppl``, mean, nats per token at the
        temperature that the rows give for it.
    """
    said = [words(text) for row in rows for text in row.suggestions]
    sums = _sums(rows, clicked)
    means = {key: float(total.sum() / n.sum()) if n.any() else None for key, (total, n) in sums.items()}
    return {
        "n_responses": len(rows),
        "malformed": means["malformed"],
        "distinct_1": _distinct([(word,) for text in said for word in text]),
        "distinct_2": _distinct([pair for text in said for pair in pairwise(text)]),
        "near_duplicates": means["near_duplicates"],
        "same_meaning": None if embedder is None else _mean(_most_alike(rows, embedder) >= SAME_MEANING),
        "self_similarity": means["self_similarity"],
        "words": _mean([len(text) for text in said]),
        "likeness": means["likeness"],
        "n_likeness": int(sums["likeness"][1].sum()),
        "log_ppl": means["log_ppl"],
    }


def quality_change(
    before: Sequence[Shown], after: Sequence[Shown], clicked: Mapping[str, Sequence[str]], clusters: Clusters
) -> dict[str, list[float]]:
    r"""95 % intervals of how figures of :func:`response_quality` changed between two arms of the same conversations.

    Each figure but ``distinct_2`` is a ratio of sums over responses, whose error is that of
    :math:`(y_i-\bar y\,n_i)/\bar n`, added up in each cluster; the arms share their conversations, so the difference
    is taken first. ``distinct_2`` is no sum: its interval is a jackknife over ``N_GROUPS`` groups of conversations.

    Args:
        before, after: ``[n]``, the same conversations in the same order.
        clusters: ``[n]``.

    Returns:
        Figure to the ends of the interval; without figures that an arm lacks; none at all where all is one cluster.
    """
    found: dict[str, list[float]] = {}
    if clusters.n_clusters < 2:
        return found
    sums = [_sums(rows, clicked) for rows in (before, after)]
    for key in sums[0]:
        influence, change = np.zeros(len(before)), 0.0
        if not all(one[key][1].any() for one in sums):
            continue
        for sign, one in zip((-1, 1), sums, strict=True):
            total, n = one[key]
            mean = total.sum() / n.sum()
            influence += sign * (total - mean * n) / n.mean()
            change += sign * mean
        half = cluster_half_width(influence, clusters)
        found[key] = [float(change - half), float(change + half)]
    pairs = [
        [{*chain(*(pairwise(words(text)) for text in row.suggestions))} for row in rows] for rows in (before, after)
    ]
    n_pairs = [
        np.array([sum(max(len(words(text)) - 1, 0) for text in row.suggestions) for row in rows])
        for rows in (before, after)
    ]
    group = clusters.numbers[0] % N_GROUPS
    changes = []
    for left_out in range(-1, min(N_GROUPS, clusters.n_clusters)):  # -1: none, all there is
        kept = group != left_out
        if not all(n[kept].any() for n in n_pairs):
            return found
        before_share, after_share = (
            len(set().union(*(one for one, keep in zip(some, kept, strict=True) if keep))) / n[kept].sum()
            for some, n in zip(pairs, n_pairs, strict=True)
        )
        changes.append(after_share - before_share)
    whole, left = changes[0], np.array(changes[1:])
    half = t_interval(left).half * (len(left) - 1)  # of pseudo-values: n - 1 times the spread of those left
    found["distinct_2"] = [float(whole - half), float(whole + half)]
    return found


def _sums(rows: Sequence[Shown], clicked: Mapping[str, Sequence[str]]) -> dict[str, tuple[NDArray, NDArray]]:
    """Of each figure that is a mean, its sum in each response and of how many, ``[rows]`` each."""
    ones = np.ones(len(rows))
    targets = [clicked.get(conversation_key(row.conversation), ()) for row in rows]
    likeness = [
        sum(max(fuzz.ratio(text, target, processor=_in_words) for target in wanted) / 100 for text in row.suggestions)
        if wanted
        else 0.0
        for row, wanted in zip(rows, targets, strict=True)
    ]
    n_likeness = [len(row.suggestions) * bool(wanted) for row, wanted in zip(rows, targets, strict=True)]
    return {
        "malformed": (np.array([not row.well_formed for row in rows], dtype=float), ones),
        "near_duplicates": (np.array([_has_near_duplicates(row.suggestions) for row in rows], dtype=float), ones),
        "self_similarity": _self_similarity(rows),
        "likeness": (np.array(likeness, dtype=float), np.array(n_likeness, dtype=float)),
        "log_ppl": (
            np.array([row.log_ppl or 0.0 for row in rows], dtype=float),
            np.array([row.log_ppl is not None for row in rows], dtype=float),
        ),
    }


def _in_words(text: str) -> str:
    return " ".join(words(text))


def _has_near_duplicates(suggestions: Sequence[str]) -> bool:
    return any(
        fuzz.token_set_ratio(one, other, processor=_in_words) >= NEAR_DUPLICATE
        for n, one in enumerate(suggestions)
        for other in suggestions[:n]
    )


def _self_similarity(rows: Sequence[Shown]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How alike each two suggestions of a response are, added up, and how many twos there are; ``[rows]`` each."""
    total, n = np.zeros(len(rows)), np.zeros(len(rows))
    for first in range(0, len(rows), assembly.MAX_ROWS):
        some = rows[first : first + assembly.MAX_ROWS]
        texts, row, slot = _flat(some)
        if texts:
            keys = [text_key(text) for text in texts]
            cosine = assembly.trigram_cosine(keys, row, slot, (len(some), slot.max() + 1))
            there = np.zeros(cosine.shape[:2], dtype=bool)
            there[row, slot] = True
            twos = np.triu(there[:, :, None] & there[:, None], k=1)
            total[first : first + len(some)] = (cosine * twos).sum(axis=(1, 2))
            n[first : first + len(some)] = twos.sum(axis=(1, 2))
    return total, n


def _most_alike(rows: Sequence[Shown], embedder: Any) -> NDArray[np.float64]:
    """``[rows]``: the largest cosine of two suggestions of each response; 0 where there are fewer than two."""
    texts, row, slot = _flat(rows)
    if not texts:
        return np.zeros(len(rows))
    distinct, index = np.unique(texts, return_inverse=True)
    embedded = embed(embedder, distinct.tolist())[index]
    vectors = np.zeros((len(rows), slot.max() + 1, embedded.shape[1]), dtype=np.float32)
    vectors[row, slot] = embedded
    return np.triu(assembly.cosine(vectors), k=1).max(axis=(1, 2))


def _flat(rows: Sequence[Shown]) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """The suggestions of all responses, and the row and the slot of each."""
    places = [(text, n, slot) for n, one in enumerate(rows) for slot, text in enumerate(one.suggestions)]
    texts, row, slot = zip(*places, strict=True) if places else ((), (), ())
    return list(texts), np.array(row, dtype=np.int64), np.array(slot, dtype=np.int64)


def _distinct(ngrams: Sequence[tuple[str, ...]]) -> float | None:
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def _mean(values: Sequence[float] | NDArray) -> float | None:
    return float(np.mean(values)) if len(values) else None
