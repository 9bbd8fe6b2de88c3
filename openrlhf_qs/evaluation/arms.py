"""What the policies show: the held-out impressions, and each arm's suggestions under the same conversations.

In: ``data/heldout.jsonl`` (arm ``cold_start``: what the log showed) and ``report/responses.NAME.jsonl``. Out:
:class:`Shown` of every arm, by conversation. A policy has an arm for each temperature: NAME is the policy as it is
served, ``NAME@0.7`` the same at another temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import raise_problems, read_json_lines
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.response import N_SUGGESTIONS, format_response, parse_response
from openrlhf_qs.form.task import Task, read_task

COLD_START = "cold_start"
LAST_POLICY = "grpo"  # what a run is about
AT = "@"  # between a policy's name and a temperature that it is not served with


class Shown(NamedTuple):
    """What one arm shows under one conversation; ``log_ppl`` is in nats per token at ``reference_temperature``, None
    where nobody measured it."""

    conversation: list[Message]
    suggestions: Sequence[str]
    well_formed: bool
    log_ppl: float | None = None
    response: str = ""  # the text that the suggestions were read from
    n: int = N_SUGGESTIONS  # how many were asked for, or shown
    finish_reason: str = "stop"
    temperature: float = 1.0  # that it was sampled at
    reference_temperature: float = 1.0


def read_impressions(path: Path) -> list[dict]:
    """Held-out impressions of the click log. ValueError names the first 20 rows that are none."""

    def problem(row: dict) -> str:
        if not _is_conversation(row.get("conversation")):
            return "no conversation"
        suggestions, clicks = row.get("suggestions"), row.get("clicks")
        if not (isinstance(suggestions, list) and all(isinstance(text, str) for text in suggestions)):
            return "no list of suggestions"
        if not (isinstance(clicks, list) and len(clicks) == len(suggestions) and all(c in (0, 1) for c in clicks)):
            return f"clicks {clicks!r} for {len(suggestions)} suggestions; give one 0/1 per suggestion"
        return ""

    return _read_checked(path, problem)


def cold_start(impressions: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """The first impression of each conversation, as it was logged."""
    return [
        as_shown(row["conversation"], row["suggestions"])
        for row in _first_of_each(impressions, "conversation").values()
    ]


def as_shown(conversation: list[Message], suggestions: Sequence[str], n: int | None = None) -> Shown:
    """Suggestions that no policy wrote as a response.

    Args:
        n: how many there are to be, where that is not how many there are; with fewer it is malformed.
    """
    n = len(suggestions) if n is None else n
    response = format_response(suggestions)
    return Shown(conversation, suggestions, parse_response(response, n).well_formed, response=response, n=n)


def load_responses(run: RunFolder) -> dict[str, list[Shown]]:
    """What the policies said: ``sft``, ``rft``, ``grpo``, then any other ``report/responses.NAME.jsonl`` by name.

    Of a malformed response, the suggestions that can be read are shown.
    """
    files = run.all_responses()
    if not files:
        raise ValueError(f"{run.stage('evaluate')}: no responses.NAME.jsonl there; run `openrlhf-qs generate` first")
    if COLD_START in files:
        raise ValueError(
            f"{files[COLD_START]}: the arm {COLD_START} is what the log shows; give this one another name"
        )
    names = sorted(files, key=lambda name: ({"sft": 0, "rft": 1, "grpo": 2}.get(name, 3), name))
    return {name: read_responses(files[name], read_task(run.sft)) for name in names}


def read_responses(path: Path, task: Task) -> list[Shown]:
    """The rows of ``openrlhf-qs generate``, several of a conversation where it was asked so. ValueError by line."""

    def problem(row: dict) -> str:
        if not _is_conversation(row.get("conversation")):
            return "no conversation"
        if not isinstance(row.get("response"), str):
            return "no response; give the text the policy wrote"
        if row.get("finish_reason", "stop") not in ("stop", "length"):
            return f"finish_reason {row['finish_reason']!r}; give stop, or length if it was cut"
        if row.get("log_ppl") is not None and not _is_number(row["log_ppl"]):
            return f"log_ppl {row['log_ppl']!r}; give nats per token, or leave it out"
        for name in ("temperature", "reference_temperature"):
            if not _is_number(row.get(name, 1.0)):
                return f"{name} {row[name]!r}; give a number, or leave it out"
        return ""

    rows = []
    for row in _read_checked(path, problem):
        finish_reason = row.get("finish_reason", "stop")
        parsed = task.read(row["response"], finish_reason)
        rows.append(
            Shown(
                row["conversation"],
                parsed.suggestions,
                parsed.well_formed,
                row.get("log_ppl"),
                row["response"],
                parsed.n,
                finish_reason,
                float(row.get("temperature", 1.0)),
                float(row.get("reference_temperature", 1.0)),
            )
        )
    return rows


def by_temperature(name: str, rows: Sequence[Shown], served: float | None = None) -> dict[str, list[Shown]]:
    """The arms of one policy: ``name`` at the temperature it is served with, ``name@0.7`` at another.

    Args:
        served: its temperature; None: the first that there is.
    """
    found: dict[float, list[Shown]] = {}
    for row in rows:
        found.setdefault(row.temperature, []).append(row)
    served = next(iter(found), None) if served is None else served
    if found and served not in found:
        raise ValueError(
            f"{name}: no responses at temperature {served:g}, only at {', '.join(f'{t:g}' for t in found)}"
        )
    order = sorted(found, key=lambda temperature: (temperature != served, -temperature))
    return {name if t == served else f"{name}{AT}{t:g}": found[t] for t in order}


def on_same_conversations(arms: Mapping[str, Sequence[tuple]]) -> dict[str, list[tuple]]:
    """Each arm's rows for the conversations that all arms have, in the order of the first arm, one row a conversation.

    Conversations are the same if their roles and texts are. ValueError where none is left.
    """
    rows = {name: _first_of_each(arm, 0) for name, arm in arms.items()}
    keys = [key for key in next(iter(rows.values())) if all(key in by_key for by_key in rows.values())]
    if not keys:
        counts = ", ".join(f"{name} {len(by_key)}" for name, by_key in rows.items())
        raise ValueError(f"no conversation is in every arm ({counts}); generate responses for data/heldout.jsonl")
    return {name: [by_key[key] for key in keys] for name, by_key in rows.items()}


def on_same_places(arms: Mapping[str, Sequence[Shown]]) -> dict[str, list[Shown]]:
    """The arms with as many places under each conversation as all of them have there: the first ones.

    Args:
        arms: of the same conversations, from :func:`on_same_conversations`.
    """
    n_places = [min(row.n for row in rows) for rows in zip(*arms.values(), strict=True)]
    return {name: [_cut(row, n) for row, n in zip(rows, n_places, strict=True)] for name, rows in arms.items()}


def _cut(row: Shown, n: int) -> Shown:
    if row.n == n:
        return row
    suggestions = row.suggestions[:n]
    response = format_response(suggestions) if row.well_formed else row.response
    return row._replace(suggestions=suggestions, response=response, n=n)


def clicked_suggestions(impressions: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What was clicked under each conversation that has a click, by :func:`conversation_key`."""
    clicked: dict[str, list[str]] = {}
    for row in impressions:
        texts = [text for text, click in zip(row["suggestions"], row["clicks"], strict=True) if click]
        if texts:
            clicked.setdefault(conversation_key(row["conversation"]), []).extend(texts)
    return clicked


def _read_checked(path: Path, problem: Callable[[dict], str]) -> list[dict]:
    """Rows of a file; the first 20 with a problem are raised together, by line."""
    rows = read_json_lines(path)
    raise_problems([f"{path}:{n}: {found}" for n, row in enumerate(rows, start=1) if (found := problem(row))])
    return rows


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value)
        and all(isinstance(m.get("content"), str) for m in value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _first_of_each(rows: Sequence[Any], conversation_at: str | int) -> dict[str, Any]:
    """The first row of each conversation, by :func:`conversation_key`, in the order of the rows."""
    first: dict[str, Any] = {}
    for row in rows:
        first.setdefault(conversation_key(row[conversation_at]), row)
    return first
