"""No engine outlives the process that started it: vLLM's EngineCore does not notice that its parent was killed.

A process of its own waits for the first end of either, without asking again and again. Where the parent ends first,
in whatever way, ``kill -9`` too, it kills the engine; vLLM's workers notice the end of their engine by themselves.

    python -m openrlhf_qs.models.outlived PARENT ENGINE

Standard library alone: it must be small.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def children_end_with_this_process(every_s: float = 0.1) -> Iterator[None]:
    """Have what ``multiprocessing`` starts meanwhile killed when this process ends, from the moment that it is there:
    an engine takes long to load."""
    known, loaded = set(multiprocessing.active_children()), threading.Event()

    def look() -> None:
        for child in set(multiprocessing.active_children()) - known:
            known.add(child)
            end_with_this_process(child.pid)

    def look_again() -> None:
        while not loaded.wait(every_s):
            look()

    looking = threading.Thread(target=look_again, daemon=True)
    looking.start()
    try:
        yield
    finally:
        loaded.set()
        looking.join()
        look()


def end_with_this_process(engine: int) -> None:
    """Have the process ``engine`` killed when this process ends."""
    command = [sys.executable, "-m", "openrlhf_qs.models.outlived", str(os.getpid()), str(engine)]
    # A session of its own: what ends this one by a signal to all, as Ctrl-C does, leaves time for an orderly end.
    subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def main(argv: Sequence[str] | None = None) -> None:
    parent, engine = (int(word) for word in (sys.argv[1:] if argv is None else argv))
    try:  # descriptors: the number of a process that has ended may be given anew
        of_engine = os.pidfd_open(engine)
    except ProcessLookupError:
        return
    try:
        of_parent = os.pidfd_open(parent)
    except ProcessLookupError:
        of_parent = None
    ended = select.select([of_engine, of_parent], [], [])[0] if of_parent is not None else []
    if of_engine not in ended:
        signal.pidfd_send_signal(of_engine, signal.SIGKILL)


if __name__ == "__main__":
    main()
