"""The ways a conversation is put to a model: to the policy for three suggestions, to the teacher for one, to a reward
model with one.

Each is a list of messages; a model's own chat template turns them into text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

INSTRUCTION = "Suggest three short questions the user may ask next, numbered 1 to 3."
TEACHER_INSTRUCTION = "Suggest one short question the user may ask next."


def check_conversation(conversation: Any) -> None:
    """ValueError where ``conversation`` is no list of messages, or an empty one: what was found; what to give."""
    if not isinstance(conversation, list) or not conversation:
        raise ValueError(f"conversation {str(conversation)[:40]!r}; give a list of messages, at least one")
    for message in conversation:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"message {str(message)[:40]!r}; give {{'role': ..., 'content': text}}")
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"role {message.get('role')!r}; give system, user or assistant")


def policy_messages(conversation: Sequence[Message]) -> list[Message]:
    """What the policy answers with three suggestions: the conversation, then the instruction as the last user turn."""
    return [*conversation, {"role": "user", "content": INSTRUCTION}]


def teacher_messages(conversation: Sequence[Message]) -> list[Message]:
    """What the teacher answers with one suggestion and nothing else."""
    return [*conversation, {"role": "user", "content": TEACHER_INSTRUCTION}]


def suggestion_messages(conversation: Sequence[Message], suggestion: str) -> list[Message]:
    """What a reward model scores: the conversation, then the suggestion as the user's next turn."""
    return [*conversation, {"role": "user", "content": suggestion}]
