"""A Ray of a run's own, where ``RAY_ADDRESS`` names no cluster: private, and gone with the run.

Without an address Ray joins whatever Ray this machine last started, whoever's that is; it listens on every interface,
asks for no password, and keeps what its workers printed under ``/tmp/ray``.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

# One machine, one user: what listens does so on the loopback interface.
LOOPBACK_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's way to 127.0.0.1 as the address of a node
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_HOST_IP": "127.0.0.1",
}
# What would be told to others, and written to the home folder.
SILENT_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
PREFIX = "qs-ray-"  # of a folder: with the number of the process that it belongs to
SOCKET = "/session_2026-11-26_07-40-17_093925_1234567/sockets/plasma_store"  # in it: the longest of Ray's
MAX_FOLDER = 107 - len(SOCKET)  # letters of the folder: a path to a socket has room for 107


def is_own() -> bool:
    """Whether a run starts its own Ray: no cluster is named."""
    return not os.environ.get("RAY_ADDRESS")


def prepare_environment(loopback: bool) -> None:
    """The environment of a Ray that this process will start, and of what that starts; a cluster has its own.

    Args:
        loopback: whether nothing shall listen elsewhere: on one machine, without NCCL.
    """
    for name, value in SILENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not is_own():
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # this run's; nothing is written to the home folder
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # a process for each place in its books, for none
    if loopback:
        os.environ.update(LOOPBACK_ENVIRONMENT)


def start(**options: Any) -> None:
    """``ray.init`` with ``options``: a Ray of this process's own, or the cluster that ``RAY_ADDRESS`` names.

    ValueError in one line where it does not start, as on a machine so busy that Ray's own 30 seconds are not enough.
    """
    import ray

    if is_own():
        remove_left()
        where = os.environ.get("RAY_TMPDIR") or "/tmp"
        folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=where)
        if len(folder) > MAX_FOLDER:
            os.rmdir(folder)
            raise ValueError(
                f"RAY_TMPDIR={where}: the paths of Ray's sockets in it would be too long; give a folder "
                f"whose path has {len(folder) - MAX_FOLDER} letters fewer"
            )
        atexit.register(_end, folder)
        options |= {"address": "local", "_temp_dir": folder}
    try:
        ray.init(include_dashboard=False, **options)
    except Exception as error:  # of whatever type: Ray's own are no narrower
        reason = " ".join(str(error).split()) or type(error).__name__
        wrong = "the machine may be too busy" if is_own() else f"RAY_ADDRESS={os.environ['RAY_ADDRESS']} names it"
        raise ValueError(f"Ray did not start: {reason} ({wrong}); call again to continue from there") from error


def remove_left() -> None:
    """Remove the folders of processes of this user that were killed."""
    for folder in Path(os.environ.get("RAY_TMPDIR") or "/tmp").glob(f"{PREFIX}*"):
        number = folder.name.removeprefix(PREFIX).partition("-")[0]
        try:
            if number.isdecimal() and folder.stat().st_uid == os.getuid() and not _is_alive(int(number)):
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:  # another call removes it too
            continue


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end(folder: str) -> None:
    import ray

    ray.shutdown()
    for _ in range(10):  # its processes end one after the other, and write until then
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.2)
