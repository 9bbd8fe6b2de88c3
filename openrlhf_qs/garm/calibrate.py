"""One temperature for a trained reward model, fitted on pairs that it was not trained on, and written into its head.

Training longer makes a reward model surer, not better calibrated. Multiplying all its means by one number, as the
temperature of Guo et al. (2017) does, changes no order and no standard deviation, only how sure the probabilities are.
A head is linear in its means, so the number goes into its weights: whoever loads the checkpoint needs to know nothing.

A hundred pairs hardly determine the number. So its logarithm has a prior of mean 0, and the fewer the pairs, the
nearer the number stays to 1 (:func:`drawn_to_one`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.table import Table
from scipy.optimize import minimize_scalar

from openrlhf_qs.files.printable import from_here, print_table
from openrlhf_qs.garm.calibration import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
    preference_probability,
)
from openrlhf_qs.garm.edit_head import edit_head, scale_means
from openrlhf_qs.garm.eval import Scored, load_on_device, read_pairs, score_pairs
from openrlhf_qs.registry import load_plugins
from openrlhf_qs.statistics.intervals import SIGNIFICANT_Z, Z_95, cluster_bootstrap

MIN_CLUSTERS = 20  # conversations, or users where they come back, below which no temperature is fitted
PRIOR_STD = 1.0  # of the temperature's logarithm; docs/GARM.md has what it does with few pairs
UNCERTAIN = 2.0  # factor of its interval, above which what the prior did is said
MAX_SCALE = 50.0  # and its inverse: beyond, something else than the temperature is wrong


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "preferences", metavar="FILE.jsonl", help="preferences used in neither training nor evaluation"
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="reward model; its means are rescaled in place")
    parser.add_argument(
        "--on",
        choices=("soft", "significant"),
        default="soft",
        help="fit to the labels of all pairs, or to the outcomes of those with |z| > 1.96; default soft",
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="file that registers heads; repeatable"
    )


def run(args: argparse.Namespace) -> None:
    load_plugins(args.plugin)
    (rows, pairs), scorer = read_pairs(args.preferences), load_on_device(args.model)
    scored, link = score_pairs(rows, pairs, scorer), scorer.link
    print(_accuracy(scored, link))
    if args.on == "significant":
        scored = significant_outcomes(scored)
    n_clusters = scored.clusters.n_clusters
    if n_clusters < MIN_CLUSTERS:
        print(f"{n_clusters} conversations or users are too few to fit a temperature: it is left at 1")
        return
    scale = fit_scale(scored, link)
    if scale is None:
        print(
            f"the best factor of the means is beyond 1/{MAX_SCALE:g} to {MAX_SCALE:g}: on these {len(scored.label)} "
            "pairs the model is no better than a coin, or never wrong; it is left at 1, more pairs would tell"
        )
        return
    factor = scale_uncertainty(scored, link, scale)
    if factor > UNCERTAIN:
        print(
            f"the pairs of {n_clusters} conversations or users do not determine the temperature: on them alone it is "
            f"{scale:.3f}, 95 % interval {scale / factor:.3g} to {scale * factor:.3g}; it is drawn towards 1"
        )
    scale, factor = drawn_to_one(scale, factor)
    rescale_means(args.model, scale)
    table = Table("", "before", "after", title=f"temperature of {from_here(args.model)}")
    sides = [_probability(scored, link, one) for one in (1.0, scale)]
    table.add_row("means times", "1", f"{scale:.3f} ({scale / factor:.3f} to {scale * factor:.3f})")
    for name, figure in (("NLL", negative_log_likelihood), ("ECE", expected_calibration_error)):
        table.add_row(
            f"{name}, {len(scored.label):,} pairs",
            *(f"{figure(p, scored.weight, label=scored.label):.4f}" for p in sides),
        )
    print_table(table)


def _accuracy(scored: Scored, link: str) -> str:
    """How often the model prefers the better suggestion of pairs that it was not trained on; no temperature changes
    that."""
    probability = _probability(scored, link, 1.0)

    def statistic(weight: np.ndarray) -> list[float]:
        return [accuracy(probability, weight, scored.label)]

    [value] = statistic(scored.weight)
    text = f"accuracy on {len(scored.label):,} pairs that it was not trained on: {value:.1%}"
    if scored.clusters.n_clusters < MIN_CLUSTERS:
        return text
    [(low, high)] = cluster_bootstrap(statistic, scored.weight, scored.clusters, 300)
    return f"{text} ({low:.1%} to {high:.1%})"


def significant_outcomes(scored: Scored) -> Scored:
    """The pairs with ``|z| > 1.96``, whose outcome is taken as known: label 1. ValueError where there is none."""
    keep = scored.z > SIGNIFICANT_Z
    if not keep.any():
        raise ValueError(
            f"no pair with |z| > {SIGNIFICANT_Z}: the file has no column z, or too few counts; use --on soft"
        )
    impression = [one for one, kept in zip(scored.impression, keep, strict=True) if kept]
    columns = {name: getattr(scored, name)[keep] for name in Scored._fields if name not in ("impression", "label")}
    return Scored(**columns, impression=impression, label=np.ones(keep.sum()))


def fit_scale(scored: Scored, link: str) -> float | None:
    """The factor of the means with the least negative log-likelihood; None where it is out of bounds."""

    def nll(log_scale: float) -> float:
        return negative_log_likelihood(_probability(scored, link, np.exp(log_scale)), scored.weight, scored.label)

    limit = np.log(MAX_SCALE)
    best = minimize_scalar(nll, bounds=(-limit, limit), method="bounded").x
    return None if abs(best) > 0.99 * limit else float(np.exp(best))


def scale_uncertainty(scored: Scored, link: str, scale: float) -> float:
    """The factor by which the upper end of the 95 % interval of ``scale`` is above it, and the lower end below.

    The sandwich estimate on the logarithm, with the gradients of the pairs of one conversation, or user, added up
    first.
    """

    def nll(log_scale: float) -> np.ndarray:
        probability = _probability(scored, link, np.exp(log_scale)).clip(1e-12, 1 - 1e-12)
        return -scored.weight * (scored.label * np.log(probability) + (1 - scored.label) * np.log1p(-probability))

    step, at = 1e-3, np.log(scale)
    below, here, above = (nll(at + move) for move in (-step, 0.0, step))
    curvature = (above - 2 * here + below).sum() / step**2
    meat = scored.clusters.squares(((above - below) / (2 * step))[:, None])[0, 0]
    if curvature <= 0:
        return np.inf
    return float(np.exp(min(Z_95 * np.sqrt(meat) / curvature, 50.0)))


def drawn_to_one(scale: float, factor: float) -> tuple[float, float]:
    """A temperature and the factor of its interval, as :func:`scale_uncertainty` gives it, to those under the prior: a
    normal one of its logarithm, with mean 0 and standard deviation ``PRIOR_STD``."""
    std = np.log(factor) / Z_95
    share = 1 / (1 + (std / PRIOR_STD) ** 2)  # of the logarithm's precision, that the pairs contribute
    return float(scale**share), float(np.exp(Z_95 * std * np.sqrt(share)))


def rescale_means(path: str | Path, scale: float) -> None:
    """Multiply the means of the checkpoint in the folder ``path``; ``mean_scale`` in its config keeps the product."""
    from openrlhf_qs.garm.reward_model import check_checkpoint
    from openrlhf_qs.registry import REWARD_MODELS

    mark = check_checkpoint(path)
    head = REWARD_MODELS.create(mark["name"], **mark["options"])
    means = head.mean_outputs
    if means is None:
        raise ValueError(
            f"{path}: reward model {mark['name']!r} does not say which of its outputs are means: give its class "
            "mean_outputs, a slice of them, or leave it as it is (CALIBRATE=no in the recipes)"
        )

    def rescaled(config, weight, bias, others):
        scale_means(config, weight, bias, others, means, scale)
        return weight, bias

    edit_head(path, rescaled)


def _probability(scored: Scored, link: str, scale: float) -> np.ndarray:
    std = scored.std / np.sqrt(2)
    link = "bradley_terry" if link == "click" else link  # of a difference of log-odds, they are the same
    return preference_probability(scale * scored.difference, std, np.zeros_like(std), std, link)
