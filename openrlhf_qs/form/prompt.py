"""A conversation as messages, and its form for a reward model; a model's own chat template turns it into text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from openrlhf_qs.files.whole import BadRow, short

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

# The forms in which tokenizers write control tokens: <|im_end|>, <｜end▁of▁sentence｜>, <turn|>, </s>, <end_of_turn>,
# [INST], <<SYS>>; and what OpenRLHF takes for a picture.
_CONTROL = re.compile(
    r"<[|｜][^\s<>|｜]+[|｜]?>|<[^\s<>|｜]+[|｜]>|</?s>|<(?:bos|eos|pad|unk|mask|image|start_of_turn|end_of_turn)>|\[/?INST\]"
    r"|<</?SYS>>"
)
ROLES = ("system", "user", "assistant")


def check_conversation(conversation: Any) -> None:
    """BadRow if it is not a list of messages, is empty, or has a role outside ``ROLES``."""
    if not isinstance(conversation, list) or not conversation:
        raise BadRow(
            "empty conversation", f"conversation {short(conversation)}; give a list of messages, at least one"
        )
    check_messages(conversation)


def check_messages(messages: Any) -> None:
    """BadRow if it is not a list of messages (which may be empty), has a role outside ``ROLES``, or has an empty user
    message."""
    if not isinstance(messages, list):
        raise BadRow("no messages", f"conversation {short(messages)}; give a list of messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadRow("bad message", f'message {short(message)}; give {{"role": ..., "content": text}}')
        if message.get("role") not in ROLES:
            raise BadRow("unknown role", f"role {short(message.get('role'))}; give one of {', '.join(ROLES)}")
        if message["role"] == "user" and not message["content"].strip():
            raise BadRow("empty message", f"user's message {message['content']!r}; give its text, or leave it out")


def suggestion_messages(conversation: Sequence[Message], suggestion: str) -> list[Message]:
    """What a reward model scores: the conversation, then the suggestion as the user's next turn."""
    return plain([*conversation, {"role": "user", "content": suggestion}])


def plain(messages: Sequence[Message]) -> list[Message]:
    """``messages`` without control tokens in their contents: only the template may begin and end turns."""
    return [{"role": message["role"], "content": escaped(message["content"])} for message in messages]


def escaped(text: str) -> str:
    """``text`` with a space in what a template or OpenRLHF would take for a token: ``< |im_end|>``, ``< image>``."""
    while _CONTROL.search(text):
        text = _CONTROL.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return text


def last_question(conversation: Sequence[Message]) -> str:
    """The user's last message; empty if there is none."""
    return next((message["content"] for message in reversed(conversation) if message["role"] == "user"), "")
