"""``openrlhf-qs benchmark reward-models``: the heads side by side, in one run, on the same features and pairs.

Features are frozen sentence embeddings; on them every registered head gets the same small network, the same batches
and as many steps, with its own outputs, loss and link. Two tasks:

- ``world``: suggestions of the built-in world. Two users, one for each suggestion, say which they like more, so the
  true mean and standard deviation of each are known. Out of distribution are conversations about other domains.
  Best-of-n: of n suggestions for one conversation that with the highest mean is taken; gold is what users think of it.
- ``upworthy``: headline tests, soft labels in training; measured where ``|z| > 1.96``, on all pairs, and out of
  distribution on panes of MIMICS where its folder is given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from openrlhf_qs.archives.mimics import pane_preferences, read_panes
from openrlhf_qs.archives.upworthy import headline_arms, headline_preferences, read_packages, usable_packages
from openrlhf_qs.clicks.preferences import all_pairs, preference_rows
from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import write_whole
from openrlhf_qs.garm.calibration import (
    accuracy,
    calibrated_ece,
    expected_calibration_error,
    negative_log_likelihood,
    preference_probability,
)
from openrlhf_qs.models.embedder import embed, load_embedder
from openrlhf_qs.registry import REWARD_MODELS, load_plugins, parse_options
from openrlhf_qs.statistics.intervals import SIGNIFICANT_Z
from openrlhf_qs.world.click_log import contexts, suggestion_of_kind
from openrlhf_qs.world.language import DOMAINS
from openrlhf_qs.world.users import gold_utility, read_scene

HEADS = ("bradley_terry", "dpl", "purm", "gaussian")
KINDS = ("next_step", "next_step", "other_step", "other_step", "repetition", "bland", "neighbour", "off_topic")
OTHER_DOMAINS = tuple(sorted(DOMAINS))[::4]  # every fourth is out of distribution
BEST_OF = (1, 4, 16, 64, 256, 1024)
N_DRAWS, N_POOLS = 200, 6  # draws of n suggestions for best-of-n, from each of so many conversations
HIDDEN, BATCH, LEARNING_RATE, WEIGHT_DECAY = 64, 256, 1e-3, 1e-4


class Pairs(NamedTuple):
    """Rows of a feature matrix, two by two: ``[n]`` each."""

    chosen: np.ndarray
    rejected: np.ndarray
    weight: np.ndarray
    label: np.ndarray


class Task(NamedTuple):
    """What the heads learn and how they are asked.

    Attributes:
        features: ``[texts, width]``, float32.
        train: pairs to learn from.
        tests: name to pairs, the first one in distribution; the chosen one is the better one.
        truth: true mean and standard deviation ``[texts]`` each, None where nobody knows.
        pools: test's name to the rows that it is about and, for best-of-n, many rows of each of a few conversations;
            empty without ``truth``.
    """

    features: np.ndarray
    train: Pairs
    tests: dict[str, Pairs]
    truth: tuple[np.ndarray, np.ndarray] | None
    pools: dict[str, tuple[np.ndarray, list[np.ndarray]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--upworthy", metavar="FOLDER", help="folder with packages.train.csv.gz and packages.dev.csv.gz"
    )
    parser.add_argument(
        "--mimics", metavar="FOLDER", help="folder with duo_clicks.*.tsv.gz; out of distribution for upworthy"
    )
    parser.add_argument(
        "--embedder", default="minilm", help="sentence embeddings: folder, hub name or minilm (default)"
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        default=HEADS,
        metavar="NAME[:OPTION=VALUE]",
        help=f"registered heads with their options; default {' '.join(HEADS)}",
    )
    parser.add_argument("--n_contexts", type=int, default=2000, help="conversations in the world; default 2000")
    parser.add_argument("--n_steps", type=int, default=1000, help="training steps of 256 pairs; default 1000")
    parser.add_argument("--seeds", type=int, default=5, help="runs per head, with seeds from 0; default 5")
    parser.add_argument("--out", metavar="FILE.json", help="file for all figures of all runs")


def run(args: argparse.Namespace) -> None:
    load_plugins()
    heads = args.heads
    for head in heads:
        make_head(head)  # an unknown name is an error before the work
    embedder = load_embedder(args.embedder)
    world = World(embedder, args.n_contexts)
    tasks = {"world": world.task}
    if args.upworthy:
        upworthy = upworthy_task(embedder, Path(args.upworthy), Path(args.mimics) if args.mimics else None)
        tasks["upworthy"] = lambda seed: upworthy
    results: dict[str, Any] = {"n_steps": args.n_steps, "seeds": args.seeds, "embedder": args.embedder, "tasks": {}}
    console = Console(stderr=True)
    for name, make in tasks.items():
        runs: dict[str, list[dict]] = {head: [] for head in heads}
        for seed in track(range(args.seeds), name, console=console):
            task = make(seed)
            for head in heads:
                runs[head].append(measure(task, head, args.n_steps, seed))
        results["tasks"][name] = {head: summary(rows) for head, rows in runs.items()}
        print_table(_table(name, results["tasks"][name]))
    print(json.dumps(results))
    if args.out:
        write_whole(Path(args.out), json.dumps(results, indent=1))


def measure(task: Task, head_name: str, n_steps: int, seed: int) -> dict[str, float]:
    """Train one head, and every figure of it: name, ``.`` and the test's name."""
    from scipy.stats import spearmanr

    head = make_head(head_name)
    mean, std, _ = train(task.features, task.train, head, n_steps, seed)
    figures: dict[str, float] = {}
    for name, pairs in task.tests.items():
        c, r = pairs.chosen, pairs.rejected
        probability = preference_probability(mean[c], std[c], mean[r], std[r], head.link)
        figures[f"n.{name}"] = len(c)
        figures[f"accuracy.{name}"] = accuracy(probability, pairs.weight)
        figures[f"nll.{name}"] = negative_log_likelihood(probability, pairs.weight)
        figures[f"ece.{name}"] = expected_calibration_error(probability, pairs.weight)
        figures[f"ece_if_calibrated.{name}"] = calibrated_ece(probability, pairs.weight, n_draws=50, seed=seed)
    if task.truth is not None:
        gold, spread = task.truth
        for name, (pool, conversations) in task.pools.items():
            constant = np.ptp(std[pool]) < 1e-6  # a head without a standard deviation of its own
            figures[f"sigma_rank.{name}"] = 0.0 if constant else float(spearmanr(std[pool], spread[pool]).statistic)
            for n in BEST_OF:
                best = [best_of(mean[rows], gold[rows], n, seed) for rows in conversations]
                figures[f"best_of_{n}.{name}"] = float(np.mean(best))
    return figures


def make_head(text: str):
    """The registered head of ``NAME`` or ``NAME:OPTION=VALUE:...``."""
    name, *settings = text.split(":")
    options = parse_options([f"{name}.{setting}" for setting in settings])
    return REWARD_MODELS.create(name, **options.get(name, {}))


def train(
    features: np.ndarray, pairs: Pairs, head, n_steps: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and epistemic part ``[texts]`` each, of a network with one hidden layer."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(features.shape[1], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, head.n_outputs))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    inputs = torch.from_numpy(features)
    chosen, rejected = torch.from_numpy(pairs.chosen), torch.from_numpy(pairs.rejected)
    weight, label = (torch.from_numpy(column).float() for column in (pairs.weight, pairs.label))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        batch = torch.randint(len(chosen), (BATCH,), generator=generator)
        raw = network(inputs[torch.cat((chosen[batch], rejected[batch]))])
        loss = head.loss(raw[:BATCH], raw[BATCH:], weight[batch], label[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return tuple(head.output(network(inputs)).double().numpy().T)


def best_of(mean: np.ndarray, gold: np.ndarray, n: int, seed: int) -> float:
    """Average gold score of the highest mean among ``n`` suggestions, over ``N_DRAWS`` draws with replacement."""
    drawn = np.random.default_rng([seed, n]).integers(len(mean), size=(N_DRAWS, n))
    return float(gold[drawn[np.arange(N_DRAWS), mean[drawn].argmax(axis=1)]].mean())


class World:
    """Conversations of the built-in world and suggestions for them, embedded once; each seed meets other users.

    Half of the conversations are for training and half for the test, with a pair for each two suggestions of one.
    """

    def __init__(self, embedder, n_contexts: int, seed: int = 0) -> None:
        rng = random.Random(seed)
        conversations, texts, context = contexts(n_contexts, seed), [], []
        for number, conversation in enumerate(conversations):
            scene = read_scene(conversation)
            different = dict.fromkeys(suggestion_of_kind(kind, scene, rng) for kind in KINDS)
            texts += different
            context += [number] * len(different)
        n_paired = len(texts)
        is_other = np.array([read_scene(one).domain in OTHER_DOMAINS for one in conversations])
        self.best_of_pools = {"in": [], "out": []}
        for name, of_test in (("in", ~is_other & (np.arange(n_contexts) % 2 == 1)), ("out", is_other)):
            for number in np.flatnonzero(of_test)[:N_POOLS].tolist():
                scene = read_scene(conversations[number])
                drawn = [suggestion_of_kind(rng.choice(KINDS), scene, rng) for _ in range(max(BEST_OF))]
                self.best_of_pools[name].append(np.arange(len(texts), len(texts) + len(drawn)))
                texts += drawn
                context += [number] * len(drawn)
        self.context = np.array(context)
        self.gold, spread = gold_utility([conversations[number] for number in context], texts)
        self.spread = np.maximum(spread, 1e-6)  # no intent, no taste: all users think the same
        asked = embed(embedder, [conversation[0]["content"] for conversation in conversations])
        distinct = list(dict.fromkeys(texts))
        row_of = {text: row for row, text in enumerate(distinct)}
        suggested = embed(embedder, distinct)[[row_of[text] for text in texts]]
        self.features = np.concatenate([asked[self.context], suggested], axis=1).astype(np.float32)
        other, test, paired = is_other[self.context], self.context % 2 == 1, np.arange(len(texts)) < n_paired
        self.groups = {"train": paired & ~other & ~test, "in": paired & ~other & test, "out": paired & other}

    def task(self, seed: int) -> Task:
        users = np.random.default_rng(seed)
        pairs = {name: self.pairs(np.flatnonzero(rows), users) for name, rows in self.groups.items()}
        pools = {name: (np.flatnonzero(self.groups[name]), rows) for name, rows in self.best_of_pools.items()}
        return Task(self.features, pairs.pop("train"), pairs, (self.gold, self.spread), pools)

    def pairs(self, rows: np.ndarray, users: np.random.Generator) -> Pairs:
        """Every two suggestions of one conversation; of each, one fresh user says how much it is liked."""
        both = [
            pair
            for _, members in itertools.groupby(rows, key=lambda row: self.context[row])
            for pair in itertools.combinations(members, 2)
        ]
        sides = np.array(both)
        liked = self.gold[sides] + self.spread[sides] * users.standard_normal(sides.shape)
        order = np.argsort(-liked, axis=1, kind="stable")
        chosen, rejected = np.take_along_axis(sides, order, axis=1).T
        return Pairs(chosen, rejected, np.ones(len(sides)), np.ones(len(sides)))


def upworthy_task(embedder, folder: Path, mimics: Path | None) -> Task:
    """Tests of ``packages.train.csv.gz`` to learn from, those of ``packages.dev.csv.gz`` for the test."""
    tables = {
        name: headline_preferences(headline_arms(usable_packages(read_packages(folder / f"packages.{name}.csv.gz"))))
        for name in ("train", "dev")
    }
    if mimics is not None:
        tables["out"] = pane_preferences(read_panes(mimics / "duo_clicks.train.tsv.gz"))
    shown = {name: list(preference_rows(table)) for name, table in tables.items()}
    distinct = list(dict.fromkeys(text for rows in shown.values() for row in rows for text in row["suggestions"]))
    row_of = {text: row for row, text in enumerate(distinct)}
    features = embed(embedder, distinct).astype(np.float32)

    def pairs_of(name: str, hard: bool, keep: Callable[[Mapping[str, np.ndarray]], np.ndarray]) -> Pairs:
        rows, pairs = shown[name], all_pairs(shown[name])
        kept = keep({"label": pairs.label, "z": np.array([z for row in rows for z in row.get("z", [])])})
        chosen, rejected = (
            np.array([row_of[rows[row]["suggestions"][n]] for row, n in zip(pairs.row, place, strict=True)])[kept]
            for place in (pairs.chosen, pairs.rejected)
        )
        ones = np.ones(kept.sum())
        return (
            Pairs(chosen, rejected, ones, ones)
            if hard
            else Pairs(chosen, rejected, pairs.weight[kept], pairs.label[kept])
        )

    tests = {
        "in": pairs_of("dev", True, lambda pairs: pairs["z"] > SIGNIFICANT_Z),
        "in_all": pairs_of("dev", True, lambda pairs: pairs["label"] >= 0.5),
    }
    if mimics is not None:
        tests["out"] = pairs_of("out", True, lambda pairs: pairs["label"] > 0.5)
    return Task(features, pairs_of("train", False, lambda pairs: pairs["label"] >= 0.5), tests, None, {})


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the seeds of each figure."""
    values = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    return {
        name: {"mean": float(of.mean()), "std": float(of.std(ddof=1)) if len(of) > 1 else 0.0}
        for name, of in values.items()
    }


def _table(task: str, heads: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    names = [name for name in next(iter(heads.values())) if not name.startswith("n.")]
    counts = {name: figure["mean"] for name, figure in next(iter(heads.values())).items() if name.startswith("n.")}
    title = f"{task}: " + ", ".join(f"{count:,.0f} pairs {name[2:]}" for name, count in counts.items())
    table = Table("figure", *heads, title=title)
    for name in names:
        table.add_row(name, *(f"{one[name]['mean']:.3f} ± {one[name]['std']:.3f}" for one in heads.values()))
    return table
