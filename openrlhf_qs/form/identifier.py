"""How probable it is, by its letters, that a text is in each of some languages: py3langid's model.

Unpacking the model takes .7 s of a processor, which every process of a run would pay. So it is kept unpacked, without
the languages that nobody asks for, in the user's cache, from where processes map it; where that cannot be written each
process unpacks it.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ARRAYS = ("table", "prior", "labels", "next_state", "row", "feature")


class Identifier(NamedTuple):
    """A naive Bayes classifier of byte n-grams, which an automaton counts.

    Attributes:
        table: ``[n_features, n_labels]``, float32, log-probabilities of an n-gram.
        prior: ``[n_labels]``, float32, the like of a label.
        labels: languages; one that is written in two scripts is there twice.
        twice: the two places of each of those.
        next_state: by a state's row, and the byte that is read.
        row: of each state, where its 256 next ones begin.
        feature: which n-gram ends in a state; -1 where none does.
    """

    table: NDArray[np.float32]
    prior: NDArray[np.float32]
    labels: list[str]
    twice: list[tuple[int, int]]
    next_state: memoryview
    row: list[int]
    feature: list[int]

    def likely(self, text: str, sure: float, possible: float) -> tuple[tuple[str, float], ...]:
        """The likeliest language alone where it is more probable than ``sure``, else with it those of at most five
        that are at least ``possible``: each with its probability, the likeliest first."""
        scores = self._probabilities(text)
        first = int(scores.argmax())
        if float(scores[first]) > sure:
            return ((self.labels[first], float(scores[first])),)
        ranked = np.argsort(-scores, kind="stable")[:5].tolist()
        return tuple((self.labels[n], p) for n in ranked if (p := float(scores[n])) >= possible or n == ranked[0])

    def _probabilities(self, text: str) -> NDArray[np.float32]:
        """As py3langid has them: of a text of b bytes the log-odds are divided by the root of b."""
        if text.isupper():
            text = text.lower()
        read = unicodedata.normalize("NFC", text).encode("utf-8", errors="surrogatepass")
        counts = self._counts(read)
        if counts:
            features = np.fromiter(counts, np.intp, len(counts))
            n_times = np.fromiter(counts.values(), np.float32, len(counts))
            scores = np.log1p(n_times) @ self.table[features] + self.prior
        else:
            scores = np.zeros_like(self.prior)
        scores *= 1.0 / math.sqrt(len(read) or 1)
        np.exp(scores - scores.max(), out=scores)
        scores /= scores.sum()
        for one, other in self.twice:
            scores[one] += scores[other]
            scores[other] = 0.0
        return scores

    def _counts(self, read: bytes) -> dict[int, int]:
        """How often each n-gram stands in the bytes."""
        next_state, row, feature = self.next_state, self.row, self.feature
        counts: dict[int, int] = {}
        state = 0
        for byte in read:
            state = next_state[row[state] + byte]
            found = feature[state]
            if found >= 0:
                counts[found] = counts.get(found, 0) + 1
        return counts


def load_identifier(languages: Iterable[str]) -> Identifier:
    """Of those of the languages that py3langid knows."""
    languages = sorted(languages)
    folder = _folder(languages)
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    except (OSError, ValueError):
        arrays = _unpacked(languages)
        with suppress(OSError):  # a folder that nobody may write to, or a full disk: the model is here all the same
            _keep(folder, arrays)
    labels = arrays["labels"].tolist()
    return Identifier(
        table=np.asarray(arrays["table"]),  # a plain array of the mapped file: rows are taken in half of the time
        prior=np.asarray(arrays["prior"]),
        labels=labels,
        twice=[(labels.index(label), n) for n, label in enumerate(labels) if labels.index(label) < n],
        next_state=memoryview(arrays["next_state"]),  # 39 MB, of which few are read
        row=arrays["row"].tolist(),
        feature=arrays["feature"].tolist(),
    )


def _unpacked(languages: list[str]) -> Mapping[str, NDArray]:
    from py3langid.langid import MODEL_DIR, MODEL_FILE
    from py3langid.modelio import load_model

    table, prior, labels, next_state, row, feature = load_model(MODEL_DIR / MODEL_FILE)
    known = [n for n, label in enumerate(labels) if label in languages]
    return {
        "table": np.ascontiguousarray(table[:, known], dtype=np.float32),
        "prior": prior[known],
        "labels": np.array([labels[n] for n in known]),
        "next_state": np.asarray(next_state, dtype=np.uint32),
        "row": np.asarray(row, dtype=np.int64) << 8,
        "feature": np.asarray(feature, dtype=np.int32),
    }


def _folder(languages: list[str]) -> Path:
    """In the user's cache, one for each version of the model and each set of languages."""
    name = f"{version('py3langid')}-{hashlib.sha256(' '.join(languages).encode()).hexdigest()[:8]}"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openrlhf-qs" / "languages" / name


def _keep(folder: Path, arrays: Mapping[str, NDArray]) -> None:
    """Write the arrays to ``folder``, which is there whole or not at all; another process's stays."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    try:
        temporary.mkdir(parents=True)
        for name, values in arrays.items():
            np.save(temporary / f"{name}.npy", values, allow_pickle=False)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
