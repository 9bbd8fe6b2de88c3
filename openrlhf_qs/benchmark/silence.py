"""What it brings to stay silent: the chance of a click of what is shown, and the clicks lost, by the share shown.

In: what ``openrlhf-qs suggest --conversations`` wrote, whose ``click_chance`` is the reward model's, and a judge that
knows the users' own chance of a click, as the built-in world does. Out: for shares of the conversations, those with
the largest ``click_chance``, the threshold, the chance of a click there, and what of all clicks is lost. Beside it
what could be had by the users' own chance: no rule can lose fewer.
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.table import Table

from openrlhf_qs.evaluation.ab_test import load_judge
from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.registry import load_plugins

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="JSON Lines, as written by openrlhf-qs suggest --out")
    parser.add_argument(
        "--judge", default="built_in_world", help="plugin or FILE.py whose users click; default built_in_world"
    )


def run(args: argparse.Namespace) -> None:
    load_plugins()
    rows = [
        row for row in read_json_lines(args.file) if row.get("suggestions") and row.get("click_chance") is not None
    ]
    if not rows:
        raise ValueError(f"{args.file}: no row has suggestions and a click_chance; give --reward_model to suggest")
    judge = load_judge(args.judge)
    truth = np.array(
        judge.chance_of_a_click([row["conversation"] for row in rows], [row["suggestions"] for row in rows])
    )
    expected = np.array([row["click_chance"] for row in rows])
    table = Table("shown", "threshold", "CTR of what is shown", "change", "clicks lost", "at best, change", "lost")
    for share, threshold, ctr, lost in curve(expected, truth):
        _, _, best_ctr, best_lost = next(one for one in curve(truth, truth) if one[0] == share)
        changes = [f"{value / truth.mean() - 1:+.1%}" for value in (ctr, best_ctr)]
        table.add_row(
            f"{share:.0%}", f"{threshold:.3f}", f"{ctr:.1%}", changes[0], f"{lost:.1%}", changes[1], f"{best_lost:.1%}"
        )
    print_table(table)
    print(f"{len(rows):,} conversations; correlation of the two chances {np.corrcoef(expected, truth)[0, 1]:.2f}")


def curve(expected: np.ndarray, truth: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Share shown, threshold, chance of a click of what is shown, share of all clicks lost; for each of ``SHARES``.

    Args:
        expected, truth: ``[n]``, the chance of a click by the model and in truth.
    """
    order = np.argsort(-expected, kind="stable")
    found = []
    for share in SHARES:
        shown = order[: max(1, round(share * len(order)))]
        found.append((share, expected[shown[-1]], truth[shown].mean(), 1 - truth[shown].sum() / truth.sum()))
    return found
