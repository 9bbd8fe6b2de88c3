"""Filters by text: already asked, in another language, on a block list, too wide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openrlhf_qs.form.keys import ASKED_SIMILARITY, asked_before
from openrlhf_qs.form.language import all_in_users_language, close
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.text import language, width, words
from openrlhf_qs.registry import FILTERS


@FILTERS.register("asked_before")
class AskedBefore:
    """Drops what the user already asked in this conversation, in the same or nearly the same words.

    Args:
        similarity: in (0, 100]; rapidfuzz's ratio from which two texts count as the same.
    """

    def __init__(self, similarity: float = ASKED_SIMILARITY) -> None:
        if not 0 < similarity <= 100:
            raise ValueError(f"asked_before.similarity must be in (0, 100], got {similarity}")
        self.similarity = similarity

    def __call__(self, request: Request, suggestions: Sequence[str]) -> list[str]:
        found = asked_before(request.conversation, suggestions, self.similarity)
        return ["asked before" if one else "" for one in found]


@FILTERS.register("users_language")
class UsersLanguage:
    """Drops what is clearly in another language or script than the user's last message.

    If the request's features name a ``language`` (ISO 639-1), drops what is clearly in another language than that.
    """

    def __call__(self, request: Request, suggestions: Sequence[str]) -> list[str]:
        wanted = request.features.get("language")
        if isinstance(wanted, str) and wanted:
            code = wanted.replace("_", "-").partition("-")[0].lower()
            fits = [not (own := language(text)) or close(own, code) for text in suggestions]
        else:
            fits = all_in_users_language(request.conversation, suggestions)
        return ["" if one else "another language" for one in fits]


@FILTERS.register("block_list")
class BlockList:
    """Drops what contains a word or phrase on a list; case, width and punctuation do not matter.

    Args:
        file: UTF-8 text file with one word or phrase per line; lines that begin with # are comments.
    """

    def __init__(self, file: str) -> None:
        try:
            lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"block_list.file {file} cannot be read: {error}; give a text file in UTF-8") from None
        self.phrases = [words(line) for line in lines if line.strip() and not line.startswith("#")]
        self.phrases = [phrase for phrase in self.phrases if phrase]
        if not self.phrases:
            raise ValueError(f"block_list.file {file} has no words in it; give one word or phrase per line")

    def __call__(self, request: Request, suggestions: Sequence[str]) -> list[str]:
        return ["on the block list" if self._blocked(words(text)) else "" for text in suggestions]

    def _blocked(self, found: tuple[str, ...]) -> bool:
        return any(
            found[start : start + len(phrase)] == phrase
            for phrase in self.phrases
            for start in range(len(found) - len(phrase) + 1)
        )


@FILTERS.register("too_wide")
class TooWide:
    """Drops what is too wide for a button.

    Args:
        max_width: columns; a Chinese character takes two.
    """

    def __init__(self, max_width: int = 120) -> None:
        if max_width < 1:
            raise ValueError(f"too_wide.max_width must be at least 1, got {max_width}")
        self.max_width = max_width

    def __call__(self, request: Request, suggestions: Sequence[str]) -> list[str]:
        return ["too wide" if width(text) > self.max_width else "" for text in suggestions]
