"""Whether a suggestion is in the language that its user writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from functools import lru_cache

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.text import (
    N_CACHED,
    SCRIPTS,
    frequent_words,
    han_form,
    language,
    languages_of_common,
    likely_languages,
    scripts,
    tells_language,
    without_code,
    words,
)

# Of these a short text cannot tell, and who reads one reads the other.
CLOSE = ({"no", "nb", "nn", "da"}, {"hr", "sr", "bs"}, {"id", "ms"}, {"cs", "sk"}, {"pt", "gl"}, {"hi", "mr", "ne"})
MOSTLY = 0.5  # share of words of a language above which a text is in it
AS_FREQUENT, MIN_USERS = 0.3, 50  # of the rate in the language that has a word most often; conversations of a language
MORE_COMMON = 2  # common words of another language beyond those of the user's, from which a short text is in it
N_WORDS_OF_A_NAME = 3  # of another script than the user's; a longer text is no name


def all_in_users_language(conversation: Sequence[Message], suggestions: Sequence[str]) -> list[bool]:
    """:func:`in_users_language` of each of the suggestions of one response, of which those that are too short to tell
    alone tell together: "Why?" and "How long?" under a question in German."""
    said = users_texts(conversation)
    fits = [in_language_of(said, text) for text in suggestions]
    ours = _possible_languages(said)
    short = [n for n, text in enumerate(suggestions) if fits[n] and ours and not language(text)]
    other = _language_of_common_words([suggestions[n] for n in short], ours) if len(short) > 1 else ""
    for n in short:
        if other and any(word in frequent_words(other) for word in _common_words(suggestions[n])):
            fits[n] = any(_n_common([suggestions[n]], code) for code in ours)
    return fits


def in_users_language(conversation: Sequence[Message], suggestion: str) -> bool:
    """Whether ``suggestion`` can be in the language and script of the user's last message; false only where it surely
    is not.

    Where that message is too short to tell, the ones before it say it.
    """
    return in_language_of(users_texts(conversation), suggestion)


def users_texts(conversation: Sequence[Message]) -> tuple[str, ...]:
    """What the user said, the last message first."""
    return tuple(message["content"] for message in reversed(conversation) if message["role"] == "user")


def in_language_of(said: Sequence[str], suggestion: str) -> bool:
    """:func:`in_users_language` of one who said that, the last message first."""
    if not _in_script(said, suggestion):
        return False
    theirs = users_language(said)
    if theirs != "zh" and is_mostly_of(suggestion, frequent_words(theirs)):
        return True  # nothing more need be looked at, which takes ten times as long
    own = language(suggestion)
    if own and theirs and not close(own, theirs):
        return False
    if not own and _is_foreign(tuple(said), suggestion):
        return False
    if own == "zh":
        form = next((form for text in said if (form := han_form(text))), "")
        return not form or han_form(suggestion) in ("", form)
    return True


def users_language(said: Sequence[str]) -> str:
    """That of the last message that tells, of those that the user wrote, the last one first; empty where none does."""
    return next((code for text in said if (code := language(text))), "")


@lru_cache(N_CACHED)
def _is_foreign(said: tuple[str, ...], text: str) -> bool:
    """Whether the common words of a text whose letters do not tell its language are of another one than the user's."""
    ours = _possible_languages(said)
    return bool(ours and _language_of_common_words([text], ours))


def _possible_languages(said: Sequence[str]) -> tuple[str, ...]:
    """Those that the user may write, of those whose common words are known."""
    theirs = users_language(said)
    told = [text for text in said[:1] if _tells(text)]
    codes = [theirs] if theirs else [code for text in told for code, _ in likely_languages(text)]
    return tuple(code for code in codes if frequent_words(code))


def _language_of_common_words(texts: Sequence[str], ours: Sequence[str]) -> str:
    """A language that has at least half of the words of these texts among its common ones, and two more of them than
    any of ``ours``, or those near them, has; empty where there is none."""
    n_words, n_ours = sum(len(words(text)) for text in texts), max(_n_common(texts, code) for code in ours)
    counts = Counter(code for text in texts for word in _common_words(text) for code in languages_of_common(word))
    for code, n in counts.most_common():
        if n < max(n_ours + MORE_COMMON, n_words / 2):
            return ""
        if not any(close(code, one) for one in ours):
            return code
    return ""


def _n_common(texts: Sequence[str], code: str) -> int:
    return sum(word in frequent_words(code) for text in texts for word in _common_words(text))


def _common_words(text: str) -> tuple[str, ...]:
    """The words of ``text`` but for what is written as a name is, with a capital and not at the beginning; none where
    there is code in it, of which ``for`` and ``in`` are."""
    if without_code(text) != text:
        return ()
    parts = text.split()
    return words(" ".join(part for n, part in enumerate(parts) if n == 0 or len(part) == 1 or not part[0].isupper()))


def is_mostly_of(text: str, vocabulary: Container[str]) -> bool:
    """Whether more than half of the words of ``text`` are among these."""
    found = words(text) if vocabulary else ()
    return sum(word in vocabulary for word in found) > MOSTLY * len(found)


def vocabularies(said: Sequence[Sequence[str]]) -> dict[str, frozenset[str]]:
    """The words that users of each language write, by what many of them said: each as :func:`users_texts` has it.

    A word that stands in several languages is of those in which it is about as frequent as anywhere. Not of Chinese,
    of which there are two forms, and not of a language that few write.
    """
    counts: dict[str, Counter[str]] = {}
    n_users: Counter[str] = Counter()
    for texts in said:
        code = users_language(texts)
        if code and code != "zh":
            n_users[code] += 1
            counts.setdefault(code, Counter()).update({word for text in texts for word in words(text)})
    rates = {
        code: {word: n / n_users[code] for word, n in some.items()}
        for code, some in counts.items()
        if n_users[code] >= MIN_USERS
    }
    most: dict[str, float] = {}
    for some in rates.values():
        for word, rate in some.items():
            most[word] = max(rate, most.get(word, 0.0))
    return {
        code: frozenset(word for word, rate in some.items() if rate >= AS_FREQUENT * most[word])
        for code, some in rates.items()
    }


def close(one: str, other: str) -> bool:
    """Whether two languages are the same, or so near that a short text does not tell which it is."""
    return one == other or any(one in group and other in group for group in CLOSE)


def _in_script(said: Sequence[str], suggestion: str) -> bool:
    """Whether the suggestion has letters of the script in which the user wrote last, or is short as a name."""
    theirs = next((found for text in said if (found := _families(text)) and _tells(text)), set())
    own = _families(suggestion)
    if not theirs or not own or own & theirs:
        return True
    return own == {"LATIN"} and len(words(suggestion)) <= N_WORDS_OF_A_NAME


@lru_cache(N_CACHED)
def _tells(text: str) -> bool:
    """Whether ``text`` is more than a name or "ok", which users of every script write in Latin letters."""
    if _families(text) != {"LATIN"} or tells_language(text):
        return True
    return sum(bool(languages_of_common(word)) for word in words(text)) > 1


def _families(text: str) -> set[str]:
    """The scripts of ``text``; those of Japanese are one with Chinese characters."""
    return {"CJK" if SCRIPTS.get(name) == "ja" else name for name in scripts(text)}
