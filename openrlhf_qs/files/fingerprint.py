"""Whether a file is the one that a stage wrote: its size, time and hash, and the signs of one that is not whole."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def content_hash(path: Path) -> str:
    """BLAKE2b of a file, 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def print_of(path: Path) -> dict[str, Any]:
    """Size in bytes, time in ns and hash of a file."""
    found = path.stat()
    return {"size": found.st_size, "time": found.st_mtime_ns, "hash": content_hash(path)}


def is_as(path: Path, made: Mapping[str, Any]) -> bool:
    """Whether a file is as its print says. The hash is computed where the time is another (a copy)."""
    found = path.stat()
    if found.st_size != made["size"]:
        return False
    return found.st_mtime_ns == made["time"] or content_hash(path) == made["hash"]


def broken(path: Path) -> str:
    """What shows that a file is not whole, empty where nothing does."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        try:
            expected = safetensors_size(path)
        except ValueError as error:
            return str(error)
        return "" if size == expected else f"has {size} of {expected} bytes"
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"is not complete JSON ({error})"
    if path.suffix == ".jsonl" and size:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                return "ends in the middle of a line"
    return ""


def safetensors_size(path: Path) -> int:
    """The bytes that a file of safetensors must have, from its header. ValueError where it has no whole header."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
        if length is None or length > 100_000_000:
            raise ValueError("is not a safetensors file, or its header is truncated")
        header = file.read(length)
    try:
        tensors = json.loads(header)
        ends = [one["data_offsets"][1] for name, one in tensors.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("is not a safetensors file, or its header is truncated") from None
    return 8 + length + max(ends, default=0)
