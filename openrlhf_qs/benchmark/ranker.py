"""``openrlhf-qs benchmark ranker``: our ranker against LightGBM's LambdaMART on the same impressions.

The zero-query world, three intents shown of 160, in a knowledge base of 200: the others, about things that it does not
have, are never shown, and scored like all. LambdaMART (``lightgbm.LGBMRanker``) gets a row for each that was
shown, with the features and the intent as categories, its clicks weighted by inverse examination, a group an
impression; ours gets the impressions. Seconds are those of the processor, in one thread, which other work on the host
does not change. Both rank all intents for later visits, and the NDCG@3 is that of the chances of
a click that the world knows. Each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from typing import Any

import numpy as np

N_JUDGED = 1000  # later visits
OTHER_NOUNS = ("tent", "kite", "piano", "mirror", "ladder")
EXAMINATION = np.array([1.0, 0.75, 0.55])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--n",
        default="30000,100000",
        metavar="N,N",
        help="impressions per log, separated by commas; default 30000,100000",
    )
    parser.add_argument("--max_epochs", type=int, default=20, help="maximum epochs of our ranker; default 20")
    parser.add_argument(
        "--no_lightgbm", action="store_true", help="only our ranker, for example for a million impressions"
    )
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    """Measure, print one JSON object."""
    try:
        sizes = [int(word) for word in args.n.split(",")]
    except ValueError:
        raise ValueError(f"--n {args.n}: give whole numbers, separated by commas") from None
    context = multiprocessing.get_context("spawn")
    curve = []
    for n in sizes:
        with context.Pool(1) as pool:
            curve.append(pool.apply(measure, (n, args.max_epochs, args.seed, not args.no_lightgbm)))
    result: dict[str, Any] = {"curve": curve, "ratio": curve[-1].get("ratio")}
    if len(curve) > 1:
        first, last = curve[0], curve[-1]
        result["exponent"] = float(
            np.log(last["ours"]["seconds"] / first["ours"]["seconds"]) / np.log(last["n"] / first["n"])
        )
    print(json.dumps(result, indent=1))


def measure(n: int, max_epochs: int, seed: int, with_lightgbm: bool) -> dict[str, Any]:
    """Train both on ``n`` impressions. ``ratio``: LambdaMART's seconds over ours."""
    import torch

    from openrlhf_qs.rank.fit import train_ranker
    from openrlhf_qs.rank.impressions import Impressions, Intents
    from openrlhf_qs.rank.metrics import at_top
    from openrlhf_qs.world.zero_query import ACTIONS, attraction, draw_log, draw_visitors, intents

    torch.set_num_threads(1)
    visitors, shown, clicks, of_rows = draw_log(n, seed)
    rng = np.random.default_rng(seed + 1)
    judged = draw_visitors(rng, rng.random(N_JUDGED) * 0.8, np.arange(N_JUDGED))
    relevance = attraction(judged)
    of_world = [(key, text) for key, text, _, _ in intents()]
    others = [
        (f"{action} {noun}", text.format(noun=noun)) for noun in OTHER_NOUNS for action, (text, _) in ACTIONS.items()
    ]
    base = Intents(*zip(*of_world, *others, strict=True))
    features = Columns(visitors)
    log = Impressions(features, shown, clicks, of_rows["user"], of_rows["moment"], EXAMINATION)
    started = time.process_time()
    ranker = train_ranker(log, base, max_epochs=max_epochs, seed=seed)
    seconds = time.process_time() - started
    rows = Columns(judged)
    scores = ranker.scores(rows, base)[:, : len(of_world)]
    one = [rows[0]]
    started = time.process_time()
    for _ in range(50):
        ranker.scores(one, base)
    found = {
        "n": n,
        "ours": {
            "seconds": seconds,
            "ndcg": float(at_top(scores, relevance, EXAMINATION)["ndcg"].mean()),
            "ms_a_user": 1000 * (time.process_time() - started) / 50,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        },
    }
    if with_lightgbm:
        found["lightgbm"] = lambda_mart(ranker.codes(features), shown, clicks, ranker.codes(rows), relevance, seed)
        found["ratio"] = found["lightgbm"]["seconds"] / seconds
    return found


class Columns:
    """Columns of features as rows, made when they are asked for."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: int) -> dict[str, str]:
        if row >= len(self):
            raise IndexError(row)
        return {name: str(values[row]) for name, values in self.columns.items()}


def lambda_mart(
    codes: np.ndarray, shown: np.ndarray, clicks: np.ndarray, judged: np.ndarray, relevance: np.ndarray, seed: int
) -> dict[str, float]:
    """Seconds and NDCG@3 of LambdaMART."""
    from lightgbm import LGBMRanker

    from openrlhf_qs.rank.metrics import at_top

    told = clicks.any(1)  # a group without a click has no pair
    k, n_intents = shown.shape[1], relevance.shape[1]
    x = np.column_stack([np.repeat(codes[told], k, axis=0), shown[told].ravel()])
    y = clicks[told].ravel()
    weight = np.where(y > 0, np.tile(1 / EXAMINATION, told.sum()), 1.0)
    started = time.process_time()
    model = LGBMRanker(n_estimators=200, num_leaves=31, random_state=seed, n_jobs=1, verbose=-1)
    categories = list(range(x.shape[1]))
    model.fit(x, y, group=np.full(told.sum(), k), sample_weight=weight, categorical_feature=categories)
    seconds = time.process_time() - started
    all_of_them = np.column_stack([np.repeat(judged, n_intents, axis=0), np.tile(np.arange(n_intents), len(judged))])
    scores = model.predict(all_of_them).reshape(len(judged), n_intents)
    return {"seconds": seconds, "ndcg": float(at_top(scores, relevance, EXAMINATION)["ndcg"].mean())}
