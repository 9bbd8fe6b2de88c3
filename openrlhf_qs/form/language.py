"""Whether a suggestion is in the language that its user writes."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.text import SCRIPTS, han_form, language, scripts, words

# Of these a short text cannot tell, and who reads one reads the other.
CLOSE = ({"no", "nb", "nn", "da"}, {"hr", "sr", "bs"}, {"id", "ms"}, {"cs", "sk"}, {"pt", "gl"}, {"hi", "mr", "ne"})
N_WORDS_OF_A_NAME = 3  # of another script than the user's; a longer text is no name


def in_users_language(conversation: Sequence[Message], suggestion: str) -> bool:
    """Whether ``suggestion`` can be in the language and script of the user's last message; false only where it surely
    is not.

    Where that message is too short to tell, the ones before it say it.
    """
    said = [message["content"] for message in reversed(conversation) if message["role"] == "user"]
    if not _in_script(said, suggestion):
        return False
    own = language(suggestion)
    theirs = next((code for text in said if (code := language(text))), "")
    if own and theirs and not close(own, theirs):
        return False
    if own == "zh":
        form = next((form for text in said if (form := han_form(text))), "")
        return not form or han_form(suggestion) in ("", form)
    return True


def close(one: str, other: str) -> bool:
    """Whether two languages are the same, or so near that a short text does not tell which it is."""
    return one == other or any(one in group and other in group for group in CLOSE)


def _in_script(said: Sequence[str], suggestion: str) -> bool:
    """Whether the suggestion has letters of the script in which the user wrote last, or is short as a name."""
    theirs = next((found for text in said if (found := _families(text))), set())
    own = _families(suggestion)
    if not theirs or not own or own & theirs:
        return True
    return own == {"LATIN"} and len(words(suggestion)) <= N_WORDS_OF_A_NAME


def _families(text: str) -> set[str]:
    """The scripts of ``text``; those of Japanese are one with Chinese characters."""
    return {"CJK" if SCRIPTS.get(name) == "ja" else name for name in scripts(text)}
