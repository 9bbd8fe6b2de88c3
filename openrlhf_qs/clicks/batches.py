"""A click log in batches: read, checked and handed to a function, on this machine or on a Ray cluster.

A batch is a few megabytes, so memory does not grow with the log. Polars expressions check it as a whole; the rows that
look odd to them go through :func:`openrlhf_qs.clicks.rows.checked_row`, which has the last word and the exact message.
JSON is parsed by Arrow, which is twice as fast as Polars at nested lists; a batch that it does not take is parsed
row by row.
"""

from __future__ import annotations

import gzip
import json
import pickle
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray
from rich.progress import track

from openrlhf_qs.clicks.rows import FIELDS, MESSAGES, SCHEMA, checked_row, object_text
from openrlhf_qs.files.whole import SHOWN_PROBLEMS, BadRow

ENGINES = {"polars": "on this machine, in threads", "ray": "Ray Data, on the cluster that Ray finds, or this machine"}
BATCH_BYTES = 8 << 20  # of JSON Lines
BATCH_ROWS = 16_384  # of Parquet: about as much memory
NAMED_ROWS = 100  # first ones of a batch of JSON Lines whose fields are named
Raw = bytes | pl.DataFrame | BadRow  # lines of JSON, rows of Parquet, or why the file cannot be read on
T = TypeVar("T")


class Part(NamedTuple):
    """A piece of a file that can be read by itself.

    Attributes:
        start, stop: bytes of JSON Lines, or row groups of Parquet; ``stop`` is None for gzip, which is read from its
            beginning to its end.
    """

    path: str
    start: int
    stop: int | None


class Problem(NamedTuple):
    """Why a row is left out.

    Attributes:
        line: from 1 in the batch; 0 is the file as a whole.
        reason: the same for all rows of one fault.
        message: what was found; what to do.
    """

    line: int
    reason: str
    message: str


@dataclass(frozen=True)
class Batch:
    """A checked batch.

    Attributes:
        rows: the good ones, in the order of the file, with the columns of ``SCHEMA`` and ``line``: from 1 in
            the batch.
        problems: the others, in their order.
        n_lines: how many lines of the file the batch takes, blank ones included.
        fields: names of the fields that its rows have in the file, those that nothing reads too; of JSON Lines those
            of the first ``NAMED_ROWS``.
    """

    rows: pl.DataFrame
    problems: list[Problem]
    n_lines: int
    fields: frozenset[str] = frozenset()


class Result(NamedTuple):
    """What the function made of one batch.

    Attributes:
        line: line of the file before the batch: add it to the lines of the batch.
    """

    path: str
    line: int
    value: Any


def map_log(
    paths: Sequence[str], step: Callable[[Batch], T], engine: str = "polars", label: str = ""
) -> Iterator[Result]:
    """``step`` of every batch, in the order of the files.

    Args:
        paths: see :func:`log_files`.
        step: what to do with a batch. It runs in other threads or, under ``ray``, on other machines, which must see
            ``paths``; what it returns must be picklable and should be small.
        engine: one of ``ENGINES``; both give the same results.
        label: of the progress bar; empty shows none.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    parts = [part for path in paths for part in file_parts(path)]
    run = _on_ray if engine == "ray" else _in_threads
    results = run(parts, step)
    path, line = "", 0
    for part, n_lines, value in track(results, label, total=None, transient=True) if label else results:
        path, line = (path, line) if part.path == path else (part.path, 0)
        yield Result(path, line, value)
        line += n_lines


def log_files(patterns: Sequence[str | Path]) -> list[str]:
    """The files that paths and globs name, in their order, none twice. ValueError where one names no file."""
    files: dict[str, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        found = sorted(path.parent.glob(path.name)) if not path.is_file() and "*" in path.name else [path]
        for one in found or [path]:
            if not one.is_file():
                what = "is a folder" if one.is_dir() else "is not a file" if one.exists() else "there is no such file"
                raise ValueError(f"{one}: {what}; give a click log, .jsonl, .jsonl.gz or .parquet")
        files |= dict.fromkeys(map(str, found))
    _check_same_columns(list(files))
    return list(files)


def file_parts(path: str) -> list[Part]:
    """The pieces of one file; a piece of JSON Lines ends with its line."""
    kind = _kind(path)
    if kind == "gzip":
        return [Part(path, 0, None)]
    if kind == "parquet":
        return [Part(path, group, group + 1) for group in range(pa.parquet.read_metadata(path).num_row_groups)]
    ends = [0]
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        while ends[-1] < size:
            file.seek(min(ends[-1] + BATCH_BYTES, size))
            file.readline()
            ends.append(file.tell())
    return [Part(path, start, stop) for start, stop in zip(ends, ends[1:], strict=False)]


def read_part(part: Part) -> Iterator[Raw]:
    """The batches of a piece, not checked; what cannot be read ends with a :class:`BadRow`."""
    kind = _kind(part.path)
    if kind == "parquet":
        try:
            groups = range(part.start, part.stop)
            for batch in pa.parquet.ParquetFile(part.path).iter_batches(BATCH_ROWS, row_groups=groups):
                yield pl.from_arrow(batch)
        except (pa.ArrowException, OSError) as error:
            yield BadRow("damaged Parquet", f"damaged Parquet ({error}); write it again")
    elif kind == "gzip":
        yield from _read_gzip(part.path)
    else:
        with open(part.path, "rb") as file:
            file.seek(part.start)
            yield file.read(part.stop - part.start)


def _read_gzip(path: str) -> Iterator[Raw]:
    """Whole lines; of a damaged file those before the damage."""
    block = b""
    try:
        with gzip.open(path, "rb") as file:
            while piece := file.read1(BATCH_BYTES):
                block += piece
                if len(block) > BATCH_BYTES and (end := block.rfind(b"\n") + 1):
                    yield block[:end]
                    block = block[end:]
        yield block
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        yield block[: block.rfind(b"\n") + 1]
        yield BadRow("damaged gzip", f"damaged gzip ({error}); copy it again")


def check_batch(raw: Raw) -> Batch:
    """Check every row: all at once where that is possible, one by one where something looks odd."""
    if isinstance(raw, BadRow):
        return Batch(_frame([]), [Problem(0, raw.reason, str(raw))], 0)
    if isinstance(raw, bytes):
        ends = np.flatnonzero(np.frombuffer(raw, np.uint8) == ord("\n")) + 1
        parsed, (lines, n_lines, one_each) = _from_json(raw, ends), _lines(raw, ends)
    else:
        parsed, lines, n_lines, one_each = _from_parquet(raw), range(1, raw.height + 1), raw.height, True
    if parsed is None or not one_each or parsed.height != len(lines):
        odd, good = range(len(lines)), _frame([])
    else:
        sound = parsed.select(_is_sound()).to_series()
        odd = sound.not_().arg_true().to_list()
        numbered = parsed.with_columns(pl.Series("line", lines, dtype=pl.Int64))
        good = numbered.filter(sound).select(_frame([]).columns)
    rows, problems = [], []
    source = raw.split(b"\n") if odd and isinstance(raw, bytes) else raw
    for index in odd:
        line = lines[index]
        try:
            row = checked_row(source[line - 1] if isinstance(raw, bytes) else source.row(index, named=True))
            rows.append(row | {"line": line})
        except BadRow as error:
            problems.append(Problem(line, error.reason, str(error)))
    if rows:
        good = pl.concat([good, _frame(rows)]).sort("line")
    return Batch(good, problems, n_lines, _names_in(raw))


class Problems:
    """Bad rows of a log: the first of them to show, and how many there are of each reason.

    Attributes:
        counts: bad rows by reason.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.counts: Counter[str] = Counter()
        self._files = list(files)
        self._first: dict[str, tuple[int, int, str]] = {}  # of each reason: file, line, message
        self._shown: list[tuple[int, int, str]] = []  # file, line, message

    def add(self, path: str, line: int, problems: Sequence[Problem]) -> None:
        """Bad rows of a batch that comes after ``line`` lines of its file."""
        self.counts.update(problem.reason for problem in problems)
        file = self._files.index(path)
        self._show((file, line + one.line if one.line else 0, one.message) for one in problems[:SHOWN_PROBLEMS])
        for one in problems:
            self._first.setdefault(one.reason, (file, line + one.line, one.message))

    def add_duplicate(self, file: int, line: int, first_file: int, first_line: int) -> None:
        """An impression_id that was seen before; files by their number."""
        self.counts["impression_id seen before"] += 1
        where = f"line {first_line}" + ("" if file == first_file else f" of {self._files[first_file]}")
        self._show([(file, line, f"impression_id already used in {where}; give each impression its own")])

    def raise_any(self, n_good: int, remedy: str = ", which `openrlhf-qs log convert` may read") -> None:
        """ValueError with the first 20 bad rows, where there are any beside ``n_good`` good ones; what is wrong with
        every row, as a column of another type is, is said once, with the ``remedy``."""
        for reason, (file, line, text) in self._first.items():
            of_type = reason.startswith("bad ") or reason == "missing field"
            if of_type and n_good == 0 and self.counts[reason] == self.counts.total() > 1:
                raise ValueError(
                    f"{self._files[file]}:{line}: {text}; all {self.counts.total()} rows have this{remedy}"
                )
        if self._shown:
            lines = [f"{self._files[file]}{f':{line}' if line else ''}: {text}" for file, line, text in self._shown]
            n_left = self.counts.total() - len(lines)
            raise ValueError("\n".join(lines) + (f"\nand {n_left} more" if n_left > 0 else ""))

    def _show(self, problems: Iterable[tuple[int, int, str]]) -> None:
        self._shown = sorted([*self._shown, *problems], key=lambda one: one[:2])[:SHOWN_PROBLEMS]


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA | {"line": pl.Int64})


def _names_in(raw: bytes | pl.DataFrame) -> frozenset[str]:
    """See :class:`Batch`."""
    if isinstance(raw, pl.DataFrame):
        return frozenset(raw.columns)
    names: set[str] = set()
    for line in raw.split(b"\n", NAMED_ROWS)[:NAMED_ROWS]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        names.update(row if isinstance(row, dict) else ())
    return frozenset(names)


def _lines(block: bytes, ends: NDArray[np.int64]) -> tuple[Sequence[int], int, bool]:
    """The line numbers of the rows, from 1, and how many lines there are; blank lines are no rows. And whether each
    row's line holds whole objects: then as many objects as lines are one a line. Arrow takes them wherever they stand.

    ``ends`` are where lines end: behind each line break.
    """
    n_lines = len(ends) + (block[-1:] not in (b"\n", b""))
    characters = np.frombuffer(block, np.uint8)
    if (
        block[:1] == b"{"
        and block[-2:] == b"}\n"
        and (characters[ends - 2] == ord("}")).all()
        and (characters[ends[:-1]] == ord("{")).all()
    ):
        return range(1, n_lines + 1), n_lines, True
    lines = {n: line for n, line in enumerate(map(bytes.strip, block.split(b"\n")), start=1) if line}
    return list(lines), n_lines, all(line[:1] == b"{" and line[-1:] == b"}" for line in lines.values())


_ARROW_SCHEMA = pa.schema({name: field.in_json for name, field in FIELDS.items() if field.in_json is not None})
_OBJECTS = [name for name, field in FIELDS.items() if field.in_json is None]
# Arrow crashes on a null in the place of an object, so such a batch is not given to it.
_BARE_NULL = r"(?:^|\})\s*null"


def _from_json(block: bytes, ends: NDArray[np.int64]) -> pl.DataFrame | None:
    """The rows with the types of ``SCHEMA``; None where something is not as JSON Lines of this schema are."""
    try:
        block.isascii() or block.decode()
        lines = _line_texts(block, ends)
        if lines.filter(lines.str.contains("null", literal=True)).str.contains(_BARE_NULL).any():
            return None
        table = pa.json.read_json(
            pa.BufferReader(block),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pa.json.ParseOptions(explicit_schema=_ARROW_SCHEMA, unexpected_field_behavior="ignore"),
        )
        objects = {name: _texts_of(name, block, lines, table.num_rows) for name in _OBJECTS}
    except (pa.ArrowInvalid, UnicodeDecodeError, pl.exceptions.PolarsError):
        return None
    if any(len(texts) != table.num_rows for texts in objects.values()):
        return None
    return _typed(pl.from_arrow(table).with_columns(**objects))


def _line_texts(block: bytes, ends: NDArray[np.int64]) -> pl.Series:
    """Its lines, not copied: Polars searches them four times as fast as Python the block."""
    offsets = np.concatenate([[0], ends, [len(block)] if block[-1:] != b"\n" else []]).astype(np.int64)
    lines = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(block))
    return pl.from_arrow(lines)


def _texts_of(name: str, block: bytes, lines: pl.Series, n_rows: int) -> pl.Series:
    """The text of that object of each row; null where there is none.

    Where it ends its line, as ``meta`` does in most logs, it is cut off there; what is no JSON by itself is found odd
    later.
    """
    key = f'"{name}"'
    if not lines.str.contains(key, literal=True).any():
        return pl.repeat(None, n_rows, dtype=pl.String, eager=True)
    if len(lines) == n_rows:
        line = pl.col("line")
        behind = line.cast(pl.Binary).bin.slice(line.str.find(key, literal=True) + len(key)).cast(pl.String)
        value = behind.str.strip_chars().str.strip_prefix(":").str.strip_suffix("}").str.strip_chars()
        texts = lines.to_frame("line").select(value.replace("null", None)).to_series()
        first = texts.drop_nulls().head(1)
        if all(_text_or_none(text, name) for text in first):
            return texts
    return pl.scan_ndjson(block, schema={name: pl.String}).collect().to_series()


def _from_parquet(rows: pl.DataFrame) -> pl.DataFrame | None:
    """The rows with the types of ``SCHEMA``; None where the types of a column must be looked at row by row."""
    absent = [pl.lit(None, pl.Null).alias(name) for name in SCHEMA if name not in rows.columns]
    rows = rows.with_columns(absent)
    known = all(field.in_parquet(rows.schema[name]) for name, field in FIELDS.items())
    return _typed(rows) if known else None


def _typed(rows: pl.DataFrame) -> pl.DataFrame:
    """Columns as in ``SCHEMA``; what cannot be had so is null, and ``*_is_odd`` where that is an object."""
    conversation, message = pl.col("conversation"), pl.struct(pl.element().struct.field("role", "content"))
    columns = {name: pl.col(name).cast(field.dtype, strict=False) for name, field in FIELDS.items()}
    columns["timestamp"] = _timestamp(rows.schema["timestamp"])
    columns["conversation"] = (
        conversation if rows.schema["conversation"] == MESSAGES else conversation.list.eval(message)
    )
    for name in _OBJECTS:
        given = rows[name].cast(pl.String)
        known = given.drop_nulls().unique()
        texts = pl.Series([_text_or_none(text, name) for text in known], dtype=pl.String)
        columns[name] = found = given.replace_strict(known, texts, default=None, return_dtype=pl.String)
        columns[f"{name}_is_odd"] = found.is_null() & given.is_not_null()
    return rows.select(**columns)


def _text_or_none(text: str, name: str) -> str | None:
    try:
        return object_text(text, name)
    except BadRow:
        return None


# What datetime.fromisoformat takes and Polars reads alike; other forms go through checked_row.
_TIME = r"^(199[0-9]|2[0-9]{3})-[0-9]{2}-[0-9]{2}[T ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{3}|\.[0-9]{6})?"
_ZONE = r"([+-]([01][0-9]|2[0-3]):[0-5][0-9]|Z)?$"


def _timestamp(dtype: pl.DataType) -> pl.Expr:
    """``timestamp`` in UTC; null where it is in another form than ``_TIME``."""
    time = pl.col("timestamp")
    if dtype == pl.String:
        plain = pl.when(time.str.contains(_TIME + _ZONE)).then(time).str.replace(" ", "T").str.strip_suffix("Z")
        zoned = pl.when(plain.str.contains("[+-][0-9:]{5}$")).then(plain).otherwise(plain + "+00:00")
        return zoned.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", time_zone="UTC", strict=False)
    time = time.dt.convert_time_zone("UTC") if dtype.time_zone else time.dt.replace_time_zone("UTC")
    return time.dt.cast_time_unit("us")


def _is_sound() -> pl.Expr:
    """Whether a row is good; false also for a few good ones, such as those with a line break at the very end."""
    return pl.all_horizontal(field.is_sound for field in FIELDS.values()).fill_null(False).alias("is_sound")


def _in_threads(parts: Sequence[Part], step: Callable[[Batch], T]) -> Iterator[tuple[Part, int, T]]:
    """In order, with only a few batches in memory: the next is read while others are worked on."""
    n_threads = pl.thread_pool_size() + 1  # one more than there are cores: a batch has moments when it waits
    waiting: deque[tuple[Part, Future]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        for part in parts:
            for raw in read_part(part):
                waiting.append((part, pool.submit(_work, raw, step)))
                if len(waiting) > n_threads + 1:
                    done, future = waiting.popleft()
                    yield done, *future.result()
        for done, future in waiting:
            yield done, *future.result()


def _on_ray(parts: Sequence[Part], step: Callable[[Batch], T]) -> Iterator[tuple[Part, int, T]]:
    """In order, each piece a task; this process only takes the results in."""
    import ray.data

    def run(row: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        part = Part(*row["part"][0])
        for raw in read_part(part):
            yield {"part": [tuple(part)], "result": [pickle.dumps(_work(raw, step))]}

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = ray.data.from_items([{"part": tuple(part)} for part in parts], override_num_blocks=len(parts))
    for row in rows.map_batches(run, batch_size=1).iter_rows():
        yield Part(*row["part"]), *pickle.loads(row["result"])


def _work(raw: Raw, step: Callable[[Batch], T]) -> tuple[int, T]:
    batch = check_batch(raw)
    return batch.n_lines, step(batch)


def _kind(path: str) -> str:
    endings = [suffix.lower() for suffix in Path(path).suffixes]
    if endings[-1:] == [".parquet"]:
        return "parquet"
    if endings[-2:] in ([".jsonl", ".gz"], [".json", ".gz"]):
        return "gzip"
    if endings[-1:] in ([".jsonl"], [".json"]):
        return "lines"
    raise ValueError(f"{path}: unknown kind of file; give .jsonl, .jsonl.gz (one object per line) or .parquet")


def _check_same_columns(paths: Sequence[str]) -> None:
    """ValueError where Parquet files have a column of ``SCHEMA`` in different types, or a text as numbers; one need
    not have it."""
    first: dict[str, tuple[str, Any]] = {}
    for path in paths:
        if _kind(path) != "parquet":
            continue
        try:
            schema = pl.read_parquet_schema(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ValueError(f"{path}: not a Parquet file ({error}); write it again") from error
        for name, dtype in schema.items():
            if name not in SCHEMA or dtype == pl.Null:
                continue
            if SCHEMA[name] == pl.String and dtype.is_numeric():
                raise ValueError(
                    f"{path}: {name} is {dtype} in all rows; give it as text, as `openrlhf-qs log convert` does"
                )
            where, expected = first.setdefault(name, (path, dtype))
            if dtype != expected:
                raise ValueError(f"{path}: {name} is {dtype}, but {expected} in {where}; give files of one schema")
