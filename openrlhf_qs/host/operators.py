"""DeepSpeed's operators, which torch compiles when a training first asks for them.

``python -m openrlhf_qs.host.operators`` compiles those of a host without a GPU ahead of that; the set-up calls it.
"""

from __future__ import annotations

import fcntl
import os
from types import ModuleType

from openrlhf_qs.host.patches import patch
from openrlhf_qs.host.settings import Settings

CPU_BUILDERS = ("FusedAdamBuilder", "ShareMemCommBuilder")


@patch("torch.utils.file_baton", "FileBaton.try_acquire", "self")
def lock_of_the_kernel(module: ModuleType, settings: Settings | None = None) -> None:
    """torch holds the folder of an operator with a file that it creates and removes. Without this a run that is killed
    meanwhile leaves that file, and every later training waits for it forever; the kernel's lock on the same file ends
    with its process."""

    def try_acquire(self) -> bool:
        while True:
            fd = os.open(self.lock_file_path, os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            if _is_at(fd, self.lock_file_path):
                self.fd = fd
                return True
            os.close(fd)  # who held it before removed it when done

    def wait(self) -> None:
        try:
            fd = os.open(self.lock_file_path, os.O_RDWR)
        except FileNotFoundError:
            return
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.close(fd)

    def release(self) -> None:
        os.remove(self.lock_file_path)  # before the lock is open to others: none can take a file that is not there
        os.close(self.fd)

    module.FileBaton.try_acquire = try_acquire
    module.FileBaton.wait = wait
    module.FileBaton.release = release


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def compile_for_cpu() -> None:
    """Compile what is not compiled yet. The errors are those of torch's compiler call."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch.utils.file_baton
    from deepspeed.accelerator import get_accelerator

    lock_of_the_kernel(torch.utils.file_baton)
    for name in CPU_BUILDERS:
        get_accelerator().create_op_builder(name).load()


if __name__ == "__main__":
    compile_for_cpu()
