"""How fast a server's log acknowledges: SQLite with group commit, as it is, against a journal with group commit.

The journal is what would be written instead: JSON Lines, all that waits in one write and one ``fsync``, with the ids
in memory so that what is sent again changes nothing. It has no index, so joins, forgetting and retention would each be
a pass over the whole file.

In: how many writers wait at a time. Out: acknowledged impressions a second and the time of one, for both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from rich.table import Table

from openrlhf_qs.files.printable import print_table
from openrlhf_qs.serve.live_log import MAX_BATCH, Impression, LiveLog

CONVERSATION = [{"role": "user", "content": "x" * 400}, {"role": "assistant", "content": "y" * 1200}]
SUGGESTIONS = ["z" * 60] * 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--n_waiting", type=int, nargs="+", default=[1, 4, 32], help="concurrent writers; default 1 4 32"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds per measurement; default 5")
    parser.add_argument("--folder", default="", help="folder on the disk to measure; default: a temporary one here")


def run(args: argparse.Namespace) -> None:
    table = Table("log", "writers", "acknowledged/s", "p50, ms", "p95, ms", title="impressions")
    for n_waiting in args.n_waiting:
        for name, kind in (("SQLite, WAL", LiveLog), ("journal", Journal)):
            with tempfile.TemporaryDirectory(dir=args.folder or ".") as folder:
                seconds, wall = asyncio.run(_measured(kind(folder), n_waiting, args.seconds))
            p50, p95 = 1000 * np.percentile(seconds, [50, 95])
            table.add_row(name, str(n_waiting), f"{len(seconds) / wall:,.0f}", f"{p50:.1f}", f"{p95:.1f}")
    print_table(table)


async def _measured(log, n_waiting: int, wanted_s: float) -> tuple[list[float], float]:
    """The seconds of each acknowledgement, and of all of it."""
    seconds: list[float] = []
    began = time.perf_counter()

    async def writer(number: int) -> None:
        for n in range(10**9):
            start = time.perf_counter()
            if start - began > wanted_s:
                return
            await log.add(Impression(f"{number}-{n}", CONVERSATION, SUGGESTIONS, "policy", chat=str(number)))
            seconds.append(time.perf_counter() - start)

    await asyncio.gather(*map(writer, range(n_waiting)))
    log.close()
    return seconds, time.perf_counter() - began


class Journal:
    """Appends rows to one file; acknowledged is what was flushed."""

    def __init__(self, folder: str) -> None:
        self.file = open(Path(folder) / "journal.jsonl", "ab", buffering=0)  # closed by close
        self.ids: set[str] = set()
        self.waiting: queue.SimpleQueue = queue.SimpleQueue()
        self.writer = threading.Thread(target=self._write, daemon=True)
        self.writer.start()

    async def add(self, impression: Impression) -> None:
        done: Future = Future()
        self.waiting.put((impression.id, impression.row().encode() + b"\n", done))
        await asyncio.wrap_future(done)

    def close(self) -> None:
        self.waiting.put(None)
        self.writer.join()
        self.file.close()

    def _write(self) -> None:
        while True:
            batch = [self.waiting.get()]
            while len(batch) < MAX_BATCH and not self.waiting.empty():
                batch.append(self.waiting.get())
            rows = [one for one in batch if one is not None]
            self.file.write(b"".join(row for id, row, _ in rows if id not in self.ids))
            os.fsync(self.file.fileno())
            self.ids.update(id for id, _, _ in rows)
            for _, _, done in rows:
                done.set_result(None)
            if len(rows) < len(batch):
                return
