"""Run one of OpenRLHF's own entry points, unmodified, with our plugins in it.

``openrlhf-qs sft|garm|grpo`` come here. Flags that begin with ``--qs.`` are ours, every other one is OpenRLHF's.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from openrlhf_qs.host.bootstrap import install
from openrlhf_qs.host.patches import TESTED, openrlhf_version
from openrlhf_qs.host.settings import Settings, add_stage_arguments, stage_settings
from openrlhf_qs.registry import JUDGES, REWARD_MODELS, SFT_DATASETS, check_options, load_plugins, parse_options
from openrlhf_qs.reward.monitors import Monitors, parse_thresholds

ENTRY_POINTS = {"sft": "openrlhf.cli.train_sft", "garm": "openrlhf.cli.train_rm", "grpo": "openrlhf.cli.train_ppo_ray"}

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
        help="as in ood.threshold=3; may be repeated",
    )
    parser.add_argument(
        "--qs.device", choices=["auto", "cpu", "cuda"], default="auto", help="default: cuda where torch finds a GPU"
    )
    parser.add_argument(
        "--qs.untested_host_enable",
        action="store_true",
        help=f"go on with an OpenRLHF that is not {TESTED}, at your risk",
    )
    parser.add_argument("--qs.check_enable", action="store_true", help="check flags, plugins and files, then stop")


def prepare(stage: str, args: argparse.Namespace, host_argv: Sequence[str]) -> Settings:
    """Check what can be checked before anything is loaded. ValueError in one line for what would fail later, or,
    worse, be ignored in silence."""
    ours = vars(args)
    unknown = [word for word in host_argv if word.startswith("--qs.")]
    if unknown:
        raise ValueError(f"unknown flags {' '.join(unknown)}: see openrlhf-qs {stage} --help")
    check_host_version(ours["qs.untested_host_enable"])
    return make_settings(stage, ours, host_argv)


def run(stage: str, settings: Settings, host_argv: Sequence[str]) -> None:
    """Hand over to OpenRLHF, with our plugins in every process."""
    os.environ.update(settings.to_environment())
    if settings.device == "cpu":
        _cpu_environment()
    install()
    if stage == "grpo":
        _drop_unfinished_checkpoint(_value(host_argv, "--ckpt.path"))
        _init_ray(settings)
    elif "RANK" not in os.environ:
        _single_process_environment()
    sys.argv = [ENTRY_POINTS[stage], *host_argv]
    runpy.run_module(ENTRY_POINTS[stage], run_name="__main__", alter_sys=True)


def check_host_version(untested_enable: bool) -> None:
    """ValueError where OpenRLHF is missing, or is a version that was not tested and not asked for."""
    version = openrlhf_version()
    if version not in TESTED and not untested_enable:
        raise ValueError(
            f"OpenRLHF {version} was not tested with this release: install openrlhf{TESTED}, "
            "or go on at your own risk with --qs.untested_host_enable"
        )


def make_settings(stage: str, ours: dict, host_argv: Sequence[str]) -> Settings:
    """The run's settings from our flags and OpenRLHF's."""
    files = tuple(str(Path(file).resolve()) for file in ours["qs.plugin"])  # Ray's workers run in another folder
    load_plugins(files)
    options = parse_options(ours["qs.option"])
    check_options(options)
    if "--ckpt.load_enable" in host_argv and _value(host_argv, "--ckpt.save_steps") in (None, "-1"):
        raise ValueError(
            "--ckpt.load_enable without --ckpt.save_steps resumes nothing: OpenRLHF then saves no checkpoint"
        )
    device = ours["qs.device"]
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings(device, stage_settings(stage, ours), files, options)
    for flag in ("--data.dataset", "--data.prompt_dataset"):
        for file in (_value(host_argv, flag) or "").split(","):
            if file.endswith((".jsonl", ".parquet")) and not Path(file).is_file():
                raise ValueError(f"{flag} {file} does not exist: run the data stage first")
    for flag in ("--model.model_name_or_path", "--actor.model_name_or_path"):
        _check_model(flag, _value(host_argv, flag))
    if stage == "sft" and settings.stage.sft_dataset:
        SFT_DATASETS.create(settings.stage.sft_dataset, **settings.options_of(settings.stage.sft_dataset))
    if stage == "garm":
        REWARD_MODELS.create(settings.stage.reward_model, **settings.options_of(settings.stage.reward_model))
    if stage == "grpo" and settings.stage.reward:
        _check_rewards(settings, host_argv)
    return settings


def _check_rewards(settings: Settings, host_argv: Sequence[str]) -> None:
    from openrlhf_qs.garm.reward_model import check_checkpoint
    from openrlhf_qs.host.composite import composite_of
    from openrlhf_qs.reward.composite import NEEDS

    grpo = settings.stage
    Monitors(parse_thresholds(grpo.monitor_threshold), grpo.monitor_window)
    if grpo.monitor_judge:
        JUDGES.create(grpo.monitor_judge, **settings.options_of(grpo.monitor_judge))
    needs = composite_of(settings).needs()
    model = _value(host_argv, "--reward.model_name_or_path")
    kl_coef = _value(host_argv, "--algo.kl.init_coef")
    if _value(host_argv, "--reward.remote_url") or _value(host_argv, "--train.agent_func_path"):
        raise ValueError(
            "--qs.reward and --reward.remote_url (or --train.agent_func_path) both give the reward: drop one"
        )
    if "--algo.dynamic_filtering_enable" in host_argv:
        raise ValueError(
            "--algo.dynamic_filtering_enable drops prompts by scores that it takes from a reward function, before our "
            'rewards are computed: give --qs.reward "" and openrlhf_qs/reward/remote.py as --reward.remote_url'
        )
    if "reward_model" in needs:
        if model is None:
            raise ValueError(f"reward {','.join(grpo.reward)} needs {NEEDS['reward_model']}")
        check_checkpoint(model)
        critic = _value(host_argv, "--critic.model_name_or_path")
        if _value(host_argv, "--algo.advantage.estimator") in (None, "gae") and critic is None:
            raise ValueError(
                "--algo.advantage.estimator gae, OpenRLHF's default, starts its critic from the reward model, whose "
                "head is no critic's: name the SFT policy as --critic.model_name_or_path, or take group_norm (GRPO)"
            )
    if "reference" in needs and kl_coef is not None and float(kl_coef) <= 0:
        raise ValueError(f"reward {','.join(grpo.reward)} needs {NEEDS['reference']}, found {kl_coef}")
    if _value(host_argv, "--data.label_key") is None:
        raise ValueError("--data.label_key label is missing: the rewards read the conversation from it")


def _check_model(flag: str, path: str | None) -> None:
    if path and Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"{flag} {path}: no config.json in it, so this is no model; give a Hugging Face folder or name"
        )
    if path and path.startswith((".", "/")) and not Path(path).exists():
        raise ValueError(f"{flag} {path} does not exist")


def _value(argv: Sequence[str], flag: str) -> str | None:
    """What ``argv`` gives for ``flag``, the last one where it stands twice; None where it does not stand there."""
    value = None
    for index, word in enumerate(argv):
        if word == flag and index + 1 < len(argv):
            value = argv[index + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def _drop_unfinished_checkpoint(path: str | None) -> None:
    """Remove the folder of a checkpoint that is not whole: DeepSpeed writes ``latest`` last, and without it OpenRLHF
    stops with ``KeyError: episode``."""
    folder = Path(path or "") / "_actor"
    if path and folder.is_dir() and not (folder / "latest").is_file():
        print(f"{folder} holds no finished checkpoint: starting from the beginning")
        shutil.rmtree(folder)


def _cpu_environment() -> None:
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _single_process_environment() -> None:
    """What a launcher such as deepspeed or torchrun would have set for one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def _init_ray(settings: Settings) -> None:
    """Ray with our hook in every worker. OpenRLHF starts Ray only where it is not running yet."""
    import ray

    env_vars = {
        "TOKENIZERS_PARALLELISM": "true",
        "NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "WARN"),
        "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
        **settings.to_environment(),
    }
    resources = {}
    if settings.device == "cpu":
        env_vars |= {name: os.environ[name] for name in CPU_ENVIRONMENT}
        # OpenRLHF asks Ray for GPUs. These are places in its books, one for each model process.
        resources = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": 16, "num_gpus": 16}
    ray.init(
        **resources,
        include_dashboard=False,
        runtime_env={"worker_process_setup_hook": "openrlhf_qs.host.bootstrap.install", "env_vars": env_vars},
    )
