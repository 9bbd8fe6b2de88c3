"""``openrlhf-qs log convert``: what others write, as a click log of ours.

In: CSV, JSON, JSON Lines or Parquet (``.gz`` too), one impression a row, or one suggestion a row with an impression's
rows told by their id: in our own fields but other types, in the form of OpenAI's messages, or of ShareGPT. Out: JSON
Lines that ``log check`` and ``data`` read. What each rule makes of a row stands in docs/CLICK_LOG.md; how often each
was used is said at the end, and a row that no rule reads is named.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from openrlhf_qs.clicks.batches import Problem, Problems
from openrlhf_qs.clicks.rows import FIELDS, check_characters, checked_row
from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import BadRow, short, write_json_lines
from openrlhf_qs.form.prompt import check_conversation
from openrlhf_qs.form.response import parse_response, unwrapped

# The names of a field in the forms that there are, ours first. They are taken in any case.
NAMES = {
    "impression_id": ("impression_id", "request_id", "event_id", "message_id", "id"),
    "timestamp": ("timestamp", "time", "created_at", "create_time", "created", "ts", "date", "datetime"),
    "conversation": ("conversation", "messages", "conversations", "history", "dialog", "dialogue"),
    "question": ("question", "query", "prompt", "user", "instruction"),
    "answer": ("answer", "response", "assistant", "output", "completion"),
    "suggestions": ("suggestions", "suggested_questions", "followups", "follow_ups", "related_questions", "options"),
    "suggestion": ("suggestion", "suggested_question", "followup", "follow_up"),
    "clicks": ("clicks", "is_clicked", "clicked", "click", "selected", "clicked_index", "clicked_suggestion"),
    "position": ("position", "rank", "place", "index"),
    "user_id": ("user_id", "user_hash", "uid", "userid"),
    "policy": ("policy", "model", "model_name"),
    "log_prob": ("log_prob", "logprob"),
    "features": ("features",),
    "meta": ("meta", "metadata"),
}
ROLES = {
    "user": "user", "human": "user", "prompter": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "ai": "assistant", "bing": "assistant", "bard": "assistant",
    "system": "system", "developer": "system",
    "tool": "", "function": "", "function_call": "", "observation": "", "ipython": "",
}  # fmt: skip
TIMES = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3), (1e8, 1.0))  # epoch numbers from that size on, and how many a second
TRUE, FALSE = ("1", "true", "yes", "y", "t"), ("0", "false", "no", "n", "f", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help=".csv, .tsv, .json, .jsonl or .parquet; all but the last optionally .gz"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="click log to write, .jsonl")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help="name of a field in the file, as in clicks=tapped; repeatable. Fields: " + ", ".join(NAMES),
    )
    parser.add_argument(
        "--first_place",
        type=int,
        choices=(0, 1),
        default=0,
        help="index of the top position in a recorded click; default 0",
    )
    parser.add_argument(
        "--timestamp", default="", metavar="TIME", help="time of rows that have none, as in 2025-01-31T12:00:00Z"
    )
    parser.add_argument(
        "--conversations_only",
        action="store_true",
        help="write only conversations, for cold-start, if nothing was suggested yet",
    )
    parser.add_argument(
        "--on_error",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with rows that no rule can read. raise: name the first 20 and stop; skip: leave them "
        "out, and count them; default raise",
    )


def run(args: argparse.Namespace) -> None:
    """Convert the file, say what the rules did."""
    if Path(args.out).resolve() == Path(args.file).resolve():
        raise ValueError(f"--out {args.out} is the file to convert, which would be lost; give another name")
    if Path(args.out).suffix == ".parquet":
        raise ValueError(f"--out {args.out}: JSON Lines are written here; give a name that ends in .jsonl")
    used: Counter[str] = Counter()
    problems, made = Problems([args.file]), []
    rows = []
    for line, row in raw_rows(args.file):
        if isinstance(row, BadRow):
            problems.add(args.file, 0, [Problem(line, row.reason, str(row))])
        else:
            rows.append((line, row))
    if not rows and not problems.counts:
        raise ValueError(f"{args.file}: it has no rows")
    for place, row in _impressions(rows, _columns(args.file, rows, args.column)):
        try:
            check_characters(row)
            made.append(
                converted(row, f"{Path(args.file).name}:{place}", used, args.first_place, args.timestamp)
                if not args.conversations_only
                else {"conversation": _conversation_of(row, used)}
            )
        except BadRow as error:
            problems.add(args.file, 0, [Problem(place, error.reason, str(error))])
    if args.on_error == "raise":
        problems.raise_any(len(made), remedy="")
    if not made:
        raise ValueError(f"{args.file}: no row that could be read: {dict(problems.counts)}")
    write_json_lines(args.out, made)
    table = Table("", "rows", "what", title=f"log convert: {args.file} to {args.out}")
    table.columns[1].justify = "right"
    table.add_row("written", f"{len(made):,}", "conversations" if args.conversations_only else "impressions")
    for rule, n in used.most_common():
        table.add_row("", f"{n:,}", rule)
    for reason, n in problems.counts.most_common():
        table.add_row("left out", f"{n:,}", reason)
    print_table(table)


def converted(
    row: Mapping[str, Any], name: str, used: Counter[str], first_place: int = 0, timestamp: str = ""
) -> dict[str, Any]:
    """An impression, as a row of a click log; BadRow where no rule reads it.

    Args:
        row: field of ``NAMES`` that the file has to what stands there.
        name: its ``impression_id`` where it has none.
        used: the rules that were used are counted here.
        first_place: number of the top place where a click is a number.
        timestamp: its time where it has none.
    """
    suggestions, flags = _suggestions(row.get("suggestions"), used)
    found: dict[str, Any] = {
        "impression_id": _text(row.get("impression_id"), "impression_id", used) or name,
        "timestamp": time_of(row.get("timestamp") if _is_there(row.get("timestamp")) else timestamp, used),
        "conversation": _conversation_of(row, used),
        "suggestions": suggestions,
        "clicks": _clicks(row, suggestions, first_place, used) if flags is None else flags,
    }
    for field in ("user_id", "policy"):
        if _is_there(row.get(field)):
            found[field] = _text(row[field], field, used)
    for field in ("log_prob", "features", "meta"):
        if _is_there(row.get(field)):
            found[field] = _value(row[field])
    if isinstance(found.get("log_prob"), str):
        found["log_prob"] = float(found["log_prob"])
    checked_row(found)
    return {field: found[field] for field in FIELDS if field in found}


def time_of(value: Any, used: Counter[str]) -> str:
    """ISO 8601 of a time in ISO text, in an e-mail's form, or in seconds, milli-, micro- or nanoseconds since 1970."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if not _is_there(value) or isinstance(value, bool):
        raise BadRow("no timestamp", "no timestamp; name its column, or give all rows the same one with --timestamp")
    number = _number(value)
    if number is not None:
        for least, per_second in TIMES:
            if number >= least:
                used[f"timestamp: a number, {per_second:g} per second since 1970"] += 1
                return datetime.fromtimestamp(number / per_second, UTC).isoformat()
        raise BadRow("bad timestamp", f"timestamp {short(value)}; give ISO 8601, or an epoch time")
    text = str(value).strip()
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            time = read(text)
        except (ValueError, TypeError):
            continue
        if time.tzinfo is None:
            used["timestamp: without a zone, taken as UTC"] += 1
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).isoformat()
    raise BadRow("bad timestamp", f"timestamp {short(value)}; give ISO 8601, or an epoch time")


def messages_of(turns: Any, used: Counter[str]) -> list[dict[str, str]]:
    """Messages of ours from those of OpenAI or ShareGPT, or from one text, which is a user's turn."""
    turns = _value(turns)
    if isinstance(turns, str):
        used["conversation: one text, taken as the user's turn"] += 1
        return [{"role": "user", "content": turns}]
    if isinstance(turns, dict):
        turns = turns.get("messages") or turns.get("conversations") or turns.get("turns")
    if not isinstance(turns, list):
        raise BadRow("no conversation", f"conversation {short(turns)}; give a list of messages")
    found: list[dict[str, str]] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRow("bad message", f"message {short(turn)}; give role and content, or from and value")
        name = str(turn.get("role") or turn.get("from") or "").strip().lower()
        if name not in ROLES:
            raise BadRow("unknown role", f"role {short(name)}; known: {', '.join(ROLES)}")
        if not ROLES[name]:
            used[f"role {name}: left out, because no user sees it"] += 1
            continue
        content = _content(turn["content"] if "content" in turn else turn.get("value"), used)
        if content is None:
            used["a message without content (null, spaces, or only a tool call): left out"] += 1
            continue
        if name != ROLES[name]:
            used[f"role {name}: {ROLES[name]}"] += 1
        if found and found[-1]["role"] == ROLES[name] == "assistant":  # what stood between was a tool's
            found[-1]["content"] += f"\n\n{content}"
            used["two answers in a row: joined, with a blank line between them"] += 1
        else:
            found.append({"role": ROLES[name], "content": content})
    return found


def _content(value: Any, used: Counter[str]) -> str | None:
    """The text of a message; None where it has none. Of a list of parts the texts, a line each; what is no text
    stands there as ``[image]``."""
    if value is None or isinstance(value, str):
        return value if value and value.strip() else None
    if isinstance(value, dict) and "parts" in value:  # of an exported chat
        value = value["parts"]
    parts = value if isinstance(value, list) else [value]
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, dict) and isinstance(part.get("type"), str):
            kind = part["type"].removeprefix("input_").removesuffix("_url")
            used[f"content: what is not text is replaced by [{kind}]"] += 1
            texts.append(f"[{kind}]")
        else:
            raise BadRow("bad message", f"content {short(value)}; give a text, or a list of parts")
    used["content: a list of parts, one text per line"] += 1
    return "\n".join(filter(None, texts)) or None


def _conversation_of(row: Mapping[str, Any], used: Counter[str]) -> list[dict[str, str]]:
    messages = messages_of(row["conversation"], used) if _is_there(row.get("conversation")) else []
    for field, role in (("question", "user"), ("answer", "assistant")):
        content = _content(_value(row.get(field)), used) if not messages or messages[-1]["role"] != role else None
        if content:
            messages.append({"role": role, "content": content})
    if not row.get("features"):
        check_conversation(messages)
    return messages


def _suggestions(value: Any, used: Counter[str]) -> tuple[list[str], list[int] | None]:
    """The texts, and their clicks where these stand beside them."""
    value = _value(value)
    if isinstance(value, str):
        lines = list(filter(None, map(str.strip, value.splitlines())))
        read = parse_response(value, len(lines))
        used["suggestions: one text, one suggestion per line"] += 1
        value = list(read.suggestions) if read.well_formed else lines
    if not isinstance(value, list) or not value:
        raise BadRow("no suggestions", f"suggestions {short(value)}; give a list of texts, at least one")
    texts, flags = [], []
    for one in value:
        if isinstance(one, dict):
            text = next(
                (one[name] for name in ("text", "suggestion", "content", "question", "value") if name in one), ""
            )
            flags.append(
                next((one[name] for name in ("clicked", "click", "is_clicked", "selected") if name in one), None)
            )
        else:
            text, flags = one, [*flags, None]
        texts.append(" ".join(unwrapped(text).split()) if isinstance(text, str) else text)
    if all(flag is None for flag in flags):
        return texts, None
    used["clicks: with each suggestion"] += 1
    return texts, [_flag(flag) for flag in flags]


def _clicks(row: Mapping[str, Any], suggestions: Sequence[str], first_place: int, used: Counter[str]) -> list[int]:
    """0 or 1 for each suggestion, from flags, from the place of the one that was clicked, or from its text. What is
    empty is no click; BadRow where the file has nothing to be empty."""
    if "clicks" not in row:
        raise BadRow("missing field", "no clicks; name their column, as in --column clicks=tapped")
    value = _value(row["clicks"])
    n = len(suggestions)
    if value is None or value == "" or value == []:
        used["clicks: empty, taken as no click"] += 1
        return [0] * n
    if isinstance(value, list) and len(value) == n and all(_is_flag(one) for one in value):
        return [_flag(one) for one in value]
    if n == 1 and _is_flag(value):
        return [_flag(value)]
    if isinstance(value, list) and len(value) > 1 and all(_is_flag(one) for one in value):
        raise BadRow("wrong number of clicks", f"{len(value)} clicks for {n} suggestions: {short(value)}")
    clicked = [0] * n
    for one in value if isinstance(value, list) else [value]:
        number = _number(one)
        if number is not None and number == int(number) and not isinstance(one, bool):
            place = int(number) - first_place
            if place == -1 - first_place:  # -1: none
                continue
            used[f"clicks: the position of the clicked suggestion, from {first_place}"] += 1
        else:
            text = " ".join(unwrapped(str(one)).split())
            place = suggestions.index(text) if text in suggestions else -1
            used["clicks: the clicked text"] += 1
        if not 0 <= place < n:
            raise BadRow("click on nothing shown", f"click {short(one)} is none of the {n} suggestions")
        clicked[place] = 1
    return clicked


def _impressions(
    rows: Sequence[tuple[int, dict[str, Any]]], columns: Mapping[str, Columns]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and fields of each impression; rows of one suggestion each are put together by their impression's id."""
    fields = ({field: _cell(row, some) for field, some in columns.items()} for _, row in rows)
    if "suggestions" in columns or "suggestion" not in columns:
        yield from zip((line for line, _ in rows), fields, strict=True)
        return
    groups: dict[str, tuple[int, list[dict[str, Any]]]] = {}
    for (line, _), row in zip(rows, fields, strict=True):
        key = str(row["impression_id"]) if _is_there(row.get("impression_id")) else f"row {line}"
        groups.setdefault(key, (line, []))[1].append(row)
    for line, some in groups.values():
        if all(_number(row.get("position")) is not None for row in some):
            some.sort(key=lambda row: _number(row["position"]))
        shown = [{"text": row["suggestion"], "clicked": row.get("clicks")} for row in some]
        yield line, {**some[0], "suggestions": shown}


class Columns(NamedTuple):
    """Where a field is found.

    Attributes:
        names: columns, of which each row's first that holds something counts: a file may mix forms.
        numbered: whether they are the parts of a list (``suggestion_1``).
    """

    names: list[str]
    numbered: bool = False


def _columns(where: str, rows: Sequence[tuple[int, dict[str, Any]]], given: Sequence[str]) -> dict[str, Columns]:
    """Field to the columns that hold it."""
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    lower = {str(name).strip().lower().replace(" ", "_").replace("-", "_"): name for name in names}
    known = {field: list(aliases) for field, aliases in NAMES.items()}
    for one in given:
        field, _, name = one.partition("=")
        if field not in NAMES or name not in names:
            raise ValueError(
                f"--column {one}: fields are {', '.join(NAMES)}; {where} has {', '.join(map(str, names))}"
            )
        known[field] = [name.strip().lower().replace(" ", "_").replace("-", "_")]
    found: dict[str, Columns] = {}
    for field, aliases in known.items():
        there = [lower[alias] for alias in aliases if alias in lower]
        if there:
            found[field] = Columns(there)
    for field, stems in (("suggestions", ("suggestion", "followup", "option")), ("clicks", ("click", "clicked"))):
        numbered = [lower[f"{stem}_{n}"] for stem in stems for n in range(10) if f"{stem}_{n}" in lower]
        if numbered and field not in found:
            found[field] = Columns(numbered, numbered=True)
    if "suggestions" in found:
        found.pop("suggestion", None)
    return found


def _cell(row: Mapping[str, Any], columns: Columns) -> Any:
    if not columns.numbered:
        return next((row[name] for name in columns.names if _is_there(row.get(name))), None)
    cells = [row.get(name) for name in columns.names]
    while cells and not _is_there(cells[-1]):  # a row of fewer suggestions
        cells.pop()
    return cells


def raw_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """Line and cells of every row of a file, or why a line has none. ValueError where the file cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    suffix = Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix == ".parquet":
        import polars as pl

        yield from enumerate(pl.read_parquet(path).iter_rows(named=True), start=1)
        return
    if suffix not in (".csv", ".tsv", ".json", ".jsonl"):
        raise ValueError(f"{path}: unknown kind of file; give .csv, .tsv, .json, .jsonl or .parquet")
    text = _read_text(path)
    if suffix in (".csv", ".tsv"):
        csv.field_size_limit(sys.maxsize)
        reader = csv.DictReader(io.StringIO(text, newline=""), dialect=_dialect(text, suffix), strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    yield (
                        reader.line_num,
                        BadRow(
                            "wrong number of cells",
                            "not as many cells as columns; quote what has a "
                            f"{reader.reader.dialect.delimiter!r} or a line break in it",
                        ),
                    )
                else:
                    yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: not CSV: {error}") from None
        return
    try:
        whole = json.loads(text) if text.lstrip()[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        whole = None
    whole = [whole] if isinstance(whole, dict) else whole
    # Not splitlines(): a text may have a line break of Unicode's in it.
    for line, row in enumerate(whole if isinstance(whole, list) else text.split("\n"), start=1):
        if isinstance(row, str):
            row = row.lstrip("\ufeff")
            if not row.strip():
                continue
            try:
                row = json.loads(row)
            except (ValueError, RecursionError) as error:
                row = BadRow("bad JSON", f"no JSON: {error}")
        if not isinstance(row, dict | BadRow):
            row = BadRow("bad JSON", f"{short(row)} is not a JSON object")
        yield line, row


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if path.suffix.lower() == ".gz" else data
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # as spreadsheets write it
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}; give UTF-8") from None


def _dialect(text: str, suffix: str) -> type[csv.Dialect]:
    """Commas, or what else stands between the names of the columns."""
    head = text.partition("\n")[0]
    sign = "\t" if suffix == ".tsv" else max(",;\t", key=head.count)

    class Dialect(csv.excel):
        delimiter = sign

    return Dialect


def _value(value: Any) -> Any:
    """What JSON in a cell of text holds; other text as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _text(value: Any, field: str, used: Counter[str]) -> str:
    if not _is_there(value):
        return ""
    if not isinstance(value, str):
        used[f"{field}: a number, as text"] += 1
        value = int(value) if isinstance(value, float) and value == int(value) else value
    return str(value)


def _is_there(value: Any) -> bool:
    return value is not None and value != "" and value == value  # nan is not itself


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value) if isinstance(value, int | float) or str(value).strip().lstrip("-")[:1].isdigit() else None
    except ValueError:
        return None


def _is_flag(value: Any) -> bool:
    return value in (0, 1) or value is None or isinstance(value, str) and value.strip().lower() in (*TRUE, *FALSE)


def _flag(value: Any) -> int:
    """Of nothing 0; BadRow where it is no flag."""
    if not _is_flag(value):
        raise BadRow("click not 0 or 1", f"click {short(value)}; give 0 or 1, true or false, yes or no")
    if isinstance(value, str):
        return int(value.strip().lower() in TRUE)
    return int(bool(value))
