"""Files, written whole or not at all; JSON Lines, read with the line in every error."""

from __future__ import annotations

import errno
import gzip
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHOWN_PROBLEMS = 20  # that an error names
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, a file


class BadRow(ValueError):
    """What is wrong with a row and what to do; ``reason`` is the same for all rows that have the same fault."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def short(value: Any) -> str:
    """``repr`` of what an error shows, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def raise_problems(problems: Sequence[str]) -> None:
    """ValueError with the first ``SHOWN_PROBLEMS`` and how many more there are; nothing where there is none."""
    if problems:
        n_more = len(problems) - SHOWN_PROBLEMS
        raise ValueError("\n".join(problems[:SHOWN_PROBLEMS]) + (f"\nand {n_more} more" if n_more > 0 else ""))


def read_json_lines(path: str | Path) -> list[dict]:
    """The rows of a file, also of one that is packed (``.gz``); byte order marks and blank lines are passed over.

    ValueError names file and line of what is not a JSON object, or the file that is missing or cut.
    """
    return list(json_lines(path))


def json_lines(path: str | Path) -> Iterator[dict]:
    """The same, row by row."""
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; where a stage of the run writes it, run that first")
    n_rows = 0
    open_text = gzip.open if Path(path).suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(_decoded(file, path), start=1):
            line = line.lstrip("\ufeff")  # of a file that was put behind another one, too
            if line.strip():
                n_rows += 1
                yield json_object(path, number, line)
    check_count(path, n_rows)


def _decoded(lines: Iterable[str], path: str | Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}): write it again") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}): write it again") from None


def check_count(path: str | Path, n_rows: int) -> None:
    """ValueError where the stage that wrote the file says, in the ``log.json`` beside it, that it has other rows: one
    that is cut at the end of a line looks whole."""
    path = Path(path)
    log = path.with_name("log.json")
    try:
        written = json.loads(log.read_text(encoding="utf-8"))["written"].get(path.name, n_rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none of ours
        return
    if written != n_rows:
        raise ValueError(f"{path} has {n_rows} rows, and {log} says {written}: it was cut or changed; write it again")


def json_object(path: str | Path, number: int, line: str) -> dict:
    """The object in a line. ValueError names file and line where it is none."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: {line.strip()[:40]!r} is not a JSON object")
    return row


def appended_lines(path: str | Path) -> list[dict]:
    """The rows of a file that a training appends to, none where there is none; a last line that a kill or a full disk
    cut off is left out."""
    path = Path(path)
    whole = path.read_bytes().rpartition(b"\n")[0] if path.is_file() else b""
    return [json_object(path, number, line.decode()) for number, line in enumerate(whole.splitlines(), start=1)]


def write_json_lines(path: str | Path, rows: Iterable[dict]) -> None:
    """Write ``rows`` as :func:`replacing` does."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_whole(path: str | Path, text: str) -> None:
    """Write ``text`` as :func:`replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # a log may hold half a surrogate pair


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``, this process's own, that is renamed at the end: nothing half-written bears the
    final name, and two that write at once do not write into each other's file. An error of a full disk names it.
    Whoever may read any new file may read this one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        yield temporary
        share_as_usual(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # a write does not say where
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def share_as_usual(path: str | Path) -> None:
    """Let those read and write a file who may do so with any new one: safetensors writes for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, os.stat(path).st_mode | 0o666 & ~mask)
