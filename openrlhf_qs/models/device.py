"""Where a model runs: the one place that asks torch what there is."""

from __future__ import annotations

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]  # auto: cuda where torch finds a GPU


def pick_device(asked: Device = "auto") -> Literal["cpu", "cuda"]:
    """``asked``, or what there is where that is ``auto``."""
    if asked != "auto":
        return asked
    return "cuda" if n_gpus() else "cpu"


def n_gpus() -> int:
    """How many GPUs torch finds. CUDA is not started by that, so that children of this process can start theirs."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_names() -> list[str]:
    """What the GPUs are called. It starts CUDA in this process."""
    import torch

    return [torch.cuda.get_device_name(n) for n in range(n_gpus())]
