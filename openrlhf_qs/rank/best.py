"""``openrlhf-qs rank best``: of a reasoner's queries for each visit those that help the ranker most, to be taught.

In: samples of the reasoner, as ``openrlhf-qs distil`` writes them, for the prompts of ``openrlhf-qs rank data``, and a
ranker that has not seen their clicks. Out: ``--out``, rows for ``openrlhf-qs sft --qs.sft_dataset single`` with the
best query of each visit (RG-SFT), and ``--pairs``, ``{"prompt", "chosen", "rejected"}``, best against worst, for DPO.

How much a query helps is :func:`gain`. A visit that no query of helps keeps what it had: nothing is taught.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.request import Request

if TYPE_CHECKING:  # --help need not wait for torch
    from openrlhf_qs.rank.ranker import Ranker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", required=True, metavar="FILE", help="several queries a visit")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="prompts.jsonl of rank data")
    parser.add_argument(
        "--ranker", required=True, metavar="DIR", help="one that has not seen these clicks: DIR/reward"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="rows to train on")
    parser.add_argument("--pairs", default="", metavar="FILE", help="best against worst, for DPO")
    parser.add_argument("--least", type=float, default=0.0, help="nats that the best must gain; default 0")
    parser.add_argument(
        "--shuffle_scores", action="store_true", help="gains of other queries, at random: a control that must not help"
    )
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    from openrlhf_qs.rank.ranker import Ranker

    requests, prompts = {}, {}
    for row in read_json_lines(args.prompts):
        request = Request.of_label(row["label"])
        key = conversation_key(request.conversation)
        requests[key], prompts[key] = request, row["prompt"]
    rows = [row for row in read_json_lines(args.samples) if row["candidates"]]
    unknown = [row for row in rows if conversation_key(row["conversation"]) not in requests]
    if unknown or not rows:
        raise ValueError(f"{len(unknown)} of {len(rows)} rows of {args.samples} are not visits of {args.prompts}")
    flat = [
        (requests[conversation_key(row["conversation"])], one["text"]) for row in rows for one in row["candidates"]
    ]
    gains = gain(Ranker.load(args.ranker), [request for request, _ in flat], [text for _, text in flat])
    if args.shuffle_scores:
        gains = np.random.default_rng(args.seed).permutation(gains)
    taught, pairs, start, best_gains = [], [], 0, []
    for row in rows:
        texts = [one["text"] for one in row["candidates"]]
        of_row = gains[start : start + len(texts)]
        start += len(texts)
        best, worst = int(of_row.argmax()), int(of_row.argmin())
        best_gains.append(of_row[best])
        if of_row[best] > args.least:
            one = {"text": texts[best], "n_shown": 1, "n_clicked": 1, "weight": 1.0}
            taught.append({"conversation": row["conversation"], "candidates": [one]})
            if of_row[best] > of_row[worst]:
                prompt = prompts[conversation_key(row["conversation"])]
                pairs.append({"prompt": prompt, "chosen": texts[best], "rejected": texts[worst]})
    if not taught:
        raise ValueError(
            f"no query of {len(rows)} visits gains more than {args.least} nats: there is nothing to train on"
        )
    write_json_lines(args.out, taught)
    if args.pairs:
        write_json_lines(args.pairs, pairs)
    print(
        f"{len(flat):,} queries of {len(rows):,} visits gain {gains.mean():+.3f} nats, the best of each "
        f"{np.mean(best_gains):+.3f}; {len(taught):,} are training targets, in {args.out}"
    )


def gain(ranker: Ranker, requests: Sequence[Request], queries: Sequence[str]) -> np.ndarray:
    r"""What a query brings ``[n]``, nats: the log-probability of what was clicked under the softmax over all intents,
    less the same ranker's without a query. With several clicks their mean.

    A visit that the ranker foresees anyway teaches nothing so. ValueError where a request has no click, or one of
    what is no intent of the ranker.
    """
    from scipy.special import log_softmax

    number = ranker.intents.numbers()
    clicked = []
    for request in requests:
        unknown = [text for text in request.clicked if text not in number]
        if not request.clicked or unknown:
            what = f"{unknown[0]!r}, which is not an intent of the ranker" if unknown else "no click"
            raise ValueError(f"the ranker cannot score a visit with {what}: give prompts.jsonl of `rank data`")
        clicked.append([number[text] for text in request.clicked])
    features: list[Mapping] = [request.features for request in requests]
    distinct = {conversation_key(request.conversation): n for n, request in enumerate(requests)}
    places = list(distinct.values())
    without = dict(zip(distinct, log_softmax(ranker.scores([features[n] for n in places]), axis=1), strict=True))
    with_query = log_softmax(ranker.scores(features, queries=[[query] for query in queries]), axis=1)
    return np.array(
        [
            with_query[n, of_request].mean() - without[conversation_key(requests[n].conversation)][of_request].mean()
            for n, of_request in enumerate(clicked)
        ]
    )
