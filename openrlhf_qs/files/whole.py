"""Files, written whole or not at all; JSON Lines, read with the line in every error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class BadRow(ValueError):
    """What is wrong with a row and what to do; ``reason`` is the same for all rows that have the same fault."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def short(value: Any) -> str:
    """``repr`` of what an error shows, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_json_lines(path: str | Path) -> list[dict]:
    """The rows of a file; byte order marks and blank lines are passed over.

    ValueError names file and line of what is no JSON object, or the file that is missing.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist: run the stage that writes it first")
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            line = line.lstrip("\ufeff")  # of a file that was put behind another one, too
            if line.strip():
                rows.append(json_object(path, number, line))
    return rows


def json_object(path: str | Path, number: int, line: str) -> dict:
    """The object in a line. ValueError names file and line where it is none."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: {line.strip()[:40]!r} is no JSON object")
    return row


def write_json_lines(path: str | Path, rows: Iterable[dict]) -> None:
    """Write ``rows`` under a temporary name, then rename: nothing half-written bears the final name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(temporary, path)


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` under a temporary name, then rename: nothing half-written bears the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8", errors="replace")  # a log may hold half a surrogate pair
    os.replace(temporary, path)
