"""One training on several cores: a process each, which share every batch out, as data parallelism does on GPUs.

A small model gains nothing from threads: their meetings cost more than what they do in between. Rank 0 is the process
that was called. It starts the others, and they end with it, in whatever way it ends; where one of them fails, it does.

    python -m openrlhf_qs.host.ranks STAGE FLAGS...      one of the others
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from openrlhf_qs.models.outlived import end_with_this_process
from openrlhf_qs.models.own_ray import LOOPBACK_ENVIRONMENT

COMMAND = [sys.executable, "-m", "openrlhf_qs.host.ranks"]
LAST_WORDS_S = 2.0  # for one that fails to say why, before what it causes elsewhere is told


@contextmanager
def ranks(n: int, stage: str, host_argv: Sequence[str]) -> Iterator[None]:
    """Make this process rank 0 of ``n`` on this machine, of which the others run the same stage with the same flags.

    They find each other at a store of this process, which listens on the loopback interface at a port of the system's
    choice: none is looked for first and taken by another program meanwhile.
    """
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if n == 1:
        yield  # torch makes the store
        return
    from openrlhf_qs.host.cpu import loopback_store

    store = loopback_store("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ.update(
        LOOPBACK_ENVIRONMENT,
        MASTER_PORT=str(store.port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # the store is there: no rank makes one
        TORCHELASTIC_RESTART_COUNT="0",
    )
    others = [
        subprocess.Popen(
            [*COMMAND, stage, *host_argv],
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
        )
        for rank in range(1, n)
    ]
    for other in others:
        end_with_this_process(other.pid)
        threading.Thread(target=_end_where_it_fails, args=(other,), daemon=True).start()
    try:
        yield
    except BaseException:
        for other in others:  # what happened here may be what became of a failure there, which ends this process
            with suppress(subprocess.TimeoutExpired):
                other.wait(LAST_WORDS_S)
        raise
    for other in others:
        other.wait()


def _end_where_it_fails(other: subprocess.Popen) -> None:
    """End this process, with the status of a failure, as soon as that one has: the rest would wait for it for half an
    hour. What went wrong, it has said."""
    if other.wait() != 0:
        os._exit(1)


def main() -> None:
    from openrlhf_qs.host.run import run
    from openrlhf_qs.host.settings import Settings

    stage, *host_argv = sys.argv[1:]
    run(stage, Settings.from_environment(), host_argv)


if __name__ == "__main__":
    main()
