"""``openrlhf-qs rank``: train a ranker on a zero-query log.

In: the log, the knowledge base and, for the third tower, queries of a reasoner, JSON Lines ``{"conversation",
"candidates"}`` as ``openrlhf-qs distil`` writes them; several of a user are read together, and several files too, so
that more than one reasoner may propose. Out: the ranker's folder, and ``reward/`` in it, which judges. What learns
from queries is the third tower alone: ``--base`` names a ranker of the same log whose other two are taken as they are.

**Who has seen which clicks.** The reasoner is taught clicks of one half of the users (:meth:`Impressions.half`). Its
queries for them remember what they clicked, and a ranker that learned from these would trust queries too far; so the
ranker gets queries for the other half alone, and learns from the reasoner's half without. The ranker in ``reward/``,
which tells the reasoner how good its queries are, learned from the other half only: it has not seen a click of the
prompts that it judges.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from openrlhf_qs.files.whole import json_lines, write_whole
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.rank.impressions import Intents, conversation_of, read_impressions, read_intents

if TYPE_CHECKING:  # --help need not wait for torch
    from openrlhf_qs.rank.ranker import Ranker

REWARD = "reward"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", required=True, nargs="+", metavar="FILE", help="zero-query log to learn from")
    parser.add_argument("--intents", required=True, metavar="FILE", help="knowledge base: JSON Lines of id and text")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the ranker")
    parser.add_argument(
        "--queries", nargs="+", default=[], metavar="FILE", help="of a reasoner, or of several; default: none"
    )
    parser.add_argument(
        "--base", default="", metavar="DIR", help="ranker of the same log without queries, which get a third tower"
    )
    parser.add_argument(
        "--no_words", action="store_true", help="use only the features' numeric ids, not their text (two towers)"
    )
    parser.add_argument("--no_reward", action="store_true", help="leave out reward/, where no reasoner learns from it")
    parser.add_argument("--shuffle_queries", action="store_true", help="give each user another one's query: a control")
    parser.add_argument(
        "--encoder",
        default="words",
        help="of texts: words (hashed), minilm, a sentence encoder or language model",
    )
    parser.add_argument(
        "--query_encoder",
        default="",
        metavar="MODEL",
        help="of the queries, and of the intents that they are compared with: as --encoder; a language model, as the "
        "reasoner's folder, for its last hidden state; default: that of the features' words",
    )
    parser.add_argument(
        "--info_nce", type=float, default=0.0, help="weight of InfoNCE between queries and intents; default 0, without"
    )
    parser.add_argument("--propensity", default="auto", help="estimator of the examination; default auto")
    parser.add_argument("--max_epochs", type=int, default=20, help="passes over the log at most; default 20")
    parser.add_argument(
        "--n_workers",
        type=int,
        default=0,
        help="workers of Ray Train to share the training, a CPU each, on $RAY_ADDRESS where it is set; default 0: "
        "this process alone",
    )
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    from openrlhf_qs.rank.fit import train_ranker, with_queries

    for flag in ("base", "query_encoder", "info_nce"):
        if getattr(args, flag) and not args.queries:
            raise ValueError(f"--{flag} {getattr(args, flag)} without --queries: give the queries to learn from")
    if args.info_nce < 0:
        raise ValueError(f"--info_nce {args.info_nce}: give a weight of at least 0")
    if args.n_workers < 0:
        raise ValueError(f"--n_workers {args.n_workers}: give 0 for this process alone, or a number of workers")
    intents = read_intents(args.intents)
    log = read_impressions(args.log, intents, args.propensity)
    for finding in log.findings:
        print(f"examination: {finding}")
    of_towers = {"encoder": args.encoder, "words": not args.no_words, "max_epochs": args.max_epochs}
    how = {"seed": args.seed, "n_workers": args.n_workers}
    queries, is_reasoners = None, log.half(args.seed)
    if args.queries:
        queries = queries_for(log.features, read_queries(args.queries))
        if args.shuffle_queries:
            queries = shuffled(queries, args.seed)
        queries = [[] if own else texts for own, texts in zip(is_reasoners, queries, strict=True)]

    def trained(base: str, rows: np.ndarray) -> Ranker:
        some = log[rows]
        towers = read_base(base, intents) if base else train_ranker(some, intents, **of_towers, **how)
        if not queries:
            return towers
        of_rows = [queries[row] for row in rows]
        return with_queries(towers, some, of_rows, args.query_encoder, info_nce=args.info_nce, **how)

    if not args.no_reward:
        others = np.flatnonzero(~is_reasoners)
        trained(args.base and f"{args.base}/{REWARD}", others).save(Path(args.out) / REWARD)
        print(f"{args.out}/{REWARD}: learned from {len(others):,} impressions, none of them seen by the reasoner")
    trained(args.base, np.arange(len(log))).save(args.out)
    n_queries = sum(map(bool, queries or ()))
    examination = ", ".join(f"{value:.2f}" for value in log.examination)
    print(
        f"{args.out}: {len(log):,} impressions, {int(log.clicks.sum()):,} clicks, {len(intents)} intents, "
        f"{n_queries:,} of them with queries; examination {examination}"
    )
    write_whole(Path(args.out) / "log.json", json.dumps({"examination": log.examination.tolist()}) + "\n")


def read_base(folder: str, intents: Intents) -> Ranker:
    """The ranker in a folder. ValueError where it knows another knowledge base."""
    from openrlhf_qs.rank.ranker import Ranker

    base = Ranker.load(folder)
    if base.intents != intents:
        raise ValueError(f"--base {folder} was trained with another knowledge base; retrain it with this one")
    return base


def read_queries(paths: Sequence[str | Path]) -> dict[str, list[str]]:
    """Key of a conversation to its queries, the likeliest first, each as often as it was sampled."""
    found: dict[str, list[str]] = {}
    for path in paths:
        for number, row in enumerate(json_lines(path), start=1):
            if not isinstance(row.get("candidates"), list) or "conversation" not in row:
                what = "no conversation with candidates; give what `openrlhf-qs distil` wrote"
                raise ValueError(f"{path}:{number}: {what}")
            texts = [one["text"] for one in row["candidates"] for _ in range(one.get("n_sampled", 1))]
            found.setdefault(conversation_key(row["conversation"]), []).extend(texts)
    return found


def queries_for(features: Sequence[Mapping], queries: Mapping[str, list[str]]) -> list[list[str]]:
    """The queries of each, empty where there are none. ValueError where there is none at all."""
    found = [queries.get(conversation_key(conversation_of(one)), []) for one in features]
    if not any(found):
        raise ValueError("no query belongs to features of this log: let the reasoner read the same log")
    return found


def shuffled(queries: Sequence[list[str]], seed: int) -> list[list[str]]:
    """The queries that are there, those of a row with another row that has some."""
    there = [n for n, query in enumerate(queries) if query]
    found = list(queries)
    for n, other in zip(there, np.random.default_rng(seed).permutation(there), strict=True):
        found[n] = queries[other]
    return found
