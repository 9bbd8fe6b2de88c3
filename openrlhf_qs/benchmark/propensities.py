"""``openrlhf-qs benchmark propensities``: what the estimators of examination find where the truth is known.

Logs of every kind are drawn: a random and a chosen order, each click model of the built-in world, few and many shows
of a conversation, one and four logged turns. Suggestions are numbers here: what is measured is the estimator, and
thousands of logs cost minutes. In: how many logs of each kind. Out: for each kind and method the bias and the coverage
of the interval at each place, how often the method was chosen by ``auto``, and how often each finding was raised; for
some of the logs, what the pairs that come of it are worth; as JSON and as a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import track
from rich.table import Table

from openrlhf_qs.clicks.preferences import click_rate_preferences, preferences
from openrlhf_qs.clicks.propensity import METHODS, PLACES, Propensities, estimate
from openrlhf_qs.clicks.reading_on import VISITS
from openrlhf_qs.clicks.rows import MESSAGES
from openrlhf_qs.clicks.shows import COUNTS, added_up
from openrlhf_qs.files.whole import write_whole
from openrlhf_qs.world.click_models import EXAMINATION, TRUST_ATTRACTIVE, TRUST_OTHER, click_chances, truth

N_SHOWN = 3
FINDINGS = {  # a part of each finding
    "order chosen": "the order was chosen",
    "order unknown": "to tell whether the order was random",
    "a click ends reading": "a click above takes",
    "users differ by so much": "by their other turns",
    "how users differ cannot be told": "too few users recur",
    "top trusted": "depends on how attractive",
    "trust cannot be told": "to tell whether the top is trusted",
    "does not know": "cannot tell how often",
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
        n_turns: logged turns of a conversation, each a context of its own. One user has them all, and some users click
            more than others.
    """

    clicks: str
    ranker_noise: float | None
    n_contexts: int
    n_known: int = 6
    n_impressions: int = 20_000
    n_turns: int = 1

    def __str__(self) -> str:
        order = "random" if self.ranker_noise is None else "ranked"
        of = f" of {self.n_known}" if self.n_known != 6 else ""
        turns = f", {self.n_turns} turns" if self.n_turns > 1 else ""
        return f"{self.clicks}, {order}, {self.n_impressions // self.n_contexts} shows{of}{turns}"


KINDS = [
    Kind(clicks, noise, n_contexts)
    for clicks in ("pbm", "cascade", "trust")
    for noise in (None, 1.0)
    for n_contexts in (300, 6000)
]
KINDS += [Kind("pbm", noise, 6000, n_known=100) for noise in (None, 1.0)]  # where hardly anything comes again
KINDS += [Kind(clicks, noise, 300, n_turns=4) for clicks in ("pbm", "cascade", "trust") for noise in (None, 1.0)]
OF_PAIRS = ("none", "ctr", "auto")  # ctr was the default before auto


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n_logs", type=int, default=40, help="logs of each kind; default 40")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="NAME",
        default=["auto", "ctr", "pbm", "harvest", "cascade", "trust"],
        help=f"estimators to compare, of {', '.join(METHODS)}; default: auto ctr pbm harvest cascade trust",
    )
    parser.add_argument(
        "--n_pair_logs",
        type=int,
        default=2,
        help="how many of these logs also have their pairs compared with the truth; default 2",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first log; default 0")
    parser.add_argument(
        "--before", metavar="DIR", help="checkout of another version, whose default estimator runs on the same logs"
    )
    parser.add_argument("--out", metavar="FILE.json", help="file for all figures")


def run(args: argparse.Namespace) -> None:
    """Draw the logs, print a table and one JSON object."""
    results = []
    for kind in track(KINDS, "kinds of log", console=Console(stderr=True), transient=True):
        seeds = range(args.seed, args.seed + args.n_logs)
        one = measure(kind, args.methods, seeds)
        if args.before:
            one |= {"before": measure_before(kind, args.before, seeds)}
        results.append(one | {"pairs": measure_pairs(kind, seeds[: args.n_pair_logs])})
    tables = [_table(results), *([_table_of_pairs(results)] if args.n_pair_logs else [])]
    for table in [*tables, *([_table_before(results)] if args.before else [])]:
        Console(stderr=True).print(table)
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
        simulation = simulated(kind, seed)
        counts, users, true = simulation.counts(), simulation.visits(), simulation.examination
        examination.append(true)
        for method in methods:
            try:
                one = estimate(counts, method, users=users)
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


BEFORE = """
import json, sys
import polars as pl
from openrlhf_qs.clicks import propensity
found = []
for file in sys.argv[1:]:
    try:
        one = propensity.estimate(pl.read_parquet(file))
        found.append([one.values, one.low, one.high])
    except ValueError:
        found.append(None)
print(json.dumps({"file": propensity.__file__, "method": propensity.DEFAULT_METHOD, "found": found}))
"""


def measure_before(kind: Kind, checkout: str, seeds: range) -> dict[str, Any]:
    """``method``, the default of another version, and its figures as in :func:`measure`, on the same logs."""
    if not (Path(checkout) / "openrlhf_qs" / "clicks" / "propensity.py").is_file():
        raise ValueError(f"--before {checkout} is not a checkout of this package with estimators of propensities")
    with tempfile.TemporaryDirectory() as folder:
        files, true = [], []
        for seed in seeds:
            counts, examination = simulated_counts(kind, seed)
            files.append(str(Path(folder) / f"{seed}.parquet"))
            counts.write_parquet(files[-1])
            true.append(examination)
        home = Path(checkout).resolve()
        done = subprocess.run(  # Python looks where it was started first
            [sys.executable, "-c", BEFORE, *files], cwd=home, capture_output=True, text=True
        )
    if done.returncode:
        raise ValueError(f"--before {checkout}: its estimators failed: {done.stderr.strip().splitlines()[-1]}")
    answer = json.loads(done.stdout)
    if not Path(answer["file"]).is_relative_to(home):
        raise ValueError(f"--before {checkout}: {answer['file']} was run instead; leave PYTHONPATH empty")
    pairs = [(Propensities(*one), at) for one, at in zip(answer["found"], true, strict=True) if one]
    return {"method": answer["method"], **_figures(pairs, len(seeds))}


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


class Simulated(NamedTuple):
    """A log whose truth is known: ``context [n]``, ``shown [n, 3]``, the number of each suggestion from the top,
    ``appeal`` and ``clicks`` of the same shape, log-odds of an average user and 0 or 1, ``examination [3]``, and
    ``user [n]``, one number for all impressions of a user."""

    context: np.ndarray
    shown: np.ndarray
    appeal: np.ndarray
    clicks: np.ndarray
    examination: np.ndarray
    user: np.ndarray

    def counts(self) -> pl.DataFrame:
        """As :func:`openrlhf_qs.clicks.shows.shown_counts` has them."""
        n, above = len(self.context), self.clicks.cumsum(axis=1) - self.clicks > 0
        rows = pl.DataFrame(
            {
                "context": np.repeat(self.context, N_SHOWN),
                "suggestion": self.shown.ravel(),
                "position": np.tile(np.arange(1, N_SHOWN + 1), n),
                "n_shown": np.ones(n * N_SHOWN, dtype=int),
                "n_clicked": self.clicks.ravel().astype(int),
                "n_open": (~above).ravel().astype(int),
                "n_first": (self.clicks & ~above).ravel().astype(int),
            },
            schema=COUNTS,
        )
        return added_up(rows)

    def visits(self) -> pl.DataFrame:
        """As :func:`openrlhf_qs.clicks.reading_on.visits` has them."""
        above = self.clicks.cumsum(axis=1) - self.clicks > 0
        columns = {
            "user": self.user,
            "is_root": np.zeros(len(self.user), dtype=bool),
            "context": self.context,
            "top": self.clicks[:, 0].astype(int),
            "n_places": np.full(len(self.user), N_SHOWN),
            "n_open": (~above).sum(axis=1),
        }
        return pl.DataFrame(columns, schema=VISITS)

    def log(self) -> pl.DataFrame:
        """As a click log, in words that are numbers."""
        contexts = [[{"role": "user", "content": f"conversation {one}"}] for one in range(self.context.max() + 1)]
        texts = np.array([f"suggestion {one}" for one in range(self.shown.max() + 1)], dtype=object)
        return pl.DataFrame(
            {
                "impression_id": [str(row) for row in range(len(self.context))],
                "conversation": pl.Series(contexts, dtype=MESSAGES).gather(self.context),
                "user_id": [str(user) for user in self.user],
                "suggestions": texts[self.shown].tolist(),
                "clicks": self.clicks.astype(np.int8).tolist(),
            }
        )


def simulated(kind: Kind, seed: int = 0) -> Simulated:
    """A log of that kind, and the share in which each place was looked at, relative to the top."""
    rng = np.random.default_rng(seed)
    n, n_contexts = kind.n_impressions, kind.n_contexts
    appeal = rng.normal(-1.5, 1.0, (n_contexts, kind.n_known)) + rng.normal(0, 0.5, (n_contexts, 1))
    if kind.n_turns == 1:
        context, user = rng.integers(n_contexts, size=n), np.zeros((n, 1))
    else:
        root = rng.integers(n_contexts // kind.n_turns, size=n // kind.n_turns)
        context = (root[:, None] * kind.n_turns + np.arange(kind.n_turns)).ravel()
        user = np.repeat(rng.normal(0, 1, (n // kind.n_turns, 1)), kind.n_turns, axis=0)
    shown = rng.random((n, kind.n_known)).argsort(axis=1)[:, :N_SHOWN]
    if kind.ranker_noise is not None:
        seen = np.take_along_axis(appeal[context], shown, axis=1) + rng.normal(0, kind.ranker_noise, (n, N_SHOWN))
        shown = np.take_along_axis(shown, (-seen).argsort(axis=1), axis=1)
    of_shown = np.take_along_axis(appeal[context], shown, axis=1)
    attraction = 1 / (1 + np.exp(-of_shown - user))
    chances = click_chances(kind.clicks, attraction)
    if kind.clicks == "cascade":  # one click at most, on each place with its chance
        drawn = (rng.random((n, 1)) > chances.cumsum(axis=1)).sum(axis=1)
        clicks = drawn[:, None] == np.arange(N_SHOWN)
    else:
        clicks = rng.random((n, N_SHOWN)) < chances
    examination = np.array(truth(kind.clicks, attraction)["examination"])
    users = np.arange(n) // kind.n_turns
    return Simulated(context, context[:, None] * kind.n_known + shown, of_shown, clicks, examination, users)


def simulated_counts(kind: Kind, seed: int = 0) -> tuple[pl.DataFrame, np.ndarray]:
    """Counts of a log of that kind (:data:`openrlhf_qs.clicks.shows.COUNTS`), and the share in which each place
    was looked at, relative to the top."""
    one = simulated(kind, seed)
    return one.counts(), one.examination


def measure_pairs(kind: Kind, seeds: range) -> dict[str, dict[str, float]]:
    """What pairs are worth under each of ``OF_PAIRS``, means over the logs.

    Returns:
        Of each method, and of ``auto`` with ``--pairs_from click_rates``: ``agrees``, the share of the weight of pairs
        whose chosen one appeals more, and ``place``, log-odds of being the chosen one for each place higher, the
        appeals held fixed (a weighted logistic regression on the difference of both; 0 is no position bias).
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        one = simulated(kind, seed)
        log, counts = one.log(), one.counts()
        for method in OF_PAIRS:
            places = estimate(counts, method, users=one.visits())
            more = {name: getattr(places, name) for name in PLACES}
            made = preferences(log, "ipw", places.values, **more)
            chosen, rejected, weight, row = _columns(made)
            gap = rejected - chosen  # places that the chosen one stood above the other
            appeal = one.appeal[row, chosen] - one.appeal[row, rejected]
            found.setdefault(method, []).append(_worth(appeal, gap, weight))
        appeal_of = np.zeros(one.shown.max() + 1)
        appeal_of[one.shown.ravel()] = one.appeal.ravel()
        made = click_rate_preferences(log, places.looks, trust=places.trust)
        place_of = np.bincount(one.shown.ravel(), np.tile(np.arange(N_SHOWN), len(log))) / np.maximum(
            np.bincount(one.shown.ravel()), 1
        )
        numbers = [[int(text.split()[1]) for text in texts] for texts in made["suggestions"]]
        chosen, rejected, weight, row = _columns(made)
        c, r = (
            np.array([numbers[n][place] for n, place in zip(row, side, strict=True)]) for side in (chosen, rejected)
        )
        label = made["pairs"].explode(empty_as_null=False).struct.field("label").to_numpy()
        gap = place_of[r] - place_of[c]
        found.setdefault("auto, click rates", []).append(_worth(appeal_of[c] - appeal_of[r], gap, weight, label))
    return {
        name: dict(zip(("agrees", "place"), np.mean(values, axis=0).tolist(), strict=True))
        for name, values in found.items()
    }


def _columns(table: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Chosen and rejected place, weight and row of every pair, ``[n]`` each."""
    row = np.repeat(np.arange(table.height), table["pairs"].list.len().to_numpy())
    pairs = table["pairs"].explode(empty_as_null=False).struct.unnest()
    return *(pairs[name].to_numpy() for name in ("chosen", "rejected", "weight")), row


def _worth(appeal: np.ndarray, gap: np.ndarray, weight: np.ndarray, label: np.ndarray | float = 1.0):
    """``agrees`` and ``place`` of :func:`measure_pairs`; ``appeal`` and ``gap`` are those of the chosen one above the
    other, ``[n]``, and ``label`` says how sure it is that it is the better one."""
    x = np.stack([appeal, gap], axis=1)
    coefficients = np.zeros(2)
    for _ in range(25):  # Newton; each pair both ways round is one likelihood without an intercept
        p = 1 / (1 + np.exp(-x @ coefficients))
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x
        coefficients = coefficients + np.linalg.solve(hessian, x.T @ (weight * (label - p)))
    return float(np.average(appeal > 0, weights=weight)), float(coefficients[1])


def _table(results: list[dict[str, Any]]) -> Table:
    """A row a kind and method: bias and coverage of the places below the top, and what ``auto`` said."""
    table = Table("log", "method", "bias", "coverage", "raised in", title="examination of the positions below the top")
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


def false_alarms(kind: str, findings: Mapping[str, float]) -> float:
    """The share of the logs of a kind in which something was said of the clicks that is not so."""
    wrong = {"a click ends reading": "cascade", "top trusted": "trust"}
    of_clicks = max(findings[name] for name, clicks in wrong.items() if not kind.startswith(clicks))
    return max(of_clicks, findings["order chosen"] if "random" in kind else 0.0)


def _table_before(results: list[dict[str, Any]]) -> Table:
    """A row a kind: bias and coverage of the other version's default and of ``auto``, and false alarms."""
    table = Table("log", "before", "bias", "coverage", "now", "bias", "coverage", "false alarms")
    for one in results:
        cells = []
        for name, figures in ((one["before"]["method"], one["before"]), ("auto", one["methods"]["auto"])):
            taken = name if name != "auto" else ", ".join(f"{m} {n}" for m, n in one["chosen"].items())
            bias = " ".join(f"{value:+.3f}" for value in figures.get("bias", ()))
            cells += [taken, bias, " ".join(f"{value:.0%}" for value in figures.get("coverage", ()))]
        table.add_row(one["kind"], *cells, f"{false_alarms(one['kind'], one['findings']):.0%}")
    return table


def _table_of_pairs(results: list[dict[str, Any]]) -> Table:
    """A row a kind: what the pairs of each method are worth."""
    names = list(results[0]["pairs"])
    table = Table("log", *names, title="pairs: share that agrees with the truth, log-odds per position higher")
    for one in results:
        cells = [f"{of['agrees']:.3f} {of['place']:+.3f}" for of in one["pairs"].values()]
        table.add_row(one["kind"], *cells)
    return table
