"""Text from data on its way to the terminal: what would move its cursor or rename its window is taken out."""

from __future__ import annotations

import re

# Escape sequences (ECMA-48: CSI, OSC and the short ones), then every control character but tab and line end.
ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def printable(text: str) -> str:
    """``text`` without escape sequences and control characters."""
    return ESCAPES.sub("", text)


def counted(n: int, noun: str) -> str:
    """``n`` of something, in words that go on: "1 row", "2,000 rows"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
