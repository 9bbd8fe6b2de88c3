"""An engine ends with the process that started it, however that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import multiprocessing, sys, time
from openrlhf_qs.models.outlived import children_end_with_this_process

if __name__ == "__main__":
    with children_end_with_this_process():
        engine = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        engine.start()
        print(engine.pid, flush=True)
        if sys.argv[1] == "while it loads":
            time.sleep(60)
    sys.stdin.readline()
    engine.kill(); engine.join(); time.sleep(60)
"""


def watcher_of(parent: int, seconds: float = 20.0) -> int:
    """The process that watches ``parent``."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"openrlhf_qs.models.outlived" in words and str(parent).encode() in words:
                return int(folder.name)
        time.sleep(0.05)
    raise AssertionError("nobody watches")


def gone(process: int, seconds: float = 10.0) -> bool:
    """Whether a process has ended, at the latest after ``seconds``."""
    until = time.monotonic() + seconds
    while True:
        try:
            state = open(f"/proc/{process}/stat").read().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.05)


@pytest.fixture
def started():
    """``started(when)``: a process, that of its engine and that of who watches; all are gone at the end."""
    parents, engines = [], []

    def start(when):
        command = [sys.executable, "-c", PARENT, when]
        parents.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        engines.append(int(parents[-1].stdout.readline()))
        return parents[-1], engines[-1], watcher_of(parents[-1].pid)

    yield start
    for parent, engine in zip(parents, engines, strict=True):
        parent.kill()
        parent.wait()
        if not gone(engine, 0.0):
            os.kill(engine, signal.SIGKILL)


@pytest.mark.parametrize("when", ["while it loads", "later"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_engine_ends_with_its_parent_however_that_ends(started, how, when):
    parent, engine, _ = started(when)
    time.sleep(0.3)  # who watches is there, and may not watch yet
    assert not gone(engine, 0.0)
    parent.send_signal(how)
    parent.wait(20)
    assert gone(engine)


def test_who_watches_ends_with_the_engine(started):
    parent, engine, watcher = started("later")
    parent.stdin.write("now\n")
    parent.stdin.flush()
    assert gone(engine) and gone(watcher) and parent.poll() is None
