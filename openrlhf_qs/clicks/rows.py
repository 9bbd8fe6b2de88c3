"""The fields of a click log as one table, what a good row is, and what to say of a bad one.

``FIELDS`` says of each field what Arrow reads it as, what type its column has, how a batch of it is checked at once
and how one value is. :mod:`openrlhf_qs.clicks.batches` checks whole batches and comes to :func:`checked_row` with the
rows that look odd.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from openrlhf_qs.files.whole import BadRow, short
from openrlhf_qs.form.prompt import ROLES, check_conversation, check_messages

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
FIRST_YEAR = 1990  # no click log is older
MAX_CHARACTERS = 1000  # of one suggestion: what is longer is no suggestion but a mistake


class Field(NamedTuple):
    """A field of the log.

    Attributes:
        dtype: of its column; an object of any shape is kept as its JSON text.
        in_json: what Arrow reads it as; None for an object of any shape, which is cut out as text.
        in_parquet: whether a column of that type can be taken as a whole; where not, each row is looked at.
        check: a value that is there and its row to the value of the column; BadRow where it is a bad one.
        is_sound: the same of a whole column, as an expression: never true for a bad one, false for a few good ones.
        required: whether every row has it.
    """

    dtype: pl.DataType
    in_json: pa.DataType | None
    in_parquet: Callable[[pl.DataType], bool]
    check: Callable[[Any, Mapping[str, Any]], Any]
    is_sound: pl.Expr
    required: bool = False


def checked_row(raw: bytes | dict[str, Any]) -> dict[str, Any]:
    """The row with the types of ``SCHEMA``; the first thing wrong with it is a :class:`BadRow`.

    Args:
        raw: a line of JSON, or a row of Parquet.
    """
    row = _parsed(raw) if isinstance(raw, bytes) else raw
    missing = [name for name in REQUIRED if row.get(name) is None]
    if missing:
        raise BadRow("missing field", f"no {', '.join(missing)}; an impression has {', '.join(REQUIRED)}")
    return {name: None if row.get(name) is None else field.check(row[name], row) for name, field in FIELDS.items()}


def contexts(rows: pl.DataFrame) -> pl.Series:
    """``[impressions]``, hashes: equal where suggestions were shown under the same conversation or, before its first
    word, to what is known of the same kind of user. A column ``context`` is taken as it is."""
    if "context" in rows.columns:
        return rows["context"]
    under = rows["conversation"].hash()
    if "features" not in rows.columns or not (empty := rows["conversation"].list.len() == 0).any():
        return under
    return pl.select(pl.when(empty).then(rows["features"].hash()).otherwise(under)).to_series()


def object_text(value: Any, name: str) -> str:
    """An object as JSON text: from JSON, a Parquet struct, or text that holds one already. BadRow names the field."""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        parsed = value
    if not isinstance(parsed, dict):
        raise BadRow(f"bad {name}", f"{name} {short(value)}; give an object, or leave it out")
    return json.dumps(parsed, ensure_ascii=False, default=str)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRow("bad JSON", f"bad JSON ({error}); give one object per line, in UTF-8") from None
    if not isinstance(row, dict):
        raise BadRow("bad JSON", f"a {type(row).__name__} in place of an object; give one object per line")
    if b"\\ud" in line.lower():
        check_characters(row)
    return row


def check_characters(row: Mapping[str, Any]) -> None:
    """BadRow where a field has half of a surrogate pair: valid JSON, but nothing that can be written as UTF-8."""
    for name, value in row.items():
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start].encode("unicode_escape").decode()
            raise BadRow(
                "half a character",
                f"{name} has half of a character ({half}), as in an emoji that was cut; cut texts between characters",
            ) from None


def _suggestions(suggestions: Any, row: Mapping[str, Any]) -> list[str]:
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
    return suggestions


def _clicks(clicks: Any, row: Mapping[str, Any]) -> list[int]:
    n_suggestions = len(row["suggestions"])
    if not isinstance(clicks, list) or len(clicks) != n_suggestions:
        found = f"{len(clicks)} clicks" if isinstance(clicks, list) else f"clicks {short(clicks)}"
        raise BadRow(
            "wrong number of clicks",
            f"{found} for {n_suggestions} suggestions; give one 0/1 per suggestion",
        )
    for click in clicks:
        if click not in (0, 1):
            raise BadRow("click not 0 or 1", f"click {click!r}; give 0 or 1")
    return [int(click) for click in clicks]


def _timestamp(value: Any, row: Mapping[str, Any]) -> datetime:
    try:
        if isinstance(value, str) and value.isdigit() and len(value) != len("20250131"):
            raise ValueError  # digits of an epoch, of which some would be read as a date, a letter and a time
        time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        if time.year < FIRST_YEAR:  # a date that was never set
            raise ValueError
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise BadRow("bad timestamp", f"timestamp {value!r}; give ISO 8601, as in 2025-01-31T12:00:00Z") from None


def _impression_id(value: Any, row: Mapping[str, Any]) -> str:
    if not isinstance(value, str) or not value:
        raise BadRow("bad impression_id", f"impression_id {value!r}; give it as text")
    return value


def _conversation(value: Any, row: Mapping[str, Any]) -> list[dict[str, str]]:
    """It may be empty where something is known of the user before the first word."""
    (check_messages if row.get("features") else check_conversation)(value)
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _log_prob(value: Any, row: Mapping[str, Any]) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -math.inf < value <= 0:
        raise BadRow("bad log_prob", f"log_prob {short(value)}; give nats, at most 0, or leave it out")
    return float(value)


def _text(name: str) -> Field:
    """An optional text."""

    def check(value: Any, row: Mapping[str, Any]) -> str:
        if not isinstance(value, str):
            raise BadRow(f"bad {name}", f"{name} {value!r}; give it as text, or leave it out")
        return value

    return Field(pl.String, pa.string(), lambda dtype: dtype in (pl.String, pl.Null), check, pl.lit(True))


def _object(name: str) -> Field:
    """An optional object of any shape; a batch marks odd ones in a column of their own."""
    is_text = lambda dtype: dtype in (pl.String, pl.Null)  # noqa: E731
    return Field(pl.String, None, is_text, lambda value, row: object_text(value, name), ~pl.col(f"{name}_is_odd"))


def _is_messages(dtype: pl.DataType) -> bool:
    inner = getattr(dtype, "inner", None)
    fields = inner.to_schema() if isinstance(inner, pl.Struct) else {}
    return fields.get("role") == fields.get("content") == pl.String


def _is_clicks(dtype: pl.DataType) -> bool:
    inner = getattr(dtype, "inner", pl.Null)
    return inner.is_integer() or inner == pl.Boolean


def _all(name: str, check: pl.Expr) -> pl.Expr:
    return pl.col(name).list.eval(check.fill_null(False)).list.all()


_ONE = pl.element()
# What str.splitlines() splits at, and a character that str.strip() leaves.
_LINE_BREAK = r"[\n\r\x0b\x0c\x1c-\x1e\x85\u{2028}\u{2029}]"
_VISIBLE = r"[^\s\x1c-\x1f]"

FIELDS = {
    # unique in the log
    "impression_id": Field(
        pl.String, pa.string(), lambda dtype: dtype == pl.String, _impression_id, pl.col("impression_id") != "", True
    ),
    # a time without a zone is taken as UTC
    "timestamp": Field(
        pl.Datetime("us", "UTC"),
        pa.string(),
        lambda dtype: isinstance(dtype, pl.Datetime | pl.String),
        _timestamp,
        pl.col("timestamp").is_not_null(),
        True,
    ),
    # what the suggestions were shown under, oldest message first
    "conversation": Field(
        MESSAGES,
        pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        _is_messages,
        _conversation,
        _all(
            "conversation",
            _ONE.struct.field("role").is_in(ROLES)
            & _ONE.struct.field("content").is_not_null()
            & ((_ONE.struct.field("role") != "user") | _ONE.struct.field("content").str.contains(_VISIBLE)),
        )
        & ((pl.col("conversation").list.len() > 0) | (pl.col("features") != "{}").fill_null(False)),
        True,
    ),
    # in the order shown, each one line of text
    "suggestions": Field(
        pl.List(pl.String),
        pa.list_(pa.string()),
        lambda dtype: dtype == pl.List(pl.String),
        _suggestions,
        _all(
            "suggestions",
            _ONE.str.contains(_VISIBLE) & ~_ONE.str.contains(_LINE_BREAK) & (_ONE.str.len_chars() <= MAX_CHARACTERS),
        )
        & (pl.col("suggestions").list.len() > 0),
        True,
    ),
    # 0 or 1, one per suggestion
    "clicks": Field(
        pl.List(pl.Int8),
        pa.list_(pa.int8()),
        _is_clicks,
        _clicks,
        _all("clicks", _ONE.is_between(0, 1)) & (pl.col("clicks").list.len() == pl.col("suggestions").list.len()),
        True,
    ),
    "user_id": _text("user_id"),
    # which model made the suggestions
    "policy": _text("policy"),
    # nats: of the whole shown response under the policy that showed it; its sampling temperature stands in meta
    "log_prob": Field(
        pl.Float64,
        pa.float64(),
        lambda dtype: dtype.is_numeric() or dtype == pl.Null,
        _log_prob,
        (pl.col("log_prob") <= 0).fill_null(True) & pl.col("log_prob").is_finite().fill_null(True),
    ),
    # what is known of the user before the first word
    "features": _object("features"),
    # anything
    "meta": _object("meta"),
}
SCHEMA = {name: field.dtype for name, field in FIELDS.items()}
REQUIRED = tuple(name for name, field in FIELDS.items() if field.required)
