"""The two ways a conversation is put to a model: to the policy for suggestions, to a reward model with one suggestion.

Both are lists of messages; each model's own chat template turns them into text.
"""

from __future__ import annotations

from collections.abc import Sequence

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

INSTRUCTION = "Suggest three short questions the user may ask next, numbered 1 to 3."


def policy_messages(conversation: Sequence[Message]) -> list[Message]:
    """What the policy answers with three suggestions: the conversation, then the instruction as the last user turn."""
    return [*conversation, {"role": "user", "content": INSTRUCTION}]


def suggestion_messages(conversation: Sequence[Message], suggestion: str) -> list[Message]:
    """What a reward model scores: the conversation, then the suggestion as the user's next turn."""
    return [*conversation, {"role": "user", "content": suggestion}]
