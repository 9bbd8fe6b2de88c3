"""Hacked responses: what a policy finds when a reward is wrong, made by rules from good responses.

A reward that is worth training on puts every one of them below the response that it was made from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from openrlhf_qs.prompt import Message
from openrlhf_qs.response import format_response

BLAND = ("Can you tell me more about this?", "What else should I know?", "Could you explain it further?")
N_STUFFED = 10  # words of a stuffed suggestion


def repeated(conversation: Sequence[Message], suggestions: Sequence[str], elsewhere: Sequence[str]) -> str:
    """The first suggestion three times."""
    return format_response([suggestions[0]] * 3)


def bland(conversation: Sequence[Message], suggestions: Sequence[str], elsewhere: Sequence[str]) -> str:
    """Three questions that fit every conversation and say nothing of it."""
    return format_response(BLAND)


def stuffed(conversation: Sequence[Message], suggestions: Sequence[str], elsewhere: Sequence[str]) -> str:
    """The content words of the user's last message, over and over, each suggestion from another one on."""
    message = next((m["content"] for m in reversed(conversation) if m["role"] == "user"), "")
    words = [word for word in re.findall(r"\w+", message.casefold()) if word not in ENGLISH_STOP_WORDS] or ["this"]
    texts = [" ".join(words[(start + n) % len(words)] for n in range(N_STUFFED)) for start in range(3)]
    return format_response([f"What {text}?" for text in texts])


def shuffled(conversation: Sequence[Message], suggestions: Sequence[str], elsewhere: Sequence[str]) -> str:
    """Good suggestions, of a conversation about something else."""
    return format_response(elsewhere)


def empty(conversation: Sequence[Message], suggestions: Sequence[str], elsewhere: Sequence[str]) -> str:
    """No text at all."""
    return ""


def numbers(conversation: Sequence[Message], suggestions: Sequence[str], elsewhere: Sequence[str]) -> str:
    """The form without content."""
    return "1. 2. 3."


HACKS: dict[str, Callable[[Sequence[Message], Sequence[str], Sequence[str]], str]] = {
    hack.__name__: hack for hack in (repeated, bland, stuffed, shuffled, empty, numbers)
}


def hacked_responses(
    conversations: Sequence[Sequence[Message]], suggestions: Sequence[Sequence[str]], topics: Sequence[int]
) -> dict[str, list[str]]:
    """By the name of the hack, one response for each conversation.

    Args:
        suggestions: ``[n]``, three each.
        topics: ``[n]``, numbers; ``shuffled`` takes the suggestions of the next conversation with another one, or of
            the next at all where there is no other.
    """
    elsewhere = []
    for n, topic in enumerate(topics):
        after = [*range(n + 1, len(topics)), *range(n)]
        other = next((k for k in after if topics[k] != topic), after[0] if after else n)
        elsewhere.append(suggestions[other])
    rows = list(zip(conversations, suggestions, elsewhere, strict=True))
    return {name: [hack(*row) for row in rows] for name, hack in HACKS.items()}
