"""A request for suggestions: a conversation, its user, and what is known about the user."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openrlhf_qs.files.whole import read_json_lines, short
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.prompt import Message, check_conversation


@dataclass(frozen=True)
class Request:
    """A request for suggestions.

    Attributes:
        conversation: the conversation to suggest for, oldest message first.
        user_id: the user of the conversation; None if unknown.
        features: what is known about the user before the first message.
        clicked: the suggestions that the user clicked, from a log: known to rewards, not when serving.
    """

    conversation: Sequence[Message]
    user_id: str | None = None
    features: Mapping[str, Any] = field(default_factory=dict)
    clicked: Sequence[str] = ()

    def label(self) -> str:
        """The request as JSON, for the ``label`` of a prompt, which rewards receive; unknown fields are left out."""
        user = {} if self.user_id is None else {"user_id": self.user_id}
        features = {"features": dict(self.features)} if self.features else {}
        clicked = {"clicked": list(self.clicked)} if self.clicked else {}
        return json.dumps({"conversation": list(self.conversation), **user, **features, **clicked}, ensure_ascii=False)

    @classmethod
    def of_label(cls, label: Any) -> Request:
        """The request from the output of :meth:`label`. ValueError for anything else."""
        try:
            known = json.loads(label)
        except (TypeError, ValueError, RecursionError):
            known = None
        conversation = known.get("conversation") if isinstance(known, dict) else None
        if not isinstance(conversation, list) or not all(
            isinstance(m, dict) and {"role", "content"} <= m.keys() for m in conversation
        ):
            raise ValueError(
                f"label {short(label)} is not a request as JSON: give --data.label_key label and the prompts.jsonl of "
                "`openrlhf-qs data`"
            )
        return cls(conversation, known.get("user_id"), known.get("features") or {}, tuple(known.get("clicked") or ()))


def read_conversations(path: str) -> list[list[Message]]:
    """The distinct conversations of a file in the order they are first seen; the label of a prompt is one too."""
    conversations = {}
    for number, row in enumerate(read_json_lines(path), start=1):
        try:
            conversation = Request.of_label(row["label"]).conversation if "label" in row else row.get("conversation")
            check_conversation(conversation)
        except ValueError as error:
            field = "label" if "label" in row else "conversation"
            raise ValueError(f"{path}:{number}: {field}: {error}") from None
        conversations.setdefault(conversation_key(conversation), conversation)
    return list(conversations.values())
