"""A stand-in for flash-attn where it is not installed: ``openrlhf.models.ring_attn_utils`` imports it at import time.

Without it no module of OpenRLHF can be imported on a host without flash-attn (which needs CUDA). The stand-in is
visible only while that one module is imported: transformers and vLLM look for flash-attn too, and must not find it.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

IMPORTER = "openrlhf.models.ring_attn_utils"
IMPORTED = {
    "flash_attn": (),
    "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
    "flash_attn.utils": (),
    "flash_attn.utils.distributed": ("all_gather",),
}


def install() -> None:
    """Make ``IMPORTER`` importable. Nothing happens where flash-attn is installed."""
    if importlib.util.find_spec("flash_attn") is None:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != IMPORTER:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def exec_module(self, module: ModuleType) -> None:
        for name, functions in IMPORTED.items():
            stand_in = ModuleType(name)
            for function in functions:
                setattr(stand_in, function, _missing(f"{name}.{function}"))
            sys.modules[name] = stand_in
        try:
            self.loader.exec_module(module)
        finally:
            for name in IMPORTED:
                del sys.modules[name]


def _missing(name: str):
    def call(*args: object, **kwargs: object) -> None:
        raise RuntimeError(f"{name} was called, but flash-attn is not installed: packing and ring attention need it")

    return call
