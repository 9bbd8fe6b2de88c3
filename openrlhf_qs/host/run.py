"""Run one of OpenRLHF's own entry points, unmodified, with our plugins in it.

``openrlhf-qs sft|garm|dpo|grpo`` come here. Flags that begin with ``--qs.`` are ours, every other one is OpenRLHF's.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from openrlhf_qs.files.asked import without_secrets
from openrlhf_qs.files.printable import printable
from openrlhf_qs.form.task import read_task, write_task
from openrlhf_qs.host import checkpoints
from openrlhf_qs.host.arguments import ENTRY_POINTS, host_arguments
from openrlhf_qs.host.bootstrap import install
from openrlhf_qs.host.leavings import CACHE, datasets_cache
from openrlhf_qs.host.patches import TESTED
from openrlhf_qs.host.settings import Settings, add_stage_arguments
from openrlhf_qs.models import own_ray
from openrlhf_qs.models.device import Device
from openrlhf_qs.models.folder import make_usable

MAX_LETTERS = 1000  # of an error in one line
CPU_ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(os.cpu_count()),
    "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait slow the other processes down tenfold
}


def add_arguments(parser: argparse.ArgumentParser, stage: str) -> None:
    """Our flags of one training stage."""
    add_stage_arguments(parser, stage)
    parser.add_argument(
        "--qs.plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="file that registers plugins; may be repeated",
    )
    parser.add_argument(
        "--qs.option",
        action="append",
        default=[],
        metavar="NAME.OPTION=VALUE",
        help="option of a plugin, as in ood.threshold=3; may be repeated",
    )
    parser.add_argument(
        "--qs.device", choices=get_args(Device), default="auto", help="default: cuda if torch finds a GPU"
    )
    parser.add_argument(
        "--qs.untested_host_enable",
        action="store_true",
        help=f"go on with an OpenRLHF that is not {TESTED}, at your own risk",
    )
    parser.add_argument(
        "--qs.trust_remote_code_enable",
        action="store_true",
        help="run code from a model's folder or repository (auto_map in its config.json) that you have read",
    )
    parser.add_argument("--qs.check_enable", action="store_true", help="check flags, plugins and files, then stop")


def run(stage: str, settings: Settings, host_argv: Sequence[str]) -> None:
    """Hand over to OpenRLHF, with our plugins in every process. What fails there is a traceback and, at its end, one
    line with exit status 1: the recipes keep the former in ``log.txt`` and show the latter."""
    os.environ.update(settings.to_environment())
    if settings.device == "cpu":
        _cpu_environment()
    install()
    host = host_arguments(stage, host_argv)
    if host.logger.wandb.key:  # OpenRLHF prints all its flags, into log.txt too; wandb looks here first
        os.environ.setdefault("WANDB_API_KEY", host.logger.wandb.key)
        host_argv = without_secrets(host_argv)
    if host.ckpt.load_enable and os.environ.get("RANK", "0") == "0":  # the other ranks wait for this one to join them
        checkpoints.settle(Path(host.ckpt.path))
    if stage == "dpo":
        write_task(host.ckpt.output_dir, read_task(host.model.model_name_or_path))
    with datasets_cache(Path(host.ckpt.output_dir)):
        try:
            if stage == "grpo":
                task = read_task(host.actor.model_name_or_path)
                write_task(host.ckpt.output_dir, replace(task, max_len=task.room(host.data.max_len)))
                _start_ray(settings)
            elif "RANK" not in os.environ:
                _single_process_environment()
            sys.argv = [ENTRY_POINTS[stage], *host_argv]
            runpy.run_module(ENTRY_POINTS[stage], run_name="__main__", alter_sys=True)
        except Exception as error:
            traceback.print_exc()
            sys.exit(printable(f"openrlhf-qs {stage}: {in_one_line(error)}"))
    if os.environ.get("RANK", "0") == "0":
        make_usable(host.ckpt.output_dir)


def in_one_line(error: Exception) -> str:
    """What went wrong, of what type, and where: of an error in another process of Ray, of the one that caused it."""
    told = str(error) if hasattr(error, "cause") else "".join(traceback.format_tb(error.__traceback__))
    cause = getattr(error, "cause", None) or error
    what = " ".join(str(cause).split())
    what = what if len(what) <= MAX_LETTERS else f"{what[:MAX_LETTERS]}..."
    places = re.findall(r'File "(?:.*/site-packages/)?([^"]+)", line (\d+)', told)
    where = f" at {places[-1][0]}:{places[-1][1]}" if places else ""
    name = type(cause).__name__
    return f"{what} ({name}{where})" if what else f"{name}{where}"


def _cpu_environment() -> None:
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _single_process_environment() -> None:
    """What a launcher such as deepspeed or torchrun would have set for one process.

    Port 0 is one that torch chooses when it binds it, seconds later; nobody else has to know it.
    """
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")


def _start_ray(settings: Settings) -> None:
    """Ray with our hook in every worker. OpenRLHF starts Ray only where it is not running yet."""
    own_ray.prepare_environment(loopback=settings.device == "cpu")
    names = [*own_ray.SILENT_ENVIRONMENT, CACHE]
    if not own_ray.is_own():  # one of this process has its whole environment
        names += ["WANDB_API_KEY", "WANDB_DIR", "WANDB_MODE"]
    env_vars = {
        "TOKENIZERS_PARALLELISM": "true",
        "NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "WARN"),
        "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
        **settings.to_environment(),
    }
    resources = {}
    if settings.device == "cpu":
        names += [*CPU_ENVIRONMENT, *own_ray.LOOPBACK_ENVIRONMENT]
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # the recipes' is empty, and Ray then has no place for GPUs
        # OpenRLHF asks Ray for GPUs. These are places in its books, one for each model process.
        resources = {"num_cpus": 16, "num_gpus": 16} if own_ray.is_own() else {}
    env_vars |= {name: os.environ[name] for name in names if name in os.environ}
    own_ray.start(
        **resources,
        runtime_env={"worker_process_setup_hook": "openrlhf_qs.host.bootstrap.install", "env_vars": env_vars},
    )
