"""``openrlhf-qs ablation``: arms side by side over several seeds.

In, under ``--run``: of ``recipes/ablate_rewards.sh``, ``seedN/ARM`` folders, each a whole run whose GRPO policy is the
arm (``report/metrics.json``, ``report/responses.*.jsonl``, and ``grpo/statistics.jsonl`` with the gold reward of every
step); of ``recipes/ablate_sft.sh``, ``seedN/report/metrics.json``, whose policies are the arms. Out: ``ablation.json``
and ``ablation.md`` with every figure, a table of the main ones, ``arms.svg`` (CTR of each arm) and, where there is
gold, ``overoptimisation.svg`` (proxy and gold reward against the square root of the KL).

Figures are means over seeds with 95 % t intervals; with one seed there is no interval. Arms of one seed share its
click log, so ``over_base`` is computed within each seed: what makes a seed easy for all arms cancels. Every policy is
taken at the temperature it is served with, chosen on other conversations: a lower one alone raises CTR. If a dozen
arms are compared with one, some differ by chance: ``p_holm`` is the p-value corrected for all comparisons.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from openrlhf_qs.evaluation.ab_test import load_judge
from openrlhf_qs.evaluation.arms import AT, Shown, by_temperature, read_responses
from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import read_json_lines, write_whole
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.task import read_task
from openrlhf_qs.reward.judged import Judge, click_probabilities
from openrlhf_qs.statistics.intervals import Interval, t_interval
from openrlhf_qs.statistics.multiple import holm, t_test

SAME = 0.02  # two responses whose chance of a click differs by less are the same to a user
NOBODY = 0.01  # a response with a smaller chance of a click is worthless
N_USERS = 16  # of each conversation, who see both responses
N_BINS = 12  # of sqrt(KL) in the picture
PICTURED = (
    "all",
    "no_ood",
    "mean",
    "only_ood",
)  # the arms that show hacking and its cure; all arms if none of these exist
BASES = ("all", "raw")  # the arm that the others are compared with: the first that exists
COLUMNS = {
    "ctr": ("CTR", ".1%"),
    "over_base": ("over {base}", "+.1%"),
    "p_holm": ("p, Holm", ".3f"),
    "lift_over_sft": ("over SFT", "+.1%"),
    "lift_over_cold_start": ("over cold start", "+.1%"),
    "gsb": ("GSB", "+.2f"),
    "worthless": ("worthless", ".1%"),
    "valid": ("valid", ".1%"),
    "distinct_1": ("distinct-1", ".3f"),
    "distinct_2": ("distinct-2", ".3f"),
    "near_duplicates": ("near-dup.", ".1%"),
    "same_meaning": ("same meaning", ".1%"),
    "self_similarity": ("self-similarity", ".3f"),
    "log_ppl": ("log-ppl", ".2f"),
}
PRINTED = (
    "ctr",
    "over_base",
    "lift_over_sft",
    "gsb",
    "worthless",
    "near_duplicates",
)  # those that fit into 80 columns


class Run(NamedTuple):
    """Where an arm of one seed is: the run folder, and the name of its policy there."""

    folder: Path
    policy: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", required=True, metavar="DIR", help="RUN of the recipe: the folder with a seedN folder per seed"
    )
    parser.add_argument(
        "--gold",
        default="none",
        metavar="NAME|FILE.py|none",
        help="judge for `GSB` and `worthless`; default none: both are left out",
    )


def run(args: argparse.Namespace) -> None:
    """Read the finished arms; write table, JSON and plots."""
    from openrlhf_qs.plots.bars import share_bars
    from openrlhf_qs.plots.curves import over_kl
    from openrlhf_qs.plots.style import svg

    folder = Path(args.run)
    judge = load_judge(args.gold)
    runs = finished_runs(folder)
    figures = {arm: {seed: arm_figures(run, judge) for seed, run in seeds.items()} for arm, seeds in runs.items()}
    base = next((arm for arm in BASES if arm in figures), None)
    if base is not None:
        add_over_base(figures, base)
    table = best_first({arm: over_seeds(list(seeds.values())) for arm, seeds in figures.items()}, base)
    folders = {arm: [one.folder for one in seeds.values()] for arm, seeds in runs.items()}
    curves = {arm: curve for arm, some in folders.items() if (curve := overoptimisation_curve(some))}
    if base is not None:
        add_holm(table, figures)
    result = {
        "base": base,
        "arms": {arm: {name: one._asdict() for name, one in row.items()} for arm, row in table.items()},
        "seeds": figures,
        "overoptimisation": curves,
    }
    write_whole(folder / "ablation.json", json.dumps(result, indent=1).replace("NaN", "null"))
    write_whole(folder / "ablation.md", markdown(table, base))
    name = main_figure(table)
    label = f"{COLUMNS[name][0]}, mean over seeds, 95 % t interval"
    write_whole(folder / "arms.svg", svg(share_bars({arm: row[name][:2] for arm, row in table.items()}, BASES, label)))
    if curves:
        pictured = {arm: curves[arm] for arm in PICTURED if arm in curves} or curves
        write_whole(folder / "overoptimisation.svg", svg(over_kl(pictured)))
    print_table(_table(table, base))
    pictures = "arms.svg, overoptimisation.svg" if curves else "arms.svg"
    print(f"all figures: {folder}/ablation.md, ablation.json; plots: {pictures}")


def finished_runs(folder: Path) -> dict[str, dict[str, Run]]:
    """Arm to seed to run. ValueError where nothing is finished."""
    found: dict[str, dict[str, Run]] = {}
    for path in sorted(folder.glob("seed*/*/report/metrics.json")):
        run_dir = path.parent.parent
        found.setdefault(run_dir.name, {})[run_dir.parent.name] = Run(run_dir, "grpo")
    for path in [] if found else sorted(folder.glob("seed*/report/metrics.json")):
        run_dir = path.parent.parent
        for policy in (name for name in _metrics(run_dir)["quality"] if AT not in name):
            found.setdefault(policy, {})[run_dir.name] = Run(run_dir, policy)
    if not found:
        raise ValueError(
            f"{folder}: no seedN/ARM/report/metrics.json or seedN/report/metrics.json in it; "
            "run recipes/ablate_rewards.sh or recipes/ablate_sft.sh first"
        )
    return found


def arm_figures(run: Run, judge: Judge | None) -> dict[str, float]:
    """The figures of ``COLUMNS`` that one run has, ``over_base`` apart."""
    metrics = _metrics(run.folder)
    quality = metrics["quality"][run.policy]
    figures = {"valid": 1 - quality["malformed"]} | {name: quality[name] for name in COLUMNS if name in quality}
    if "ab" in metrics:
        figures["ctr"] = metrics["ab"][run.policy]["ctr"]
        for other in ("sft", "cold_start"):
            figures[f"lift_over_{other}"] = metrics["lift"].get(f"{run.policy}_over_{other}")
    if judge is not None and RunFolder(run.folder).responses("sft").is_file():
        figures |= gold_figures(run.folder, judge)
    return {name: value for name, value in figures.items() if value is not None}


def add_over_base(figures: Mapping[str, Mapping[str, dict[str, float]]], base: str) -> None:
    """Add ``over_base`` to ``figures`` (arm, seed, name): CTR over that of ``base`` of the same seed, minus 1."""
    for arm, seeds in figures.items():
        for seed, row in seeds.items():
            base_ctr = figures[base].get(seed, {}).get("ctr")
            if arm != base and "ctr" in row and base_ctr:
                row["over_base"] = row["ctr"] / base_ctr - 1


def add_holm(table: dict[str, dict[str, Interval]], figures: Mapping[str, Mapping[str, dict[str, float]]]) -> None:
    """Add ``p_holm`` to ``table``: whether an arm's CTR differs from that of the base, corrected for all arms."""
    values = {
        arm: [row["over_base"] for row in seeds.values() if "over_base" in row] for arm, seeds in figures.items()
    }
    adjusted = holm({arm: t_test(some) for arm, some in values.items() if some})
    for arm, p in adjusted.items():
        table[arm]["p_holm"] = Interval(p, math.nan, len(values[arm]))


def gold_figures(run_dir: Path, judge: Judge) -> dict[str, float]:
    """How users rate GRPO's responses, by the probability of at least one click, the mean over ``N_USERS`` users.

    ``gsb``: (good - bad) / all against the SFT policy's responses for the same held-out conversations; good means a
    probability more than ``SAME`` above the other's. ``worthless``: the share that hardly anyone would click, with a
    probability below ``NOBODY``, as a policy that hacks its reward writes; ``worthless_sft`` is the SFT policy's.
    """
    task, sides = read_task(RunFolder(run_dir).sft), {}
    for policy in ("grpo", "sft"):
        rows = read_responses(RunFolder(run_dir).responses(policy), task)
        served = (_metrics(run_dir).get("served", {}).get(policy) or {}).get("temperature")
        rows = by_temperature(policy, rows, served)[policy]  # best is compared with best
        sides[policy] = {conversation_key(row.conversation): row for row in reversed(rows)}
    both = sorted(sides["grpo"].keys() & sides["sft"].keys())
    if not both:
        raise ValueError(f"{run_dir}: no conversation has responses of both policies; run evaluate again")
    chance = {policy: _click_chances([rows[key] for key in both], judge) for policy, rows in sides.items()}
    difference = chance["grpo"] - chance["sft"]
    return {
        "gsb": float((difference > SAME).mean() - (difference < -SAME).mean()),
        "worthless": float((chance["grpo"] < NOBODY).mean()),
        "worthless_sft": float((chance["sft"] < NOBODY).mean()),
    }


def _click_chances(rows: Sequence[Shown], judge: Judge) -> np.ndarray:
    conversations = [row.conversation for row in rows for _ in range(N_USERS)]
    shown = [row.suggestions for row in rows for _ in range(N_USERS)]
    probability = click_probabilities(judge, conversations, shown, where="GSB")
    return (1 - (1 - probability).prod(axis=1)).reshape(len(rows), N_USERS).mean(axis=1)


def over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """Mean and 95 % t interval of each figure that all seeds have."""
    names = set.intersection(*(set(row) for row in rows))
    return {name: t_interval([row[name] for row in rows]) for name in COLUMNS if name in names}


def overoptimisation_curve(folders: Iterable[Path]) -> dict[str, list[float]] | None:
    """``sqrt_kl``, ``proxy`` and ``gold`` of an arm, in bins of sqrt(KL) over all its seeds; None without gold.

    The proxy is counted from the mean of its first steps, in its deviation within a batch there: rewards of different
    arms have different units.
    """
    points = []
    for folder in folders:
        file = RunFolder(folder).grpo.statistics
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


def best_first(table: Mapping[str, dict[str, Interval]], base: str | None) -> dict[str, dict[str, Interval]]:
    """``base``, then the other arms by CTR, highest first; by validity if there was no judge."""
    name = main_figure(table)
    return {arm: table[arm] for arm in sorted(table, key=lambda arm: (arm != base, -table[arm][name].mean))}


def main_figure(table: Mapping[str, Mapping[str, Interval]]) -> str:
    """The figure that arms are compared by."""
    return "ctr" if all("ctr" in row for row in table.values()) else "valid"


def markdown(table: Mapping[str, Mapping[str, Interval]], base: str | None) -> str:
    """Every figure as a Markdown table, a row for each arm."""
    shown = [name for name in COLUMNS if any(name in row for row in table.values())]
    rows = [["arm", "seeds", *(COLUMNS[name][0].format(base=base) for name in shown)], ["---"] * (len(shown) + 2)]
    for arm, row in table.items():
        rows.append([f"`{arm}`", str(_n_seeds(row)), *(_cell(row.get(name), name) for name in shown)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _table(table: Mapping[str, Mapping[str, Interval]], base: str | None) -> Table:
    shown = [name for name in PRINTED if any(name in row for row in table.values())]
    out = Table("arm", title="mean over seeds, 95 % t interval", box=SIMPLE, pad_edge=False)
    for name in shown:
        out.add_column(COLUMNS[name][0].format(base=base), justify="right")
    for arm, row in table.items():
        seeds = f"{_n_seeds(row)} seeds" if _n_seeds(row) > 1 else "1 seed"
        out.add_row(f"{arm}\n{seeds}", *(_cell(row.get(name), name, "\n") for name in shown))
    return out


def _n_seeds(row: Mapping[str, Interval]) -> int:
    return max(one.n for one in row.values())


def _metrics(run_dir: Path) -> dict[str, Any]:
    return json.loads(RunFolder(run_dir).metrics.read_text(encoding="utf-8"))


def _cell(one: Interval | None, name: str, between: str = " ") -> str:
    if one is None:
        return "–"
    spec = COLUMNS[name][1]
    half = "" if math.isnan(one.half) else f"{between}± {format(one.half, spec.lstrip('+'))}"
    return f"{format(one.mean, spec)}{half}"
