"""``openrlhf-qs seeds``: one run per seed, side by side: the README's tables.

In: run folders that differ in their seed, each with ``report/metrics.json``. Out: Markdown tables. For every arm as
served: the mean over seeds, from three seeds up with its 95 % t interval, and the worst seed. The same for the
relative lift of the last policy over each other arm, computed within each seed, and for the reward model next to its
baselines.
Another seed means another training on another log, so these intervals include training noise, which those of one run
do not. ``--into README.md`` puts the tables between two marks there, with the command and the commits, so that no
figure is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_qs.evaluation.arms import AT, COLD_START, LAST_POLICY
from openrlhf_qs.evaluation.summary import BOUNDS, CEILING, best_of_several, strongest_baseline
from openrlhf_qs.files.printable import counted
from openrlhf_qs.files.record import read_record
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import write_whole
from openrlhf_qs.statistics.intervals import t_interval

BEGIN, END = "<!-- seeds -->", "<!-- end of seeds -->"
MIN_SEEDS = 3  # for an interval: from two, t with one degree of freedom says next to nothing
HALF = " ± half the 95 % t interval"
STRONGEST = "the strongest baseline of each seed"
LIMITS = (CEILING, "fixed_templates")  # known to a judge, not policies
QUALITY = {
    "malformed": (".1%", max),
    "near_duplicates": (".1%", max),
    "distinct_2": (".3f", min),
}  # and which is worst
REWARD_MODEL = {"accuracy": (".1%", min), "nll": (".3f", max), "ece": (".3f", max)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, one per seed: runs/seed0 runs/seed1 ...")
    parser.add_argument(
        "--out", default="", metavar="FILE.md", help="file for the tables, which are printed in any case"
    )
    parser.add_argument(
        "--into", default="", metavar="README.md", help=f"put the tables into this file, between {BEGIN} and {END}"
    )


def run(args: argparse.Namespace) -> None:
    text = tables([read(path) for path in args.runs])
    if args.out:
        write_whole(Path(args.out), text)
    if args.into:
        put_into(Path(args.into), text, args.runs)
    print(text, end="")


def put_into(file: Path, text: str, runs: Sequence[str]) -> None:
    """Put the tables between the marks in ``file``, with what they were made by. ValueError where it has no marks."""
    before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file} has no {BEGIN} with {END} after it; write both where the tables belong")
    records = [read_record(RunFolder(path)) for path in runs]
    commits = dict.fromkeys(one["commit"][:10] for record in records for one in record.values() if one.get("commit"))
    names = " ".join(f"runs/{os.path.basename(os.path.abspath(path))}" for path in runs)
    made = f"Made by `openrlhf-qs seeds {names} --into {file.name}` from each run's `report/metrics.json`"
    made += f"; stages at {', '.join(commits)}.\n" if commits else ".\n"
    write_whole(file, f"{before}{begin}\n{text}\n{made}{end}{after}")


def read(path: str | Path) -> dict[str, Any]:
    """The metrics of a run. ValueError where it has no A/B test."""
    file = RunFolder(path).metrics
    if not file.is_file():
        raise ValueError(f"{file} does not exist: run the stage evaluate of this run first")
    metrics = json.loads(file.read_text(encoding="utf-8"))
    if "ab" not in metrics:
        raise ValueError(f"{file} has no A/B test: evaluate with a judge, as in JUDGE=built_in_world")
    return metrics


def tables(runs: Sequence[Mapping[str, Any]]) -> str:
    """The tables of several runs. ValueError where two have one seed, or no arm is in all."""
    seeds = [metrics["seed"] for metrics in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have the seeds {', '.join(map(str, seeds))}; give one run per seed")
    names = [name for name in runs[0]["ab"] if AT not in name and all(name in metrics["ab"] for metrics in runs)]
    if not names:
        raise ValueError("no arm is in all of the runs; evaluate them all in the same way")
    arms = [["arm", "CTR", "worst seed", *(f"{key.replace('_', '-')} (worst)" for key in QUALITY)]]
    for name in names:
        ctr = [metrics["ab"][name]["ctr"] for metrics in runs]
        quality = _cells([metrics["quality"][name] for metrics in runs], QUALITY)
        arms.append([f"`{name}`", interval(ctr, ".1%"), format(min(ctr), ".1%"), *quality])
    text = markdown(arms)
    of = f"Means over seeds {', '.join(map(str, seeds))}" if len(runs) > 1 else f"From one training, seed {seeds[0]}"
    text += f"\n{of}{HALF if len(runs) >= MIN_SEEDS else ''}.\n"
    lifts = [[f"`{LAST_POLICY}` over", "lift", "worst seed", "interval above 0 in"]]
    for name, of_seed in _lifts(runs, names).items():
        values = [value for value, _ in of_seed]
        n_sure = sum(low > 0 for _, low in of_seed)
        worst = format(min(values), "+.1%")
        lifts.append([name, interval(values, "+.1%"), worst, f"{n_sure} of {counted(len(of_seed), 'seed')}"])
    judged = _reward_models(runs)
    return text + "".join("\n" + markdown(rows) for rows in (lifts, judged) if len(rows) > 1)


def _reward_models(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of the reward model, of what it is measured against on the same pairs, and of it on the last policy's
    suggestions; those that all runs have."""
    rows = [["on held-out pairs, clicked and unclicked", "accuracy (worst)", "NLL (worst)", "ECE (worst)"]]
    models = [metrics.get("garm", {}) for metrics in runs]
    found = {"the reward model": models}
    for name in models[0].get("baselines", {}):
        bound = ", the bound" if name in BOUNDS else ""
        found[f"`{name}`{bound}"] = [one.get("baselines", {}).get(name, {}) for one in models]
    on_policy = [metrics.get("garm_on_policy", {}).get(LAST_POLICY, {}) for metrics in runs]
    found[f"the reward model, on what `{LAST_POLICY}` suggests"] = on_policy
    found["`bayes_rule`, the bound, there"] = [one.get("baselines", {}).get("bayes_rule", {}) for one in on_policy]
    for name, some in found.items():
        if all("accuracy" in one for one in some):
            rows.append([name, *_cells(some, REWARD_MODEL)])
    return rows


def _cells(some: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, Callable]]) -> list[str]:
    """The mean of each figure over the seeds, the worst in brackets."""
    values = {key: [one[key] or 0.0 for one in some] for key in columns}
    return [
        f"{format(sum(values[key]) / len(some), spec)} ({format(worst(values[key]), spec)})"
        for key, (spec, worst) in columns.items()
    ]


def _lifts(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Arm to the lift of the last policy over it and its lower end, of each run."""
    if LAST_POLICY not in names:
        return {}

    def of(metrics: Mapping[str, Any], name: str, policy: str = LAST_POLICY) -> tuple[float, float] | None:
        key, reverse = f"{policy}_over_{name}", f"{name}_over_{policy}"
        lift, interval = metrics["lift"], metrics["lift_ci95"]
        if lift[key if key in lift else reverse] is None:  # an arm has no click
            return None
        if key in lift:
            return lift[key], interval[key][0]
        return 1 / (1 + lift[reverse]) - 1, 1 / (1 + interval[reverse][1]) - 1

    others = [name for name in names if not name.startswith(LAST_POLICY) and name not in LIMITS]
    found = {f"`{name}`": [of(metrics, name) for metrics in runs] for name in others}
    if len(others) > 1:
        found[STRONGEST] = [of(metrics, strongest_baseline(metrics["ab"]) or COLD_START) for metrics in runs]
    if arms := best_of_several(names):
        found[f"`{arms[1]}`, by `{arms[0]}`"] = [of(metrics, arms[1], arms[0]) for metrics in runs]
    known = {name: [lift for lift in lifts if lift] for name, lifts in found.items()}
    return {name: lifts for name, lifts in known.items() if lifts}


def interval(values: Sequence[float], spec: str) -> str:
    """Mean ± half the t interval; of fewer than ``MIN_SEEDS`` values the mean alone."""
    one = t_interval(values)
    half = "" if len(values) < MIN_SEEDS else f" ± {format(one.half, spec.lstrip('+'))}"
    return f"{format(one.mean, spec)}{half}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
