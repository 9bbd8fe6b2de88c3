"""A few of many: what the assembly of suggestions computes, each step over all contexts at once.

In: texts, the rows they stand under and numbers that say how good they are. Out: which repeat another one, how alike
they are, and which to take. Arrays are padded: ``[rows, slots]`` holds the candidates of a row, the best one first;
``valid`` is False where a row has fewer. Nothing here draws a random number but MinHash, whose seed is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from openrlhf_qs.form.text import N_CACHED, spread, unaccented

MAX_ROWS = 256  # of one call of trigram_cosine: a row takes 8 of 64 bits
N_BANDS, N_IN_BAND = 8, 8  # of a MinHash signature: at a Jaccard index of 0.9 two texts meet in 99 % of cases


def trigrams(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The character trigrams of each text with a space before and after it.

    A character that writes a syllable or a word has a space on both sides, too: of such texts these are the characters
    and the pairs of neighbours, for three of them would be as much as a whole word of letters. Accents count nothing.

    Returns:
        ``[n]`` each: the index of the text, ascending, and the three characters in one number (21 bits each).
    """
    texts = [text if text.isascii() else _compared(text) for text in texts]
    codes = np.frombuffer("".join(f" {text} " for text in texts).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    owner = np.repeat(np.arange(len(texts)), [len(text) + 2 for text in texts])
    inside = owner[:-2] == owner[2:]
    packed = codes[:-2] << np.uint64(42) | codes[1:-1] << np.uint64(21) | codes[2:]
    return owner[:-2][inside], packed[inside]


@lru_cache(N_CACHED)
def _compared(text: str) -> str:
    return spread(unaccented(text))


def trigram_cosine(
    texts: Sequence[str], row: NDArray[np.integer], slot: NDArray[np.integer], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """How alike the texts of each row are: the cosine of their sets of character trigrams.

    That is ``|A & B| / sqrt(|A| |B|)`` (Ochiai, 1957): 1 for equal sets, 0 for disjoint ones, a positive
    semidefinite matrix for each row.

    Args:
        texts: ``[n]``, from :func:`openrlhf_qs.form.keys.text_key`.
        row, slot: ``[n]``, the place of each text.
        shape: rows and slots, at most ``MAX_ROWS`` rows.

    Returns:
        ``[rows, slots, slots]``; 0 where there is no text.
    """
    owner, gram = trigrams(texts)
    row_of_gram = np.asarray(row, dtype=np.uint64)[owner]
    hashed = gram * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(8)  # 56 bits
    distinct, column = np.unique(row_of_gram << np.uint64(56) | hashed, return_inverse=True)
    first = np.searchsorted(distinct, np.arange(shape[0], dtype=np.uint64) << np.uint64(56))
    column -= first[row_of_gram.astype(np.int64)]
    incidence = np.zeros((*shape, column.max(initial=0) + 1), dtype=np.float32)
    incidence[np.asarray(row)[owner], np.asarray(slot)[owner], column] = 1
    return cosine(incidence)


def cosine(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[rows, slots, dim]`` to ``[rows, slots, slots]``; a vector of zeros is like nothing."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return np.minimum(unit @ unit.transpose(0, 2, 1), 1)


def repeats(similarity: NDArray, valid: NDArray[np.bool_], threshold: float) -> NDArray[np.int64]:
    """``[rows, slots]``: the slot of a better one that is as similar as ``threshold`` or more; -1 where there is none.

    A candidate that repeats another one is out, so nothing can repeat it in its turn.
    """
    kept, of = valid.copy(), np.full(valid.shape, -1)
    for slot in range(1, valid.shape[1]):
        alike = kept[:, :slot] & (similarity[:, slot, :slot] >= threshold) & valid[:, slot, None]
        of[:, slot] = np.where(alike.any(1), alike.argmax(1), -1)
        kept[:, slot] &= of[:, slot] < 0
    return of


def maximal_marginal_relevance(
    quality: NDArray, similarity: NDArray, valid: NDArray[np.bool_], n: int, diversity: float, max_similarity: float
) -> NDArray[np.int64]:
    """Greedy maximal marginal relevance (Carbonell and Goldstein, 1998), of every row at once.

    The first is the best; each further one has the highest ``(1 - diversity) * quality - diversity * similarity``,
    where similarity is that to the most similar one already taken. None is taken that is more similar to one of them
    than ``max_similarity``. Of equal ones the first wins.

    Args:
        quality: ``[rows, slots]``, in [0, 1].
        similarity: ``[rows, slots, slots]``, at most 1.
        valid: ``[rows, slots]``.
        n: how many to take.
        diversity, max_similarity: in [0, 1].

    Returns:
        ``[rows, n]``: slots in the order taken; -1 where none was left.
    """
    rows, open_, nearest = np.arange(len(quality)), valid.copy(), None
    taken = np.full((len(quality), n), -1)
    for step in range(n):
        marginal = quality if nearest is None else (1 - diversity) * quality - diversity * nearest
        best = _best_open(marginal, open_)
        taken[:, step] = best
        to_best = similarity[rows, best]
        nearest = to_best if nearest is None else np.maximum(nearest, to_best)
        open_ &= nearest <= max_similarity
        open_[rows, best] = False
    return taken


def determinantal_map(
    quality: NDArray, similarity: NDArray, valid: NDArray[np.bool_], n: int, diversity: float, max_similarity: float
) -> NDArray[np.int64]:
    """The likely subset of a determinantal point process, greedily (Chen, Zhang and Zhou, 2018), of every row at once.

    Each step takes the one that raises ``(1 - diversity) * sum(2 log quality) + diversity * log det(similarity)`` of
    the subset most. At a diversity of 0.5 that is half the log-determinant of the kernel ``quality_i * similarity_ij
    * quality_j`` (Kulesza and Taskar, 2012). The determinants come from a Cholesky factor that grows by a column a
    step, so each costs what one step of :func:`maximal_marginal_relevance` costs. Arguments and result as there;
    ``similarity`` is positive semidefinite with 1 on the diagonal.
    """
    rows, open_ = np.arange(len(quality)), valid.copy()
    log_quality = 2 * np.log(np.maximum(quality, 1e-12))
    factor = np.zeros((*quality.shape, n))
    left = np.ones(quality.shape)  # what of each candidate's squared length is not in the span of those taken
    taken = np.full((len(quality), n), -1)
    for step in range(n):
        marginal = (1 - diversity) * log_quality + diversity * np.log(np.maximum(left, 1e-12))
        best = _best_open(marginal, open_)
        taken[:, step] = best
        to_best = similarity[rows, best]
        projected = np.einsum("rsn,rn->rs", factor, factor[rows, best])
        factor[:, :, step] = (to_best - projected) / np.sqrt(np.maximum(left[rows, best], 1e-12))[:, None]
        left = left - factor[:, :, step] ** 2
        open_ &= to_best <= max_similarity
        open_[rows, best] = False
    return taken


def _best_open(value: NDArray, open_: NDArray[np.bool_]) -> NDArray[np.int64]:
    """``[rows]``: the slot with the highest value of those that are open, -1 where none is."""
    best = np.where(open_, value, -np.inf).argmax(1)
    return np.where(open_.any(1), best, -1)


SELECTIONS = {"mmr": maximal_marginal_relevance, "dpp": determinantal_map}


def nearly_equal(texts: Sequence[str], threshold: float, seed: int) -> NDArray[np.int64]:
    """Group the texts of a corpus that are nearly equal, by MinHash and locality-sensitive hashing (Broder, 1997).

    Signatures are datasketch's, over character trigrams. Texts whose signatures agree in one of ``N_BANDS`` bands meet
    the first of them; where the share of all 64 numbers that agree, an estimate of their Jaccard index, is at least
    ``threshold``, they belong to it. So every text is compared with one leader and no chain of small steps joins two
    that differ. The bands are sorted arrays: datasketch's own index of 1.6 million texts would need several GiB.

    Args:
        texts: ``[n]``, distinct, from :func:`openrlhf_qs.form.keys.text_key`, the most frequent first.
        threshold: Jaccard index of the trigrams, in [0, 1].
        seed: of the permutations.

    Returns:
        ``[n]``: the index of each text's leader, at most its own.
    """
    signatures, index = _signatures(texts, seed), np.arange(len(texts))
    leader = index.copy()
    for start in range(0, N_BANDS * N_IN_BAND, N_IN_BAND):
        _, first, group = np.unique(
            _mixed(signatures[:, start : start + N_IN_BAND]), return_index=True, return_inverse=True
        )
        met = np.flatnonzero(first[group] < index)
        agree = (signatures[met] == signatures[first[group[met]]]).mean(1)
        met = met[agree >= threshold]
        leader[met] = np.minimum(leader[met], first[group[met]])
    return np.where(leader[leader] == leader, leader, index)


def _signatures(texts: Sequence[str], seed: int, n_at_once: int = 1_000) -> NDArray[np.uint32]:
    """``[n, N_BANDS * N_IN_BAND]``: the MinHash of each text's trigrams that datasketch makes under ``affine32``, of
    many texts and one permutation at once, which takes a fiftieth of the time."""
    from datasketch import MinHash

    blank = MinHash(num_perm=N_BANDS * N_IN_BAND, seed=seed, hashfunc=int, scheme="affine32")
    signatures = np.repeat(blank.hashvalues[:, None], len(texts), axis=1)  # of a text without a trigram
    for start in range(0, len(texts), n_at_once):
        owner, gram = trigrams(texts[start : start + n_at_once])
        hashed = _finalised((gram * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)).astype(np.uint32))
        distinct, first = np.unique(owner, return_index=True)
        if len(distinct):
            for signature, factor, term in zip(signatures, *blank.permutations, strict=True):
                signature[start + distinct] = np.minimum.reduceat(hashed * factor + term, first)
    return signatures.T


def _finalised(hashed: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's last step, which spreads a number over all bits."""
    hashed = (hashed ^ hashed >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    hashed = (hashed ^ hashed >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return hashed ^ hashed >> np.uint32(16)


def _mixed(band: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """``[n, width]`` to one number a row, equal for equal rows."""
    mixed = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed
