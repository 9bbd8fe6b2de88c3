"""One row of a click log: its fields, what a good row is, and what to say of a bad one, in plain Python.

:mod:`openrlhf_qs.clicks.batches` checks whole batches at once and comes here with the rows that look odd to it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import polars as pl

from openrlhf_qs.files.whole import BadRow, short
from openrlhf_qs.form.prompt import check_conversation

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
SCHEMA = {
    "impression_id": pl.String,  # unique in the log
    "timestamp": pl.Datetime("us", "UTC"),  # a time without a zone is taken as UTC
    "conversation": MESSAGES,  # what the suggestions were shown under, oldest message first
    "suggestions": pl.List(pl.String),  # in the order shown, each one line of text
    "clicks": pl.List(pl.Int8),  # 0 or 1, one per suggestion
    "user_id": pl.String,  # may be null
    "policy": pl.String,  # which model made the suggestions; may be null
    "meta": pl.String,  # JSON text of an object, whatever its shape; may be null
}
REQUIRED = ("impression_id", "timestamp", "conversation", "suggestions", "clicks")
MAX_CHARACTERS = 1000  # of one suggestion: what is longer is no suggestion but a mistake


def checked_row(raw: bytes | dict[str, Any]) -> dict[str, Any]:
    """The row with the types of ``SCHEMA``; the first thing wrong with it is a :class:`BadRow`.

    Args:
        raw: a line of JSON, or a row of Parquet.
    """
    row = _parsed(raw) if isinstance(raw, bytes) else raw
    missing = [name for name in REQUIRED if row.get(name) is None]
    if missing:
        raise BadRow("missing field", f"no {', '.join(missing)}; an impression has {', '.join(REQUIRED)}")
    if not isinstance(row["impression_id"], str) or not row["impression_id"]:
        raise BadRow("bad impression_id", f"impression_id {row['impression_id']!r}; give it as text")
    check_conversation(row["conversation"])
    _check_suggestions(row["suggestions"])
    _check_clicks(row["clicks"], len(row["suggestions"]))
    for name in ("user_id", "policy"):
        if not isinstance(row.get(name), str | None):
            raise BadRow(f"bad {name}", f"{name} {row[name]!r}; give it as text, or leave it out")
    return {
        "impression_id": row["impression_id"],
        "timestamp": _timestamp(row["timestamp"]),
        "conversation": [{"role": m["role"], "content": m["content"]} for m in row["conversation"]],
        "suggestions": row["suggestions"],
        "clicks": [int(click) for click in row["clicks"]],
        "user_id": row.get("user_id"),
        "policy": row.get("policy"),
        "meta": meta_text(row.get("meta")),
    }


def meta_text(meta: Any) -> str | None:
    """``meta`` as JSON text: an object from JSON or a Parquet struct, or text that holds one already."""
    try:
        parsed = json.loads(meta) if isinstance(meta, str) else meta
    except (ValueError, RecursionError):
        parsed = meta
    if not isinstance(parsed, dict | None):
        raise BadRow("bad meta", f"meta {short(meta)}; give an object, or leave it out")
    return None if parsed is None else json.dumps(parsed, ensure_ascii=False, default=str)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if b"\\ud" in line.lower():  # half of a surrogate pair is valid JSON, but cannot be written as UTF-8
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRow("bad JSON", f"bad JSON ({error}); give one object a line, in UTF-8") from None
    if not isinstance(row, dict):
        raise BadRow("bad JSON", f"a {type(row).__name__} in place of an object; give one object a line")
    return row


def _check_suggestions(suggestions: Any) -> None:
    if not isinstance(suggestions, list) or not suggestions:
        raise BadRow("no suggestions", f"suggestions {short(suggestions)}; give a list of texts, at least one")
    for suggestion in suggestions:
        if not isinstance(suggestion, str) or not suggestion.strip():
            raise BadRow("empty suggestion", f"suggestion {suggestion!r}; give a text that is not empty")
        if len(suggestion.splitlines()) != 1:
            raise BadRow(
                "line break in suggestion", f"line break in suggestion {short(suggestion)}; give one line of text"
            )
        if len(suggestion) > MAX_CHARACTERS:
            raise BadRow(
                "long suggestion",
                f"suggestion of {len(suggestion)} characters, {short(suggestion)}; give at most {MAX_CHARACTERS}",
            )


def _check_clicks(clicks: Any, n_suggestions: int) -> None:
    if not isinstance(clicks, list) or len(clicks) != n_suggestions:
        found = f"{len(clicks)} clicks" if isinstance(clicks, list) else f"clicks {short(clicks)}"
        raise BadRow(
            "clicks of another number",
            f"{found} for {n_suggestions} suggestions; give one 0/1 per suggestion",
        )
    for click in clicks:
        if click not in (0, 1):
            raise BadRow("click not 0 or 1", f"click {click!r}; give 0 or 1")


def _timestamp(value: Any) -> datetime:
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise BadRow("bad timestamp", f"timestamp {value!r}; give ISO 8601, as in 2025-01-31T12:00:00Z") from None
