"""Texts to vectors, for the ranker: hashed words, a sentence encoder, or the last hidden state of a language model.

The hidden states of a language model all point nearly the same way: of SmolLM2's for 160 intents the nearest two have
a cosine of .999, and a look-up by cosine tells none of them apart. So they are whitened, as in "Whitening Sentence
Representations" (arXiv:2103.15316), by the covariance of the knowledge base that the ranker was trained with. A
knowledge base has fewer intents than a model has dimensions, hence the covariance of Ledoit and Wolf (2004): shrunk
towards a multiple of the identity, by an amount that the vectors themselves tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from openrlhf_qs.models.embedder import embed, load_embedder, reads_last_token

N_BUCKETS = 1024  # of the encoder `words`
WORDS = "words"
AT_ONCE = 16_384  # vectors in single precision at one time


class Encoder:
    """Texts to unit vectors; frozen.

    Args:
        name: ``words``, hashed words and pairs of words, which knows every word and needs no model; or what
            :func:`openrlhf_qs.models.embedder.load_embedder` takes: a sentence encoder as ``minilm``, or a language
            model, as the folder of a reasoner, of which the last hidden state is taken.
        intents: texts by which the vectors of a language model are whitened.
    """

    def __init__(self, name: str = WORDS, intents: Sequence[str] = ()) -> None:
        self.name = name
        last_hidden_state = self.model is not None and reads_last_token(self.model)
        self.whitening = Whitening.of(embed(self.model, intents)) if last_hidden_state and len(intents) > 1 else None

    @cached_property
    def model(self) -> Any:
        return None if self.name == WORDS else load_embedder(self.name)

    def __deepcopy__(self, memo: dict) -> Encoder:
        return self  # nothing of it changes, and a language model is large

    def __getstate__(self) -> dict[str, Any]:
        """Without the model, which is loaded again where a text is to be read."""
        return {name: value for name, value in self.__dict__.items() if name != "model"}

    @property
    def dim(self) -> int:
        return N_BUCKETS if self.model is None else self.model.get_embedding_dimension()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """``[n, dim]``, float32; zeros for an empty text."""
        return self.kept(texts)[np.arange(len(texts))]

    def kept(self, texts: Sequence[str]) -> Vectors:
        """Of a million texts a tenth of what their vectors take."""
        if self.model is not None:
            is_there = np.array([[bool(text.strip())] for text in texts])
            vectors = embed(self.model, texts)
            if self.whitening is not None:
                for start in range(0, len(texts), AT_ONCE):
                    vectors[start : start + AT_ONCE] = self.whitening(vectors[start : start + AT_ONCE])
            return Vectors((vectors * is_there).astype(np.float16))
        from sklearn.feature_extraction.text import HashingVectorizer

        return Vectors(HashingVectorizer(n_features=N_BUCKETS, ngram_range=(1, 2), dtype=np.float32).transform(texts))

    def with_a_word_hidden(self, texts: Sequence[str]) -> tuple[Vectors, Tensor]:
        """Each text once for every word of it, without what was learned of that word: as a text reads in which that
        word is new. A model knows the words that it was not trained on here, so for one nothing is hidden.

        Returns:
            ``[t, dim]``, and ``[len(texts) + 1]``: those of text n begin at the n-th of these numbers.
        """
        words = [text.split() if self.model is None else [text] for text in texts]
        starts = torch.tensor([0, *np.cumsum([len(of_text) for of_text in words])])
        whole = self.kept([text for text, of_text in zip(texts, words, strict=True) for _ in of_text])
        if self.model is None:
            shorter = self.kept([" ".join(one[:n] + one[n + 1 :]) for one in words for n in range(len(one))])
            whole.matrix = whole.matrix.multiply(shorter.matrix != 0).tocsr()
        return whole, starts


class Whitening(NamedTuple):
    """See the module. Vectors are seen from ``mean``; along each of ``directions`` they are multiplied by its factor,
    and by 1 across them, so that all directions vary alike.

    Attributes:
        mean: ``[dim]``.
        directions: ``[k, dim]``, orthonormal.
        factors: ``[k]``.
    """

    mean: np.ndarray
    directions: np.ndarray
    factors: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> Whitening:
        """From some vectors ``[n, dim]``, n at least 2."""
        from sklearn.covariance import ledoit_wolf_shrinkage

        vectors = vectors.astype(np.float32)
        mean = vectors.mean(0)
        centred = vectors - mean
        shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
        _, spread, directions = np.linalg.svd(centred, full_matrices=False)
        along = spread**2 / len(vectors)
        across = shrinkage * along.sum() / vectors.shape[1]  # the variance that every direction has at least
        factors = np.sqrt(across / np.maximum((1 - shrinkage) * along + across, 1e-12))
        return cls(mean, directions, factors)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """``[n, dim]``, unit length again."""
        centred = vectors.astype(np.float32) - self.mean
        white = centred + (centred @ self.directions.T * (self.factors - 1)) @ self.directions
        return white / np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-9)


class Vectors:
    """Vectors of texts as they are kept, sparse or in half precision; those of some rows are taken out as a tensor."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix

    def __getitem__(self, rows: Tensor | np.ndarray) -> Tensor:
        """``[len(rows), dim]``, float32."""
        some = self.matrix[np.asarray(rows)]
        return torch.from_numpy(some.toarray() if hasattr(some, "toarray") else some.astype(np.float32))
