"""How valid, how diverse and how like what was clicked an arm's suggestions are; nobody needs to look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz

from openrlhf_qs.evaluation.arms import Shown
from openrlhf_qs.form.keys import conversation_key, text_key
from openrlhf_qs.form.text import words
from openrlhf_qs.models.embedder import embed
from openrlhf_qs.sft import assembly

SAME_MEANING = 0.85  # cosine of two suggestions' vectors from which they mean the same
NEAR_DUPLICATE = 90  # token_set_ratio of rapidfuzz, 0 to 100, from which two suggestions say the same


def response_quality(
    rows: Sequence[Shown], clicked: Mapping[str, Sequence[str]], embedder: Any = None
) -> dict[str, Any]:
    """What can be said of an arm's suggestions without anybody looking at them; None for a figure of nothing.

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
        ``n_likeness`` suggestions under a conversation with a click; ``log_ppl``, mean, nats per token.
    """
    said = [words(text) for row in rows for text in row.suggestions]
    likeness = [
        max(fuzz.ratio(text, target, processor=_in_words) for target in clicked[conversation_key(row.conversation)])
        / 100
        for row in rows
        if conversation_key(row.conversation) in clicked
        for text in row.suggestions
    ]
    return {
        "n_responses": len(rows),
        "malformed": _mean([not row.well_formed for row in rows]),
        "distinct_1": _distinct([(word,) for text in said for word in text]),
        "distinct_2": _distinct([pair for text in said for pair in pairwise(text)]),
        "near_duplicates": _mean([_has_near_duplicates(row.suggestions) for row in rows]),
        "same_meaning": None if embedder is None else _mean(_most_alike(rows, embedder) >= SAME_MEANING),
        "self_similarity": _mean(_self_similarity(rows)),
        "words": _mean([len(text) for text in said]),
        "likeness": _mean(likeness),
        "n_likeness": len(likeness),
        "log_ppl": _mean([row.log_ppl for row in rows if row.log_ppl is not None]),
    }


def _in_words(text: str) -> str:
    return " ".join(words(text))


def _has_near_duplicates(suggestions: Sequence[str]) -> bool:
    return any(
        fuzz.token_set_ratio(one, other, processor=_in_words) >= NEAR_DUPLICATE
        for n, one in enumerate(suggestions)
        for other in suggestions[:n]
    )


def _self_similarity(rows: Sequence[Shown]) -> NDArray[np.float64]:
    """``[pairs]``: how alike each two suggestions of a response are."""
    found: list[NDArray] = []
    for first in range(0, len(rows), assembly.MAX_ROWS):
        texts, row, slot = _flat(rows[first : first + assembly.MAX_ROWS])
        if texts:
            keys = [text_key(text) for text in texts]
            cosine = assembly.trigram_cosine(keys, row, slot, (row.max() + 1, slot.max() + 1))
            there = np.zeros(cosine.shape[:2], dtype=bool)
            there[row, slot] = True
            found.append(cosine[np.triu(there[:, :, None] & there[:, None], k=1)])
    return np.concatenate(found) if found else np.zeros(0)


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
