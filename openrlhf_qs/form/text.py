"""The one place that cuts text: words, pieces, width, script and language, for any script.

Words are those of ICU (UAX #29, with its dictionaries for Chinese, Japanese, Thai, Khmer, Lao and Burmese, which have
no blanks between them); ASCII, where the rules are few, is cut by a regular expression that says the same. Marks stay
with their letters. When two texts are the same is :func:`openrlhf_qs.form.keys.text_key`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.resources import files
from typing import NamedTuple

from openrlhf_qs.form.identifier import Identifier, load_identifier
from openrlhf_qs.form.keys import plain_form, simplified

N_CACHED = 1 << 16  # texts; the suggestions of one conversation are looked at by many
# UAX #29 for ASCII: an apostrophe, full stop or colon stands within letters, a comma, full stop or apostrophe in
# digits.
_ASCII_WORD = re.compile(r"\w+(?:(?:(?<=[A-Za-z])['.:](?=[A-Za-z])|(?<=\d)[.,';](?=\d))\w+)*", re.ASCII)
_ASCII_PLAIN, _JOINING = re.compile(r"[a-z0-9]+"), re.compile("['.:,;_]")
# A script and the language that has it alone, or nearly so.
SCRIPTS = {
    "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "THAI": "th", "LAO": "lo", "KHMER": "km", "MYANMAR": "my",
    "TIBETAN": "bo", "GUJARATI": "gu", "TAMIL": "ta", "TELUGU": "te", "KANNADA": "kn", "MALAYALAM": "ml",
    "GURMUKHI": "pa", "ORIYA": "or", "SINHALA": "si", "GREEK": "el", "GEORGIAN": "ka", "ARMENIAN": "hy",
    "HEBREW": "he", "ETHIOPIC": "am", "CJK": "zh", "LATIN": "", "CYRILLIC": "", "ARABIC": "", "DEVANAGARI": "",
    "BENGALI": "",
}  # fmt: skip
STEMMERS = {
    "ar": "arabic", "hy": "armenian", "eu": "basque", "ca": "catalan", "da": "danish", "nl": "dutch", "en": "english",
    "fi": "finnish", "fr": "french", "de": "german", "el": "greek", "hi": "hindi", "hu": "hungarian",
    "id": "indonesian", "ga": "irish", "it": "italian", "lt": "lithuanian", "ne": "nepali", "no": "norwegian",
    "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian", "es": "spanish", "sv": "swedish",
    "ta": "tamil", "tr": "turkish",
}  # fmt: skip
_HEBREW_AFFIXES = re.compile("^[ובהכלמש](?=.{3})|(?:ים|ות)$")
# Scripts that write a syllable, or the consonants alone, with one letter: two letters are a stem, or three.
_DENSE = re.compile(
    "[\u0590-\u07ff\u0900-\u0dff\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)
_NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())
_KANA = re.compile("[\u3041-\u30ff]")
_WIDE = re.compile("[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_ACCENTED, _ACCENTS = re.compile("[\u00c0-\u024f\u0370-\u04ff\u1e00-\u1fff]"), re.compile("[\u0300-\u036f]")
_STROKES = str.maketrans("ıłđøħŧ", "ildoht")  # which no accent makes of the plain letter
_LOOSELY = re.compile("[\u0622-\u06cc\u30a1-\u30f6]")
_LOOSE = str.maketrans("أإآٱىیةک", "اااايي\u0647ك") | {code: code - 0x60 for code in range(0x30A1, 0x30F7)}
MIN_PROBABILITY = 0.6  # of a language, below which nothing is said
POSSIBLE = 0.1  # probability from which a text can be in a language
OTHERS = ("be", "sr", "so", "ku", "ps", "sd", "tg", "tt", "ug", "mg", "mt", "cy", "is", "sq", "jv", "su", "ht")
MIN_LETTERS = 12  # of a text whose script many languages have, below which nothing is said
# Code, addresses, file names: they are of no language.
_CODE = re.compile(r"`[^`]*`|https?://\S+|\S*[_/\\@#<>{}=]\S*|\S*\w[.:]\w\S*|\S*\d\S*|\S*[a-z][A-Z]\S*|\b[A-Z]{2,}\b")
_SIGN_OF_CODE = re.compile(r"[`_/\\@#<>{}=\d]|\w[.:]\w|[a-z][A-Z]|[A-Z]{2}")  # without one there is none: much faster


@lru_cache(N_CACHED)
def words(text: str) -> tuple[str, ...]:
    """The words of ``text`` in NFKC, case folded, in simplified Chinese; what has no letter and no digit is none."""
    plain = plain_form(text)
    if plain.isascii():
        if not _JOINING.search(plain):  # the usual case, in a third of the time
            return tuple(_ASCII_PLAIN.findall(plain))
        return tuple(word for word in _ASCII_WORD.findall(plain) if word.strip("_"))
    if not _KANA.search(plain):  # Japanese has forms of its own, and dictionaries cut by those
        plain = simplified(plain)
    return tuple(part for part in _segments(plain) if any(map(str.isalnum, part)))


def pieces(text: str) -> list[str]:
    """``text`` in words, each with what stands between it and the next: joined, they are ``text``."""
    found: list[str] = []
    for part in _segments(text):
        if found and not any(map(str.isalnum, part)):
            found[-1] += part
        else:
            found.append(part)
    return found


def spread(text: str) -> str:
    """``text`` with a space between characters that write a syllable or a word each: Chinese, kana, Hangul."""
    return text.translate(_SPREAD).replace("  ", " ").strip() if _WIDE.search(text) else text


def unaccented(text: str) -> str:
    """``text`` as it is written in a hurry: Latin, Greek and Cyrillic letters without accents, one form of the Arabic
    letters that are written for one another, hiragana for katakana. For looking how alike two texts are, and for
    nothing that is shown."""
    if _ACCENTED.search(text):
        text = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text.translate(_STROKES))))
    return text.translate(_LOOSE) if _LOOSELY.search(text) else text


def _segments(text: str) -> list[str]:
    from icu4py.breakers import WordBreaker

    return list(WordBreaker(text, "und"))


def width(text: str) -> int:
    """Columns that ``text`` takes: 2 for a wide character, 0 for a mark or an invisible one, else 1."""
    return len(text) if text.isascii() else sum(map(_COLUMNS.__getitem__, text))


@lru_cache(N_CACHED)
def scripts(text: str) -> dict[str, int]:
    """Letters of each script, the names as in Unicode ("LATIN", "CJK"), the most frequent first."""
    if text.isascii():
        n_letters = len(text.encode().translate(None, _NO_LETTERS))
        return {"LATIN": n_letters} if n_letters else {}
    counts: dict[str, int] = {}
    for name in map(_SCRIPTS.__getitem__, text):
        counts[name] = counts.get(name, 0) + 1
    counts.pop("", None)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


class _Columns(dict):
    """Of each character; found out once."""

    def __missing__(self, character: str) -> int:
        wide = unicodedata.east_asian_width(character) in "WF"
        self[character] = 0 if unicodedata.category(character) in ("Mn", "Me", "Cf") else 2 if wide else 1
        return self[character]


class _Scripts(dict):
    """Of each letter, and empty for what is none; found out once."""

    def __missing__(self, character: str) -> str:
        name = unicodedata.name(character, "?").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
        self[character] = name.partition(" ")[0] if character.isalpha() else ""
        return self[character]


class _Spread(dict):
    """Of each character, for ``str.translate``: with a space before and after it where it is wide."""

    def __missing__(self, code: int) -> str:
        self[code] = f" {chr(code)} " if _WIDE.match(chr(code)) else chr(code)
        return self[code]


_COLUMNS, _SCRIPTS, _SPREAD = _Columns(), _Scripts(), _Spread()


def script(text: str) -> str:
    """That of most letters of ``text``; empty where it has none."""
    if text.isascii():
        return "LATIN" if any(map(str.isalpha, text)) else ""
    return next(iter(scripts(text)), "")


def language(text: str) -> str:
    """The language of ``text``, as ISO 639-1 says it; empty where a text so short does not tell.

    The script decides where one language has it. Of Latin, Cyrillic, Arabic, Devanagari and Bengali letters py3langid
    decides, from ``MIN_LETTERS`` on and from a probability of ``MIN_PROBABILITY`` on. Code counts nothing.
    """
    found = likely_languages(text)
    certain = found and found[0][1] >= MIN_PROBABILITY
    return found[0][0] if certain and (found[0][1] == 1 or _n_letters(text) >= MIN_LETTERS) else ""


@lru_cache(N_CACHED)
def likely_languages(text: str) -> tuple[tuple[str, float], ...]:
    """The languages that ``text`` can be in, however short it is, and how probable each is, the likeliest first."""
    plain = without_code(text)
    found = scripts(plain)
    if not found:
        return ()
    if "HIRAGANA" in found or ("KATAKANA" in found and "CJK" not in found):
        return (("ja", 1.0),)
    main = next(iter(found))
    if main == "LATIN":  # a name, where half as many letters of a script stand beside it that says its language
        main = next((name for name, n in found.items() if SCRIPTS.get(name) and 2 * n >= found["LATIN"]), main)
    if SCRIPTS.get(main, ""):
        return ((SCRIPTS[main], 1.0),)
    return _identifier().likely(plain.casefold(), sure=1 - POSSIBLE, possible=POSSIBLE)


def known_words(message: str, said: str = "") -> frozenset[str]:
    """Words that stand in many texts, whatever their subject, of the languages that ``message`` can be in; where that
    is too short to tell, it and what was ``said`` to it."""
    return _known_words(message if tells_language(message) else f"{message} {said}")


@lru_cache(N_CACHED)
def _known_words(text: str) -> frozenset[str]:
    return frozenset().union(*(frequent_words(code) for code, _ in likely_languages(text)))


def tells_language(text: str) -> bool:
    """Whether a text is long enough for its language to be told by its letters."""
    return _n_letters(text) >= MIN_LETTERS


def _n_letters(text: str) -> int:
    return sum(scripts(without_code(text)).values())


@lru_cache(N_CACHED)
def without_code(text: str) -> str:
    """``text`` without code, addresses and file names, which are of no language."""
    return _CODE.sub(" ", text) if _SIGN_OF_CODE.search(text) else text


@cache
def _identifier() -> Identifier:
    # Of 140 languages some are hardly written in chats, and are taken for the large ones beside them.
    return load_identifier({*_frequent_words(), *OTHERS})


@lru_cache(N_CACHED)
def same_stem(one: str, other: str, code: str) -> bool:
    """Whether two words are forms of one.

    They are where the beginning that they share is most of the shorter one; where that, but for its ending, stands in
    the longer one, as in a compound; and where Snowball finds one stem.

    Args:
        one, other: from :func:`words`.
        code: their language.
    """
    if one == other:
        return True
    short, long = sorted((one, other), key=len)
    least = 2 if any(_DENSE.match(word) for word in (one, other)) else 4
    n_common = next((n for n, pair in enumerate(zip(short, long, strict=False)) if pair[0] != pair[1]), len(short))
    if n_common >= max(least, 0.6 * len(short)):
        return True
    part = short[: max(least, round(0.8 * len(short)))]
    if len(part) >= least + (least == 4) and part in long:
        return True
    return len(_stem(one, code)) > 1 and _stem(one, code) == _stem(other, code)


class Forms(NamedTuple):
    """By what words can be forms of others: a look at two whole texts, before :func:`same_stem` looks at each pair.

    Attributes:
        firsts: the letters that a form must begin with.
        parts: of words, those that may stand within a longer one.
        joined: all words, to look for parts in.
        stems: Snowball's.
    """

    firsts: frozenset[str]
    parts: tuple[str, ...]
    joined: str
    stems: frozenset[str]

    @classmethod
    def of(cls, some: Iterable[str], code: str) -> Forms:
        known = [_forms_of_word(word, code) for word in some]
        return cls(
            frozenset(first for first, _, _ in known),
            tuple(part for _, part, _ in known if part),
            "\n".join(some),
            frozenset(stem for _, _, stem in known if len(stem) > 1),
        )

    def may_meet(self, other: Forms) -> bool:
        """False where surely no word of the one is a form of a word of the other."""
        return not (
            self.firsts.isdisjoint(other.firsts)
            and self.stems.isdisjoint(other.stems)
            and not any(part in other.joined for part in self.parts)
            and not any(part in self.joined for part in other.parts)
        )


@lru_cache(N_CACHED)
def _forms_of_word(word: str, code: str) -> tuple[str, str, str]:
    """Its first letters, the part of it that may stand within a longer word (empty: none), and its stem."""
    least = 2 if _DENSE.match(word) else 4
    part = word[: max(least, round(0.8 * len(word)))]
    return word[:least], part if len(part) >= least + (least == 4) else "", _stem(word, code)


@lru_cache(N_CACHED)
def _stem(word: str, code: str) -> str:
    """Snowball's of that language; of Hebrew, which it has not, without a preposition or article and the plural's
    ending; empty of others."""
    if code == "he":
        return _HEBREW_AFFIXES.sub("", word)
    return _stemmer(code).stemWord(word) if code in STEMMERS else ""


@cache
def _stemmer(code: str):
    from snowballstemmer import stemmer

    return stemmer(STEMMERS[code])


def han_form(text: str) -> str:
    """``simplified`` or ``traditional`` where ``text`` has more characters that only that one has, else empty."""
    counts = {"simplified": 0, "traditional": 0}
    for character in text:
        form = _han_form(character)
        if form:
            counts[form] += 1
    one, other = counts["simplified"], counts["traditional"]
    return "" if one == other else max(counts, key=counts.get)


@cache
def _han_form(character: str) -> str:
    """By the character sets of the two: GB 2312 has no traditional form where there is another, Big5 no simplified."""
    if not "\u4e00" <= character <= "\u9fff":
        return ""
    in_gb, in_big5 = _encodable(character, "gb2312"), _encodable(character, "big5")
    return "" if in_gb == in_big5 else "simplified" if in_gb else "traditional"


def _encodable(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


@cache
def frequent_words(code: str) -> frozenset[str]:
    """Words that stand in many texts of a language, whatever their subject; empty where nobody counted."""
    return _frequent_words().get(code, frozenset())


@cache
def words_of_many_texts() -> frozenset[str]:
    """The :func:`frequent_words` of all languages."""
    return frozenset().union(*_frequent_words().values())


@lru_cache(N_CACHED)
def languages_of_common(word: str) -> tuple[str, ...]:
    """The languages that have ``word`` among their :func:`frequent_words`."""
    return tuple(code for code, some in _frequent_words().items() if word in some)


@cache
def _frequent_words() -> dict[str, frozenset[str]]:
    rows = files("openrlhf_qs.form").joinpath("frequent_words.tsv").read_text(encoding="utf-8").splitlines()
    return {code: frozenset(found.split(" ")) for code, found in (row.split("\t") for row in rows)}
