"""The click log: what was suggested under which conversation, and what was clicked.

In: JSON Lines (``.jsonl`` or ``.json``, also ``.gz``) or Parquet, one impression a row. Every row is checked, and bad
rows are reported together, by file and line. Out: a Polars DataFrame with the columns of ``SCHEMA``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from openrlhf_qs.files import write_json_lines

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
ROLES = ("system", "user", "assistant")
SHOWN_PROBLEMS = 20


def read_click_log(path: str | Path) -> pl.DataFrame:
    """Read and check a click log; fields the schema does not know are left out.

    Args:
        path: ``.jsonl``, ``.json`` (one object a line), either with ``.gz``, or ``.parquet``.

    Returns:
        One impression a row, in the order of the file, with the columns of ``SCHEMA``.

    Raises:
        ValueError: the first 20 bad rows as ``file:line: what; what to do``; a log without one click.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give a click log, .jsonl, .jsonl.gz or .parquet")
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA}
    line_of: dict[str, int] = {}
    problems: list[str] = []
    for line, raw in _raw_rows(path):
        try:
            row = _checked(raw)
            if (first := line_of.setdefault(row["impression_id"], line)) != line:
                raise ValueError(f"impression_id {row['impression_id']!r} is that of line {first}; give each its own")
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
            continue
        for name, values in columns.items():
            values.append(row[name])
    if problems:
        raise ValueError("\n".join(problems[:SHOWN_PROBLEMS]) + _and_more(len(problems) - SHOWN_PROBLEMS))
    if not any(1 in clicks for clicks in columns["clicks"]):
        raise ValueError(f"{path}: {len(line_of)} impressions without one click; give a log to learn from")
    return pl.DataFrame(columns, schema=SCHEMA)


def write_click_log(log: pl.DataFrame, path: str | Path) -> None:
    """Write ``log`` as JSON Lines that :func:`read_click_log` reads back the same; what is null is left out."""
    write_json_lines(path, (_written_form(row) for row in log.iter_rows(named=True)))


def describe(log: pl.DataFrame) -> dict[str, Any]:
    """What is in ``log``, as numbers ready for JSON.

    Returns:
        ``n_impressions``, ``n_conversations`` (different ones), ``n_clicks``, ``clicked_share`` (of the impressions,
        those with a click), ``ctr`` (clicks per suggestion shown), ``ctr_by_position`` (the first is the top one),
        ``policies`` (impressions by policy; ``unknown`` where the log does not say), ``first`` and ``last`` timestamp.
    """
    positions = clicks_by_position(log)
    policies = log.group_by(pl.col("policy").fill_null("unknown")).len().sort("policy")
    return {
        "n_impressions": log.height,
        "n_conversations": conversation_keys(log).n_unique(),
        "n_clicks": positions["n_clicked"].sum(),
        "clicked_share": log["clicks"].list.max().mean(),
        "ctr": positions["n_clicked"].sum() / positions["n_shown"].sum(),
        "ctr_by_position": (positions["n_clicked"] / positions["n_shown"]).to_list(),
        "policies": dict(policies.iter_rows()),
        "first": log["timestamp"].min().isoformat(),
        "last": log["timestamp"].max().isoformat(),
    }


class Splits(NamedTuple):
    """A log in three parts; no conversation is in two of them."""

    train: pl.DataFrame
    heldout: pl.DataFrame
    fusion: pl.DataFrame


def split_by_conversation(log: pl.DataFrame, heldout: float = 0.2, fusion: float = 0.1, seed: int = 0) -> Splits:
    """Share the conversations out by a hash of their text, so a longer log or another order moves none of them.

    The shares are expectations: of few conversations, a split may get none. Equal is equal to the letter: an
    earlier turn of a conversation is another conversation, and may fall into another split.

    Args:
        heldout: share of the conversations kept for evaluation, in [0, 1).
        fusion: share kept to fit the fusion weights, in [0, 1); the rest is for training.
        seed: another one gives another split.
    """
    if heldout < 0 or fusion < 0 or heldout + fusion >= 1:
        raise ValueError(f"heldout share {heldout}, fusion share {fusion}: both must be >= 0 and their sum below 1")
    keys = conversation_keys(log)
    distinct = keys.unique()
    place = pl.Series([_unit_hash(f"{seed}\n{key}") for key in distinct], dtype=pl.Float64)
    split = pl.select(pl.when(place < heldout).then(1).when(place < heldout + fusion).then(2).otherwise(0)).to_series()
    split_of_row = keys.replace_strict(distinct, split)
    return Splits(*(log.filter(split_of_row == n) for n in range(3)))


def conversation_keys(log: pl.DataFrame) -> pl.Series:
    """``[impressions]``, text: equal where roles and contents of the conversations are equal."""
    as_text = pl.col("conversation").list.eval(pl.element().struct.json_encode()).list.join("\n")
    return log.select(as_text).to_series()


def text_key(text: str) -> str:
    """Equal for suggestions that differ in case or white space only."""
    return " ".join(text.casefold().split())


def clicks_by_position(log: pl.DataFrame) -> pl.DataFrame:
    """``n_shown`` and ``n_clicked`` of each position, the top one first."""
    n_positions = log["clicks"].list.len().max() or 0
    columns = [log["clicks"].list.get(position, null_on_oob=True) for position in range(n_positions)]
    counts = {"n_shown": [column.count() for column in columns], "n_clicked": [column.sum() for column in columns]}
    return pl.DataFrame(counts, schema={"n_shown": pl.Int64, "n_clicked": pl.Int64})


def _raw_rows(path: Path) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    """The rows and their numbers, from 1: bytes of a line that is not blank, or a dict from Parquet."""
    endings = [suffix.lower() for suffix in path.suffixes]
    if endings[-1:] == [".parquet"]:
        try:
            table = pl.read_parquet(path)
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{path}: not a Parquet file ({error}); write it again") from error
        yield from enumerate(table.iter_rows(named=True), start=1)
    elif endings[-1:] in ([".jsonl"], [".json"]) or endings[-2:] in ([".jsonl", ".gz"], [".json", ".gz"]):
        opened = gzip.open(path, "rb") if endings[-1] == ".gz" else path.open("rb")
        try:
            with opened as file:
                yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip ({error}); copy it again") from error
    else:
        raise ValueError(f"{path}: unknown kind of file; give .jsonl, .jsonl.gz (one object a line) or .parquet")


def _checked(raw: bytes | dict[str, Any]) -> dict[str, Any]:
    """The row with the types of ``SCHEMA``; the first thing wrong with it is a ValueError: what; what to do."""
    row = _parsed(raw) if isinstance(raw, bytes) else raw
    missing = [name for name in REQUIRED if row.get(name) is None]
    if missing:
        raise ValueError(f"no {', '.join(missing)}; an impression has {', '.join(REQUIRED)}")
    if not isinstance(row["impression_id"], str) or not row["impression_id"]:
        raise ValueError(f"impression_id {row['impression_id']!r}; give it as text")
    _check_conversation(row["conversation"])
    _check_suggestions(row["suggestions"], row["clicks"])
    for name in ("user_id", "policy"):
        if not isinstance(row.get(name), str | None):
            raise ValueError(f"{name} {row[name]!r}; give it as text, or leave it out")
    return {
        "impression_id": row["impression_id"],
        "timestamp": _timestamp(row["timestamp"]),
        "conversation": [{"role": m["role"], "content": m["content"]} for m in row["conversation"]],
        "suggestions": row["suggestions"],
        "clicks": [int(click) for click in row["clicks"]],
        "user_id": row.get("user_id"),
        "policy": row.get("policy"),
        "meta": _meta_text(row.get("meta")),
    }


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if b"\\ud" in line.lower():  # half of a surrogate pair is valid JSON, but cannot be written as UTF-8
            json.dumps(row, ensure_ascii=False).encode()
    except ValueError as error:
        raise ValueError(f"bad JSON ({error}); give one object a line, in UTF-8") from None
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__} in place of an object; give one object a line")
    return row


def _check_conversation(conversation: Any) -> None:
    if not isinstance(conversation, list) or not conversation:
        raise ValueError(f"conversation {_short(conversation)}; give a list of messages, at least one")
    for message in conversation:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f'message {_short(message)}; give {{"role": ..., "content": text}}')
        if message.get("role") not in ROLES:
            raise ValueError(f"role {message.get('role')!r}; give one of {', '.join(ROLES)}")


def _check_suggestions(suggestions: Any, clicks: Any) -> None:
    if not isinstance(suggestions, list) or not suggestions:
        raise ValueError(f"suggestions {_short(suggestions)}; give a list of texts, at least one")
    for suggestion in suggestions:
        if not isinstance(suggestion, str) or not suggestion.strip():
            raise ValueError(f"suggestion {suggestion!r}; give a text that is not empty")
        if len(suggestion.splitlines()) != 1:
            raise ValueError(f"line break in suggestion {_short(suggestion)}; give one line of text")
    if not isinstance(clicks, list) or len(clicks) != len(suggestions):
        found = f"{len(clicks)} clicks" if isinstance(clicks, list) else f"clicks {_short(clicks)}"
        raise ValueError(f"{found} for {len(suggestions)} suggestions; give one 0/1 per suggestion")
    for click in clicks:
        if click not in (0, 1):
            raise ValueError(f"click {click!r}; give 0 or 1")


def _timestamp(value: Any) -> datetime:
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"timestamp {value!r}; give ISO 8601, as in 2025-01-31T12:00:00Z") from None


def _meta_text(meta: Any) -> str | None:
    """``meta`` as JSON text: an object from JSON or a Parquet struct, or text that holds one already."""
    try:
        parsed = json.loads(meta) if isinstance(meta, str) else meta
    except ValueError:
        parsed = meta
    if not isinstance(parsed, dict | None):
        raise ValueError(f"meta {_short(meta)}; give an object, or leave it out")
    return None if parsed is None else json.dumps(parsed, ensure_ascii=False, default=str)


def _written_form(row: dict[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in row.items() if value is not None}
    row["timestamp"] = row["timestamp"].isoformat()
    if "meta" in row:
        row["meta"] = json.loads(row["meta"])
    return row


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that is the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _and_more(n_left: int) -> str:
    return f"\nand {n_left} more" if n_left > 0 else ""
