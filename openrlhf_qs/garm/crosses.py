"""Which words of a suggestion stand under which words of a question: crosses, the wide part of a wide and deep model.

A small backbone that learns from some thousand clicks does not learn that "What does it cost?" is liked after "How do
I begin?" and not after "What did I pay?": it would have to compose both. A linear model with one weight for each pair
of a word asked and a word suggested learns it from the few that it has seen, and nothing else. So the log-odds of a
click get the sum of such weights beside what the head says (arXiv:1606.07792): of the suggestion's tokens, of two that
follow each other, of those that the question or the answer has too, and of each pair of one of its tokens and one of
the question's. Weights are found by a hash, so there is no table of names. ``openrlhf-qs garm wide`` fits them
(:mod:`openrlhf_qs.garm.fit_wide`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CROSSES = "crosses"  # their name among the weights
N_BUCKETS = 1 << 18  # 1 MB of weights; a log of 67,000 suggestions fills half of it
_TOKEN, _FOLLOWING, _CROSS, _IN_QUESTION, _IN_ANSWER = range(1, 6)


def buckets(tokens: Sequence[int], turn_end_id: int, n_buckets: int) -> np.ndarray:
    """The places of a text's weights, distinct, ``[k]``.

    Args:
        tokens: of the whole text, as :func:`openrlhf_qs.garm.reward_model.suggestion_ids` gives it: the last turn is
            the suggestion, the one before it the answer, and before that the question.
        turn_end_id: the token that ends every turn.
    """
    ids = np.asarray(tokens, dtype=np.uint64)
    said = turns(ids, turn_end_id)
    own = said[-1][said[-1] != turn_end_id] if said else ids
    answer, question = (said[-n] if len(said) >= n else ids[:0] for n in (2, 3))
    found = [  # what stands here twice is one place below
        _key(_TOKEN, own),
        _key(_FOLLOWING, own[:-1], own[1:]),
        _key(_CROSS, own[:, None], question[None, :]).ravel(),
        _key(_IN_QUESTION, own[(own[:, None] == question[None, :]).any(axis=1)]),
        _key(_IN_ANSWER, own[(own[:, None] == answer[None, :]).any(axis=1)]),
    ]
    return np.unique(np.concatenate(found) % np.uint64(n_buckets)).astype(np.int64)


def turns(ids: np.ndarray, turn_end_id: int) -> list[np.ndarray]:
    """The tokens of each turn of a text, with the one that ends it."""
    return [turn for turn in np.split(ids, np.flatnonzero(ids == turn_end_id) + 1) if len(turn)]


def _key(kind: int, first: np.ndarray, second: np.ndarray | int = 0) -> np.ndarray:
    """The finaliser of SplitMix64 on kind and tokens: neighbours end far apart."""
    key = first * np.uint64(0x9E3779B97F4A7C15) ^ np.asarray(second, dtype=np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    key = (key ^ np.uint64(kind)) * np.uint64(0xBF58476D1CE4E5B9)
    return (key ^ (key >> np.uint64(31))) * np.uint64(0x94D049BB133111EB) >> np.uint64(17)
