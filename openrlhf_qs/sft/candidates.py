"""Candidates: the suggestions that one could teach for a conversation, as flat arrays, and how good each is.

In: rows ``{"conversation", "candidates": [{"text", ...}]}``, from a click log (:mod:`openrlhf_qs.sft.sft_set`) or
sampled from a teacher. Beside its ``text`` a candidate may have

- ``n_shown``, ``n_clicked``: impressions and clicks; ``weight``: clicks per show, smoothed and debiased,
- ``log_prob``: the teacher's, nats, mean over the tokens,
- ``garm_mean``: the reward model's mean, reward units.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBERS = ("n_shown", "n_clicked", "weight", "log_prob", "garm_mean")
SMALLEST_RATE = 1e-6  # clicks per show, so that its logarithm is finite


@dataclass(frozen=True)
class Candidates:
    """Every candidate of every row, one after the other.

    Attributes:
        n_rows: rows, those without a candidate too.
        row: ``[n]``, ascending.
        texts: ``[n]``, as they were given.
        numbers: ``[n]`` for each of ``NUMBERS``; nan where a candidate has none.
    """

    n_rows: int
    row: NDArray[np.int64]
    texts: list[str]
    numbers: dict[str, NDArray[np.float64]]

    @property
    def click_rate(self) -> NDArray[np.float64]:
        """``[n]``: ``weight`` where it is given, else clicks per show with ``PRIOR_SHOWS`` at the file's average."""
        from openrlhf_qs.clicks.preferences import PRIOR_SHOWS  # a list of plugins need not wait for polars

        n_shown, n_clicked = self.numbers["n_shown"], self.numbers["n_clicked"]
        average = np.nansum(n_clicked) / max(np.nansum(n_shown), 1)
        smoothed = (n_clicked + PRIOR_SHOWS * average) / (n_shown + PRIOR_SHOWS)
        return np.where(np.isnan(self.numbers["weight"]), smoothed, self.numbers["weight"])


def read_candidates(rows: Sequence[Mapping[str, Any]]) -> Candidates:
    """Flatten ``rows``. ValueError names the row of what is no text, no number, or not finite."""
    texts: list[str] = []
    found: list[Mapping[str, Any]] = []
    sizes = np.zeros(len(rows), dtype=np.int64)
    for index, row in enumerate(rows):
        candidates = row.get("candidates")
        if not isinstance(candidates, list):
            raise ValueError(f"row {index + 1} has no list of candidates; give {{'conversation', 'candidates'}}")
        sizes[index] = len(candidates)
        for candidate in candidates:
            if not isinstance(candidate, Mapping) or not isinstance(candidate.get("text"), str):
                raise ValueError(f"row {index + 1}: candidate {str(candidate)[:40]!r} has no text; give {{'text': …}}")
            texts.append(candidate["text"])
        found.extend(candidates)
    row_of = np.repeat(np.arange(len(rows)), sizes)
    return Candidates(len(rows), row_of, texts, {name: _numbers(name, found, row_of) for name in NUMBERS})


def log_quality(candidates: Candidates, exponents: Mapping[str, float]) -> NDArray[np.float64]:
    """``[n]``, nats: the sum of the logarithms of what speaks for a candidate, each times its exponent.

    ``clicks`` is the logarithm of the click rate, ``log_prob`` and ``garm`` are taken as they are: differences of each
    are log-ratios, so the difference of two candidates says by which factor one is better. What no candidate of the
    file has is left out; where some have it, the others get the mean of their row, or of the file.

    ValueError where nothing speaks for any candidate.
    """
    signals = {
        "clicks": np.log(np.maximum(candidates.click_rate, SMALLEST_RATE)),
        "log_prob": candidates.numbers["log_prob"],
        "garm": candidates.numbers["garm_mean"],
    }
    used = [exponents[name] * _filled(x, candidates) for name, x in signals.items() if not np.isnan(x).all()]
    if candidates.texts and not used:
        raise ValueError(f"no candidate has any of {', '.join(NUMBERS)}: nothing shows which suggestions are good")
    return np.sum(used, axis=0) if used else np.zeros(0)


@dataclass
class Ledger:
    """What became of each candidate and of each row, with the reason; every one has exactly one.

    Attributes:
        reasons: of ``reason``, by number; the first stands for "still in".
        reason: ``[n]``.
        instead: ``[n]``, the index of the candidate that made this one go; -1 where it was none.
        rows: ``[n_rows]``, what became of the row.
    """

    candidates: Candidates
    reasons: list[str] = field(default_factory=lambda: ["not needed", "chosen"])

    def __post_init__(self) -> None:
        self.reason = np.zeros(len(self.candidates.texts), dtype=np.uint8)
        self.instead = np.full(len(self.candidates.texts), -1)
        self.rows = np.full(self.candidates.n_rows, "", dtype=object)

    def mark(self, which: NDArray | Sequence[int], reason: str, instead: NDArray | int = -1) -> None:
        """Say of the candidates ``which`` (indices) that ``reason`` is why they are out, or ``chosen``."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.reason[which] = self.reasons.index(reason)
        self.instead[which] = instead

    def open(self) -> NDArray[np.int64]:
        """The indices of those still in, ascending."""
        return np.flatnonzero(self.reason == 0)

    def report(self, n_examples: int = 3) -> dict[str, Any]:
        """Counts of rows and candidates by reason, and the first ``n_examples`` of each reason, as JSON."""
        counts = np.bincount(self.reason, minlength=len(self.reasons)).tolist()
        examples = {
            reason: [self._example(index) for index in np.flatnonzero(self.reason == number)[:n_examples].tolist()]
            for number, reason in enumerate(self.reasons)
            if counts[number]
        }
        return {
            "rows": dict(Counter(self.rows.tolist()).most_common()),
            "candidates": {reason: counts[number] for number, reason in enumerate(self.reasons) if counts[number]},
            "examples": examples,
        }

    def _example(self, index: int) -> dict[str, Any]:
        texts, instead = self.candidates.texts, int(self.instead[index])
        example = {"row": int(self.candidates.row[index]) + 1, "text": shortened(texts[index])}
        return example if instead < 0 else example | {"because_of": shortened(texts[instead])}


def shortened(text: str, n_chars: int = 80) -> str:
    """``text`` in at most ``n_chars`` characters that can be written as UTF-8."""
    text = text if len(text) <= n_chars else text[: n_chars - 1] + "…"
    return text.encode(errors="replace").decode()


def _numbers(name: str, found: Sequence[Mapping[str, Any]], row: NDArray[np.int64]) -> NDArray[np.float64]:
    given = [candidate.get(name) for candidate in found]
    try:
        numbers = np.array([math.nan if value is None else value for value in given], dtype=np.float64)
    except (TypeError, ValueError):
        wrong = next(i for i, value in enumerate(given) if not isinstance(value, int | float | None))
        raise ValueError(f"row {row[wrong] + 1}: {name} {str(given[wrong])[:40]!r} is not a number") from None
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise ValueError(f"row {row[infinite[0]] + 1}: {name} {numbers[infinite[0]]} is not finite")
    return numbers


def _filled(signal: NDArray[np.float64], candidates: Candidates) -> NDArray[np.float64]:
    """``signal`` with the mean of the row, else of the file, where it is nan."""
    there = ~np.isnan(signal)
    if there.all():
        return signal
    sums = np.bincount(candidates.row[there], signal[there], minlength=candidates.n_rows)
    counts = np.bincount(candidates.row[there], minlength=candidates.n_rows)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), signal[there].mean())
    return np.where(there, signal, means[candidates.row])
