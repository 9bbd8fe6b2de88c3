"""Rewards that need no model: form, length, language, repetition, relevance, and how different the suggestions are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise

import torch
from rapidfuzz.fuzz import token_set_ratio
from rapidfuzz.process import cdist
from torch import Tensor

from openrlhf_qs.form.language import in_users_language
from openrlhf_qs.form.prompt import Message, last_question
from openrlhf_qs.form.response import ParsedResponse
from openrlhf_qs.form.text import known_words, likely_languages, same_stem, script, width, words
from openrlhf_qs.registry import REWARDS
from openrlhf_qs.reward.rollout import RolloutBatch

WIDE_SCRIPTS = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL"}
WIDE_LIMITS, LIMITS = (8, 64), (10, 100)  # columns of a suggestion: the narrowest and the widest
MIN_RESPONSES = 20  # in fewer than these nothing is frequent
_SHORT_HIRAGANA = re.compile("[\u3041-\u309f]{1,2}")  # particles and endings of Japanese, which ICU cuts off


@REWARDS.register("rules")
class Rules:
    """0 for a response in good form, -1 for a malformed one, in between for suggestions of a bad length.

    Malformed: not the numbered lines that were asked for (:func:`openrlhf_qs.form.response.parse_response`), or cut at
    the token limit. The length of a suggestion is its width in columns, of which a Chinese character takes two: what
    fits under an answer, in any language.

    Args:
        min_width: columns; a narrower suggestion is no question. None: by the script, 8 for Chinese, Japanese and
            Korean, 10 for others.
        max_width: columns; a wider one does not fit under an answer. None: 64 for Chinese, Japanese and Korean, 100
            for others.
    """

    def __init__(self, min_width: int | None = None, max_width: int | None = None) -> None:
        if min_width is not None and min_width < 1 or max_width is not None and max_width < (min_width or 1):
            raise ValueError(f"rules: needs 0 < min_width <= max_width, got {min_width} and {max_width}")
        self.min_width = min_width
        self.max_width = max_width

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
        return [not self._fits(suggestion) for suggestion in parsed.suggestions]

    def _fits(self, suggestion: str) -> bool:
        least, most = WIDE_LIMITS if script(suggestion) in WIDE_SCRIPTS else LIMITS
        return (self.min_width or least) <= width(suggestion) <= (self.max_width or most)


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
    """Minus the share said again, in [-1, 0]: of words or word pairs in a suggestion, or n-grams in the response.

    The largest counts. Of words, in the suggestion that is worst: the share that stood in it before, frequent words of
    the language aside ("bread flour bread bread": 2 of 4). Of word pairs: the same, with all words. Of n-grams: the
    share of those of all suggestions that stood before; none goes across the end of a suggestion, and a suggestion of
    fewer than n words is one.

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
        rows = [words(suggestion) for suggestion in suggestions]
        grams = [row[k : k + self.n] for row in rows for k in range(max(len(row) - self.n + 1, 1)) if row]
        repeating = [row for row in rows if len(set(row)) < len(row)]
        frequent = known_words(" ".join(suggestions)) if repeating else frozenset()
        contents = [[word for word in row if word not in frequent] for row in repeating]
        pairs = [list(pairwise(row)) for row in rows]
        return max(map(_repeated_share, [grams, *contents, *pairs]))


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
        texts = [[" ".join(words(one)) for one in parsed.suggestions] for parsed in batch.parsed]
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

    def credit(self, batch: RolloutBatch) -> Tensor:
        """Minus the likeness of each suggestion and the most alike of those above it, ``[batch, n]``: of two that are
        alike the later one could have differed. With ``across`` each has the whole."""
        n = batch.task.n
        if self.across:
            return self(batch)[:, None].expand(-1, n)
        rows = [[" ".join(words(one)) for one in parsed.suggestions] for parsed in batch.parsed]
        taken = [
            [_likeness_to_earlier(row, place) for place in range(len(row))] + [0.0] * (n - len(row)) for row in rows
        ]
        return -torch.tensor(taken).view(-1, n)


def _diversity(texts: Sequence[str]) -> float:
    """``texts`` are words with blanks between them: "take?" is the word "take"."""
    return 1.0 - max((token_set_ratio(a, b) for a, b in combinations(texts, 2)), default=0) / 100


def _likeness_to_earlier(texts: Sequence[str], place: int) -> float:
    return max((token_set_ratio(texts[place], one) for one in texts[:place]), default=0) / 100


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

    A content word is none that stands in most texts of its language, by a background of 80 languages
    (``form/frequent_words.tsv``) and by the log: the fusion stage finds the words that stand in many of the SFT
    policy's responses, whatever their language. Two forms of a word are one: ``Zimmerpflanzen`` takes up ``Pflanze``.
    A suggestion that merely repeats the message counts nothing.

    Args:
        frequent: further words that stand in most texts, with blanks between them; the fusion stage finds them.
        frequent_share: of responses, in (0, 1]; a word that stands in more of them is frequent.
    """

    def __init__(self, frequent: str | None = None, frequent_share: float = 0.5) -> None:
        if not 0 < frequent_share <= 1:
            raise ValueError(f"relevance.frequent_share must be in (0, 1], got {frequent_share}: it is a share")
        self.frequent = None if frequent is None else frozenset(frequent.split())
        self.frequent_share = frequent_share

    def __call__(self, batch: RolloutBatch) -> Tensor:
        rows = zip(batch.conversations, batch.parsed, strict=True)
        return torch.tensor([sum(self._relevant(c, p)) / p.n for c, p in rows], dtype=torch.float32)

    def credit(self, batch: RolloutBatch) -> Tensor:
        """What each suggestion adds, ``[batch, n]``."""
        rows = zip(batch.conversations, batch.parsed, strict=True)
        return _shares([self._relevant(c, p) for c, p in rows], batch.task.n)

    def calibrate(self, batch: RolloutBatch) -> dict[str, str]:
        """The words that stand in most responses to different conversations of the SFT policy."""
        if self.frequent is not None:
            return {}
        first = dict(zip(reversed(batch.group.tolist()), reversed(batch.parsed), strict=True))
        said = [{word for text in parsed.suggestions for word in words(text)} for parsed in first.values()]
        counts = Counter(word for some in said for word in some)
        found = sorted(w for w, n in counts.items() if n > max(self.frequent_share * len(first), MIN_RESPONSES))
        self.frequent = frozenset(found)
        return {"frequent": " ".join(found)}

    def _relevant(self, conversation: Sequence[Message], parsed: ParsedResponse) -> list[bool]:
        """Whether each suggestion takes up the user's last message."""
        message = last_question(conversation)
        said = " ".join(parsed.suggestions)
        frequent = known_words(message, said) | (self.frequent or frozenset())
        code = next((code for code, _ in likely_languages(f"{message} {said}")), "")
        asked = _content(message, frequent)
        taken_up = [_content(suggestion, frequent) for suggestion in parsed.suggestions]
        return [found != asked and _share_a_word(found, asked, code) for found in taken_up]


def _content(text: str, frequent: frozenset[str]) -> frozenset[str]:
    return frozenset(word for word in words(text) if word not in frequent and not _SHORT_HIRAGANA.fullmatch(word))


def _share_a_word(some: Iterable[str], others: Iterable[str], code: str) -> bool:
    return any(same_stem(one, other, code) for one in some for other in others)


@REWARDS.register("language")
class Language:
    """Share of the suggestions in the language and the script of the user's last message, in [0, 1].

    Where that message is too short to tell, the ones before it say it, and where nobody says it every suggestion
    counts. Names, code and what is too short to tell are of every language: only a suggestion that is surely in
    another one, or of another script throughout, counts nothing. One that is missing counts nothing.
    """

    def __call__(self, batch: RolloutBatch) -> Tensor:
        rows = zip(batch.conversations, batch.parsed, strict=True)
        return torch.tensor([sum(in_users_language(c, s) for s in p.suggestions) / p.n for c, p in rows])

    def credit(self, batch: RolloutBatch) -> Tensor:
        """What each suggestion adds, ``[batch, n]``."""
        rows = zip(batch.conversations, batch.parsed, strict=True)
        return _shares([[in_users_language(c, s) for s in p.suggestions] for c, p in rows], batch.task.n)


def _shares(rows: Sequence[Sequence[bool]], n: int) -> Tensor:
    """``[batch, n]``: 1 / n for what is true; a suggestion that is missing adds nothing."""
    padded = [[*row, *[False] * (n - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.float32).view(-1, n) / n
