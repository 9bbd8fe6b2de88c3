"""Where a model runs: the one place that asks torch what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from openrlhf_qs.models.folder import read_config, weight_files

Device = Literal["auto", "cpu", "cuda"]  # auto: cuda where torch finds a GPU


def pick_device(asked: Device = "auto") -> Literal["cpu", "cuda"]:
    """``asked``, or what there is where that is ``auto``."""
    if asked != "auto":
        return asked
    return "cuda" if n_gpus() else "cpu"


LARGE = 100 << 20  # bytes of weights, above which a model is slow on a processor


def dtype_on_cpu(folder: str | Path):
    """The type in which a model only reads, on a processor: float32, but bfloat16 for a large one that is kept in that
    and where the processor has units for it (AMX): SmolLM2-135M takes a third of the time, 1.3 s for 8 texts of 192
    tokens in place of 3.9 s, with one thread."""
    import torch

    size = sum(file.stat().st_size for file in weight_files(folder))
    kept_in = read_config(folder) if size > LARGE else {}
    is_small = "bfloat16" not in (kept_in.get("dtype"), kept_in.get("torch_dtype"))
    return torch.float32 if is_small or not torch.cpu._is_amx_tile_supported() else torch.bfloat16


def n_gpus() -> int:
    """How many GPUs torch finds. CUDA is not started by that, so that children of this process can start theirs."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_names() -> list[str]:
    """What the GPUs are called. It starts CUDA in this process."""
    import torch

    return [torch.cuda.get_device_name(n) for n in range(n_gpus())]
