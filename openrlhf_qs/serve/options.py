"""The flags of what is shown, for ``serve`` and ``suggest``, and what they make."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from openrlhf_qs.form.task import RESPONSE_TOKENS
from openrlhf_qs.registry import FILTERS, add_plugin_arguments, check_options, load_plugins, parse_options
from openrlhf_qs.serve.arms import Arm, check_shares
from openrlhf_qs.serve.suggester import BatchedScorer, Suggester

TEMPERATURE = 0.7  # samples that differ to choose from: docs/EVIDENCE.md
FILTER = "asked_before,users_language"


def add_suggester_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reward_model", default="", metavar="DIR", help="reward model, as written by recipes/garm.sh; default: none"
    )
    parser.add_argument("--n_samples", type=int, default=4, help="responses to choose from; default 4")
    parser.add_argument(
        "--temperature",
        type=float,
        default=None,
        help=f"sampling temperature; default: {TEMPERATURE} if the best of several samples is chosen; for a "
        "single sample, the one that evaluate found best (in the policy's generation_config.json), or 1",
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=RESPONSE_TOKENS, help="maximum tokens per response; default 64"
    )
    parser.add_argument(
        "--take",
        choices=("suggestions", "responses"),
        default="suggestions",
        help="the best suggestions of all responses (default), or the best response as it was written",
    )
    parser.add_argument(
        "--min_click_chance",
        type=float,
        default=0.0,
        help="show nothing if the reward model gives a lower chance than this of one or more clicks; default 0",
    )
    parser.add_argument(
        "--filter",
        default=FILTER,
        help=f"filter plugins, separated by commas, or none; default {FILTER}",
        metavar="NAMES",
    )
    add_plugin_arguments(parser, "filters", "of a filter")
    parser.add_argument("--tensor_parallel_size", type=int, default=1, help="GPUs per policy; default 1")
    parser.add_argument(
        "--gpu_memory_utilization",
        type=float,
        default=0.8,
        help="share of a GPU's memory that all policies take together; the reward model needs some of the rest; "
        "default 0.8",
    )
    parser.add_argument("--seed", type=int, default=0)


def make_arms(args: argparse.Namespace, arms: Sequence[tuple[str, str, float]]) -> list[Arm]:
    """Arms of name, folder and share, their policies loaded. ValueError before anything is loaded where a flag is
    wrong; to be called where an event loop runs.

    Args:
        args: of :func:`add_suggester_arguments`, and perhaps ``explore`` and ``explore_by``.
    """
    check_shares([(name, share) for name, _, share in arms])
    load_plugins(args.plugin)
    options = parse_options(args.option)
    check_options(options)
    names = [] if args.filter == "none" else args.filter.split(",")
    filters = {name: FILTERS.create(name, **options.get(name, {})) for name in names}
    if args.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens {args.max_new_tokens}: give 1 or more")
    if not 0 < args.gpu_memory_utilization <= 1:
        raise ValueError(f"--gpu_memory_utilization {args.gpu_memory_utilization:g}: give more than 0, up to 1")
    from openrlhf_qs.serve.policy import Policy

    scorer = None
    if args.reward_model:
        from openrlhf_qs.garm.eval import load_on_device

        scorer = BatchedScorer(load_on_device(args.reward_model))

    def suggester(policy) -> Suggester:
        return Suggester(
            policy,
            filters,
            scorer,
            args.n_samples,
            args.take,
            args.min_click_chance,
            getattr(args, "explore", 0.0),
            getattr(args, "explore_by", "place"),
        )

    suggester(None)  # what is wrong with the flags is said before the engines are loaded, which takes long
    made = []
    for name, folder, share in arms:
        policy = Policy(
            folder,
            _temperature(args, folder),
            args.max_new_tokens,
            args.seed,
            args.tensor_parallel_size,
            args.gpu_memory_utilization / len(arms),
        )
        made.append(Arm(name, share, suggester(policy)))
    return made


def _temperature(args: argparse.Namespace, folder: str) -> float:
    if args.temperature is not None or args.n_samples > 1:
        return TEMPERATURE if args.temperature is None else args.temperature
    file = Path(folder) / "generation_config.json"
    return json.loads(file.read_text(encoding="utf-8")).get("temperature", 1.0) if file.is_file() else 1.0


def name_of(folder: str) -> str:
    """What a policy is called in the log where nobody says: run and stage, as in ``default/grpo``."""
    return "/".join(Path(folder).absolute().parts[-2:]) if Path(folder).is_dir() else folder
