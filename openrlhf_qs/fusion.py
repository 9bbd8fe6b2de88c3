"""The fusion stage: from clicks and the SFT policy's responses to the weights of the composite reward.

Each part is scored on logged impressions, whose clicks the fusion plugin learns from, and on the SFT policy's own
responses, whose mean is the zero from which training measures. Both together give the deviation.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from openrlhf_qs.composite import CompositeReward, Part
from openrlhf_qs.files import read_json_lines, write_whole
from openrlhf_qs.generate import reference_log_ppl
from openrlhf_qs.offline import offline_batch
from openrlhf_qs.registry import FUSIONS, load_plugins, parse_options
from openrlhf_qs.response import format_response


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reward", default="garm,garm_sigma,ood,rules,relevance,diversity", help="parts, separated by commas"
    )
    parser.add_argument("--fusion", default="logistic_regression", help="fusion plugin; default: logistic_regression")
    parser.add_argument("--reference", required=True, help="folder of the SFT policy: the reference of GRPO")
    parser.add_argument("--reward_model", default="", help="folder of the reward model, where a part needs one")
    parser.add_argument(
        "--impressions", required=True, metavar="FILE", help="logged impressions, not used in training"
    )
    parser.add_argument("--responses", required=True, metavar="FILE", help="the SFT policy's: openrlhf-qs generate")
    parser.add_argument("--n_max", type=int, default=4000, help="impressions at most, the first ones; default 4000")
    parser.add_argument("--out", required=True, metavar="FILE", help="weights.json")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="registers plugins; repeatable"
    )
    parser.add_argument("--option", action="append", default=[], metavar="NAME.OPTION=VALUE", help="repeatable")


def run(args: argparse.Namespace) -> None:
    load_plugins(args.plugin)
    options = parse_options(args.option)
    names = args.reward.split(",")
    composite = CompositeReward(names, options)
    fusion = FUSIONS.create(args.fusion, **options.get(args.fusion, {}))
    scorer = None
    if "reward_model" in composite.needs():
        if not args.reward_model:
            raise ValueError(f"reward {args.reward} needs a reward model: give its folder as --reward_model")
        from openrlhf_qs.reward_model import SuggestionScorer

        scorer = SuggestionScorer(args.reward_model)

    responses = read_json_lines(args.responses)
    sampled = offline_batch(
        [row["conversation"] for row in responses],
        [row["response"] for row in responses],
        [row["log_ppl"] for row in responses],
        scorer,
    )
    impressions = read_json_lines(args.impressions)[: args.n_max]
    conversations = [row["conversation"] for row in impressions]
    shown = [format_response(row["suggestions"]) for row in impressions]
    logged = offline_batch(conversations, shown, reference_log_ppl(args.reference, conversations, shown), scorer)
    clicked = np.array([float(any(row["clicks"])) for row in impressions])

    parts = learn_parts(names, _stack(composite.score(sampled)), _stack(composite.score(logged)), clicked, fusion)
    _write(args.out, parts, args.fusion, len(impressions), len(responses))
    _show(parts)


def learn_parts(
    names: list[str], sampled: np.ndarray, logged: np.ndarray, clicked: np.ndarray, fusion
) -> dict[str, Part]:
    """The parts with weight, mean and deviation.

    Args:
        sampled: ``[m, n_rewards]``, raw parts of the SFT policy's responses.
        logged: ``[n, n_rewards]``, raw parts of logged impressions; ``clicked``: ``[n]``, 1 where one was clicked.
    """
    mean = sampled.mean(axis=0)
    std = np.concatenate((sampled, logged)).std(axis=0)
    for name, one in zip(names, std, strict=True):
        if one < 1e-6:
            raise ValueError(f"reward {name!r} is the same for every response: it cannot be weighed; leave it out")
    weights = fusion((logged - mean) / std, clicked, names)
    return {
        name: Part(weight=float(w), mean=float(m), std=float(s))
        for name, w, m, s in zip(names, weights, mean, std, strict=True)
    }


def _stack(raw: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.stack(list(raw.values()), dim=-1).double().numpy()


def _write(path: str, parts: dict[str, Part], fusion: str, n_impressions: int, n_responses: int) -> None:
    weights = {
        "rewards": {name: vars(part) for name, part in parts.items()},
        "fusion": fusion,
        "n_impressions": n_impressions,
        "n_responses": n_responses,
    }
    write_whole(Path(path), json.dumps(weights, indent=2))


def _show(parts: dict[str, Part]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "reward", "weight", "mean", "deviation", title="composite reward: weight * (reward - mean) / deviation"
    )
    for name, part in parts.items():
        table.add_row(name, f"{part.weight:.3f}", f"{part.mean:.3f}", f"{part.std:.3f}")
    Console().print(table)
