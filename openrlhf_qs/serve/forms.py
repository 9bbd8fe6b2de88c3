"""How chats ask for follow-up questions through an OpenAI-compatible endpoint, and the form in which each wants them.

Chats send a prompt of their own in which the conversation is a text. Open WebUI wants ``{"follow_ups": [...]}``, Dify
a bare array; both send every other task of theirs (titles, tags, search queries) to the same model, and those are not
ours. LobeChat names a JSON schema. In: the body and the headers of a request. Out: the conversation, the form of the
answer, and whose it is.
"""

from __future__ import annotations

import json
import re
import time
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openrlhf_qs.form.prompt import ROLES, Message
from openrlhf_qs.form.response import end_of_thought

Form = Literal["follow_ups", "array"]  # {"follow_ups": [...]}, as Open WebUI; [...], as Dify
MODEL = "suggestions"  # the form is told by the prompt, and what is no follow-up task is handed on
MODELS: dict[str, Form | None] = {MODEL: None, f"{MODEL}-follow-ups": "follow_ups", f"{MODEL}-array": "array"}
DEMO = "demo"  # the partner of the page where there is no upstream
# In this order; the first are those of Open WebUI's header templates in docs/SERVING.md, the others what it sends by
# itself with ENABLE_FORWARD_USER_INFO_HEADERS.
HEADERS = {
    "task": ("x-task",),
    "chat": ("x-chat-id", "x-openwebui-chat-id"),
    "message": ("x-message-id", "x-openwebui-message-id"),
    "user": ("x-user-id", "x-openwebui-user-id"),
}
FOLLOW_UP_TASKS = ("follow_up_generation", "follow_ups", "follow_up")
_HISTORY = ("<chat_history>", "</chat_history>")
# Dify's prompts, whatever an operator makes of the instruction: a transcript of Human and Assistant, the instruction,
# and at the end "questions:". Where it begins is known by the words of Dify's own, or by the array that it wants.
_DIFY_END = re.compile(r"\nquestions:\s*\Z")
_DIFY = re.compile(
    r"^Please (?:help me )?predict (?:the )?(?:three|3) most likely (?:[\w-]+ )*questions\b", re.MULTILINE
)
_DIFY_ADDED = re.compile(r"^You must output a JSON array like \[.*$", re.MULTILINE)  # by Dify to one of an operator's
_ARRAY_WANTED = re.compile(r"^.*(?:\bJSON\b|\[\s*[\"“«「']).*$", re.MULTILINE | re.IGNORECASE)
_ASKS_FOR_ARRAY = re.compile(r"array in JSON format|JSON array", re.IGNORECASE)
_FOLLOW_UPS = re.compile(r"\bfollow_ups\b")  # the key that Open WebUI reads, in templates of every language
_FOLLOW_UP_SCHEMA = re.compile(r"follow.?up", re.IGNORECASE)  # a schema's name
_LAST_ANSWER, _QUOTES = "Last assistant message:", '"""'  # LobeChat's, all that it tells of a chat
# Open WebUI's form of what a model thought, folded before its answer.
_FOLDED = re.compile(
    r"\s*<details\b[^>]{0,99}\btype=\"reasoning\"[^>]{0,99}>.*?(?:</details>|\Z)", re.DOTALL | re.IGNORECASE
)
_HEADING = re.compile(r"\n#{1,6} ")
_SPEAKER = re.compile(r"^(USER|ASSISTANT|SYSTEM|TOOL|Human|Assistant|User|System|AI): ?", re.MULTILINE)
_ROLE_OF = {"user": "user", "human": "user", "assistant": "assistant", "ai": "assistant", "system": "system"}


@dataclass(frozen=True)
class Asked:
    """A request to the chat endpoint.

    Attributes:
        form: of the answer; None where it is not ours to answer.
        conversation: what the suggestions are to stand under; of a request that is not ours, its messages.
        task: as the headers name it; empty where they do not.
        chat, message, user: as the headers or the body name them; empty where they do not.
        model: as the request names it.
        stream: whether it wants its answer as server-sent events.
        schema: JSON schema of the answer, with a list in it for the suggestions; None where there is none.
    """

    form: Form | None
    conversation: list[Message]
    task: str
    chat: str
    message: str
    user: str
    model: str
    stream: bool
    schema: Mapping[str, Any] | None = None


def read_asked(body: Mapping[str, Any], headers: Mapping[str, str]) -> Asked:
    """What a request asks for; never raises, whatever it holds.

    Args:
        headers: their names in lower case.
    """
    messages = as_messages(body.get("messages"))
    filled = {name: value for name, value in headers.items() if not value.startswith("{{")}  # a template left as it is
    told = {name: next((filled[one] for one in known if filled.get(one)), "") for name, known in HEADERS.items()}
    model = text_of(body.get("model"))
    prompt = messages[-1]["content"] if messages else ""
    schema_name, schema = _schema(body.get("response_format"))
    form = _form(model, told["task"], prompt, schema_name)
    return Asked(
        form=form,
        conversation=_conversation(messages, prompt) if form else messages,
        task=told["task"],
        chat=told["chat"] or text_of(body.get("chat_id")),
        message=told["message"],
        user=told["user"] or text_of(body.get("user")),
        model=model,
        stream=body.get("stream") is True,
        schema=schema,
    )


def _form(model: str, task: str, prompt: str, schema_name: str) -> Form | None:
    """That which the model's name says, or the prompt."""
    if task and task.lower() not in FOLLOW_UP_TASKS:
        return None
    if MODELS.get(model):
        return MODELS[model]
    if _dify_instruction(prompt) is not None:
        return "array"
    if (template := _around_history(prompt)) is not None and _FOLLOW_UPS.search(template):
        return "follow_ups"
    if _FOLLOW_UP_SCHEMA.search(schema_name):
        return "follow_ups"
    if task:  # a template of the user's own
        return "array" if _ASKS_FOR_ARRAY.search(prompt) and "follow_ups" not in prompt else "follow_ups"
    return None


def _conversation(messages: Sequence[Message], prompt: str) -> list[Message]:
    """The conversation that a prompt holds as text; where it holds none, the messages themselves."""
    found = history(prompt)
    if found is not None:
        return read_transcript(found)
    if prompt.startswith(_LAST_ANSWER) and prompt.count(_QUOTES) >= 2:
        answer = prompt[prompt.find(_QUOTES) + len(_QUOTES) : prompt.rfind(_QUOTES)].strip()
        return [{"role": "assistant", "content": answer}] if answer else []
    instruction = _dify_instruction(prompt)
    if instruction is not None:
        return read_transcript(prompt[:instruction])
    found = _bare_history(prompt)
    return list(messages) if found is None else read_transcript(prompt[slice(*found)])


def _dify_instruction(prompt: str) -> int | None:
    """Where the instruction of a prompt of Dify's begins, behind the transcript; None where it is none."""
    own = list(_DIFY.finditer(prompt))
    if own:
        return own[-1].start()
    end = _DIFY_END.search(prompt)
    marks = list(_SPEAKER.finditer(prompt, 0, end.start())) if end else []
    if not marks or not prompt.startswith(("Human:", "Assistant:")):
        return None
    said = prompt.find("\n", marks[-1].end())  # the last message has a line of its own at least
    if not 0 <= said < end.start():
        return None
    added = list(_DIFY_ADDED.finditer(prompt, said + 1, end.start()))
    before = len(prompt[: added[-1].start()].rstrip()) if added else 0
    if before > said:  # the last line before it is the operator's
        return prompt.rfind("\n", 0, before) + 1
    wanted = _ARRAY_WANTED.search(prompt, said + 1, end.start())
    return wanted.start() if wanted else prompt.rfind("\n", 0, end.start()) + 1


def _around_history(prompt: str) -> str | None:
    """A template without the conversation that it was filled with; None where it has none. What a chat is about says
    nothing of the task."""
    found = _between_marks(prompt) or _bare_history(prompt)
    return found and prompt[: found[0]] + prompt[found[1] :]


def _bare_history(prompt: str) -> tuple[int, int] | None:
    """From where to where the messages of a template stand that has no marks around them, as Open WebUI writes them:
    before the heading, else the line, that names its key. None where there are no messages of both."""
    marks = [mark for mark in _SPEAKER.finditer(prompt) if mark[1] in ("USER", "ASSISTANT", "SYSTEM", "TOOL")]
    if not {"USER", "ASSISTANT"} <= {mark[1] for mark in marks}:
        return None
    last = marks[-1].end()
    key = _FOLLOW_UPS.search(prompt, last)
    if key is None:
        return marks[0].start(), len(prompt)
    headings = [found.start() for found in _HEADING.finditer(prompt, last, key.start())]
    end = headings[-1] if headings else prompt.rfind("\n", last, key.start())
    return marks[0].start(), end if end >= 0 else len(prompt)


def history(prompt: str) -> str | None:
    """What stands between the last pair of Open WebUI's marks; None where there is none. In linear time, which no
    regular expression takes for a text of opening marks alone."""
    found = _between_marks(prompt)
    return found and prompt[slice(*found)].strip()


def _between_marks(prompt: str) -> tuple[int, int] | None:
    opening, closing = _HISTORY
    end = prompt.rfind(closing)
    before = prompt.rfind(closing, 0, max(end, 0))
    start = prompt.find(opening, before + len(closing) if before >= 0 else 0, max(end, 0))
    return (start + len(opening), end) if start >= 0 else None


def read_transcript(text: str) -> list[Message]:
    """``USER: …`` and ``ASSISTANT: …``, or ``Human:`` and ``Assistant:``, as messages; text without a speaker is the
    user's, and what tools said and models thought goes."""
    marks = list(_SPEAKER.finditer(text))
    # The first mark says whose way of writing it is: a message may quote a dialogue in another one.
    marks = [mark for mark in marks if mark[1].isupper() == marks[0][1].isupper()]
    before = text[: marks[0].start()] if marks else text
    found = [{"role": "user", "content": before.strip()}]
    ends = [*(mark.start() for mark in marks), len(text)][1:]
    for mark, end in zip(marks, ends, strict=True):
        role = _ROLE_OF.get(mark[1].lower(), "")
        found.append({"role": role, "content": _said(role, text[mark.end() : end]).strip()})
    return [message for message in found if message["role"] and message["content"]]


def as_messages(messages: Any) -> list[Message]:
    """Messages in the roles of a click log, their texts alone; never raises.

    A developer's message is the system's; what tools said and models thought, and what has no text, goes.
    """
    found = []
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, dict):
            continue
        role = {"developer": "system"}.get(text_of(message.get("role")), text_of(message.get("role")))
        content = _said(role, text_of(message.get("content")))
        if role in ROLES and content.strip():
            found.append({"role": role, "content": content})
    return found


def _said(role: str, text: str) -> str:
    """An assistant's answer without the thoughts before it."""
    start, end = -1, 0
    while role == "assistant" and end > start:
        start, end = end, end_of_thought(text, end)
        if folded := _FOLDED.match(text, end):
            end = folded.end()
    return text[end:]


def text_of(content: Any) -> str:
    """The text of a message's content, whole or in parts, that can be written as UTF-8; empty for anything else."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        content = "\n".join(part for part in parts if isinstance(part, str))
    return content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""


def in_form(suggestions: Sequence[str], form: Form, schema: Mapping[str, Any] | None = None) -> str:
    """The text of the answer. A bracket in a suggestion of an array is written as JSON's escape: Dify cuts from the
    first opening bracket to the first closing one.

    Args:
        schema: of :class:`Asked`; it says more than ``form``.
    """
    if schema is not None:
        return json.dumps(_in_schema(suggestions, schema), ensure_ascii=False)
    if form == "follow_ups":
        return json.dumps({"follow_ups": list(suggestions)}, ensure_ascii=False)
    texts = ", ".join(json.dumps(text, ensure_ascii=False) for text in suggestions)
    return "[" + texts.replace("[", "\\u005b").replace("]", "\\u005d") + "]"


def _schema(response_format: Any) -> tuple[str, Mapping[str, Any] | None]:
    """The name of the JSON schema that a request wants, and the schema itself where suggestions can stand in it."""
    wanted = response_format.get("json_schema") if isinstance(response_format, dict) else None
    if not isinstance(wanted, dict):
        return "", None
    schema = wanted.get("schema")
    return text_of(wanted.get("name")), schema if isinstance(schema, dict) and _list_of(schema) else None


def _list_of(schema: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The first property of a schema that is a list of texts, or of objects with texts in them."""
    for name, one in _properties(schema).items():
        items = one.get("items") if one.get("type") == "array" else None
        if isinstance(items, dict) and (items.get("type") == "string" or _texts_of(items)):
            return name, one
    return None


def _in_schema(suggestions: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    name, listed = _list_of(schema) or ("", {})
    items, most = listed["items"], listed.get("maxItems")
    fields = _texts_of(items)
    return {
        name: [
            {field: _short(text, how) for field, how in fields.items()} if fields else _short(text, items)
            for text in suggestions[: most if isinstance(most, int) and most >= 0 else None]
        ]
    }


def _texts_of(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: one for name, one in _properties(schema).items() if one.get("type") == "string"}


def _properties(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = schema.get("properties")
    return {name: one for name, one in found.items() if isinstance(one, dict)} if isinstance(found, dict) else {}


def _short(text: str, schema: Mapping[str, Any]) -> str:
    """As long as a schema's ``maxLength`` allows: a label that is longer is not shown at all."""
    most = schema.get("maxLength")
    return f"{text[: most - 1].rstrip()}…" if isinstance(most, int) and 0 < most < len(text) else text


def completion(text: str, model: str) -> dict[str, Any]:
    """A whole chat completion. Tokens are not counted: the answer is no model's own text."""
    return _object(model, "chat.completion") | {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def completion_events(text: str, model: str) -> Iterator[bytes]:
    """The same as server-sent events: the role, the text, the end."""
    head = _object(model, "chat.completion.chunk")
    deltas = [({"role": "assistant", "content": ""}, None), ({"content": text}, None), ({}, "stop")]
    for delta, reason in deltas:
        chunk = head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()
    yield b"data: [DONE]\n\n"


def _object(model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def refusal(code: str, message: str) -> dict[str, Any]:
    """The body of a refusal."""
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}


def same_text(text: str) -> str:
    """Equal for what a chat sends and what it was suggested: width, composition and white space aside."""
    return " ".join(unicodedata.normalize("NFKC", text).split())
