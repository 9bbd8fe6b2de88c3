"""``openrlhf-qs ablation``: what each part of the reward is worth, from the runs of ``recipes/ablate_rewards.sh``.

In: ``seedN/ARM`` folders under ``--run``: ``report/metrics.json``, ``report/responses.*.jsonl``, and
``grpo/statistics.jsonl`` with the gold reward of every step. Out: a table, ``ablation.json``, ``arms.svg`` (CTR of
each arm) and ``overoptimisation.svg`` (proxy and gold reward against the square root of the KL).

Figures are means over seeds with 95 % t intervals; with one seed there is no interval.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy import stats

from openrlhf_qs.evaluation.evaluate import Judge, click_probabilities, load_judge
from openrlhf_qs.evaluation.report import ARM_COLORS, INK, OTHER_COLORS, PLOT_STYLE, svg
from openrlhf_qs.files import read_json_lines, write_whole
from openrlhf_qs.response import parse_response
from openrlhf_qs.reward.monitors import STATISTICS

SAME = 0.02  # two responses whose chance of a click differs by less are the same to a user
N_USERS = 16  # of each conversation, who see both responses
N_BINS = 12  # of sqrt(KL) in the picture
COLUMNS = {
    "ctr": ("CTR", ".1%"),
    "lift_over_sft": ("over SFT", "+.1%"),
    "lift_over_cold_start": ("over cold start", "+.1%"),
    "gsb": ("GSB", "+.3f"),
    "valid": ("valid", ".2%"),
    "distinct_2": ("distinct-2", ".3f"),
    "near_duplicates": ("near dup.", ".2%"),
    "log_ppl": ("log-ppl", ".2f"),
}


class Interval(NamedTuple):
    """A mean over ``n`` seeds, and half its 95 % t interval; NaN for one seed."""

    mean: float
    half: float
    n: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of seedN/ARM runs")
    parser.add_argument(
        "--gold", default="none", metavar="NAME|FILE.py|none", help="judge of GSB; default none: no GSB"
    )


def run(args: argparse.Namespace) -> None:
    """Read the finished arms, write table, JSON and pictures."""
    folder = Path(args.run)
    judge = load_judge(args.gold)
    runs = finished_runs(folder)
    figures = {arm: [arm_figures(path, judge) for path in paths] for arm, paths in runs.items()}
    table = {arm: over_seeds(rows) for arm, rows in figures.items()}
    curves = {arm: curve for arm, paths in runs.items() if (curve := overoptimisation_curve(paths))}
    result = {
        "arms": {arm: {name: one._asdict() for name, one in row.items()} for arm, row in table.items()},
        "seeds": {arm: [path.parent.name for path in paths] for arm, paths in runs.items()},
        "overoptimisation": curves,
    }
    write_whole(folder / "ablation.json", json.dumps(result, indent=1).replace("NaN", "null"))
    write_whole(folder / "arms.svg", svg(arms_figure(table)))
    if curves:
        write_whole(folder / "overoptimisation.svg", svg(overoptimisation_figure(curves)))
    Console().print(_table(table))
    print(f"table and pictures: {folder}/ablation.json, arms.svg{', overoptimisation.svg' if curves else ''}")


def finished_runs(folder: Path) -> dict[str, list[Path]]:
    """Arm to its evaluated runs, one a seed; ``all`` first, then by name. ValueError where there is none."""
    done = sorted(path.parent.parent for path in folder.glob("seed*/*/report/metrics.json"))
    if not done:
        raise ValueError(f"{folder}: no seedN/ARM/report/metrics.json in it; run recipes/ablate_rewards.sh first")
    arms = sorted({path.name for path in done}, key=lambda name: (name != "all", name))
    return {arm: [path for path in done if path.name == arm] for arm in arms}


def arm_figures(run_dir: Path, judge: Judge | None) -> dict[str, float]:
    """The figures of ``COLUMNS`` that one run has."""
    metrics = json.loads((run_dir / "report" / "metrics.json").read_text(encoding="utf-8"))
    quality = metrics["quality"]["grpo"]
    figures = {"valid": 1 - quality["malformed"]}
    figures |= {name: quality[name] for name in ("distinct_2", "near_duplicates", "log_ppl")}
    if "ab" in metrics:
        figures["ctr"] = metrics["ab"]["grpo"]["ctr"]
        figures |= {f"lift_over_{other}": metrics["lift"][f"grpo_over_{other}"] for other in ("sft", "cold_start")}
    if judge is not None:
        figures["gsb"] = good_same_bad(run_dir, judge)
    return {name: value for name, value in figures.items() if value is not None}


def good_same_bad(run_dir: Path, judge: Judge) -> float:
    """(good - bad) / all of GRPO's responses against the SFT policy's, for the same held-out conversations.

    A response is good where its chance of at least one click, mean over ``N_USERS`` users, is more than ``SAME`` above
    that of the other.
    """
    sides = {}
    for policy in ("grpo", "sft"):
        rows = read_json_lines(run_dir / "report" / f"responses.{policy}.jsonl")
        sides[policy] = {json.dumps(row["conversation"]): row for row in rows}
    both = sorted(sides["grpo"].keys() & sides["sft"].keys())
    if not both:
        raise ValueError(f"{run_dir}: no conversation has responses of both policies; run evaluate again")
    chance = {policy: _click_chances([rows[key] for key in both], judge) for policy, rows in sides.items()}
    difference = chance["grpo"] - chance["sft"]
    return float((difference > SAME).mean() - (difference < -SAME).mean())


def _click_chances(rows: Sequence[Mapping[str, Any]], judge: Judge) -> np.ndarray:
    conversations = [row["conversation"] for row in rows for _ in range(N_USERS)]
    shown = [suggestions for row in rows for suggestions in [parse_response(row["response"]).suggestions] * N_USERS]
    probability = click_probabilities(judge, conversations, shown, where="GSB")
    return (1 - (1 - probability).prod(axis=1)).reshape(len(rows), N_USERS).mean(axis=1)


def over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """Mean and 95 % t interval of each figure that all seeds have."""
    names = set.intersection(*(set(row) for row in rows))
    return {name: t_interval([row[name] for row in rows]) for name in COLUMNS if name in names}


def t_interval(values: Sequence[float]) -> Interval:
    n = len(values)
    if n < 2:
        return Interval(float(np.mean(values)), math.nan, n)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return Interval(float(np.mean(values)), float(half), n)


def overoptimisation_curve(runs: Sequence[Path]) -> dict[str, list[float]] | None:
    """``sqrt_kl``, ``proxy`` and ``gold`` of an arm, in bins of sqrt(KL) over all its seeds; None without gold.

    The proxy is counted from the mean of its first steps, in its deviation within a batch there: rewards of different
    arms have different units.
    """
    points = []
    for path in runs:
        file = path / "grpo" / STATISTICS
        rows = [row for row in read_json_lines(file) if {"gold", "kl"} <= row.keys()] if file.is_file() else []
        if not rows:
            continue
        start = np.mean([row["proxy"] for row in rows[:3]])
        unit = max(float(np.mean([row["proxy_std"] for row in rows[:3]])), 1e-9)
        points += [(math.sqrt(max(row["kl"], 0.0)), (row["proxy"] - start) / unit, row["gold"]) for row in rows]
    if not points:
        return None
    table = np.array(sorted(points))
    bins = [chunk.mean(axis=0) for chunk in np.array_split(table, min(N_BINS, len(table)))]
    return {name: [float(b[n]) for b in bins] for n, name in enumerate(("sqrt_kl", "proxy", "gold"))}


def arms_figure(table: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """CTR of each arm with its interval, or validity where there were no gold users."""
    figure_of = "ctr" if all("ctr" in row for row in table.values()) else "valid"
    names = sorted(table, key=lambda arm: -table[arm][figure_of].mean)
    values = np.array([table[arm][figure_of].mean for arm in names])
    halves = np.nan_to_num([table[arm][figure_of].half for arm in names])
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(7, 0.32 * len(names) + 0.9), layout="constrained")
        axis = figure.subplots()
        colors = [ARM_COLORS["grpo"] if arm == "all" else ARM_COLORS["sft"] for arm in names]
        axis.barh(names, values, color=colors, height=0.62)
        axis.errorbar(values, names, xerr=halves, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2)
        axis.invert_yaxis()
        axis.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        axis.set_xlabel(f"{COLUMNS[figure_of][0]}, mean over seeds, 95 % t interval")
        return figure


def overoptimisation_figure(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Proxy above, gold below, both against sqrt(KL); only the long arms where there are some."""
    shown = {arm: curve for arm, curve in curves.items() if arm.startswith("long_")} or curves
    colors = (*ARM_COLORS.values(), *OTHER_COLORS)
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(6, 5), layout="constrained")
        axes = figure.subplots(2, 1, sharex=True)
        labels = ("proxy reward, its deviations from the start", "gold: share of users who click")
        for axis, name, label in zip(axes, ("proxy", "gold"), labels, strict=True):
            for n, (arm, curve) in enumerate(shown.items()):
                axis.plot(curve["sqrt_kl"], curve[name], "o-", color=colors[n % len(colors)], markersize=3, label=arm)
            axis.set_ylabel(label)
        axes[0].legend(frameon=False, fontsize=8)
        axes[1].set_xlabel("square root of the KL to the SFT policy, nats per response")
        return figure


def _table(table: Mapping[str, Mapping[str, Interval]]) -> Table:
    shown = [name for name in COLUMNS if any(name in row for row in table.values())]
    out = Table("arm", "seeds", *(COLUMNS[name][0] for name in shown), title="mean over seeds ± 95 % t interval")
    for arm, row in table.items():
        out.add_row(
            arm,
            str(max(one.n for one in row.values())),
            *(_cell(row.get(name), COLUMNS[name][1]) for name in shown),
        )
    return out


def _cell(one: Interval | None, spec: str) -> str:
    if one is None:
        return "–"
    half = "" if math.isnan(one.half) else f" ± {format(one.half, spec.lstrip('+'))}"
    return f"{format(one.mean, spec)}{half}"
