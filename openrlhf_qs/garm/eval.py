r"""How far a reward model can be trusted: accuracy, calibration, and what position and perplexity do to them.

In: preferences (:data:`openrlhf_qs.clicks.preferences.SCHEMA`; ``z``, one for each pair, where they have it) and the
folder of a reward model. Out: a table, ``metrics.json`` with the keys of :func:`evaluate_pairs`, and plots.

Two questions can be asked of pairs with soft labels, and both are answered, each under its name:

- ``observed``: is the model right about who came out on top, the side whose label is above 0.5? Of counts that say
  little, this is partly a coin; ``significant`` asks it where ``|z| > 1.96``, so the outcome is known.
- ``soft``: are its probabilities those of the labels?
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openrlhf_qs.clicks.preferences import Pairs, all_pairs, cluster_of, read_preferences
from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import write_whole
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.garm import baselines
from openrlhf_qs.garm.calibration import (
    N_BINS,
    accuracy_by,
    calibration_metrics,
    calibration_verdict,
    correctness,
    preference_probability,
)
from openrlhf_qs.models.device import pick_device
from openrlhf_qs.registry import JUDGES, load_plugins
from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import SIGNIFICANT_Z, cluster_bootstrap, in_words

CHUNK = 512  # suggestions between two movements of the progress bar
STRESS_MEANS = tuple(np.linspace(0.0, 5.0, 11).tolist())
STRESS_STDS = (0.1, 0.3, 1.0, 2.0, 3.0)
WITH_LOGISTIC_NOISE = ("probit_logistic", "mackay", "quadrature", "jensen", "bradley_terry")


class Scored(NamedTuple):
    """Pairs and what a reward model says of them, ``[n]`` each; the better side is ``chosen``, label >= 0.5.

    ``position`` is that of the chosen minus that of the rejected suggestion, ``z`` the evidence in the counts; nan
    where the file does not say. ``difference`` is mean of chosen minus mean of rejected, reward units; of link
    ``click``, that of their log-odds of a click.
    """

    probability: np.ndarray
    difference: np.ndarray
    std: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    position: np.ndarray
    z: np.ndarray
    impression: list[str]
    clusters: Clusters  # by the conversation's root, or the impression where there is none, and by user where known

    def take(self, rows: np.ndarray) -> Scored:
        """The pairs at ``rows``."""
        impression = [self.impression[row] for row in rows]
        return Scored(*(column[rows] for column in self[:-2]), impression, self.clusters[rows])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preferences", metavar="FILE.jsonl", help="preferences that the model was not trained on")
    parser.add_argument("--model", required=True, metavar="DIR", help="reward model, as written by recipes/garm.sh")
    parser.add_argument(
        "--reference", default="", help="policy by whose log-perplexity the pairs are sorted; default: none"
    )
    parser.add_argument(
        "--train",
        default="",
        metavar="FILE.jsonl",
        help="preferences that the model was trained on: two linear models are fitted to them, for comparison",
    )
    parser.add_argument(
        "--judge", default="none", help="judge whose users made the clicks, for the Bayes rule; default: none"
    )
    parser.add_argument(
        "--n_bins", type=int, default=N_BINS, help="number of bins of the ECE over [0, 1], even; default 20"
    )
    parser.add_argument(
        "--equal_weights", action="store_true", help="count every pair once, whatever weight the file gives it"
    )
    parser.add_argument("--out", metavar="FILE.json", help="file for all figures")
    parser.add_argument("--plots", metavar="DIR", help="folder for reliability, confidence and perplexity as SVG")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="file that registers a head; repeatable"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap; default 0")


def run(args: argparse.Namespace) -> None:
    if args.n_bins < 2 or args.n_bins % 2:
        raise ValueError(f"--n_bins {args.n_bins}: give an even number, at least 2")
    load_plugins(args.plugin)
    rows, pairs = read_pairs(args.preferences)
    scorer = load_on_device(args.model)
    scored = score_pairs(rows, pairs, scorer)
    if args.equal_weights:
        scored = scored._replace(weight=np.ones_like(scored.weight))
    metrics = {"preferences": str(args.preferences), "model": str(args.model), "seed": args.seed}
    metrics |= evaluate_pairs(scored, args.n_bins, args.seed)
    if args.reference:
        metrics["log_ppl"] = by_log_ppl(scored, pair_log_ppl(rows, pairs, args.reference), args.seed)
    train = read_preferences(args.train) if args.train else []
    chance = None if args.judge == "none" else JUDGES.create(args.judge).chance_of_a_click
    metrics["baselines"] = against_baselines(scored, baselines.fitted(train, rows, pairs, chance), args.seed)
    metrics["stress"] = stress_test(scorer.link)
    metrics["verdict"] = verdict(metrics)
    if args.out:
        write_whole(Path(args.out), json.dumps(metrics, indent=1, allow_nan=False))
    if args.plots:
        write_plots(metrics, Path(args.plots))
    print_tables(metrics)


def read_pairs(path: str | Path) -> tuple[list[dict], Pairs]:
    """The rows of a file and all their pairs, the better side as the chosen one. ValueError names bad rows, and a file
    without any pair."""
    rows = read_preferences(path)
    pairs = all_pairs(rows)
    if not len(pairs.row):
        raise ValueError(f"{path}: no pair in its {len(rows)} rows; give a file with at least one")
    return rows, pairs


def load_on_device(model: str | Path):
    """The :class:`~openrlhf_qs.garm.reward_model.SuggestionScorer` of a folder, on a GPU where there is one."""
    from openrlhf_qs.garm.reward_model import SuggestionScorer

    return SuggestionScorer(model, device=pick_device())


def score_pairs(rows: Sequence[Mapping[str, Any]], pairs: Pairs, scorer) -> Scored:
    """What a reward model says of ``pairs`` of ``rows``; ``scorer.link`` makes probabilities of it."""
    from openrlhf_qs.garm.preference_likelihood import click_log_odds

    scores = score_texts(scorer, *_sides(rows, pairs))
    n = len(pairs.row)
    (mean_c, std_c, _), (mean_r, std_r, _) = scores[:n].T, scores[n:].T
    return Scored(
        probability=preference_probability(mean_c, std_c, mean_r, std_r, scorer.link),
        difference=click_log_odds(mean_c, std_c) - click_log_odds(mean_r, std_r)
        if scorer.link == "click"
        else mean_c - mean_r,
        std=np.hypot(std_c, std_r),
        label=pairs.label,
        weight=pairs.weight,
        position=_positions(rows, pairs),
        z=evidence(rows),
        impression=[str(rows[row]["impression_id"]) for row in pairs.row],
        clusters=Clusters.of(
            [cluster_of(rows[row]) for row in pairs.row], [rows[row].get("user_id") for row in pairs.row]
        ),
    )


def evidence(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """``|z|`` of every pair of the rows; nan where the file does not say."""
    return np.abs(np.array([value for row in rows for value in row.get("z") or [np.nan] * len(row["pairs"])]))


def is_significant(z: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Which pairs ``[n]`` have an outcome that is no coin: no tie, and ``|z| > 1.96``, as :func:`evidence` has it."""
    return (z > SIGNIFICANT_Z) & (label != 0.5)


def _sides(rows: Sequence[Mapping[str, Any]], pairs: Pairs) -> tuple[list[list[Message]], list[str]]:
    """Conversations and suggestions ``[2 n]``: of all chosen ones, then of all rejected ones."""
    row, place = np.tile(pairs.row, 2), np.concatenate([pairs.chosen, pairs.rejected])
    suggestions = [rows[n]["suggestions"][k] for n, k in zip(row, place, strict=True)]
    return [rows[n]["conversation"] for n in row], suggestions


def _positions(rows: Sequence[Mapping[str, Any]], pairs: Pairs) -> np.ndarray:
    """``[n]``: the position of the chosen minus that of the rejected one; nan where the row does not say."""
    shown_at = [row.get("positions") or [np.nan] * len(row["suggestions"]) for row in rows]
    sides = zip(pairs.row, pairs.chosen, pairs.rejected, strict=True)
    return np.array([shown_at[n][chosen] - shown_at[n][rejected] for n, chosen, rejected in sides], dtype=np.float64)


def score_texts(scorer, conversations: Sequence[Sequence[Message]], suggestions: Sequence[str]) -> np.ndarray:
    """Mean, std and epistemic std ``[n, 3]`` of suggestions under conversations; each different one is read once."""
    from rich.progress import track

    keys = list(zip(map(conversation_key, conversations), suggestions, strict=True))
    first: dict[tuple[str, str], int] = {}
    for n, key in enumerate(keys):
        first.setdefault(key, n)
    texts, row_of = list(first.values()), {key: row for row, key in enumerate(first)}
    scores: list[np.ndarray] = []
    for start in track(range(0, len(texts), CHUNK), "scoring", console=Console(stderr=True)):
        part = texts[start : start + CHUNK]
        scores.append(np.stack(scorer([conversations[n] for n in part], [suggestions[n] for n in part]), axis=1))
    return np.concatenate(scores)[[row_of[key] for key in keys]]


def evaluate_pairs(scored: Scored, n_bins: int = N_BINS, seed: int = 0) -> dict[str, Any]:
    """Every figure that needs the pairs alone.

    Returns:
        ``n_ties``, pairs of label 0.5, which have no outcome; ``observed``, and ``significant`` where there is ``z``:
        :func:`~openrlhf_qs.garm.calibration.calibration_metrics`, with ``confidence``, accuracy in ten groups of
        rising confidence; ``soft``, the same against soft labels where there are any; ``std``, median and range
        of a pair's; ``position`` of :func:`position_preference` where positions are known.
    """
    decided = scored.label != 0.5
    if not decided.any():
        raise ValueError("every pair has the label 0.5, so neither side is better; give pairs that differ")
    metrics: dict[str, Any] = {"n_ties": int((~decided).sum())}
    metrics["observed"] = _outcome_metrics(scored, decided, n_bins, seed)
    significant = is_significant(scored.z, scored.label)
    if significant.any():
        metrics["significant"] = _outcome_metrics(scored, significant, n_bins, seed)
    if ((scored.label > 0.5) & (scored.label < 1)).any():
        metrics["soft"] = calibration_metrics(
            scored.probability, scored.weight, scored.clusters, n_bins, seed=seed, label=scored.label
        ) | {"n_impressions": len(set(scored.impression))}
    metrics["std"] = dict(zip(("min", "median", "max"), np.quantile(scored.std, [0, 0.5, 1]).tolist(), strict=True))
    if (np.isfinite(scored.position) & decided).any():
        metrics["position"] = position_preference(scored, seed)
    return metrics


def against_baselines(scored: Scored, others: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, dict[str, Any]]:
    """:func:`openrlhf_qs.garm.baselines.compare` on the pairs that the verdict is of: those of ``significant`` where
    there is ``z``, else of ``observed`` (:func:`evaluate_pairs`).

    Args:
        others: baseline to its P(chosen better) of every pair.
    """
    significant = is_significant(scored.z, scored.label)
    decided = significant if significant.any() else scored.label != 0.5
    others = {name: probability[decided] for name, probability in others.items()}
    clusters = scored.clusters[decided]
    return baselines.compare(scored.probability[decided], scored.weight[decided], clusters, others, seed)


def _outcome_metrics(scored: Scored, mask: np.ndarray, n_bins: int, seed: int) -> dict[str, Any]:
    probability, weight = scored.probability[mask], scored.weight[mask]
    metrics = calibration_metrics(probability, weight, scored.clusters[mask], n_bins, seed=seed)
    metrics["n_impressions"] = len({one for one, keep in zip(scored.impression, mask, strict=True) if keep})
    confidence = np.maximum(probability, 1 - probability)
    return metrics | {"confidence": accuracy_by(confidence, probability, weight)}


def position_preference(scored: Scored, seed: int = 0) -> dict[str, Any]:
    r"""How much the model prefers what stood first, the outcome held fixed.

    A model that tells good from bad prefers what was clicked, and what stood first was clicked more: so its preference
    for the first is compared between pairs whose first and pairs whose second suggestion was chosen, as if each pair
    were also there with the places swapped. With the difference :math:`d` of the means, first minus second,
    :math:`o=\pm1` where the first or the second was chosen, and :math:`g` places between them,
    :math:`d=a\,o+b\,g` by least squares: ``slope`` is :math:`b`, reward units a place; ``slope_in_std``, in standard
    deviations of a pair's difference. ``win_rate_first`` is the share that prefers the first, with both outcomes
    counted alike: 0.5 is no preference.

    A click model in which lower places are looked at less leaves good suggestions unclicked there, so the true means
    themselves give a slope that is not exactly 0: compare with those where they are known.

    Returns:
        ``slope``, ``slope_in_std``, ``win_rate_first``, each with ``*_ci95`` by bootstrap over conversations (None
        where all pairs have the first, or all the second chosen), ``n_pairs``, ``chosen_first``, the share of pairs
        whose first was chosen.
    """
    known = np.isfinite(scored.position) & (scored.position != 0) & (scored.label != 0.5)
    outcome = -np.sign(scored.position[known])  # +1: the chosen one stood first
    gap = np.abs(scored.position[known])
    difference = scored.difference[known] * outcome
    prefers_first = np.heaviside(difference, 0.5)
    weight, std = scored.weight[known], scored.std[known]
    metrics: dict[str, Any] = {
        "n_pairs": int(known.sum()),
        "chosen_first": float(np.average(outcome > 0, weights=weight)) if known.any() else None,
    }
    names = ("slope", "slope_in_std", "win_rate_first")
    if len(np.unique(outcome)) < 2:
        return metrics | {key: None for name in names for key in (name, f"{name}_ci95")}

    def figures(weight: np.ndarray) -> list[float]:
        slope, slope_in_std = (_slope(d, outcome, gap, weight) for d in (difference, difference / std))
        shares = [_mean(prefers_first[outcome == o], weight[outcome == o]) for o in (1, -1)]
        return [slope, slope_in_std, float(np.mean(shares))]

    intervals = cluster_bootstrap(figures, weight, scored.clusters[known], seed=seed)
    for name, value, interval in zip(names, figures(weight), intervals, strict=True):
        metrics |= {name: value, f"{name}_ci95": interval.tolist()}
    return metrics


def _slope(difference: np.ndarray, outcome: np.ndarray, gap: np.ndarray, weight: np.ndarray) -> float:
    root = np.sqrt(weight)
    columns = np.stack([outcome, gap], axis=1) * root[:, None]
    return float(np.linalg.lstsq(columns, difference * root, rcond=None)[0][1])


def _mean(values: np.ndarray, weight: np.ndarray) -> float:
    return float(np.average(values, weights=weight)) if weight.sum() > 0 else 0.5


def by_log_ppl(scored: Scored, log_ppl: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Whether the model is less accurate where the reference finds the suggestions unlikely.

    Args:
        log_ppl: ``[n]``, of each pair, nats per token.

    Returns:
        ``bins``, accuracy in ten groups of rising log-perplexity; ``slope``, accuracy per nat, with ``slope_ci95`` by
        bootstrap over conversations; ``falls``, whether that interval is below 0.
    """
    decided = scored.label != 0.5
    value, probability, weight = log_ppl[decided], scored.probability[decided], scored.weight[decided]
    right = correctness(probability)

    def slope(weight: np.ndarray) -> list[float]:
        centred = value - np.average(value, weights=weight)
        spread = float(weight @ centred**2)
        return [float(weight @ (centred * right)) / spread if spread else 0.0]

    [interval] = cluster_bootstrap(slope, weight, scored.clusters[decided], seed=seed)
    return {
        "bins": accuracy_by(value, probability, weight),
        "slope": slope(weight)[0],
        "slope_ci95": interval.tolist(),
        "falls": bool(interval[1] < 0),
    }


def pair_log_ppl(rows: Sequence[Mapping[str, Any]], pairs: Pairs, reference: str) -> np.ndarray:
    """Log-perplexity of each pair under the policy ``reference``: the mean of its two suggestions, nats per token."""
    from openrlhf_qs.models.reference import reference_log_ppl

    log_ppl = reference_log_ppl(reference, *_sides(rows, pairs))
    return np.mean(np.reshape(log_ppl, (2, len(pairs.row))), axis=0)


def stress_test(link: str, n_draws: int = 100_000, seed: int = 0) -> dict[str, Any]:
    """The link itself, over means from 0 to 5 and standard deviations from 0.1 to 3, without any model.

    Returns:
        ``link``; ``n_points`` of the grid; ``max_error`` between the closed form and the share of ``n_draws`` draws of
        both rewards (and of logistic noise, where the link has it) in which the first wins, at ``max_error_at``;
        ``sampling_error``, four standard errors of such a share; ``finite``, whether loss and gradient are at every
        point and its mirror image, in float32; ``max_gradient``.
    """
    import torch

    from openrlhf_qs.garm.preference_likelihood import preference_loss

    grid = np.array([(m, c, r) for m in STRESS_MEANS for c in STRESS_STDS for r in STRESS_STDS])
    mean, std_c, std_r = grid.T
    closed = preference_probability(mean, std_c, np.zeros_like(mean), std_r, link)
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, n_draws))
    noise = rng.logistic(size=n_draws) if link in WITH_LOGISTIC_NOISE else np.zeros(n_draws)
    spread = 0.0 if link == "bradley_terry" else 1.0  # it knows no deviation
    if link == "click":
        drawn = np.array([_drawn_clicks(m + c * first, r * second) for m, c, r in grid])
    else:
        drawn = np.array([np.mean(m + spread * (c * first - r * second) + noise > 0) for m, c, r in grid])
    worst = int(np.abs(closed - drawn).argmax())

    points = [torch.tensor(one, dtype=torch.float32) for one in (np.r_[mean, -mean], np.r_[std_c, std_c])]
    other_std = torch.tensor(np.r_[std_r, std_r], dtype=torch.float32)
    points = [*points, torch.zeros_like(points[0]), other_std]
    for point in points:
        point.requires_grad_()
    loss = preference_loss(*points, 1.0, link)
    gradients = torch.autograd.grad(loss.sum(), points, allow_unused=True)
    found = torch.cat([loss, *(gradient for gradient in gradients if gradient is not None)]).detach()
    return {
        "link": link,
        "n_points": len(grid),
        "max_error": float(np.abs(closed - drawn)[worst]),
        "max_error_at": dict(zip(("mean", "chosen_std", "rejected_std"), grid[worst].tolist(), strict=True)),
        "sampling_error": 2.0 / n_draws**0.5,
        "finite": bool(found.isfinite().all()),
        "max_gradient": float(found[len(loss) :].abs().max()),
    }


def _drawn_clicks(first: np.ndarray, second: np.ndarray) -> float:
    """How often, of two suggestions with these rewards of users, the first is clicked where one of them is."""
    p, q = (np.mean(1 / (1 + np.exp(-reward))) for reward in (first, second))
    return p * (1 - q) / (p * (1 - q) + q * (1 - p))


def verdict(metrics: Mapping[str, Any]) -> str:
    """Accuracy and ECE in words, of the pairs whose outcome is known best; says so where the ECE is above 0.15."""
    name = "significant" if "significant" in metrics else "observed"
    said = calibration_verdict(metrics[name])
    return said if name == "observed" else f"Where |z| > {SIGNIFICANT_Z}: {said}"


def print_tables(metrics: Mapping[str, Any]) -> None:
    """All figures in the terminal."""
    console = Console()
    shown = {
        "outcome": metrics["observed"],
        f"outcome, |z| > {SIGNIFICANT_Z}": metrics.get("significant"),
        "soft labels": metrics.get("soft"),
    }
    shown = {name: one for name, one in shown.items() if one}
    table = Table("against the", *shown, title=f"{metrics['model']} on {metrics['preferences']}")
    table.add_row("pairs", *(f"{one['n_pairs']:,}" for one in shown.values()))
    table.add_row("impressions", *(f"{one['n_impressions']:,}" for one in shown.values()))
    for key, name in (("accuracy", "accuracy"), ("nll", "NLL"), ("brier", "Brier"), ("ece", "ECE")):
        table.add_row(
            name, *("{:.3f} ({:.3f} to {:.3f})".format(one[key], *one[f"{key}_ci95"]) for one in shown.values())
        )
    floors = [one["ece_if_calibrated"] for one in shown.values()]
    table.add_row("ECE if calibrated", *("–" if floor is None else f"{floor:.3f}" for floor in floors))
    print_table(table)
    best, pairs = metrics["observed"], "on the same pairs"
    if "significant" in metrics:
        best, pairs = metrics["significant"], "pairs with |z| > 1.96"
    table = Table(pairs, "accuracy", "NLL", "ECE", "the model in comparison (95 % interval)")
    table.add_row("the reward model", f"{best['accuracy']:.1%}", f"{best['nll']:.3f}", f"{best['ece']:.3f}", "")
    for name, one in metrics.get("baselines", {}).items():
        style = "red" if one["loses"] else None
        figures = f"{one['accuracy']:.1%}", f"{one['nll']:.3f}", f"{one['ece']:.3f}"
        table.add_row(name, *figures, one["sentence"], style=style)
    console.print(table)
    for title, groups in (
        ("confidence", metrics.get("significant", metrics["observed"])["confidence"]),
        ("log-perplexity, nats per token", metrics.get("log_ppl", {}).get("bins")),
    ):
        if groups:
            table = Table(title, "N", "accuracy", "95 % interval")
            for group in groups:
                table.add_row(
                    f"{group['lower']:.3f} to {group['upper']:.3f}",
                    f"{group['n_pairs']:,}",
                    f"{group['accuracy']:.3f}",
                    "{:.3f} to {:.3f}".format(*group["ci95"]),
                )
            console.print(table)
    for line in _sentences(metrics):
        console.print(escape(line))


def _sentences(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    if ppl := metrics.get("log_ppl"):
        falls = "falls" if ppl["falls"] else "does not clearly fall"
        low, high = ppl["slope_ci95"]
        lines.append(
            f"Accuracy {falls} as log-perplexity rises: {ppl['slope']:+.3f} per nat ({low:+.3f} to {high:+.3f})."
        )
    if (position := metrics.get("position")) and position["slope"] is not None:
        (low, high), (least, most) = position["slope_in_std_ci95"], position["win_rate_first_ci95"]
        lines.append(
            "Position, with the outcome held fixed: a suggestion shown one position higher is scored "
            f"{in_words(position['slope_in_std'], (low, high), unit='standard deviations')}; the one shown first is "
            f"preferred in {position['win_rate_first']:.1%} "
            f"({least:.1%} to {most:.1%}) of {position['n_pairs']:,} pairs (50 % means no preference)."
        )
    stress = metrics["stress"]
    lines.append(
        f"Stress test of link {stress['link']} at {stress['n_points']} points: at most {stress['max_error']:.4f} from "
        f"the draws (sampling error {stress['sampling_error']:.4f}), loss and gradient "
        f"{'finite' if stress['finite'] else 'NOT FINITE'}, largest gradient {stress['max_gradient']:.3g}."
    )
    lines += [
        f"The reward model loses to {name}: {one['sentence']}"
        for name, one in metrics.get("baselines", {}).items()
        if one["loses"]
    ]
    return [*lines, metrics["verdict"]]


def write_plots(metrics: Mapping[str, Any], folder: Path) -> None:
    """``reliability.svg``, ``confidence.svg`` and, where it was measured, ``log_ppl.svg``."""
    from openrlhf_qs.plots.calibration import accuracy_curve, reliability_diagram
    from openrlhf_qs.plots.style import svg

    best = metrics.get("significant", metrics["observed"])
    figures = {
        "reliability": reliability_diagram(best["reliability"]),
        "confidence": accuracy_curve(best["confidence"], "confidence of the reward model", diagonal=True),
    }
    if "log_ppl" in metrics:
        figures["log_ppl"] = accuracy_curve(metrics["log_ppl"]["bins"], "log-perplexity, nats per token")
    for name, figure in figures.items():
        write_whole(folder / f"{name}.svg", svg(figure))
