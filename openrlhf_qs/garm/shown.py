"""Every suggestion that preferences show, one after the other: its text, its click, and how it was looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from openrlhf_qs.form.prompt import Message


class Clicks(NamedTuple):
    """Each suggestion of some rows, ``[n]``: clicked or not, and how the chance follows from the log-odds."""

    clicked: np.ndarray
    examination: np.ndarray
    trust: np.ndarray

    def nll(self, log_odds: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log-likelihood, nats in all, and its derivative by each log-odds."""
        chance, by_log_odds = self._chance(log_odds)
        nll = -np.where(self.clicked > 0, np.log(chance), np.log1p(-chance)).sum()
        return float(nll), self._by_chance(chance) * by_log_odds

    def slopes(self, log_odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The derivative of the negative log-likelihood by each log-odds, and Fisher's information of each."""
        chance, by_log_odds = self._chance(log_odds)
        return self._by_chance(chance) * by_log_odds, by_log_odds**2 / (chance * (1 - chance))

    def _by_chance(self, chance: np.ndarray) -> np.ndarray:
        return np.where(self.clicked > 0, -1 / chance, 1 / (1 - chance))

    def _chance(self, log_odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of a click, and its derivative by the log-odds."""
        attracted = expit(log_odds)
        chance = np.clip(self.examination * attracted + self.trust, 1e-9, 1 - 1e-9)
        return chance, self.examination * attracted * (1 - attracted)


def clicks_of(rows: Sequence[Mapping[str, Any]]) -> Clicks:
    """Of every suggestion of the rows, in their order; examination is at most 1."""
    lengths = [len(row["suggestions"]) for row in rows]
    return Clicks(
        np.concatenate([row["clicks"] for row in rows]).astype(float),
        np.concatenate([row.get("examination") or [1.0] * n for row, n in zip(rows, lengths, strict=True)]).clip(0, 1),
        np.concatenate([row.get("trust") or [0.0] * n for row, n in zip(rows, lengths, strict=True)]),
    )


def texts_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[Message]], list[str]]:
    """Conversation and text of every suggestion of the rows, in their order."""
    conversations = [row["conversation"] for row in rows for _ in row["suggestions"]]
    return conversations, [text for row in rows for text in row["suggestions"]]
