"""SFT datasets: which three of the suggestions shown under a conversation the policy is first taught to write.

In: one row of the SFT set, ``{"conversation", "candidates": [{"text", "n_shown", "n_clicked", "weight"}]}``. Out:
three suggestions, or ``None`` to drop the row. ``diverse`` is the one to use, ``raw`` the baseline beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rapidfuzz import fuzz
from rapidfuzz.utils import default_process

from openrlhf_qs.registry import SFT_DATASETS
from openrlhf_qs.response import N_SUGGESTIONS


@SFT_DATASETS.register("diverse")
class Diverse:
    """Three well clicked suggestions that differ: greedy maximal marginal relevance (Carbonell and Goldstein, 1998).

    The best clicked one is taken first, then twice the one with the highest
    ``(1 - diversity) * quality - diversity * similarity``: quality is its weight over the row's highest, similarity
    that to the most similar one already taken. In the response the clicked ones come first, the better before the
    worse. A row is dropped where fewer than three can stand together, or none was clicked.

    Args:
        diversity: in [0, 1]; 0 looks at clicks only, 1 at differences only.
        max_similarity: in [0, 1]; two suggestions more similar than this never stand together. At 0.75 in words go
            "Can you give an example?" and "Could you give an example?" (0.77), but not "How do I store it?" and
            "How do I freeze it?" (0.65).
        embedder: name or folder of a sentence-transformers model that sees two wordings of one question too;
            empty compares words only and needs no model.
    """

    def __init__(self, diversity: float = 0.5, max_similarity: float = 0.75, embedder: str = "") -> None:
        for option, value in (("diversity", diversity), ("max_similarity", max_similarity)):
            if not 0 <= value <= 1:
                raise ValueError(f"diverse.{option} must be in [0, 1], got {value}")
        self.diversity = diversity
        self.max_similarity = max_similarity
        self.embedder = embedder
        self._model: Any = None

    def __call__(self, row: Mapping[str, Any]) -> list[str] | None:
        candidates = sorted(filter(_has_letter, row["candidates"]), key=_clicked_first, reverse=True)
        if not candidates or not candidates[0]["n_clicked"]:
            return None
        highest = max(candidate["weight"] for candidate in candidates)
        similarity = self._similarity([candidate["text"] for candidate in candidates])
        taken = [0]
        nearest = dict.fromkeys(range(1, len(candidates)), 0.0)  # of each one left, its similarity to those taken
        while len(taken) < N_SUGGESTIONS:
            nearest = {n: max(before, similarity(n, taken[-1])) for n, before in nearest.items()}
            nearest = {n: value for n, value in nearest.items() if value <= self.max_similarity}
            if not nearest:
                return None
            relevance = {
                n: (1 - self.diversity) * candidates[n]["weight"] / highest - self.diversity * value
                for n, value in nearest.items()
            }
            taken.append(max(relevance, key=relevance.__getitem__))
            del nearest[taken[-1]]
        return [candidates[n]["text"] for n in sorted(taken)]

    def _similarity(self, texts: Sequence[str]) -> Callable[[int, int], float]:
        """Of the texts at two places, at most 1: by words, or by meaning where an embedder finds it higher."""
        if not self.embedder:
            return lambda a, b: word_similarity(texts[a], texts[b])
        vectors = self._load_embedder().encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return lambda a, b: max(word_similarity(texts[a], texts[b]), float(vectors[a] @ vectors[b]))

    def _load_embedder(self) -> Any:
        if self._model is None:
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise ValueError(
                    f"diverse.embedder={self.embedder}: needs sentence-transformers; install it or leave this empty"
                ) from error
            self._model = SentenceTransformer(self.embedder)
        return self._model


@SFT_DATASETS.register("raw")
class Raw:
    """The three suggestions with the most clicks, of equal ones those shown most; fewer than three: the row goes."""

    def __call__(self, row: Mapping[str, Any]) -> list[str] | None:
        ranked = sorted(row["candidates"], key=lambda c: (c["n_clicked"], c["n_shown"]), reverse=True)
        return [c["text"] for c in ranked[:N_SUGGESTIONS]] if len(ranked) >= N_SUGGESTIONS else None


def word_similarity(a: str, b: str) -> float:
    """How alike two texts are, in [0, 1], case and punctuation aside; symmetric, 1 for the same words.

    The mean of rapidfuzz's ``token_set_ratio`` (forgives order and extra words) and the Jaccard index of the words and
    word pairs (forgives neither).
    """
    a, b = default_process(a), default_process(b)
    grams_a, grams_b = _word_ngrams(a), _word_ngrams(b)
    jaccard = len(grams_a & grams_b) / max(len(grams_a | grams_b), 1)
    return (fuzz.token_set_ratio(a, b) / 100 + jaccard) / 2


def _word_ngrams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {(word,) for word in words} | set(zip(words, words[1:], strict=False))


def _has_letter(candidate: Mapping[str, Any]) -> bool:
    return any(character.isalpha() for character in candidate["text"])


def _clicked_first(candidate: Mapping[str, Any]) -> tuple[bool, float]:
    return candidate["n_clicked"] > 0, candidate["weight"]
