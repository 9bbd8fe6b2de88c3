"""Hacked responses: what a policy finds when a reward is wrong, made by rules from good responses.

A reward that is worth training on puts every one of them below the response that it was made from. Training finds the
best of what a reward lets through, so a hack is made in several variants, and all of them have to be below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openrlhf_qs.form.prompt import Message, last_question
from openrlhf_qs.form.response import format_response
from openrlhf_qs.form.text import known_words, pieces, words

BLAND = (
    "Can you tell me more about this?",
    "What else should I know?",
    "Could you explain it further?",
    "What should I do next?",
    "Do you have an example?",
    "Why is that so?",
    "What do others say?",
    "Is there anything else?",
)
N_STUFFED = 10  # words of a stuffed suggestion
N_ELSEWHERE = 4  # conversations about something else that suggestions are taken from


def repeated(conversation: Sequence[Message], suggestions: Sequence[str], elsewhere: Sequence[Sequence[str]]):
    """Each suggestion in all places."""
    return [[text] * len(suggestions) for text in suggestions]


def bland(conversation: Sequence[Message], suggestions: Sequence[str], elsewhere: Sequence[Sequence[str]]):
    """Questions that fit every conversation and say nothing of it."""
    return [BLAND[: len(suggestions)]]


def stuffed(conversation: Sequence[Message], suggestions: Sequence[str], elsewhere: Sequence[Sequence[str]]):
    """The content words of the user's last message, over and over, each suggestion from another one on."""
    message = last_question(conversation)
    frequent = known_words(message)
    asked = [word for word in words(message) if word not in frequent] or ["this"]
    texts = [" ".join(asked[(start + n) % len(asked)] for n in range(N_STUFFED)) for start in range(len(suggestions))]
    return [[f"{text}?" for text in texts]]


def shuffled(conversation: Sequence[Message], suggestions: Sequence[str], elsewhere: Sequence[Sequence[str]]):
    """Good suggestions, of conversations about something else."""
    return elsewhere


def spliced(conversation: Sequence[Message], suggestions: Sequence[str], elsewhere: Sequence[Sequence[str]]):
    """The beginning of each suggestion with the end of another, of this response or of one elsewhere: well formed, and
    nobody says so."""
    others = [[*suggestions[n:], *suggestions[:n]] for n in range(1, len(suggestions))] + [*elsewhere]
    return [[_splice(one, other) for one, other in zip(suggestions, some, strict=True)] for some in others]


def _splice(one: str, other: str) -> str:
    beginning, end = pieces(one), pieces(other)
    by_pieces = "".join(beginning[: len(beginning) // 2] + end[len(end) // 2 :]).strip()
    by_characters = other[: len(other) // 2] + one[len(one) // 2 :]
    # Two that differ in one word alone make each other, wherever they are cut.
    spliced = (by_pieces, by_characters, one[: len(one) // 2] + other, one + other)
    return next(text for text in spliced if text not in (one, other))


HACKS: dict[str, Callable[..., Sequence[Sequence[str]]]] = {
    hack.__name__: hack for hack in (repeated, bland, stuffed, shuffled, spliced)
}
WITHOUT_TEXT = {"empty": "", "numbers": "1. 2. 3."}  # no text at all, and the form without content


def hacked_responses(
    conversations: Sequence[Sequence[Message]], suggestions: Sequence[Sequence[str]], topics: Sequence[int]
) -> dict[str, list[list[str]]]:
    """By the name of the hack ``[n, variants]``: the responses that it makes of each conversation's.

    Args:
        suggestions: ``[n]``, as many each.
        topics: ``[n]``, numbers; what is taken from elsewhere are the suggestions of the next conversations with
            another one, or of the next at all where there is no other.
    """
    made: dict[str, list[list[str]]] = {name: [] for name in (*HACKS, *WITHOUT_TEXT)}
    for n, topic in enumerate(topics):
        after = [*range(n + 1, len(topics)), *range(n)] or [n]
        others = [k for k in after if topics[k] != topic] or after
        elsewhere = [suggestions[others[k % len(others)]] for k in range(N_ELSEWHERE)]
        for name, hack in HACKS.items():
            made[name].append([format_response(texts) for texts in hack(conversations[n], suggestions[n], elsewhere)])
        for name, response in WITHOUT_TEXT.items():
            made[name].append([response])
    return made
