"""``openrlhf-qs benchmark log``: impressions a second of reading, checking and pairing a click log, as it grows.

A log of the built-in world is written once and repeated under new ids, users and first messages, as JSON Lines and as
Parquet. Each size is timed in a process of its own, from the file to the description of the log and its preference
pairs, which are made and counted; they are not written, for the disk is not what is measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet
from rich.progress import track

from openrlhf_qs.clicks.batches import Batch, log_files, map_log
from openrlhf_qs.clicks.check import Summary, Total, summarise
from openrlhf_qs.clicks.preferences import preferences
from openrlhf_qs.clicks.propensity import DEFAULT_METHOD
from openrlhf_qs.world.click_log import write_click_log
from openrlhf_qs.world.click_models import EXAMINATION

FORMATS = ("jsonl", "parquet")
N_BASE, N_CONTEXTS = 20_000, 6_000  # impressions and conversations that are repeated


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--n_max", type=int, default=1_000_000, help="impressions in the largest log; default 1000000, 0.7 GB as JSON"
    )
    parser.add_argument("--n_min", type=int, default=100_000, help="impressions in the smallest log; default 100000")
    parser.add_argument("--seed", type=int, default=0, help="seed of the built-in world; default 0")


def run(args: argparse.Namespace) -> None:
    """Time every size and print the result as JSON."""
    if not 0 < args.n_min <= args.n_max:
        raise ValueError(f"n_min {args.n_min} and n_max {args.n_max}: give 0 < n_min <= n_max")
    n_sizes = max(2, round(np.log10(args.n_max / args.n_min) * 2) + 1)
    sizes = sorted({int(n) for n in np.geomspace(args.n_min, args.n_max, n_sizes).round()})
    print(json.dumps(measure(sizes, args.seed)))


def measure(sizes: list[int], seed: int = 0) -> dict[str, Any]:
    """Time checking and pairing of logs of these sizes.

    Returns:
        ``impressions_per_second`` at the largest size and ``exponent``, of the slower format; and for each of
        ``FORMATS`` the same, with ``curve``: ``n_impressions``, ``seconds``, ``cpu_seconds`` (of all cores),
        ``impressions_per_second``, ``n_pairs`` and ``peak_memory_mib`` (of the whole process) for each size.
        ``exponent`` is the slope of log time over log
        size: 1 is linear; None for one size.
    """
    found: dict[str, Any] = {name: [] for name in FORMATS}
    with tempfile.TemporaryDirectory() as work:
        base = Path(work) / "base.jsonl"
        write_click_log(base, N_BASE, N_CONTEXTS, seed)
        jobs = [(name, n) for name in FORMATS for n in sizes]
        for name, n in track(jobs, "timing", transient=True):
            log = Path(work) / f"log.{name}"
            write_repeated(base, log, n)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[name].append(pool.apply(_timed, (str(log),)))
            log.unlink()
    result = {name: {**_slowest(curve), "curve": curve} for name, curve in found.items()}
    slowest = min(result.values(), key=lambda one: one["impressions_per_second"])
    exponents = [one["exponent"] for one in result.values() if one["exponent"] is not None]
    return {
        "impressions_per_second": slowest["impressions_per_second"],
        "exponent": max(exponents, default=None),
        "n_threads": pl.thread_pool_size(),
        "formats": result,
    }


def write_repeated(base: Path, log: Path, n: int) -> None:
    """Write ``n`` impressions: the lines of ``base`` again and again, each time under other ids."""
    lines = base.read_bytes().splitlines(keepends=True)
    writer = None
    with open(log, "wb") as file:
        for start in range(0, n, len(lines)):
            name = b"%d" % (start // len(lines))
            text = b"".join(lines[: n - start]).replace(b'"impression-', b'"impression-%s-' % name)
            text = text.replace(b'"user-', b'"user-%s-' % name)
            text = text.replace(b'[{"role": "user", "content": "', b'[{"role": "user", "content": "%s. ' % name)
            if log.suffix == ".jsonl":
                file.write(text)
                continue
            part = log.with_name("part.jsonl")
            part.write_bytes(text)
            rows = pl.concat([result.value for result in map_log([str(part)], _rows)]).drop("line").to_arrow()
            part.unlink()
            writer = writer or pyarrow.parquet.ParquetWriter(file, rows.schema)
            writer.write_table(rows)
        if writer:
            writer.close()


def _rows(batch: Batch) -> pl.DataFrame:
    return batch.rows


def _timed(path: str) -> dict[str, Any]:
    start, cpu_start = time.perf_counter(), time.process_time()
    files = log_files([path])
    total, n_pairs = Total(files), 0
    for result in map_log(files, _check_and_pair):
        summary, n_pairs_of_batch = result.value
        total.add(result.path, result.line, summary)
        n_pairs += n_pairs_of_batch
    n = total.description("raise", DEFAULT_METHOD)["n_impressions"]
    seconds = time.perf_counter() - start
    return {
        "n_impressions": n,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu_start,
        "impressions_per_second": n / seconds,
        "n_pairs": n_pairs,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _check_and_pair(batch: Batch) -> tuple[Summary, int]:
    return summarise(batch), preferences(batch.rows, "ipw", EXAMINATION)["pairs"].list.len().sum()


def _slowest(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """The rate at the largest size, and how time grows."""
    n, seconds = (np.log([one[key] for one in curve]) for key in ("n_impressions", "seconds"))
    slope = float(np.polyfit(n, seconds, 1)[0]) if len(curve) > 1 else None
    return {"impressions_per_second": curve[-1]["impressions_per_second"], "exponent": slope}
