"""Whether a suggestion keeps to what a conversation is about: by the words that both have, and by nothing else.

A rule that knows no model: it takes a paraphrase without a word of the conversation for another topic, and any use of
one for the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.text import known_words, language, same_stem, words

# English words of advice on anything; the background of other languages has the like, that of English does not.
_OF_ANYTHING = frozenset(
    """best better good great way ways tip tips thing things use used using useful make makes making need needed start
    starting begin beginner help helps work works different difference important recommend recommended example examples
    long often cost costs time times day days week question questions answer specific type types kind avoid common
    first next more information know learn explain idea ideas option options step steps keep get give take find choose
    look many much most some other new people person right want possible mean means method methods process what how
    why when where which who can could should would does did the and for with that this you your""".split()
)


def on_topic(conversation: Sequence[Message], text: str) -> bool:
    """Whether a form of a word of ``text`` stands in ``conversation``, of those that do not stand in every text."""
    said = " ".join(message["content"] for message in conversation)
    code, content = _content_of(said)
    ours = {word for word in words(text) if len(word) > 1} - _OF_ANYTHING - known_words(said)
    return any(same_stem(one, other, code) for one in ours for other in content)


@lru_cache(1024)
def _content_of(said: str) -> tuple[str, frozenset[str]]:
    content = frozenset(word for word in words(said) if len(word) > 1)
    return language(said), content - _OF_ANYTHING - known_words(said)
