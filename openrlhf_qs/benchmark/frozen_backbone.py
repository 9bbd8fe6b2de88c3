"""``openrlhf-qs benchmark frozen-backbone``: what a backbone knows of users before it is trained on them.

In: preferences to learn from and held-out ones, as ``recipes/garm.sh`` takes them, so the figures are those of a
trained reward model on the same pairs. Suggestions are read as it reads them. On the states of one layer, at the last
token or as the mean over the suggestion, a ridge logistic regression learns which of two suggestions is better. Two
states of a decoder have a cosine near 1, for a large part of each is the same whatever was said, so they are tried as
unit vectors and with each component scaled.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import expit

from openrlhf_qs.clicks.preferences import Pairs, all_pairs, cluster_of
from openrlhf_qs.files.printable import print_table
from openrlhf_qs.garm.baselines import cross_validated, differences
from openrlhf_qs.garm.calibration import accuracy, expected_calibration_error, negative_log_likelihood
from openrlhf_qs.garm.eval import evidence, is_significant, read_pairs
from openrlhf_qs.models.resolve import resolve_model
from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import SIGNIFICANT_Z, cluster_bootstrap

C_GRID = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
FORMS = ("as it is", "scaled")
POOLS = ("mean", "last")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("train", metavar="FILE.jsonl", help="preferences to learn from")
    parser.add_argument("heldout", metavar="HELDOUT.jsonl", help="preferences to evaluate on")
    parser.add_argument(
        "--model", default="smollm2", help="folder, hub name, smollm2, minilm or GGUF file; default smollm2"
    )
    parser.add_argument(
        "--layers", type=int, nargs="+", help="layers to read, where 0 is the embeddings; default: five, evenly spaced"
    )
    parser.add_argument("--n_train", type=int, default=1000, help="rows to learn from, the first ones; default 1000")
    parser.add_argument("--n_heldout", type=int, default=1000, help="held-out rows, the first ones; default 1000")
    parser.add_argument("--max_len", type=int, default=512, help="tokens per text; default 512")
    parser.add_argument(
        "--significant", action="store_true", help="only held-out pairs with |z| > 1.96, if the file has z"
    )


def run(args: argparse.Namespace) -> None:
    """Read both files with the model, fit on the one, judge on the other; print a row for each layer and pooling."""
    sets = [with_pairs(file, n) for file, n in ((args.train, args.n_train), (args.heldout, args.n_heldout))]
    model, tokenizer = load(args.model)
    layers = args.layers or evenly(model.config.num_hidden_layers)
    if not 0 <= min(layers) <= max(layers) <= model.config.num_hidden_layers:
        raise ValueError(
            f"--layers {' '.join(map(str, layers))}: {args.model} has 0 to {model.config.num_hidden_layers}"
        )
    start = time.process_time()
    of_train, of_heldout = (states(model, tokenizer, rows, layers, args.max_len) for rows, _ in sets)
    seconds = time.process_time() - start
    (train, train_pairs), (heldout, pairs) = sets
    counted = significant(heldout, pairs) if args.significant else pairs.label != 0.5
    clusters = Clusters.of([cluster_of(heldout[row]) for row in pairs.row[counted]])
    table = Table(
        "layer",
        "read at",
        "cosine",
        *(f"{form}: accuracy, NLL, ECE" for form in FORMS),
        title=f"{args.model}: {int(counted.sum()):,} pairs, learned from {len(train_pairs.row):,}; a coin: .5, .693",
    )
    for place, (layer, pool) in enumerate(itertools.product(layers, POOLS)):
        cells = []
        for form in FORMS:
            x, y = (prepared(of[:, place], of_train[:, place], form) for of in (of_train, of_heldout))
            probability = fitted(
                differences(x, train, train_pairs), train, train_pairs, differences(y, heldout, pairs)
            )
            cells.append(figures(probability[counted], pairs.weight[counted], clusters))
        table.add_row(str(layer), pool, f"{mean_cosine(of_train[:, place]):.3f}", *cells)
    print_table(table)
    print(f"{seconds:,.0f} s of processor time to read {len(of_train) + len(of_heldout):,} suggestions")


def with_pairs(file: str, n: int) -> tuple[list[dict[str, Any]], Pairs]:
    """The first ``n`` rows of a file that have a pair, and their pairs. ValueError where there is none."""
    rows = [row for row in read_pairs(file)[0] if row["pairs"]][:n]
    return rows, all_pairs(rows)


def load(name: str) -> tuple[Any, Any]:
    """The model, without a head, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    folder = resolve_model(name)
    return AutoModel.from_pretrained(folder, dtype="auto").eval(), AutoTokenizer.from_pretrained(folder)


def evenly(n_layers: int) -> list[int]:
    """Five layers up to the last, fewer of a model that has fewer."""
    return sorted({round(n_layers * part / 5) for part in range(1, 6)} - {0})


def states(model, tokenizer, rows: Sequence[Mapping[str, Any]], layers: Sequence[int], max_len: int) -> np.ndarray:
    """Of every suggestion of the rows, ``[suggestions, layers * POOLS, width]``, float32."""
    import torch

    from openrlhf_qs.garm.reward_model import suggestion_ids
    from openrlhf_qs.models.shared_prefix import common_length

    found = []
    for row in track(rows, "reading", console=Console(stderr=True)):
        texts = row["suggestions"]
        ids = suggestion_ids(tokenizer, [row["conversation"]] * len(texts), texts, max_len)
        start, length = common_length(ids), max(map(len, ids))
        mask = torch.tensor([[1] * len(one) + [0] * (length - len(one)) for one in ids])
        padded = torch.tensor([one + [0] * (length - len(one)) for one in ids])
        with torch.no_grad():
            of_layers = model(input_ids=padded, attention_mask=mask, output_hidden_states=True).hidden_states
        own = mask.float()
        own[:, :start] = 0  # the conversation
        last = mask.sum(1) - 1
        pooled = []
        for layer in layers:
            hidden = of_layers[layer].float()
            pooled.append((hidden * own[..., None]).sum(1) / own.sum(1, keepdim=True))
            pooled.append(hidden[torch.arange(len(ids)), last])
        found.append(torch.stack(pooled, dim=1).numpy())
    return np.concatenate(found)


def prepared(x: np.ndarray, train: np.ndarray, form: str) -> np.ndarray:
    """``x`` as unit vectors, or with each component in deviations of ``train`` from its mean; float64."""
    if form == "scaled":
        return ((x - train.mean(0)) / (train.std(0) + 1e-6)).astype(np.float64)
    return unit(x)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64."""
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def mean_cosine(x: np.ndarray) -> float:
    """Between two rows, on average over all that differ."""
    z = unit(x)
    n = len(z)
    return float((np.square(z.sum(0)).sum() - n) / (n * (n - 1)))


def fitted(difference: np.ndarray, rows: Sequence[Mapping[str, Any]], pairs: Pairs, heldout: np.ndarray) -> np.ndarray:
    """P(chosen better) of the held-out differences, the penalty found by cross-validation over conversations."""
    belongs_to = [cluster_of(rows[row]) for row in pairs.row]
    return expit(heldout @ cross_validated(difference, pairs, belongs_to, C_GRID))


def significant(rows: Sequence[Mapping[str, Any]], pairs: Pairs) -> np.ndarray:
    """Which pairs have ``|z| > 1.96``. ValueError where none has."""
    found = is_significant(evidence(rows), pairs.label)
    if not found.any():
        raise ValueError(f"no held-out pair with |z| > {SIGNIFICANT_Z}: leave out --significant")
    return found


def figures(probability: np.ndarray, weight: np.ndarray, clusters: Clusters) -> str:
    """Accuracy with its 95 % interval, NLL and ECE, as a cell."""

    def statistic(weight: np.ndarray) -> list[float]:
        return [accuracy(probability, weight)]

    [(low, high)] = cluster_bootstrap(statistic, weight, clusters, 300)
    nll, ece = negative_log_likelihood(probability, weight), expected_calibration_error(probability, weight)
    return f"{accuracy(probability, weight):.3f} ({low:.3f}-{high:.3f}), {nll:.3f}, {ece:.3f}"
