"""A long job that may be killed: each finished row is written down at once, the file of all of them at the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_qs.files.whole import write_json_lines


class Journal:
    """The rows of ``out`` that are finished, by key, in ``.NAME.part`` beside it; a second run goes on from there.

    A line that a killed run left half-written is cut off and its row done again. :meth:`finish` writes ``out`` in the
    order of the keys, whatever order the rows came in.

    Args:
        out: the file that shall be written.
        keys: of all rows of the job, different ones, in the order of ``out``. They must say what the row was made
            with (see :func:`job_keys`): a part of another job is refused, not mixed in.

    Raises:
        ValueError: the part beside ``out`` has rows of another job.
    """

    def __init__(self, out: str | Path, keys: Sequence[str]) -> None:
        self.out = Path(out)
        self.part = self.out.with_name(f".{self.out.name}.part")
        self.keys = keys
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.part, "a+b")  # closed by finish, or with the process
        self.place: dict[str, int] = {}  # of each finished row, where its line begins
        self._read_part()

    def _read_part(self) -> None:
        wanted = set(self.keys)
        self.file.seek(0)
        end = 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            key = json.loads(line)[0]
            if key not in wanted:
                raise ValueError(
                    f"{self.part} was begun with other options, another model or other input: "
                    "use the same ones, or remove it"
                )
            self.place[key] = end
            end += len(line)
        self.file.truncate(end)

    def missing(self) -> list[str]:
        """The keys of the rows that are still to be done, in order."""
        return [key for key in self.keys if key not in self.place]

    def add(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Write finished rows down; a process that is killed after this has them in the part."""
        end = self.file.seek(0, 2)
        for key, row in rows.items():
            line = json.dumps([key, row], ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            self.file.write(line)
            self.place[key] = end
            end += len(line)
        self.file.flush()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The finished rows in the order of the keys."""
        for key in self.keys:
            if key in self.place:
                self.file.seek(self.place[key])
                yield json.loads(self.file.readline())[1]

    def finish(self, rows: Iterable[Mapping[str, Any]] | None = None) -> int:
        """Write ``out`` whole, remove the part. Returns how many rows were finished.

        Args:
            rows: what is made of the finished rows; None: they themselves. Rows never added are left out.
        """
        write_json_lines(self.out, self.rows() if rows is None else rows)
        self.file.close()
        self.part.unlink()
        return len(self.place)


def job_keys(job: Mapping[str, Any], inputs: Sequence[Any]) -> list[str]:
    """A key for each input, 16 hexadecimal digits: other where the job, the input, or its repetition is another.

    Args:
        job: options and models, as JSON takes them; see :func:`model_print` for a model in a folder.
        inputs: as JSON takes them; equal ones are counted, so that each has a key of its own.
    """
    n_seen: dict[str, int] = {}
    keys = []
    for one in inputs:
        text = json.dumps([job, one], sort_keys=True)
        n_seen[text] = n_seen.get(text, -1) + 1
        keys.append(hashlib.blake2b(f"{n_seen[text]}\n{text}".encode(), digest_size=8).hexdigest())
    return keys


def model_print(model: str) -> str:
    """``model``, and for a folder sizes and times of its weights: another one after it was trained again."""
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    return " ".join([model, *(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)])
