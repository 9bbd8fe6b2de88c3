"""``openrlhf-qs benchmark frozen-backbone``: what a language model knows of users before it is trained on them.

Suggestions of the built-in world are read after their conversation, as the reward model reads them. On the states of
one layer, at the last token or as the mean over the suggestion, a ridge logistic regression learns which of two
suggestions a user likes better. Asked is what the states hold, not what a head finds in so few pairs: their cosines
are near 1, for a large part of each is the same whatever was said, so they are tried as they are, without their mean,
and with each component scaled.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from openrlhf_qs.benchmark.reward_models import KINDS
from openrlhf_qs.files.printable import print_table
from openrlhf_qs.form.prompt import Message, suggestion_messages
from openrlhf_qs.models.resolve import resolve_model
from openrlhf_qs.models.template import rendered
from openrlhf_qs.statistics import pair_regression
from openrlhf_qs.world.click_log import contexts, suggestion_of_kind
from openrlhf_qs.world.users import gold_utility, read_scene

N_FOLDS = 4
RIDGE = {"as it is": 1e-3, "centred": 1e-3, "scaled": 3e-2}  # of the mean loss; unit vectors, and unit components
POOLS = ("mean", "last")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="folder, hub name, smollm2 or GGUF file; default smollm2")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[6, 12, 18, 24, 30], help="0: the embeddings; default 6 12 18 24 30"
    )
    parser.add_argument("--n_contexts", type=int, default=80, help="conversations of the world; default 80")


def run(args: argparse.Namespace) -> None:
    """Read, fit in each of four folds of the conversations, print a row for each layer and pooling."""
    conversations = contexts(args.n_contexts, seed=0)
    rng, shown = random.Random(0), []
    for conversation in conversations:
        scene = read_scene(conversation)
        shown.append(list(dict.fromkeys(suggestion_of_kind(kind, scene, rng) for kind in KINDS)))
    context = np.repeat(np.arange(len(shown)), list(map(len, shown)))
    gold = np.array(gold_utility([conversations[n] for n in context], list(itertools.chain.from_iterable(shown))))
    console = Console(stderr=True)
    parts = track(states(args.model, conversations, shown, args.layers), "reading", len(shown), console=console)
    features = np.concatenate(list(parts))
    table = Table(
        "layer", "read at", "cosine", *RIDGE, title=f"{args.model}: accuracy ± its error, NLL; a coin: .5, .693"
    )
    for place, (layer, pool) in enumerate(itertools.product(args.layers, POOLS)):
        x = features[:, place]
        found = [fitted(x, how, context, *gold) for how in RIDGE]
        cells = (
            f"{np.mean(right):.3f} ± {np.std(right, ddof=1) / N_FOLDS**0.5:.3f}, {np.mean(nll):.3f}"
            for right, nll in found
        )
        table.add_row(str(layer), pool, f"{mean_cosine(x):.3f}", *cells)
    print_table(table)


def states(
    name: str, conversations: Sequence[Sequence[Message]], shown: Sequence[Sequence[str]], layers: Sequence[int]
) -> Iterator[np.ndarray]:
    """For each conversation ``[suggestions, layers * POOLS, width]``, float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from openrlhf_qs.garm.shared_prefix import common_length

    folder = resolve_model(name)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype="auto").eval()
    for conversation, texts in zip(conversations, shown, strict=True):
        rows = [
            tokenizer(rendered(tokenizer, suggestion_messages(conversation, text)), add_special_tokens=False)[
                "input_ids"
            ]
            for text in texts
        ]
        start = common_length(rows)
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        with torch.no_grad():
            of_layers = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        own = mask.float()
        own[:, :start] = 0  # the conversation
        last = mask.sum(1) - 1
        pooled = []
        for layer in layers:
            hidden = of_layers[layer].float()
            pooled.append((hidden * own[..., None]).sum(1) / own.sum(1, keepdim=True))
            pooled.append(hidden[torch.arange(len(rows)), last])
        yield torch.stack(pooled, dim=1).numpy()


def fitted(
    x: np.ndarray, how: str, context: np.ndarray, gold: np.ndarray, spread: np.ndarray
) -> tuple[list[float], list[float]]:
    """Accuracy and negative log-likelihood, nats, in each fold of the conversations.

    Args:
        x: ``[suggestions, width]``.
        how: of ``RIDGE``.
        context: which conversation, ``[suggestions]``.
        gold, spread: mean and standard deviation over users of what they think of each.
    """
    right, nll = [], []
    for fold in range(N_FOLDS):
        test = context % N_FOLDS == fold
        z = prepared_for(x, x[~test], how)
        chosen, rejected = preferred(np.flatnonzero(~test), context, gold, spread, seed=1)
        n = len(chosen)
        weights = pair_regression.fit(z[chosen] - z[rejected], np.ones(n), c=1 / (2 * n * RIDGE[how]))
        chosen, rejected = preferred(np.flatnonzero(test), context, gold, spread, seed=2)
        odds = (z[chosen] - z[rejected]) @ weights
        right.append(float((odds > 0).mean()))
        nll.append(float(pair_regression.losses(odds).mean()))
    return right, nll


def prepared_for(x: np.ndarray, train: np.ndarray, how: str) -> np.ndarray:
    """``x`` as unit vectors, as unit vectors less their mean over ``train``, or with each component in deviations."""
    if how == "scaled":
        return ((x - train.mean(0)) / (train.std(0) + 1e-6)).astype(np.float64)
    z, mean = unit(x), unit(train).mean(0)
    return unit(z - mean) if how == "centred" else z


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64."""
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def mean_cosine(x: np.ndarray) -> float:
    """Between two rows, on average over all that differ."""
    z = unit(x)
    n = len(z)
    return float((np.square(z.sum(0)).sum() - n) / (n * (n - 1)))


def preferred(
    rows: np.ndarray, context: np.ndarray, gold: np.ndarray, spread: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Every two suggestions of one conversation: what two fresh users, one for each, like more, and what less."""
    pairs = [
        pair
        for _, members in itertools.groupby(rows, key=lambda row: context[row])
        for pair in itertools.combinations(members, 2)
    ]
    sides = np.array(pairs)
    liked = gold[sides] + spread[sides] * np.random.default_rng(seed).standard_normal(sides.shape)
    chosen, rejected = np.take_along_axis(sides, np.argsort(-liked, axis=1, kind="stable"), axis=1).T
    return chosen, rejected
