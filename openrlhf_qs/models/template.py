"""Renders messages with a model's own chat template: in its roles, without control tokens other than the template's
own, and within the token limit.

Used by SFT, the reward model, GRPO, generation and the reference: what does not fit is cut here, by whole turns,
before OpenRLHF or vLLM would cut in the middle of one, drop the row or stop.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from openrlhf_qs.files.whole import short
from openrlhf_qs.form.prompt import Message

CUT = "… "  # before the rest of an answer
SPARE = 8  # tokens by which the cut of a text may be off
NO_SIGN = "\ufffd"  # replaces a control token of one character, into which no space fits
N_ROUNDS = 8  # of inserting spaces; after that, what the tokenizer still reads as a control token is removed


def rendered(tokenizer, messages: Sequence[Message], **how) -> str:
    """The messages as text; ``how`` is passed to ``apply_chat_template``."""
    return _applied(tokenizer, messages, tokenize=False, **how)


def prompt_ids(tokenizer, messages: Sequence[Message]) -> list[int]:
    """The tokens of a prompt; models that can think before answering are told not to."""
    return _applied(
        tokenizer, messages, add_generation_prompt=True, enable_thinking=False, tokenize=True, return_dict=False
    )


def _applied(tokenizer, messages: Sequence[Message], **how) -> Any:
    from jinja2 import TemplateError

    messages = prepared(tokenizer, messages)
    try:
        return tokenizer.apply_chat_template(messages, **how)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} refuses a conversation of {roles} that begins with "
            f"{short(messages[0]['content']) if messages else 'nothing'}: {error}"
        ) from None


def end_token(tokenizer) -> str:
    """The token that ends an answer. ValueError if the tokenizer has none."""
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} has no end token, so no answer would end: name one as "
            'eos_token in its tokenizer_config.json, as in "<|im_end|>"'
        )
    return tokenizer.eos_token


def token_texts(tokenizer) -> Callable[[int], str]:
    """A function from a token to its text, empty for special tokens; it decodes each token once."""
    return cache(lambda token: tokenizer.decode([token], skip_special_tokens=True))


def prepared(tokenizer, messages: Sequence[Message]) -> list[Message]:
    """``messages`` for ``apply_chat_template``: in roles that the template accepts, unchanged or else as
    :func:`alternating`, with contents from :func:`as_plain_text`."""
    messages = list(messages)
    roles = tuple(message["role"] for message in messages)
    known = _known(tokenizer)["roles"]
    if roles not in known:
        known[roles] = not refused_roles(tokenizer, [{"role": role, "content": "x"} for role in roles])
    return [
        {"role": message["role"], "content": as_plain_text(tokenizer, message["content"])}
        for message in (messages if known[roles] else alternating(messages))
    ]


def as_plain_text(tokenizer, text: str) -> str:
    """``text`` with a space in all that this tokenizer would read as a control token: ``< |im_end|>``, ``[ SEP]``."""
    for _ in range(N_ROUNDS):
        spans = _control_spans(tokenizer, text)
        if not spans:
            return text
        for start, end in reversed(spans):
            text = f"{text[:start]}{_broken(text[start:end])}{text[end:]}"
    while spans := _control_spans(tokenizer, text):
        for start, end in reversed(spans):
            text = text[:start] + text[end:]
    return text


def _broken(token: str) -> str:
    """A control token's text with a space in it; spaces around it that belong to it stay."""
    first = len(token) - len(token.lstrip())
    return f"{token[: first + 1]} {token[first + 1 :]}" if len(token.strip()) > 1 else NO_SIGN


class _Control(NamedTuple):
    """The control tokens of a tokenizer.

    Attributes:
        ids: theirs.
        texts: as they are written.
        lengths: of these, the longest first; ``first`` finds a sign that one begins with.
        as_written: whether none is found elsewhere, as ``<TOOL>`` by a tokenizer that lowers letters first.
    """

    ids: frozenset[int]
    texts: frozenset[str]
    lengths: tuple[int, ...]
    first: re.Pattern[str]
    as_written: bool

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each literal occurrence. Some tokenizers have thousands of control tokens."""
        found, end = [], 0
        for match in self.first.finditer(text):
            start = match.start()
            if start < end:
                continue
            length = next((one for one in self.lengths if text[start : start + one] in self.texts), 0)
            if length:
                end = start + length
                found.append((start, end))
        return found


def _control_spans(tokenizer, text: str) -> list[tuple[int, int]]:
    """Start and end of each control token that the tokenizer finds in ``text``, in order."""
    known = _known(tokenizer)
    if "control" not in known:
        known["control"] = _control(tokenizer)
    control = known["control"]
    if control is None:
        return []
    written = control.spans(text) if control.as_written or not tokenizer.is_fast else None
    if written == [] or not tokenizer.is_fast:  # it tells no offsets
        return written
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        (start, end)
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if token in control.ids
        # An unknown sign is read as the same token, which it may be.
        and (token != tokenizer.unk_token_id or text[start:end].strip() == tokenizer.unk_token)
    ]


def _control(tokenizer) -> _Control | None:
    """Of the tokens that were added to the vocabulary all special ones, and those that are no words: ``<tool_call>``.
    A plain word, blanks and a single letter are vocabulary, but for a word that the template writes. None: there are
    none."""
    template = str(tokenizer.chat_template or "")
    found = {
        number: token
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or (len(token.content.strip()) > 1 and (_is_mark(token.content) or token.content in template))
    }
    texts = frozenset(token.content for token in found.values()) | frozenset(tokenizer.all_special_tokens)
    if not texts:
        return None
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    return _Control(
        frozenset(found) | frozenset(tokenizer.all_special_ids),
        texts,
        tuple(sorted(set(map(len, texts)), reverse=True)),
        re.compile("|".join(sorted({re.escape(text[0]) for text in texts}))),
        normalizer is None or not any(token.normalized for token in found.values()),
    )


def _is_mark(text: str) -> bool:
    """Whether ``text`` has anything but letters, vowel signs, numbers and spaces."""
    return any(unicodedata.category(sign)[0] not in "LMNZ" and not sign.isspace() for sign in text)


def _known(tokenizer) -> dict[str, Any]:
    """What is known about the tokenizer in its current state; with another template or more tokens it starts empty."""
    known = tokenizer.__dict__.get("_openrlhf_qs")
    if known is None or known["of"] != _state(tokenizer, known["size"]):
        size = len(tokenizer)  # which takes as long as to tokenize a page
        known = tokenizer.__dict__["_openrlhf_qs"] = {"size": size, "of": _state(tokenizer, size), "roles": {}}
    return known


def _state(tokenizer, size: int) -> tuple:
    after = tokenizer.backend_tokenizer.id_to_token(size) if tokenizer.is_fast else len(tokenizer)
    return tokenizer.chat_template, tuple(tokenizer.all_special_tokens), after


def refused_roles(tokenizer, messages: list[Message]) -> str:
    """Why the template rejects the roles of ``messages``, in its own words; empty if it accepts them."""
    from jinja2 import TemplateError

    try:
        tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError as error:
        return str(error) or type(error).__name__
    return ""


def alternating(messages: Sequence[Message]) -> list[Message]:
    """The same messages in alternating turns of user and assistant, the user first, as strict templates require.

    A system message is put at the beginning of the next user turn, consecutive turns of one role are joined with a
    blank line, and an assistant's opening greeting gets a user turn of "…" before it.
    """
    turns: list[Message] = []
    for message in messages:
        role = "user" if message["role"] == "system" else message["role"]
        if turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{message['content']}"}
        elif not turns and role == "assistant":
            turns += [{"role": "user", "content": "…"}, dict(message)]
        else:
            turns.append({"role": role, "content": message["content"]})
    return turns


def fitted(tokenizer, messages: Sequence[Message], n_most: int) -> list[Message] | None:
    """:func:`shortened`, in the roles of the template."""
    kept = shortened(tokenizer, messages, n_most)
    return None if kept is None else prepared(tokenizer, kept)


def shortened(tokenizer, messages: Sequence[Message], n_most: int) -> list[Message] | None:
    """``messages`` within ``n_most`` tokens, including the start of the answer, or None.

    If there are more, whole turns are dropped from the beginning, but not the system message, nor the user's last
    question and what follows it; then the answer to that question is cut at its beginning. None if that is not enough.
    """
    messages = list(messages)
    excess = len(prompt_ids(tokenizer, messages)) - n_most
    if excess <= 0:
        return messages
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    *_, question = [n for n, message in enumerate(turns[:-1]) if message["role"] == "user"] or [0]
    starts = [n for n in range(1, question + 1) if turns[n]["role"] == "user"]
    for start in starts:
        kept = [*system, *turns[start:]]
        excess = len(prompt_ids(tokenizer, kept)) - n_most
        if excess <= 0:
            return kept
    kept = [*system, *turns[starts[-1] if starts else 0 :]]
    answers = [n for n, message in enumerate(kept) if message["role"] == "assistant"]
    if not answers:
        return None
    ids = tokenizer(kept[answers[-1]]["content"], add_special_tokens=False)["input_ids"]
    if len(ids) <= excess + SPARE:
        return None
    kept[answers[-1]] = {
        "role": "assistant",
        "content": CUT + tokenizer.decode(ids[excess + SPARE :]).lstrip("\ufffd "),
    }
    return kept if len(prompt_ids(tokenizer, kept)) <= n_most else None
