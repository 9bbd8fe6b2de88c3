"""How messages become the text of a model's own chat template: its roles, and no more tokens than there is room for.

The one way for SFT, GRPO, generation and the reference: what does not fit is cut here, by whole turns, before OpenRLHF
or vLLM would cut into the middle of one, drop the row or stop.
"""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_qs.form.prompt import Message

CUT = "… "  # before what is left of an answer
SPARE = 8  # tokens that the cut of a text may be off by


def rendered(tokenizer, messages: Sequence[Message], **how) -> str:
    """The text of the template; ``how`` goes to ``apply_chat_template``."""
    return tokenizer.apply_chat_template(in_its_roles(tokenizer, messages), tokenize=False, **how)


def prompt_ids(tokenizer, messages: Sequence[Message]) -> list[int]:
    """The tokens of a prompt; a model that can think before it answers is told not to."""
    return tokenizer.apply_chat_template(
        in_its_roles(tokenizer, messages),
        add_generation_prompt=True,
        enable_thinking=False,
        tokenize=True,
        return_dict=False,
    )


def in_its_roles(tokenizer, messages: Sequence[Message]) -> list[Message]:
    """``messages`` as they are where the template takes their roles, else as :func:`alternating`."""
    messages = list(messages)
    roles = tuple(message["role"] for message in messages)
    known = tokenizer.__dict__.setdefault("_openrlhf_qs_roles", {})
    if roles not in known:
        known[roles] = not refused_roles(tokenizer, [{"role": role, "content": "x"} for role in roles])
    return messages if known[roles] else alternating(messages)


def refused_roles(tokenizer, messages: list[Message]) -> str:
    """Why the template refuses the roles of ``messages``, in its own words; empty where it takes them."""
    from jinja2 import TemplateError

    try:
        tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError as error:
        return str(error) or type(error).__name__
    return ""


def alternating(messages: Sequence[Message]) -> list[Message]:
    """The same in turns of user and assistant, the user first, as strict templates want it.

    What the system says stands at the beginning of the next user turn, turns of one role in a row are one, with a
    blank line between them, and an assistant that greets first answers an empty turn.
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
    return None if kept is None else in_its_roles(tokenizer, kept)


def shortened(tokenizer, messages: Sequence[Message], n_most: int) -> list[Message] | None:
    """``messages`` in ``n_most`` tokens with the beginning of the answer, or None.

    Where there are more, whole turns go from the beginning, but not the system's, nor the user's last question and
    what follows it; then the answer to that question loses its beginning. None where that is not enough.
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
