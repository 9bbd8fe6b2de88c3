"""What a server costs beside its engine: the same conversations, sampled by vLLM alone and asked over HTTP.

Both have as many requests in flight, the same policy and as many samples of each. Over HTTP, by ``openrlhf-qs serve``
in a process of its own, filters, reward model, choice and log come on top. In: a policy and conversations. Out:
conversations a second, the time of one, and the seconds of all cores that one takes, those of the engine's processes
too, which hardly depend on what else the machine has to do; and how much longer all took than by vLLM alone, which is
a figure only where the machine has nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Table

from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.form.prompt import Message

WARM_UP = 20  # requests before the first that counts
START_S = 600.0


class Measured(NamedTuple):
    """The seconds of each conversation, of all of them, and those of all cores."""

    seconds: list[float]
    wall_s: float
    cpu_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", required=True, metavar="DIR", help="folder of the policy")
    parser.add_argument("--reward_model", default="", metavar="DIR", help="reward model for the server; default: none")
    parser.add_argument(
        "--conversations", required=True, metavar="FILE", help="JSON Lines with one conversation per row"
    )
    parser.add_argument("--n", type=int, default=200, help="conversations to measure; default 200")
    parser.add_argument("--in_flight", type=int, default=4, help="concurrent requests; default 4")
    parser.add_argument(
        "--n_samples", type=int, nargs="+", default=[1, 4], help="responses per conversation; default 1 4"
    )


def run(args: argparse.Namespace) -> None:
    conversations = [row["conversation"] for row in read_json_lines(args.conversations)][: args.n + WARM_UP]
    if len(conversations) <= WARM_UP:
        raise ValueError(f"{args.conversations}: {len(conversations)} rows; give more than {WARM_UP}")
    import uvloop  # which the server has too

    table = Table("", "samples", "conversations/s", "p50, ms", "p95, ms", "CPU, ms", "slower than alone")
    bare = uvloop.run(_bare(args, conversations))
    for n_samples in args.n_samples:
        alone = bare[n_samples]
        table.add_row("vLLM alone", str(n_samples), *cells(alone, alone))
        over_http = uvloop.run(_over_http(args, conversations, n_samples, ""))
        table.add_row("over HTTP", str(n_samples), *cells(over_http, alone))
        if args.reward_model:
            chosen = uvloop.run(_over_http(args, conversations, n_samples, args.reward_model))
            table.add_row("over HTTP, reward model", str(n_samples), *cells(chosen, alone))
    print_table(table)


async def _bare(args: argparse.Namespace, conversations: Sequence[Sequence[Message]]) -> dict[int, Measured]:
    from openrlhf_qs.serve.policy import Policy

    policy = Policy(args.policy, 0.7)
    try:
        return {
            n: await _timed(
                lambda conversation, n=n: policy.sample(conversation, n), conversations, args.in_flight, os.getpid()
            )
            for n in args.n_samples
        }
    finally:
        policy.close()


async def _over_http(
    args: argparse.Namespace, conversations: Sequence[Sequence[Message]], n_samples: int, reward_model: str
) -> Measured:
    import aiohttp  # vLLM's; of all clients in Python that which takes the least of the cores that are measured

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=".") as log:
        command = [sys.executable, "-m", "openrlhf_qs.cli", "serve", "--policy", args.policy, "--log", log]
        command += ["--port", str(port), "--n_samples", str(n_samples), "--reward_model", reward_model]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", raise_for_status=True) as asking:
                await _started(asking, server)

                async def ask(conversation: Sequence[Message]) -> None:
                    body = {"conversation": list(conversation)}
                    async with asking.post("/v1/suggestions", json=body) as answer:
                        await answer.read()

                return await _timed(ask, conversations, args.in_flight, server.pid)
        finally:
            server.terminate()
            server.wait()


async def _started(asking, server: subprocess.Popen) -> None:
    import aiohttp

    began = time.monotonic()
    while True:
        if server.poll() is not None or time.monotonic() - began > START_S:
            raise ValueError("the server did not start: run openrlhf-qs serve with these flags to see why")
        try:
            async with asking.get("/healthz"):
                return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.5)


async def _timed(
    ask: Callable[[Sequence[Message]], Awaitable],
    conversations: Sequence[Sequence[Message]],
    in_flight: int,
    process: int,
) -> Measured:
    """The seconds of each of ``conversations`` after the first ``WARM_UP``, of all of those, and of all cores that
    ``process`` and what it started spent on them."""
    at_once, seconds = asyncio.Semaphore(in_flight), []

    async def one(conversation: Sequence[Message]) -> None:
        async with at_once:
            start = time.perf_counter()
            await ask(conversation)
            seconds.append(time.perf_counter() - start)

    await asyncio.gather(*map(one, conversations[:WARM_UP]))
    seconds.clear()
    began, cpu_s = time.perf_counter(), _cpu_s(process)
    await asyncio.gather(*map(one, conversations[WARM_UP:]))
    return Measured(seconds, time.perf_counter() - began, _cpu_s(process) - cpu_s)


def _cpu_s(process: int) -> float:
    import psutil

    root = psutil.Process(process)
    return sum(sum(one.cpu_times()[:2]) for one in (root, *root.children(recursive=True)))


def cells(measured: Measured, alone: Measured) -> list[str]:
    """A row of the table, after its name and the number of samples."""
    p50, p95 = 1000 * np.percentile(measured.seconds, [50, 95])
    n, cpu = len(measured.seconds), 1000 * measured.cpu_s / len(measured.seconds)
    longer = measured.wall_s / n / (alone.wall_s / len(alone.seconds)) - 1
    return [f"{n / measured.wall_s:.1f}", f"{p50:.0f}", f"{p95:.0f}", f"{cpu:.0f}", f"{longer:+.0%}"]
