"""``openrlhf-qs rank score FILE --model DIR --out OUT``: a ranker's scores for every row of a file.

Of a ranker of intents (``openrlhf-qs rank``) a row has ``features`` and may have a ``query``, a text or a list of
them; it gets ``intents``, the ids from the best down, and ``scores``, the chance of a click on each. Of a ranker of
proposals (``openrlhf-qs rank proposals``) a row has ``events`` and a ``proposal``; it gets ``score``, comparable
within its context, and ``chance``, that the majority accepts it. Where the rows say what people said, GAUC and ECE
are printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from openrlhf_qs.files.whole import read_json_lines, short, write_json_lines
from openrlhf_qs.rank import proposals
from openrlhf_qs.rank.impressions import read_intents
from openrlhf_qs.rank.metrics import calibration_error
from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import cluster_bootstrap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="JSON Lines")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a ranker, of intents or of proposals")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON Lines to write")
    parser.add_argument("--intents", default="", metavar="FILE", help="knowledge base; default: that of training")
    parser.add_argument("--n", type=int, default=3, help="intents of a row; default 3")


def run(args: argparse.Namespace) -> None:
    config = Path(args.model) / proposals.CONFIG
    try:
        model = json.loads(config.read_text(encoding="utf-8"))
        kind = model["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{args.model} is not a ranker ({error}): give the folder of `openrlhf-qs rank`") from None
    (_score_proposals if kind == proposals.KIND else _score_intents)(args, model)


def _score_proposals(args: argparse.Namespace, model: dict) -> None:
    rows = proposals.read_proposals(args.file)
    scores, chances = proposals.score_proposals(model, rows)
    write_json_lines(
        args.out,
        (
            row | {"score": round(float(score), 6), "chance": round(float(chance), 6)}
            for row, score, chance in zip(rows, scores, chances, strict=True)
        ),
    )
    print(f"{len(rows):,} proposals scored, in {args.out}")
    if all("accepted" in row for row in rows):
        accepted = np.array([2 * row["accepted"] > row["judges"] for row in rows])
        contexts = [row["context_id"] for row in rows]
        gauc = proposals.context_auc(scores, accepted, contexts)
        ece = calibration_error(chances, accepted)
        within = "no context has both an accepted and a rejected proposal: no GAUC"
        if not np.isnan(gauc):
            low, high = _interval(scores, accepted, contexts)
            within = f"GAUC {gauc:.3f} ({low:.3f} to {high:.3f})"
        print(f"{within}; ECE {ece['ece']:.3f}, floor {ece['floor']:.3f}")


def _interval(scores: np.ndarray, accepted: np.ndarray, contexts: list[str]) -> tuple[float, float]:
    """95 % of the GAUC, by resampling contexts."""
    clusters = Clusters.of(contexts)
    number = clusters.numbers[0]
    of_each = np.array(
        [
            proposals.context_auc(scores[number == n], accepted[number == n], ["-"] * int((number == n).sum()))
            for n in range(clusters.n_clusters)
        ]
    )
    value, has_both = np.nan_to_num(of_each)[number], ~np.isnan(of_each)[number]

    def gauc(weight: np.ndarray) -> list[float]:
        return [float((weight * has_both * value).sum() / max((weight * has_both).sum(), 1e-9))]

    return tuple(cluster_bootstrap(gauc, np.ones(len(scores)), clusters)[0])


def _score_intents(args: argparse.Namespace, model: dict) -> None:
    from openrlhf_qs.rank.ranker import Ranker

    ranker = Ranker.load(args.model)
    intents = read_intents(args.intents) if args.intents else ranker.intents
    rows = read_json_lines(args.file)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("features"), dict):
            raise ValueError(f"{args.file}:{number}: features {short(row.get('features'))}; give an object")
    queries = [_queries(row.get("query"), f"{args.file}:{number}") for number, row in enumerate(rows, start=1)]
    try:
        scores = ranker.scores([row["features"] for row in rows], intents, queries if any(queries) else None)
    except ValueError as error:  # features of another type than in training
        raise ValueError(f"{args.file}: {error}") from None
    best = np.argsort(-scores, axis=1, kind="stable")[:, : args.n]
    chances = 1 / (1 + np.exp(-np.take_along_axis(scores, best, axis=1)))
    write_json_lines(
        args.out,
        (
            row | {"intents": [intents.ids[n] for n in order], "scores": [round(float(one), 6) for one in chance]}
            for row, order, chance in zip(rows, best, chances, strict=True)
        ),
    )
    print(f"{len(rows):,} rows scored, in {args.out}")


def _queries(query: object, where: str) -> list[str]:
    """What a row has as ``query``, as a list."""
    texts = [query] if isinstance(query, str) else query or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: query {short(query)}; give a text, or a list of texts")
    return [text for text in texts if text.strip()]
