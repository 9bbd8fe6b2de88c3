"""``openrlhf-qs rank eval``: rankings of held-out visits side by side.

In: a held-out log, the knowledge base, arms ``NAME=DIR`` or ``NAME=DIR:QUERIES``. Out: a table, and ``--out``, JSON.

Without a judge relevance is what was clicked: it says how well an arm finds that among all other intents, and favours
whoever ranks as the policy did that chose what was shown. A judge (``--judge zero_query_world``) tells the chance of a
click for every intent, and ``oracle`` is its own ranking. New intents are those that no row of ``--train`` shows.

``--over NAME`` compares every other arm with that one on the same visits (:func:`openrlhf_qs.rank.metrics.gains`).
``--rounds FILE`` draws arms ``NAME_1``, ``NAME_2`` ... as the rounds of NAME, which begin at the arm ``cold_start``.
Of an arm with queries the JSON also has ``signs`` of a reasoner that plays the ranker (:func:`signs`), and
``--examples FILE`` shows ten visits: features, and of each arm its queries and what it ranks first.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import write_json_lines, write_whole
from openrlhf_qs.rank.impressions import (
    Impressions,
    Intents,
    conversation_of,
    read_impressions,
    read_intents,
)
from openrlhf_qs.rank.metrics import AT, at_top, calibration_error, gains, group_auc, summary
from openrlhf_qs.rank.train import queries_for, read_queries, shuffled
from openrlhf_qs.registry import JUDGES, load_plugins


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", required=True, nargs="+", metavar="FILE", help="held-out log")
    parser.add_argument("--train", nargs="+", default=[], metavar="FILE", help="log of the training, for new intents")
    parser.add_argument("--intents", required=True, metavar="FILE", help="knowledge base")
    parser.add_argument(
        "--arm",
        action="append",
        required=True,
        metavar="NAME=DIR[:QUERIES[,QUERIES]]",
        help="a ranker and its queries; may be repeated",
    )
    parser.add_argument("--shuffle_queries", action="append", default=[], metavar="NAME", help="a control: that arm's")
    parser.add_argument(
        "--over", action="append", default=[], metavar="NAME", help="compare the other arms with this one; repeatable"
    )
    parser.add_argument("--judge", default="", help="plugin that tells the chance of a click for every intent")
    parser.add_argument("--n_max", type=int, default=2000, help="visits, drawn at random; default 2000")
    parser.add_argument("--out", default="", metavar="FILE", help="JSON to write")
    parser.add_argument("--examples", default="", metavar="FILE", help="JSON Lines of ten visits to write")
    parser.add_argument("--rounds", default="", metavar="FILE", help="SVG to write: metrics over the rounds")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    intents = read_intents(args.intents)
    log = read_impressions(args.log, intents)
    log = log[np.sort(np.random.default_rng(args.seed).permutation(len(log))[: args.n_max])]
    is_new = np.zeros(len(intents), dtype=bool)
    if args.train:
        before = read_impressions(args.train, intents)
        is_new = ~np.isin(np.arange(len(intents)), before.shown)
    relevance = judged(args.judge, log, intents) if args.judge else clicked(log, len(intents))
    arms = {}
    if args.judge:
        arms["oracle"] = relevance
    if args.train:
        n_clicked = np.zeros(len(intents))
        np.add.at(n_clicked, before.shown[before.shown >= 0], before.clicks[before.shown >= 0])
        arms["popularity"] = np.tile(n_clicked, (len(log), 1))
    chances, queries = {}, {}
    for arm in args.arm:
        name, scores, of_rows = arm_scores(arm, log, intents, args.shuffle_queries, args.seed)
        arms[name] = chances[name] = scores
        if of_rows:
            queries[name] = of_rows
    if unknown := [name for name in args.over if name not in arms]:
        raise ValueError(f"--over {unknown[0]}: no such arm; there are {', '.join(arms)}")
    values = {name: measured(scores, relevance, is_new, log) for name, scores in arms.items()}
    results = {name: summary(of_arm, log.users) for name, of_arm in values.items()}
    over = {
        base: {
            name: gains(values[name], values[base], values.get("oracle"), log.users)
            for name in chances
            if name != base
        }
        for base in args.over
    }
    for name, scores in chances.items():
        results[name]["calibration"] = on_clicks(scores, log)
    for name, of_rows in queries.items():
        results[name]["signs"] = signs(of_rows, arms[name], log, intents)
    if args.examples:
        write_json_lines(args.examples, examples(log, intents, arms, queries))
    if args.rounds:
        write_whole(args.rounds, rounds_picture(results))
    if args.out:
        write_whole(
            args.out, json.dumps({"n": len(log), "judge": args.judge, "arms": results, "over": over}, indent=1) + "\n"
        )
    for shown in [*tables(results), *(gains_table(base, of_arms) for base, of_arms in over.items())]:
        print_table(shown)


def arm_scores(
    arm: str, log: Impressions, intents: Intents, shuffled_arms: Sequence[str], seed: int
) -> tuple[str, np.ndarray, list[list[str]] | None]:
    """Name, log-odds ``[n, intents]`` and queries ``[n]``, where there are any, of ``NAME=DIR[:QUERIES]``."""
    from openrlhf_qs.rank.ranker import Ranker

    name, equals, rest = arm.partition("=")
    folder, _, queries = rest.partition(":")
    if not equals or not folder:
        raise ValueError(f"--arm {arm!r}: give NAME=DIR or NAME=DIR:QUERIES")
    of_rows = None
    if queries:
        of_rows = queries_for(log.features, read_queries(queries.split(",")))
        if name in shuffled_arms:
            of_rows = shuffled(of_rows, seed)
    return name, Ranker.load(folder).scores(log.features, intents, of_rows), of_rows


def signs(
    queries: Sequence[Sequence[str]], scores: np.ndarray, log: Impressions, intents: Intents
) -> dict[str, float | None]:
    """What a reasoner shows that plays the ranker, and not the visitor, by the likeliest query of each visit.

    Returns:
        ``distinct`` and ``commonest``: shares of the visits, of different queries and of the one that comes most
        often (one that pleases the ranker whoever asks). ``n_words``: of a query, and ``n_intents``: how many intents'
        texts stand in it (words of several stuffed in). ``order_kept``: of the pairs of intents that were shown and
        are ranked, the share that stands as it was shown (a half by chance; the old ranker's order copied: near 1).
    """
    likeliest = [texts[0] if texts else "" for texts in queries]
    counts = Counter(likeliest).most_common()
    named = [text.casefold() for text in intents.texts]
    there, of_shown = scores_of_shown(scores, log)
    pairs = there[:, :, None] & there[:, None, :] & np.triu(np.ones(2 * there.shape[1:], dtype=bool), 1)
    kept = (of_shown[:, :, None] > of_shown[:, None, :])[pairs]
    n_named = [sum(text in query.casefold() for text in named) for query, _ in counts]
    return {
        "distinct": len(counts) / len(queries),
        "commonest": counts[0][1] / len(queries),
        "n_words": float(np.mean([len(query.split()) for query in likeliest])),
        "n_intents": sum(n * count for n, (_, count) in zip(n_named, counts, strict=True)) / len(queries),
        "order_kept": float(kept.mean()) if kept.size else None,
    }


def examples(
    log: Impressions,
    intents: Intents,
    arms: Mapping[str, np.ndarray],
    queries: Mapping[str, Sequence[Sequence[str]]],
    n: int = 10,
) -> Iterator[dict[str, Any]]:
    """``n`` visits, evenly over the log: features, what was clicked, and of each arm its queries, with how often
    each was written, and its first three."""
    for row in np.unique(np.linspace(0, len(log) - 1, n).astype(int)):
        of_arms = {}
        for name, scores in arms.items():
            first = np.argsort(-scores[row], kind="stable")[:AT]
            asked = {"queries": dict(Counter(queries[name][row]))} if name in queries else {}
            of_arms[name] = asked | {"first": [intents.texts[intent] for intent in first]}
        clicked_there = log.shown[row][log.clicks[row] > 0]
        yield {
            "features": log.features[int(row)],
            "clicked": [intents.texts[intent] for intent in clicked_there],
            "arms": of_arms,
        }


LEVELS = ("two_towers", "features_in_words")  # the baselines, where there are such arms


def rounds_picture(results: Mapping[str, Any]) -> str:
    """SVG text of the metrics over the rounds. ValueError where no arm is a round."""
    from openrlhf_qs.plots.rounds import over_rounds
    from openrlhf_qs.plots.style import svg

    begin = [results["cold_start"]] if "cold_start" in results else []
    ways: dict[str, list[Any]] = {}
    for name, result in results.items():
        way, _, number = name.rpartition("_")
        if way and number.isdigit():
            ways.setdefault(way, list(begin)).append(result)
    if not ways:
        raise ValueError(f"no arm of {', '.join(results)} is a round; name arms NAME_1, NAME_2, as the recipe does")
    return svg(over_rounds(ways, {name: results[name] for name in LEVELS if name in results}))


def judged(judge: str, log: Impressions, intents: Intents) -> np.ndarray:
    """The judge's chance of a click for every intent at the top, ``[n, intents]``."""
    load_plugins()
    ask = JUDGES.create(judge)
    conversations = [conversation_of(features) for features in log.features]
    alone = [[text] for text in intents.texts]
    return np.array(
        [[chance for (chance,) in ask([conversation] * len(alone), alone)] for conversation in conversations]
    )


def clicked(log: Impressions, n_intents: int) -> np.ndarray:
    """1 for what was clicked, ``[n, intents]``."""
    relevance = np.zeros((len(log), n_intents))
    row, place = np.nonzero(log.clicks)
    relevance[row, log.shown[row, place]] = 1
    return relevance


def measured(scores: np.ndarray, relevance: np.ndarray, is_new: np.ndarray, log: Impressions) -> dict[str, np.ndarray]:
    """The metrics of one arm, for each visit ``[n]``; nan where a visit says nothing."""
    values = {"gauc": group_auc(scores, relevance), **at_top(scores, relevance, log.examination)}
    values["ctr"] = np.where(relevance.any(1), values["ctr"], np.nan)  # a visit without a click says nothing here
    if is_new.any():
        values["gauc_new"] = group_auc(scores[:, is_new], relevance[:, is_new])
        values["gauc_known"] = group_auc(scores[:, ~is_new], relevance[:, ~is_new])
        wants_new = relevance[:, is_new].max(1) >= relevance.max(1)
        top = at_top(scores, relevance * is_new, log.examination)["recall"]
        values["recall_new"] = np.where(wants_new, top, np.nan)
    return values


def scores_of_shown(scores: np.ndarray, log: Impressions) -> tuple[np.ndarray, np.ndarray]:
    """Where something was shown, and the scores there, ``[n, places]`` each; an empty place has any score."""
    return log.shown >= 0, np.take_along_axis(scores, np.maximum(log.shown, 0), axis=1)


def on_clicks(scores: np.ndarray, log: Impressions) -> dict[str, float]:
    """ECE of the chance of a click, examination included, on what was shown."""
    there, of_shown = scores_of_shown(scores, log)
    chance = log.examination / (1 + np.exp(-of_shown))
    return calibration_error(chance[there], log.clicks[there])


STYLE: dict[str, Any] = {"box": SIMPLE, "pad_edge": False, "padding": (0, 1, 0, 0)}
RANKED, NEW = ("gauc", "recall", "ndcg", "ctr"), ("gauc_new", "recall_new")


def tables(results: dict[str, Any]) -> list[Table]:
    """One line an arm: all intents, then the new ones and the calibration. 80 columns hold each whole."""
    ranked = Table("arm", "GAUC", "Recall@3", "NDCG@3", "CTR@3", title="all intents", **STYLE)
    new = Table("arm", "GAUC", "Recall@3", "ECE (floor)", title="new intents; ECE of all", **STYLE)
    for name, result in results.items():
        cell = {metric: _interval(result.get(metric)) for metric in (*RANKED, *NEW)}
        ranked.add_row(name, *(cell[metric] for metric in RANKED))
        ece = result.get("calibration")
        new.add_row(name, *(cell[metric] for metric in NEW), f"{ece['ece']:.3f} ({ece['floor']:.3f})" if ece else "")
    return [ranked, new]


def gains_table(base: str, of_arms: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Table:
    """What :func:`openrlhf_qs.rank.metrics.gains` found of each arm over ``base``."""
    table = Table("arm", "GAUC error gone", "NDCG@3", "CTR@3", title=f"over {base}, on the same visits", **STYLE)
    for name, gained in of_arms.items():
        cells = (
            "" if one["mean"] is None else f"{one['mean']:+{spec}} ±{one['half']:{spec}}"
            for one, spec in zip(
                (gained["gauc_error"], gained["ndcg"], gained["ctr"]), (".1%", ".3f", ".1%"), strict=True
            )
        )
        table.add_row(name, *cells)
    return table


def _interval(one: dict[str, Any] | None) -> str:
    return "" if not one or one["mean"] is None else f"{one['mean']:.3f} ±{one['half'] or 0:.3f}"
