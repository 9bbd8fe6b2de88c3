"""What a training stage refuses before anything is loaded: what OpenRLHF would ignore in silence, or fail on late.

In: our flags, and OpenRLHF's as its own parser reads them (:mod:`openrlhf_qs.host.arguments`). Out: the settings of
the run, or a ValueError in one line.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from openrlhf_qs.files.whole import json_lines
from openrlhf_qs.host import remote_code
from openrlhf_qs.host.arguments import host_arguments
from openrlhf_qs.host.patches import TESTED, openrlhf_version
from openrlhf_qs.host.seams import head_and_objective
from openrlhf_qs.host.settings import Settings, absolute, stage_settings
from openrlhf_qs.models.device import pick_device
from openrlhf_qs.models.folder import check_model
from openrlhf_qs.registry import JUDGES, SFT_DATASETS, check_options, load_plugins, parse_options
from openrlhf_qs.reward.credit import CREDITED_ESTIMATORS
from openrlhf_qs.reward.monitors import Monitors, parse_thresholds


def prepare(stage: str, args: argparse.Namespace, host_argv: Sequence[str]) -> Settings:
    """The settings of a run. ValueError in one line for what would fail later, or, worse, be ignored in silence.

    Args:
        args: our flags, parsed.
        host_argv: all others, which OpenRLHF gets as they are.
    """
    ours = vars(args)
    unknown = [word for word in host_argv if word.startswith("--qs.")]
    if unknown:
        raise ValueError(f"unknown flags {' '.join(unknown)}: see openrlhf-qs {stage} --help")
    check_host_version(ours["qs.untested_host_enable"])
    files = tuple(map(absolute, ours["qs.plugin"]))
    load_plugins(files)
    options = parse_options(ours["qs.option"])
    check_options(options)
    device = pick_device(ours["qs.device"])
    settings = Settings(device, stage_settings(stage, ours), files, options, ours["qs.trust_remote_code_enable"])
    host_args = host_arguments(stage, host_argv)
    check_checkpoints(host_args)
    {"sft": check_sft, "garm": check_garm, "dpo": check_dpo, "grpo": check_grpo}[stage](settings, host_args)
    check_given(stage, host_args)
    return settings


def check_host_version(untested_enable: bool) -> None:
    """ValueError where OpenRLHF is missing, or is a version that was not tested and not asked for."""
    version = openrlhf_version()
    if version not in TESTED and not untested_enable:
        raise ValueError(
            f"OpenRLHF {version} was not tested with this release: install openrlhf{TESTED}, "
            "or continue at your own risk with --qs.untested_host_enable"
        )


def check_given(stage: str, args: SimpleNamespace) -> None:
    """ValueError where there is no model or no data: OpenRLHF would ask the hub for a model of the name None."""
    model, data = ("actor", "prompt_dataset") if stage == "grpo" else ("model", "dataset")
    if not getattr(args, model).model_name_or_path:
        raise ValueError(f"--{model}.model_name_or_path is missing: give a Hugging Face folder or name")
    if not getattr(args.data, data):
        raise ValueError(f"--data.{data} is missing: give a file of the data stage, or a data set of the hub")


def check_checkpoints(args: SimpleNamespace) -> None:
    if args.ckpt.load_enable and args.ckpt.save_steps == -1:
        raise ValueError(
            "--ckpt.load_enable without --ckpt.save_steps resumes nothing: OpenRLHF then saves no checkpoint"
        )


def check_sft(settings: Settings, args: SimpleNamespace) -> None:
    _check_data("--data.dataset", args.data.dataset)
    _check_model("--model.model_name_or_path", args.model.model_name_or_path, settings.trust_remote_code)
    name = settings.stage.sft_dataset
    if name:
        SFT_DATASETS.create(name, **settings.options_of(name))


def check_garm(settings: Settings, args: SimpleNamespace) -> None:
    _check_data("--data.dataset", args.data.dataset)
    _check_model("--model.model_name_or_path", args.model.model_name_or_path, settings.trust_remote_code)
    head_and_objective(settings)
    if not 0 <= settings.stage.dropout < 1:
        raise ValueError(f"--qs.dropout {settings.stage.dropout}: give a share of 0 or more, below 1; 0.1 is usual")


def check_dpo(settings: Settings, args: SimpleNamespace) -> None:
    _check_data("--data.dataset", args.data.dataset)
    for model in ("model", "ref"):
        _check_model(
            f"--{model}.model_name_or_path", getattr(args, model).model_name_or_path, settings.trust_remote_code
        )
    if args.data.prompt_key is None or not args.data.apply_chat_template:
        raise ValueError(
            "--data.prompt_key prompt --data.apply_chat_template are missing: the prompt and its two answers are "
            "separate fields in a row of `openrlhf-qs rank best --pairs`"
        )


def check_grpo(settings: Settings, args: SimpleNamespace) -> None:
    _check_data("--data.prompt_dataset", args.data.prompt_dataset)
    for model in ("actor", "critic", "reward"):
        _check_model(
            f"--{model}.model_name_or_path", getattr(args, model).model_name_or_path, settings.trust_remote_code
        )
    _check_model("--qs.reference", settings.stage.reference, settings.trust_remote_code)
    if settings.stage.reward:
        check_rewards(settings, args)


def check_rewards(settings: Settings, args: SimpleNamespace) -> None:
    """Whether the parts of the reward get all that they need, and are what OpenRLHF trains on."""
    from openrlhf_qs.garm.reward_model import check_checkpoint, load_tokenizer
    from openrlhf_qs.host.composite import composite_of
    from openrlhf_qs.reward.composite import NEEDS

    grpo = settings.stage
    Monitors(parse_thresholds(grpo.monitor_threshold), grpo.monitor_window)
    if grpo.monitor_judge:
        JUDGES.create(grpo.monitor_judge, **settings.options_of(grpo.monitor_judge))
    composite = composite_of(settings)
    needs = composite.needs()
    if args.reward.remote_url or args.train.agent_func_path:
        raise ValueError(
            "--qs.reward and --reward.remote_url (or --train.agent_func_path) both give the reward: remove one"
        )
    if args.algo.dynamic_filtering_enable:
        raise ValueError(
            "--algo.dynamic_filtering_enable drops prompts by scores that it takes from a reward function, before our "
            'rewards are computed: give --qs.reward "" and openrlhf_qs/reward/remote.py as --reward.remote_url'
        )
    if grpo.credit == "suggestion" and args.algo.advantage.estimator not in CREDITED_ESTIMATORS:
        raise ValueError(
            f"--qs.credit suggestion with --algo.advantage.estimator {args.algo.advantage.estimator}: "
            f"give one of {', '.join(CREDITED_ESTIMATORS)}, or --qs.credit response"
        )
    if composite.normalisation != "sft" and getattr(composite.rewards.get("ood"), "form", "") == "constraint":
        raise ValueError(
            f"ood.form = constraint changes how much ood counts, and normalisation {composite.normalisation} divides "
            "that out again: learn the weights with NORMALISATION=sft, or use another form"
        )
    if grpo.credit == "suggestion":
        for flag in ("overlong_buffer_len", "stop_properly_penalty_coef"):
            if getattr(args.reward, flag) is not None:
                raise ValueError(
                    f"--reward.{flag} changes the reward of a response after its suggestions got theirs: give "
                    "--qs.credit response, or leave it out, since a response that is cut off is malformed anyway"
                )
    if "reward_model" in needs:
        if args.reward.model_name_or_path is None:
            raise ValueError(f"reward {','.join(grpo.reward)} needs {NEEDS['reward_model']}")
        check_checkpoint(args.reward.model_name_or_path)
        load_tokenizer(args.reward.model_name_or_path)
        if args.algo.advantage.estimator == "gae" and args.critic.model_name_or_path is None:
            raise ValueError(
                "--algo.advantage.estimator gae, OpenRLHF's default, starts its critic from the reward model, whose "
                "head is not a critic's: name the SFT policy as --critic.model_name_or_path, or use group_norm (GRPO)"
            )
    if "reference" in needs and args.algo.kl.init_coef <= 0:
        raise ValueError(f"reward {','.join(grpo.reward)} needs {NEEDS['reference']}, found {args.algo.kl.init_coef}")
    if grpo.weights and "reference" in needs and args.rollout.temperature != composite.temperature:
        raise ValueError(
            f"--rollout.temperature {args.rollout.temperature:g}, but {grpo.weights} was made for "
            f"{composite.temperature:g}: OpenRLHF evaluates the reference at that temperature too, so its "
            "log-perplexity has another scale; run fusion again with the GRPO_TEMPERATURE used here"
        )
    if args.data.label_key is None:
        raise ValueError("--data.label_key label is missing: the rewards read the conversation from it")


def _check_data(flag: str, files: str | None) -> None:
    for file in (files or "").split(","):
        if file.endswith((".jsonl", ".parquet")) and not Path(file).is_file():
            raise ValueError(f"{flag} {file} does not exist: run the data stage first")
        if file.endswith(".jsonl") and not sum(1 for _ in json_lines(file)):
            raise ValueError(f"{flag} {file} has no rows: run the data stage again, on a log with more rows")


def _check_model(flag: str, path: str | None, trust_remote_code: bool) -> None:
    if not path:
        return
    if not trust_remote_code:
        for file in map(Path(path).joinpath, remote_code.CONFIGS):
            if remote_code.named_in(file):
                raise ValueError(f"{flag} {path}: {file.name} names {remote_code.REFUSAL}")
    check_model(path, flag)
