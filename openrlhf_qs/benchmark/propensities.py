"""``openrlhf-qs benchmark propensities``: what the estimators of examination find where the truth is known.

Logs of every kind are drawn: a random and a chosen order, each click model of the built-in world, few and many shows
of a conversation. Suggestions are numbers here, not texts: what is measured is the estimator, and thousands of logs
cost minutes. In: how many logs of each kind. Out: for each kind and method the bias and the coverage of the interval
at each place, how often the method was chosen by ``auto``, and how often each finding was raised, as JSON and as a
table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import track
from rich.table import Table

from openrlhf_qs.clicks.propensity import COUNTS, METHODS, Propensities, added_up, estimate
from openrlhf_qs.files.whole import write_whole
from openrlhf_qs.world.click_models import EXAMINATION, TRUST_ATTRACTIVE, TRUST_OTHER, click_chances, truth

N_SHOWN = 3
FINDINGS = {  # how a finding begins, or what stands in it
    "order chosen": "the order was chosen",
    "order unknown": "too little comes again",
    "a click ends reading": "a click above takes",
    "top trusted": "depends on how attractive",
    "does not know": "does not know",
    "cannot correct": "nothing is corrected",
    "two disagree": "two estimators disagree",
}


class Kind(NamedTuple):
    """How a log comes to be.

    Attributes:
        clicks: click model of the built-in world.
        ranker_noise: None for a random order; else the deviation, log-odds, of the noise of a ranker that shows first
            what attracts most.
        n_contexts: conversations that the impressions are of.
        n_known: suggestions that a conversation has; each impression shows three of them.
    """

    clicks: str
    ranker_noise: float | None
    n_contexts: int
    n_known: int = 6
    n_impressions: int = 20_000

    def __str__(self) -> str:
        order = "random" if self.ranker_noise is None else "ranked"
        of = f" of {self.n_known}" if self.n_known != 6 else ""
        return f"{self.clicks}, {order}, {self.n_impressions // self.n_contexts} shows{of}"


KINDS = [
    Kind(clicks, noise, n_contexts)
    for clicks in ("pbm", "cascade", "trust")
    for noise in (None, 1.0)
    for n_contexts in (300, 6000)
] + [Kind("pbm", noise, 6000, n_known=100) for noise in (None, 1.0)]  # where hardly anything comes again


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n_logs", type=int, default=40, help="logs of each kind; default 40")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=["auto", "ctr", "pbm", "harvest", "cascade", "trust"],
        help="default: auto ctr pbm harvest cascade trust",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first log; default 0")
    parser.add_argument("--out", metavar="FILE.json", help="all figures")


def run(args: argparse.Namespace) -> None:
    """Draw the logs, print a table and one JSON object."""
    results = []
    for kind in track(KINDS, "kinds of log", console=Console(stderr=True), transient=True):
        results.append(measure(kind, args.methods, range(args.seed, args.seed + args.n_logs)))
    Console(stderr=True, width=150).print(_table(results))
    text = json.dumps({"n_logs": args.n_logs, "seed": args.seed, "kinds": results})
    print(text)
    if args.out:
        write_whole(Path(args.out), text + "\n")


def measure(kind: Kind, methods: list[str], seeds: range) -> dict[str, Any]:
    """Bias and coverage of each method on logs of one kind.

    Returns:
        ``kind``; ``truth`` of the places below the top, how much each is looked at (where the top is trusted, the
        method ``trust`` is held against the slopes instead); ``chosen``, how often ``auto`` took which method;
        ``findings``, the share of logs in which ``auto`` raised each; ``methods``, of each ``n_failed`` (the log does
        not allow it), and of the others ``mean``, ``bias`` and ``coverage`` at each place below the top.
    """
    examination, found = [], {method: [] for method in methods}
    slopes = trusted_lines()[0] if kind.clicks == "trust" else None
    chosen: dict[str, int] = {}
    raised = dict.fromkeys(FINDINGS, 0)
    for seed in seeds:
        counts, true = simulated_counts(kind, seed)
        examination.append(true)
        for method in methods:
            try:
                one = estimate(counts, method)
            except ValueError:
                continue
            found[method].append((one, slopes if one.method == "trust" and slopes is not None else true))
            if method == "auto":
                chosen[one.method] = chosen.get(one.method, 0) + 1
                for name, words in FINDINGS.items():
                    raised[name] += any(words in sentence for sentence in one.findings)
    return {
        "kind": str(kind),
        "truth": np.mean(examination, axis=0)[1:].tolist(),
        "chosen": chosen,
        "findings": {name: n / len(seeds) for name, n in raised.items()},
        "methods": {method: _figures(pairs, len(seeds)) for method, pairs in found.items()},
    }


def _figures(found: list[tuple[Propensities, np.ndarray]], n_logs: int) -> dict[str, Any]:
    if not found:
        return {"n_failed": n_logs}
    true = np.array([true for _, true in found])
    values, low, high = (np.array([one[side] for one, _ in found]) for side in range(3))
    return {
        "n_failed": n_logs - len(found),
        "mean": values.mean(0)[1:].tolist(),
        "bias": (values - true).mean(0)[1:].tolist(),
        "coverage": ((low <= true) & (true <= high)).mean(0)[1:].tolist(),
    }


def trusted_lines(n: int = N_SHOWN) -> tuple[np.ndarray, np.ndarray]:
    """What the method ``trust`` should find in the built-in world: of each place the slope of its clicks' chance, in
    that of the top, and the chance that the place brings by itself, where the least trusted brings none."""
    examination, attractive, other = (np.array(of[:n]) for of in (EXAMINATION, TRUST_ATTRACTIVE, TRUST_OTHER))
    slope = examination * (attractive - other)
    zero = other / (attractive - other)  # minus the attraction at which nobody clicks there
    return slope / slope[0], slope * (zero - zero.min())


def simulated_counts(kind: Kind, seed: int = 0) -> tuple[pl.DataFrame, np.ndarray]:
    """Counts of a log of that kind (:data:`openrlhf_qs.clicks.propensity.COUNTS`), and the share in which each place
    was looked at, relative to the top."""
    rng = np.random.default_rng(seed)
    n, n_contexts = kind.n_impressions, kind.n_contexts
    appeal = rng.normal(-1.5, 1.0, (n_contexts, kind.n_known)) + rng.normal(0, 0.5, (n_contexts, 1))
    context = rng.integers(n_contexts, size=n)
    shown = rng.random((n, kind.n_known)).argsort(axis=1)[:, :N_SHOWN]
    if kind.ranker_noise is not None:
        seen = np.take_along_axis(appeal[context], shown, axis=1) + rng.normal(0, kind.ranker_noise, (n, N_SHOWN))
        shown = np.take_along_axis(shown, (-seen).argsort(axis=1), axis=1)
    attraction = 1 / (1 + np.exp(-np.take_along_axis(appeal[context], shown, axis=1)))
    chances = click_chances(kind.clicks, attraction)
    if kind.clicks == "cascade":  # one click at most, on each place with its chance
        drawn = (rng.random((n, 1)) > chances.cumsum(axis=1)).sum(axis=1)
        clicks = drawn[:, None] == np.arange(N_SHOWN)
    else:
        clicks = rng.random((n, N_SHOWN)) < chances
    above = clicks.cumsum(axis=1) - clicks > 0
    rows = pl.DataFrame(
        {
            "context": np.repeat(context, N_SHOWN),
            "suggestion": (context[:, None] * kind.n_known + shown).ravel(),
            "position": np.tile(np.arange(1, N_SHOWN + 1), n),
            "n_shown": np.ones(n * N_SHOWN, dtype=int),
            "n_clicked": clicks.ravel().astype(int),
            "n_open": (~above).ravel().astype(int),
            "n_first": (clicks & ~above).ravel().astype(int),
        },
        schema=COUNTS,
    )
    return added_up(rows), np.array(truth(kind.clicks, attraction)["examination"])


def _table(results: list[dict[str, Any]]) -> Table:
    """A row a kind and method: bias and coverage of the places below the top, and what ``auto`` said."""
    table = Table("log", "method", "bias", "coverage", "raised in", title="examination of the places below the top")
    for one in results:
        raised = ", ".join(f"{name} {share:.0%}" for name, share in one["findings"].items() if share)
        for method, figures in one["methods"].items():
            name = method if method != "auto" else "auto: " + ", ".join(f"{m} {n}" for m, n in one["chosen"].items())
            cells = ["", ""]
            if "bias" in figures:
                cells = [
                    " ".join(f"{value:+.3f}" for value in figures["bias"]),
                    " ".join(f"{value:.0%}" for value in figures["coverage"]),
                ]
            table.add_row(one["kind"] if method == "auto" else "", name, *cells, raised if method == "auto" else "")
        table.add_section()
    return table
