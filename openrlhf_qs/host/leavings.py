"""What a run leaves is in its folder, or gone: no users' texts in the home folder, in a log, or in shared memory."""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from openrlhf_qs.host.patches import patch
from openrlhf_qs.host.settings import Settings

CACHE = "HF_DATASETS_CACHE"


@contextmanager
def datasets_cache(folder: Path) -> Iterator[None]:
    """What ``datasets`` keeps of the rows that it read, in ``folder`` until the end, and not in the home folder for
    ever. Where the user names a place for it, it stays there."""
    if os.environ.get(CACHE):
        yield
        return
    cache = folder.absolute() / ".datasets"
    os.environ[CACHE] = str(cache)
    try:
        yield
    finally:
        del os.environ[CACHE]
        if os.environ.get("RANK", "0") == "0":
            shutil.rmtree(cache, ignore_errors=True)


@patch("datasets.fingerprint", "get_temporary_cache_files_directory", "")
def temporary_rows(module: ModuleType, settings: Settings) -> None:
    """What ``datasets`` makes of rows in memory, as tokens, it writes to a folder under /tmp. Without this a run that
    is killed leaves it there; here it is beside the other rows."""
    elsewhere = module.get_temporary_cache_files_directory

    def get_temporary_cache_files_directory() -> str:
        if not os.environ.get(CACHE):
            return elsewhere()
        os.makedirs(os.environ[CACHE], exist_ok=True)
        return os.environ[CACHE]

    module.get_temporary_cache_files_directory = get_temporary_cache_files_directory


@patch("openrlhf.utils.logging_utils", "init_logger", "name")
def samples_in_the_log(module: ModuleType, settings: Settings) -> None:
    """OpenRLHF logs a conversation with its response at every step. Without this users' texts stand in log.txt, which
    people send each other; TensorBoard's file in the run's folder has them still."""
    make = module.init_logger

    def init_logger(name: str) -> logging.Logger:
        logger = make(name)
        logger.addFilter(is_no_sample)
        return logger

    module.init_logger = init_logger


def is_no_sample(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Sample: ")


@patch("vllm.distributed.device_communicators.shm_broadcast", "MessageQueue.wait_until_ready", "self")
def shared_memory(module: ModuleType, settings: Settings) -> None:
    """vLLM's processes talk through shared memory with a name, and Ray ends its actors without asking them. Without
    this 160 MiB stay in /dev/shm after every run; here the name is taken back as soon as all have opened it."""
    whole = module.MessageQueue.wait_until_ready

    @functools.wraps(whole)
    def wait_until_ready(self) -> None:
        whole(self)
        buffer = getattr(self, "buffer", None)
        if buffer is not None and buffer.is_creator:
            buffer.shared_memory.unlink()
            buffer.is_creator = False  # it has nothing to take back any more

    module.MessageQueue.wait_until_ready = wait_until_ready
