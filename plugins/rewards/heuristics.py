"""Rewards that need no model: form, length, language, repetition, relevance, and how different the suggestions are."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, combinations, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rapidfuzz.fuzz import token_set_ratio
from rapidfuzz.process import cdist

from openrlhf_qs.form.language import all_in_users_language
from openrlhf_qs.form.prompt import last_question
from openrlhf_qs.form.text import (
    N_CACHED,
    Forms,
    frequent_words,
    known_words,
    language,
    likely_languages,
    same_stem,
    script,
    tells_language,
    width,
    words,
    words_of_many_texts,
)
from openrlhf_qs.registry import REWARDS

if TYPE_CHECKING:
    from torch import Tensor

    from openrlhf_qs.form.prompt import Message
    from openrlhf_qs.form.response import ParsedResponse
    from openrlhf_qs.reward.rollout import RolloutBatch

WIDE_SCRIPTS = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL"}
# Without blanks between words, or with vowels as marks or not at all: they say as much in half of the columns.
DENSE_SCRIPTS = {
    "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "ARABIC", "HEBREW", "ETHIOPIC", "DEVANAGARI", "BENGALI", "GURMUKHI",
    "GUJARATI", "ORIYA", "TAMIL", "TELUGU", "KANNADA", "MALAYALAM", "SINHALA", "THAANA", "SYRIAC", "NKO", "CHEROKEE",
    "CANADIAN", "VAI", "JAVANESE", "BALINESE", "SUNDANESE", "MEETEI", "CHAKMA", "TAI", "CHAM",
}  # fmt: skip
# Columns of a suggestion: the narrowest and the widest.
LIMITS = dict.fromkeys(WIDE_SCRIPTS, (6, 64)) | dict.fromkeys(DENSE_SCRIPTS, (5, 100))
OTHER_LIMITS = (10, 100)
MIN_CLICKED, TAIL = 100, 0.005  # texts of a script from which its widths are measured; share beyond either limit
MIN_CONVERSATIONS = 50  # of a language: in fewer than these it is not counted which words are frequent
# Indian languages double without a hyphen, too.
_DOUBLED = re.compile(r"(?<!\S)(?:([^\s-]+)-\1|([\u0900-\u0dff]+) \2)(?![^\s.,;:!?？।])", re.IGNORECASE)
_SHORT_HIRAGANA = re.compile("[\u3041-\u309f]{1,2}")


@REWARDS.register("rules")
class Rules:
    """0 for a well-formed response, -1 for a malformed one, in between for too short or too long suggestions.

    Malformed: not the requested numbered lines (:func:`openrlhf_qs.form.response.parse_response`), or cut off at the
    token limit. The length of a suggestion is its width in columns, of which a Chinese character takes two: the space
    it needs under an answer, in any language.

    Args:
        min_width: columns; anything narrower is not a question. None: as in ``widths``.
        max_width: columns; anything wider does not fit under an answer. None: as in ``widths``.
        widths: minimum and maximum columns by script, separated by spaces, as in ``CJK=8-64``. The fusion stage
            derives them from clicked suggestions: from two thirds of the narrowest half per cent to three halves of
            the widest. For other scripts: 6 to 64 columns for Chinese, Japanese and Korean, 5 to 100 for scripts that
            need few letters (Thai, Arabic, Hindi), 10 to 100 for the rest.
    """

    def __init__(self, min_width: int | None = None, max_width: int | None = None, widths: str = "") -> None:
        if min_width is not None and min_width < 1 or max_width is not None and max_width < (min_width or 1):
            raise ValueError(f"rules: needs 0 < min_width <= max_width, got {min_width} and {max_width}")
        self.min_width = min_width
        self.max_width = max_width
        self._set_widths(widths)

    def measure(self, clicked: Sequence[str]) -> dict[str, str]:
        """The widths of clicked suggestions, for scripts with at least ``MIN_CLICKED`` texts."""
        if self.widths:
            return {}
        columns: dict[str, list[int]] = {}
        for text in clicked:
            columns.setdefault(script(text), []).append(width(text))
        found = []
        for name, some in sorted(columns.items()):
            if name and len(some) >= MIN_CLICKED:
                least, most = np.quantile(some, (TAIL, 1 - TAIL))
                found.append(f"{name}={max(math.floor(least / 1.5), 1)}-{math.ceil(most * 1.5)}")
        self._set_widths(" ".join(found))
        return {"widths": self.widths}

    def _set_widths(self, widths: str) -> None:
        self.widths, self._limits = widths, {}
        for one in widths.split():
            found = re.fullmatch(r"(\w+)=([1-9]\d*)-([1-9]\d*)", one, re.ASCII)
            if found is None or int(found[2]) > int(found[3]):
                raise ValueError(f"rules.widths: {one!r}; give scripts with least and most columns, as in CJK=8-64")
            self._limits[found[1]] = int(found[2]), int(found[3])

    def __call__(self, batch: RolloutBatch) -> Tensor:
        import torch

        return -torch.tensor([self._broken(parsed) for parsed in batch.parsed])

    def credit(self, batch: RolloutBatch) -> Tensor:
        """The penalty for each suggestion's length, ``[batch, n]``; in a malformed response each gets -1."""
        import torch

        n = batch.task.n
        rows = [self._wrong_lengths(parsed) if parsed.well_formed else [n] * n for parsed in batch.parsed]
        return -torch.tensor(rows, dtype=torch.float32).view(-1, n) / n

    def _broken(self, parsed: ParsedResponse) -> float:
        return sum(self._wrong_lengths(parsed)) / parsed.n if parsed.well_formed else 1.0

    def _wrong_lengths(self, parsed: ParsedResponse) -> list[bool]:
        return [not self._fits(suggestion) for suggestion in parsed.suggestions]

    def _fits(self, suggestion: str) -> bool:
        name = script(suggestion)
        least, most = self._limits.get(name) or LIMITS.get(name, OTHER_LIMITS)
        return (self.min_width or least) <= width(suggestion) <= (self.max_width or most)


@REWARDS.register("gate_malformed")
class GateMalformed:
    """A gate: 1 for a well-formed response, 0 for a malformed one, whose total reward is then the floor.

    Malformed as for ``rules``.
    """

    gate = True

    def __call__(self, batch: RolloutBatch) -> Tensor:
        return (~batch.malformed).float()


@REWARDS.register("repetition")
class Repetition:
    """Minus the repeated share, in [-1, 0]: of words or word pairs in a suggestion, or n-grams in the response.

    The largest share counts. Words: in the worst suggestion, the share that occurred in it before, not counting
    frequent words of the language ("bread flour bread bread": 2 of 4). Word pairs: the same, with all words. N-grams:
    the share, over all suggestions, that occurred before; none spans two suggestions, and a suggestion of fewer than n
    words is one. A word doubled with a hyphen, as in Indonesian plurals, counts once, and so does a doubled word in an
    Indian script.

    Args:
        n: words per n-gram; shorter ones penalise ways of asking ("What is the ..."), longer ones only copies.
    """

    def __init__(self, n: int = 4) -> None:
        if n < 1:
            raise ValueError(f"repetition.n must be at least 1, got {n}: it is a number of words")
        self.n = n

    def __call__(self, batch: RolloutBatch) -> Tensor:
        import torch

        rows = zip(batch.conversations, batch.parsed, strict=True)
        return -torch.tensor([self._repeated(last_question(c), parsed.suggestions) for c, parsed in rows])

    def _repeated(self, message: str, suggestions: Sequence[str]) -> float:
        rows = [words(_undoubled(suggestion)) for suggestion in suggestions]
        n_again = sum(map(len, rows)) - len(set(chain(*rows)))
        if not n_again:
            return 0.0
        found = [0.0]
        if n_again >= min(self.n, *map(len, rows)):  # as many words come again where an n-gram does
            found.append(_repeated_share(list(chain(*map(self._n_grams, rows)))))
        repeating = [row for row in rows if len(set(row)) < len(row)]
        if repeating:
            frequent = known_words(message, " ".join(suggestions))
            found += [_repeated_share([word for word in row if word not in frequent]) for row in repeating]
            found += [_repeated_share(list(pairwise(row))) for row in repeating]
        return max(found)

    def _n_grams(self, row: Sequence[str]) -> Iterable[tuple[str, ...]]:
        if len(row) < self.n:
            return [tuple(row)] if row else []
        return zip(*(row[k:] for k in range(self.n)), strict=False)


def _undoubled(text: str) -> str:
    """``text`` with one of two equal words that stand together: ``anak-anak`` is Indonesian for children."""
    return text if text.isascii() and "-" not in text else _DOUBLED.sub(lambda found: found[1] or found[2], text)


def _repeated_share(items: Sequence) -> float:
    return 1 - len(set(items)) / len(items) if items else 0.0


@REWARDS.register("diversity")
class Diversity:
    """1 minus the likeness of the two most similar suggestions, in [0, 1]; 0 if a suggestion is missing.

    Likeness is rapidfuzz's ``token_set_ratio``: 1 if one's words are all among the other's, whatever their order,
    case and punctuation.

    Args:
        across: weight in [0, 1] of how different the response is from the others to the same prompt: 1 minus the mean
            likeness of its suggestions and theirs. The rest of the weight stays with its own suggestions, and all of
            it if there are no other responses.
    """

    def __init__(self, across: float = 0.0) -> None:
        if not 0 <= across <= 1:
            raise ValueError(f"diversity.across must be in [0, 1], got {across}: it is a weight")
        self.across = across

    def __call__(self, batch: RolloutBatch) -> Tensor:
        import torch

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
        """Minus the likeness of each suggestion to the most similar one above it, ``[batch, n]``: of two similar ones,
        the later could have differed. With ``across`` each gets the whole."""
        import torch

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
    """The mean likeness, in [0, 1], of each response's suggestions and those of the others."""
    if len(responses) < 2:
        return {}
    flat = [text for texts in responses for text in texts]
    n_texts = np.array([len(texts) for texts in responses])
    starts = n_texts.cumsum() - n_texts
    likeness = cdist(flat, flat, scorer=token_set_ratio) / 100
    sums = np.add.reduceat(np.add.reduceat(likeness, starts, axis=0), starts, axis=1)
    blocks = sums / np.outer(n_texts, n_texts)
    others = (blocks.sum(axis=1) - blocks.diagonal()) / (len(responses) - 1)
    return dict(enumerate(others.tolist()))


@REWARDS.register("relevance")
class Relevance:
    """How much the suggestions take up from the user's last message, in [0, 1].

    On average, the weight of the heaviest word that a suggestion shares with it.

    A word has weight 1 if it occurs in few conversations of its language in the log, and 0 if it occurs in many; the
    fusion stage counts. For a language with too few conversations in the log, and without a log, a word list for 80
    languages says which words occur in most texts (``form/frequent_words.tsv``): these have weight 0. Two forms of a
    word count as one: ``Zimmerpflanzen`` takes up ``Pflanze``. A suggestion that merely repeats the message counts 0.

    Args:
        frequent: words whose weight is not 1, separated by spaces, each as ``en/good=0.26``: language, word, share of
            conversations; without a language for all, without a share with weight 0. The fusion stage determines
            them.
        rare_share: of conversations; a word that occurs in fewer has weight 1.
        frequent_share: of conversations; a word that occurs in more has weight 0. In between, the weight falls with
            the logarithm of the share, like an inverse document frequency.
    """

    def __init__(self, frequent: str | None = None, rare_share: float = 0.05, frequent_share: float = 0.2) -> None:
        if not 0 < rare_share < frequent_share <= 1:
            raise ValueError(
                f"relevance: needs 0 < rare_share < frequent_share <= 1, got {rare_share} and {frequent_share}"
            )
        self.rare_share, self.frequent_share = rare_share, frequent_share
        self._set_frequent(frequent)

    def __call__(self, batch: RolloutBatch) -> Tensor:
        import torch

        rows = zip(batch.conversations, batch.parsed, strict=True)
        return torch.tensor([sum(self._relevant(c, p)) / p.n for c, p in rows], dtype=torch.float32)

    def credit(self, batch: RolloutBatch) -> Tensor:
        """What each suggestion adds, ``[batch, n]``."""
        rows = zip(batch.conversations, batch.parsed, strict=True)
        return _shares([self._relevant(c, p) for c, p in rows], batch.task.n)

    def calibrate(self, batch: RolloutBatch) -> dict[str, str]:
        """The words that occur in many conversations: in the user's last message, or in the first response to it."""
        if self.frequent is not None:
            return {}
        seen: dict[str, list[frozenset[str]]] = {}
        known = set()
        for conversation, parsed, number in zip(batch.conversations, batch.parsed, batch.group.tolist(), strict=True):
            if number not in known:
                known.add(number)
                texts = (last_question(conversation), *parsed.suggestions)
                seen.setdefault(language(" ".join(texts)), []).append(frozenset(chain(*map(words, texts))))
        found = []
        for code, some in sorted(seen.items()):
            if code and len(some) >= MIN_CONVERSATIONS:
                counts = Counter(chain(*some))
                shares = {word: n / len(some) for word, n in counts.items() if n > self.rare_share * len(some)}
                found += [f"{code}/{word}={share:.3f}" for word, share in sorted(shares.items())]
        self._set_frequent(" ".join(found))
        return {"frequent": self.frequent}

    def _set_frequent(self, frequent: str | None) -> None:
        self.frequent = frequent
        self._of_language: dict[str, dict[str, float]] = {}
        for one in (frequent or "").split():
            word, _, share = one.partition("=")
            code, _, word = word.rpartition("/")
            self._of_language.setdefault(code, {})[word] = self._weight(float(share)) if share else 0.0
        self._listed = words_of_many_texts().union(*self._of_language.values())
        self._rare = lru_cache(N_CACHED)(self._rare_words)
        self._asked = lru_cache(N_CACHED)(self._content_of_message)
        self._content = lru_cache(N_CACHED)(self._content_of_text)
        self._weights = lru_cache(N_CACHED)(self._weights_of_languages)

    def _weight(self, share: float) -> float:
        steepness = math.log(self.frequent_share / self.rare_share)
        return min(max(math.log(self.frequent_share / share) / steepness, 0.0), 1.0) if share else 1.0

    def _relevant(self, conversation: Sequence[Message], parsed: ParsedResponse) -> list[float]:
        """How much of the user's last message each suggestion takes up."""
        message = last_question(conversation)
        rare = self._rare(message)
        theirs = map(self._rare, parsed.suggestions)
        surely = [rare != some and not rare.isdisjoint(some) for some in theirs]
        if all(surely):  # the usual case, for which nobody need know the language
            return [1.0] * len(surely)
        codes, asked = self._asked(message, "" if tells_language(message) else " ".join(parsed.suggestions))
        code = next(iter(codes), "")
        return [
            1.0 if known else _taken_up(asked, self._content(suggestion, codes), code)
            for known, suggestion in zip(surely, parsed.suggestions, strict=True)
        ]

    def _rare_words(self, text: str) -> frozenset[str]:
        """The words of ``text`` that weigh 1 in whatever language it is."""
        return frozenset(_content_words(text)).difference(self._listed)

    def _content_of_message(self, message: str, said: str) -> tuple[tuple[str, ...], Content]:
        """The languages that a message can be in, or what was said to one that is too short to tell, the likeliest
        first; and its content."""
        codes = tuple(code for code, _ in likely_languages(f"{message} {said}"))
        return codes, self._content(message, codes)

    def _content_of_text(self, text: str, codes: tuple[str, ...]) -> Content:
        """The words of a text that weigh something in these languages, with their weights."""
        weights = self._weights(codes)
        found = {word: weights.get(word, 1.0) for word in _content_words(text)}
        found = {word: weight for word, weight in found.items() if weight}
        return Content(found, max(found.values(), default=0.0), Forms.of(found, next(iter(codes), "")))

    def _weights_of_languages(self, codes: tuple[str, ...]) -> dict[str, float]:
        """What words weigh in these languages, where that is not 1."""
        weights = dict(self._of_language.get("", {}))
        for code in codes:
            of_code = self._of_language.get(code)
            weights |= dict.fromkeys(frequent_words(code), 0.0) if of_code is None else of_code
        return weights


class Content(NamedTuple):
    """What a text is about.

    Attributes:
        weights: of its words that weigh something.
        most: the weight of the weightiest.
        forms: of all of them.
    """

    weights: dict[str, float]
    most: float
    forms: Forms


def _content_words(text: str) -> Sequence[str]:
    """The words of ``text`` without the particles and endings of Japanese, which ICU cuts off."""
    found = words(text)
    return found if text.isascii() else [word for word in found if not _SHORT_HIRAGANA.fullmatch(word)]


def _taken_up(asked: Content, said: Content, code: str) -> float:
    """The weight of the weightiest word of which a form stands in both."""
    if asked.weights.keys() == said.weights.keys():
        return 0.0
    best = max((weight for word, weight in said.weights.items() if word in asked.weights), default=0.0)
    if best == min(asked.most, said.most) or not asked.forms.may_meet(said.forms):
        return best
    for word, weight in said.weights.items():
        for other, other_weight in asked.weights.items():
            both = weight if weight < other_weight else other_weight
            if both > best and same_stem(word, other, code):
                best = both
    return best


@REWARDS.register("language")
class Language:
    """The share of suggestions in the language and script of the user's last message, in [0, 1].

    If that message is too short to tell, the ones before it decide; if none of them can, every suggestion counts.
    Names, code and texts too short to tell fit every language: only a suggestion that is clearly in another one, or
    entirely in another script, counts 0, as does a missing one.
    """

    def __call__(self, batch: RolloutBatch) -> Tensor:
        import torch

        rows = zip(batch.conversations, batch.parsed, strict=True)
        return torch.tensor([sum(all_in_users_language(c, p.suggestions)) / p.n for c, p in rows])

    def credit(self, batch: RolloutBatch) -> Tensor:
        """What each suggestion adds, ``[batch, n]``."""
        rows = zip(batch.conversations, batch.parsed, strict=True)
        return _shares([all_in_users_language(c, p.suggestions) for c, p in rows], batch.task.n)


def _shares(rows: Sequence[Sequence[float]], n: int) -> Tensor:
    """``[batch, n]``: what each suggestion counts, by n; one that is missing adds nothing."""
    import torch

    padded = [[*row, *[0] * (n - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.float32).view(-1, n) / n
