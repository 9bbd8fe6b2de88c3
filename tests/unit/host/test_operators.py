"""The lock on a folder in which torch compiles: it ends with its process, and one process has it at a time."""

import multiprocessing
import signal
import time
from types import SimpleNamespace

import pytest
from torch.utils import file_baton

from openrlhf_qs.host.operators import lock_of_the_kernel

PATIENCE = 20  # seconds


@pytest.fixture
def baton():
    """torch's class with our lock in it; torch's own stays as it is."""
    module = SimpleNamespace(FileBaton=type("FileBaton", (file_baton.FileBaton,), {}))
    lock_of_the_kernel(module)
    return module.FileBaton


def hold(path, held, seconds):
    """In a process of its own."""
    module = SimpleNamespace(FileBaton=type("FileBaton", (file_baton.FileBaton,), {}))
    lock_of_the_kernel(module)
    lock = module.FileBaton(path)
    assert lock.try_acquire()
    held.set()
    time.sleep(seconds)
    lock.release()


def other_process(path, seconds):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(path, held, seconds))
    process.start()
    assert held.wait(PATIENCE)
    return process


def test_torchs_own_lock_is_lost_with_a_killed_process(tmp_path):
    """Why the patch is there; where this fails, torch mended it and the patch can go."""
    path = str(tmp_path / "lock")
    assert file_baton.FileBaton(path).try_acquire()  # a process that is killed now leaves the file
    assert not file_baton.FileBaton(path).try_acquire()


def test_a_killed_process_leaves_the_lock_to_the_next(baton, tmp_path):
    path = str(tmp_path / "lock")
    process = other_process(path, seconds=1000)
    assert not baton(path).try_acquire()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and (tmp_path / "lock").exists()
    lock = baton(path)
    assert lock.try_acquire()
    lock.release()
    assert not (tmp_path / "lock").exists()


def test_a_file_that_an_unpatched_run_left_holds_nobody(baton, tmp_path):
    (tmp_path / "lock").touch()
    baton(str(tmp_path / "lock")).wait()
    assert baton(str(tmp_path / "lock")).try_acquire()


def test_who_waits_goes_on_when_the_other_is_done(baton, tmp_path):
    path = str(tmp_path / "lock")
    process = other_process(path, seconds=0.5)
    lock = baton(path)
    assert not lock.try_acquire()
    lock.wait()
    process.join()
    assert process.exitcode == 0
    lock.wait()  # nobody has it
    assert lock.try_acquire()


def test_a_lock_on_a_file_that_was_removed_is_none(baton, tmp_path):
    path = tmp_path / "lock"
    first = baton(str(path))
    assert first.try_acquire()
    path.unlink()
    second = baton(str(path))
    assert second.try_acquire(), "the file is another one"
    assert not baton(str(path)).try_acquire()
