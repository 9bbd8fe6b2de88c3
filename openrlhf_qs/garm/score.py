"""A reward model's mean and standard deviation for every row of any file.

In: CSV, JSON Lines or Parquet (``.gz`` too), with a suggestion a row, or a click log with several. Out: the same rows
in the same order, every column as it was, and behind them ``mean`` and ``std``, and ``epistemic_std`` where the head
is an ensemble. A row without text has empty cells. Of a click log they are lists, one number a suggestion.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import json_object, replacing
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.registry import load_plugins

TEXT_COLUMNS = ("suggestion", "suggestions", "headline")  # looked for in this order
ADDED = ("mean", "std", "epistemic_std")
FORMATS = (".csv", ".jsonl", ".json", ".parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help=".csv, .jsonl or .parquet, the first two optionally .gz")
    parser.add_argument("--model", required=True, metavar="DIR", help="reward model, as written by recipes/garm.sh")
    parser.add_argument("--out", required=True, metavar="OUT", help="output file, in one of the same formats")
    parser.add_argument(
        "--column",
        default="",
        help="column of the text, one suggestion or a list of them; default: the first of suggestion, "
        "suggestions and headline that exists",
    )
    parser.add_argument(
        "--conversation_column",
        default="",
        help="column of the conversation: messages, or one user turn as plain text; default: conversation if it "
        "exists, else none",
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="file that registers a head; repeatable"
    )


def run(args: argparse.Namespace) -> None:
    _suffix(args.out)  # before the work, not after it
    columns, rows = read_rows(args.file)
    text = _column(args.file, columns, args.column, TEXT_COLUMNS)
    conversation = _conversation_column(args.file, columns, args.conversation_column)
    taken = [name for name in ADDED if name in columns]
    if taken:
        raise ValueError(f"{args.file}: it already has a column {', '.join(taken)}; rename it")
    load_plugins(args.plugin)
    n_empty, n_texts, added = score_rows(rows, args.model, args.file, text, conversation)
    for row, values in zip(rows, added, strict=True):
        row.update(values)
    write_rows(args.out, [*columns, *added[0]], rows)
    table = Table("scored", "", title=args.out)
    table.add_row("rows", f"{len(rows):,}")
    table.add_row(f"texts in {text}", f"{n_texts:,}")
    table.add_row("empty, so without a score", f"{n_empty:,}")
    print_table(table)


def score_rows(
    rows: Sequence[dict], model: str | Path, where: str, text: str, conversation: str
) -> tuple[int, int, list[dict]]:
    """What is to be added to each row.

    Args:
        where: the file's name, for errors.
        text: column of a suggestion or a list of suggestions.
        conversation: column of the conversation, "" for none.

    Returns:
        The number of empty texts, of all texts, and ``{"mean": ..., "std": ...}`` of each row: numbers, None where the
        text is empty, lists where the text is a list.
    """
    from openrlhf_qs.garm.eval import load_on_device, score_texts

    shown: list[list[str]] = []
    conversations: list[list[Message]] = []
    for number, row in enumerate(rows, start=1):
        texts = _texts(row.get(text), f"{where}: row {number}: {text}")
        before = _conversation(row.get(conversation), f"{where}: row {number}: {conversation}") if conversation else []
        shown.append(texts)
        conversations += [before for one in texts if one.strip()]
    n_texts = sum(map(len, shown))
    if not conversations:
        raise ValueError(f"{where}: no text in column {text} of {len(rows)} rows; give another --column")
    scorer = load_on_device(model)
    names = ADDED if scorer.model.head.n_members > 1 else ADDED[:2]
    scores = iter(score_texts(scorer, conversations, [one for row in shown for one in row if one.strip()]).tolist())
    added = []
    for row, texts in zip(rows, shown, strict=True):
        triples = [next(scores) if one.strip() else (None, None, None) for one in texts]
        per_name = {name: [triple[n] for triple in triples] for n, name in enumerate(names)}
        is_list = _as_list(row.get(text)) is not None
        added.append({name: values if is_list else values[0] for name, values in per_name.items()})
    return n_texts - len(conversations), n_texts, added


def read_rows(path: str | Path) -> tuple[list[str], list[dict]]:
    """Column names and rows. Cells of a CSV stay the text that they are. ValueError where the file has no row."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file; give .csv, .jsonl or .parquet")
    suffix = _suffix(path)
    if suffix == ".parquet":
        import polars as pl

        table = pl.read_parquet(path)
        columns, rows = table.columns, table.to_dicts()
    elif suffix == ".csv":
        columns, rows = _read_csv(path)
    else:
        rows = _read_json(path)
        columns = list(dict.fromkeys(name for row in rows for name in row))
    if not rows:
        raise ValueError(f"{path}: it has no rows; nothing to score")
    return columns, rows


def write_rows(path: str | Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    """Write under a temporary name, then rename. In a CSV, None is an empty cell, and what is no text is JSON."""
    path, suffix = Path(path), _suffix(path)
    with replacing(path) as temporary:
        if suffix == ".parquet":
            import polars as pl

            pl.DataFrame(rows, schema=list(columns), infer_schema_length=None).write_parquet(temporary)
            return
        open_text = gzip.open if path.suffix == ".gz" else open
        with open_text(temporary, "wt", encoding="utf-8", newline="") as file:
            if suffix == ".csv":
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _read_csv(path: str | Path) -> tuple[list[str], list[dict]]:
    """By Python's own reader: of a bad line Polars' (2.1) says no number, and it makes an empty cell null."""
    csv.field_size_limit(sys.maxsize)
    with _open_text(path) as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = next(reader, [])
            rows = []
            for cells in reader:
                if len(cells) != len(columns):
                    raise ValueError(
                        f"{path}: line {reader.line_num}: {len(cells)} cells for {len(columns)} columns; "
                        "quote what has a comma or a line break in it"
                    )
                rows.append(dict(zip(columns, cells, strict=True)))
        except csv.Error as error:
            raise ValueError(f"{path}: line {reader.line_num}: not CSV: {error}") from None
    if len(set(columns)) != len(columns):
        raise ValueError(f"{path}: two columns have the same name; rename one of {', '.join(columns)}")
    return columns, rows


def _read_json(path: str | Path) -> list[dict]:
    with _open_text(path) as file:
        return [json_object(path, number, line) for number, line in enumerate(file, start=1) if line.strip()]


def _open_text(path: str | Path) -> io.StringIO:
    """The whole file as text, unpacked. ValueError where it is no UTF-8 or no gzip."""
    data = Path(path).read_bytes()
    try:
        data = gzip.decompress(data) if Path(path).suffix == ".gz" else data
        return io.StringIO(data.decode("utf-8-sig"), newline="")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}; give UTF-8") from None


def _suffix(path: str | Path) -> str:
    path = Path(path)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in FORMATS or (suffix == ".parquet" and path.suffix == ".gz"):
        raise ValueError(f"{path}: unknown format; give .csv, .jsonl (both also .gz) or .parquet")
    return suffix


def _column(where: str, columns: Sequence[str], wanted: str, known: Sequence[str]) -> str:
    found = next((name for name in ([wanted] if wanted else known) if name in columns), None)
    if found is None:
        raise ValueError(
            f"{where}: no column {wanted or ' or '.join(known)}; found {', '.join(columns)}; name one with --column"
        )
    return found


def _conversation_column(where: str, columns: Sequence[str], wanted: str) -> str:
    if wanted and wanted not in columns:
        raise ValueError(f"{where}: no column {wanted}; found {', '.join(columns)}; check --conversation_column")
    return wanted or ("conversation" if "conversation" in columns else "")


def _texts(value: Any, where: str) -> list[str]:
    """The suggestions of a cell: of a list, or of a JSON list in a CSV, all of them."""
    texts = _as_list(value)
    texts = [value or ""] if texts is None else texts
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where} is {str(value)[:40]!r}; give text or a list of texts")
    return texts


def _as_list(value: Any) -> list | None:
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
        return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else None
    return value if isinstance(value, list) else None


def _conversation(value: Any, where: str) -> list[Message]:
    """Messages, as a list or as JSON; other text is one user turn, and nothing is no conversation."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if value is None or value == "" or value == []:
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    is_messages = isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in value
    )
    if not is_messages:
        raise ValueError(f"{where} is {str(value)[:40]!r}; give messages with role and content, or text")
    return [{"role": one["role"], "content": one["content"]} for one in value]


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)
