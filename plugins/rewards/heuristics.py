"""Rewards that need no model: form, length, repetition, relevance, and how different the suggestions are."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from itertools import combinations

import torch
from rapidfuzz.fuzz import token_set_ratio
from rapidfuzz.process import cdist
from rapidfuzz.utils import default_process
from torch import Tensor

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.response import ParsedResponse
from openrlhf_qs.registry import REWARDS
from openrlhf_qs.reward.rollout import RolloutBatch


@functools.cache
def stop_words() -> frozenset[str]:
    """English words that say nothing of the matter. scikit-learn's list, which costs a second to import."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return ENGLISH_STOP_WORDS


@REWARDS.register("rules")
class Rules:
    """0 for a response in good form, -1 for a malformed one, in between for suggestions of a bad length.

    Malformed: not the numbered lines that were asked for (:func:`openrlhf_qs.form.response.parse_response`), or cut at
    the token limit.

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
        return -torch.tensor([self._broken(parsed) for parsed in batch.parsed])

    def credit(self, batch: RolloutBatch) -> Tensor:
        """What each suggestion's length takes, ``[batch, n]``; a malformed response has no suggestion of its own."""
        n = batch.task.n
        rows = [self._wrong_lengths(parsed) if parsed.well_formed else [n] * n for parsed in batch.parsed]
        return -torch.tensor(rows, dtype=torch.float32).view(-1, n) / n

    def _broken(self, parsed: ParsedResponse) -> float:
        return sum(self._wrong_lengths(parsed)) / parsed.n if parsed.well_formed else 1.0

    def _wrong_lengths(self, parsed: ParsedResponse) -> list[bool]:
        return [not self.min_words <= len(one.split()) <= self.max_words for one in parsed.suggestions]


@REWARDS.register("gate_malformed")
class GateMalformed:
    """A gate: 1 for a response in good form, 0 for a malformed one, whose total reward is then the floor.

    Malformed as for ``rules``.
    """

    gate = True

    def __call__(self, batch: RolloutBatch) -> Tensor:
        return (~batch.malformed).float()


@REWARDS.register("repetition")
class Repetition:
    """Minus the share said again, in [-1, 0]: of words in a suggestion or n-grams in the response, the larger one.

    Of words, in the suggestion that is worst: the share that stood in it before, stop words aside ("bread flour bread
    bread": 2 of 4). Of n-grams: the share of those of all suggestions that stood before, none of which goes across the
    end of a suggestion.

    Args:
        n: words of an n-gram; shorter ones punish ways of asking ("What is the ..."), longer ones only copies.
    """

    def __init__(self, n: int = 4) -> None:
        if n < 1:
            raise ValueError(f"repetition.n must be at least 1, got {n}: it is a number of words")
        self.n = n

    def __call__(self, batch: RolloutBatch) -> Tensor:
        return -torch.tensor([self._repeated(parsed.suggestions) for parsed in batch.parsed])

    def _repeated(self, suggestions: Sequence[str]) -> float:
        words = [re.findall(r"\w+", suggestion.casefold()) for suggestion in suggestions]
        grams = [tuple(row[k : k + self.n]) for row in words for k in range(len(row) - self.n + 1)]
        contents = [[word for word in row if word not in stop_words()] for row in words]
        return max(map(_repeated_share, [grams, *contents]))


def _repeated_share(items: Sequence) -> float:
    return 1 - len(set(items)) / len(items) if items else 0.0


@REWARDS.register("diversity")
class Diversity:
    """1 minus the likeness of the two suggestions that are most alike, in [0, 1]; 0 where one is missing.

    Likeness is rapidfuzz's ``token_set_ratio``: 1 where one's words are all among the other's, whatever
    their order, case and punctuation.

    Args:
        across: weight in [0, 1] of how different the response is from the others to the same prompt: 1 minus the mean
            likeness of its suggestions and theirs. The rest of the weight stays with its own; a response without
            others has only them.
    """

    def __init__(self, across: float = 0.0) -> None:
        if not 0 <= across <= 1:
            raise ValueError(f"diversity.across must be in [0, 1], got {across}: it is a weight")
        self.across = across

    def __call__(self, batch: RolloutBatch) -> Tensor:
        texts = [[default_process(one) for one in parsed.suggestions] for parsed in batch.parsed]
        whole = [len(parsed.suggestions) == parsed.n for parsed in batch.parsed]
        values = torch.tensor(
            [_diversity(some) if all_there else 0.0 for some, all_there in zip(texts, whole, strict=True)]
        )
        if self.across:
            for number in batch.group.unique():
                rows = (batch.group == number).nonzero().flatten().tolist()
                rows = [row for row in rows if whole[row]]
                for row, likeness in _likeness_to_others([texts[row] for row in rows]).items():
                    values[rows[row]] += self.across * (1 - likeness - values[rows[row]])
        return values


def _diversity(texts: Sequence[str]) -> float:
    """``texts`` are processed: "take?" is the word "take"."""
    return 1.0 - max((token_set_ratio(a, b) for a, b in combinations(texts, 2)), default=0) / 100


def _likeness_to_others(responses: Sequence[Sequence[str]]) -> dict[int, float]:
    """The mean likeness, in [0, 1], of each response's suggestions and those of the others; all are of one length."""
    if len(responses) < 2:
        return {}
    flat = [text for texts in responses for text in texts]
    likeness = cdist(flat, flat, scorer=token_set_ratio) / 100
    blocks = likeness.reshape(len(responses), len(responses[0]), len(responses), len(responses[0])).mean(axis=(1, 3))
    others = (blocks.sum(axis=1) - blocks.diagonal()) / (len(responses) - 1)
    return dict(enumerate(others.tolist()))


@REWARDS.register("relevance")
class Relevance:
    """Share of the suggestions that take up a content word of the user's last message, in [0, 1].

    A content word is none of scikit-learn's English stop words; a suggestion that merely repeats the message counts
    nothing. For other languages than English leave this part out.
    """

    def __call__(self, batch: RolloutBatch) -> Tensor:
        rows = zip(batch.conversations, batch.parsed, strict=True)
        return torch.tensor([sum(_relevant(c, p)) / p.n for c, p in rows], dtype=torch.float32)

    def credit(self, batch: RolloutBatch) -> Tensor:
        """What each suggestion adds, ``[batch, n]``."""
        n = batch.task.n
        rows = [_relevant(c, p) for c, p in zip(batch.conversations, batch.parsed, strict=True)]
        rows = [row + [False] * (n - len(row)) for row in rows]
        return torch.tensor(rows, dtype=torch.float32).view(-1, n) / n


def _relevant(conversation: Sequence[Message], parsed: ParsedResponse) -> list[bool]:
    """Whether each suggestion takes up the user's last message."""
    message = next((m["content"] for m in reversed(conversation) if m["role"] == "user"), "")
    asked = _content_words(message)
    return [bool(words & asked) and words != asked for words in map(_content_words, parsed.suggestions)]


def _content_words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold())) - stop_words()
