"""Text from data on its way to the terminal: what would move its cursor or rename its window is taken out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

# Escape sequences (ECMA-48: CSI, OSC and the short ones), then every control character but tab and line end.
ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def printable(text: str) -> str:
    """``text`` without escape sequences and control characters."""
    return ESCAPES.sub("", text)


def from_here(path: str | Path) -> str:
    """``path`` as one would type it: from the working folder on where it lies in it, else as it is."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def counted(n: int, noun: str) -> str:
    """``n`` of something, in words that go on: "1 row", "2,000 rows"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def print_table(table: Table) -> None:
    """A table under its title, which stands whole in a line of its own: Rich would break it at the table's width, and
    read what is in brackets in a path as a style."""
    from rich.console import Console

    if table.title:
        print(printable(str(table.title)))
        table.title = None
    Console(markup=False, emoji=False).print(table)


def print_figures(title: str, figures: Mapping[str, float]) -> None:
    """A table of figures, a name and a value a row: counts whole, all else to three digits."""
    from rich.table import Table

    table = Table("", "", title=title)
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.3f}")
    print_table(table)
