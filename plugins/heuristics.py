"""Rewards that need no model: form, length, relevance, and difference between the three suggestions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

import torch
from rapidfuzz.fuzz import token_set_ratio
from rapidfuzz.utils import default_process
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor

from openrlhf_qs.prompt import Message
from openrlhf_qs.registry import REWARDS
from openrlhf_qs.response import N_SUGGESTIONS, ParsedResponse
from openrlhf_qs.rollout import RolloutBatch


@REWARDS.register("rules")
class Rules:
    """0 for a response in good form, -1 for a malformed one, in between for suggestions of a bad length.

    Malformed: not three numbered lines with text (:func:`openrlhf_qs.response.parse_response`), or cut at the token
    limit.

    Args:
        min_words: words; a shorter suggestion is no question.
        max_words: words; a longer one does not fit under an answer.
    """

    def __init__(self, min_words: int = 3, max_words: int = 16) -> None:
        if not 0 < min_words <= max_words:
            raise ValueError(f"rules: needs 0 < min_words <= max_words, got {min_words} and {max_words}")
        self.min_words = min_words
        self.max_words = max_words

    def __call__(self, batch: RolloutBatch) -> Tensor:
        return torch.tensor(
            [
                -1.0 if cut else -self._broken(parsed)
                for parsed, cut in zip(batch.parsed, batch.truncated.tolist(), strict=True)
            ]
        )

    def _broken(self, parsed: ParsedResponse) -> float:
        if not parsed.well_formed:
            return 1.0
        n_words = [len(suggestion.split()) for suggestion in parsed.suggestions]
        return sum(not self.min_words <= n <= self.max_words for n in n_words) / N_SUGGESTIONS


@REWARDS.register("diversity")
class Diversity:
    """1 minus the likeness of the two suggestions that are most alike, in [0, 1]; 0 for fewer than three.

    Likeness is rapidfuzz's ``token_set_ratio``: 1 where one's words are all among the other's, whatever
    their order, case and punctuation.
    """

    def __call__(self, batch: RolloutBatch) -> Tensor:
        return torch.tensor([_diversity(parsed) for parsed in batch.parsed])


def _diversity(parsed: ParsedResponse) -> float:
    if len(parsed.suggestions) < N_SUGGESTIONS:
        return 0.0
    texts = [default_process(suggestion) for suggestion in parsed.suggestions]  # "take?" is the word "take"
    return 1.0 - max(token_set_ratio(a, b) for a, b in combinations(texts, 2)) / 100


@REWARDS.register("relevance")
class Relevance:
    """Share of the three suggestions that take up a content word of the user's last message, in [0, 1].

    A content word is none of scikit-learn's English stop words; a suggestion that merely repeats the message counts
    nothing. For other languages than English leave this part out.
    """

    def __call__(self, batch: RolloutBatch) -> Tensor:
        return torch.tensor(
            [_relevance(c, p) for c, p in zip(batch.conversations, batch.parsed, strict=True)], dtype=torch.float32
        )


def _relevance(conversation: Sequence[Message], parsed: ParsedResponse) -> float:
    message = next((m["content"] for m in reversed(conversation) if m["role"] == "user"), "")
    asked = _content_words(message)
    taken_up = [_content_words(suggestion) for suggestion in parsed.suggestions]
    return sum(bool(words & asked) and words != asked for words in taken_up) / N_SUGGESTIONS


def _content_words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold())) - ENGLISH_STOP_WORDS
