r"""What stands beside a reward model's head (:mod:`openrlhf_qs.garm.crosses`, :mod:`openrlhf_qs.garm.overlap`), from
clicks.

Two models are fitted to the clicks that the reward model was trained on, a linear one of the crosses, its weights held
down by a ridge penalty, and gradient-boosted trees on the overlap figures. Whoever looks at a place, which
:math:`\theta` of the users do, clicks with the probability :math:`\sigma(f)`, with :math:`f` what a model says. All
three know these clicks too well to be weighed on them, so the log-odds of a click become :math:`a\,z+b\,f_1+c\,f_2+d`,
with :math:`z` the reward model's and no factor below 0, on impressions that none has seen (stacking, Wolpert 1992;
Breiman 1996). Where the two do not help there, the reward model stays as it is.

In: preferences with clicks, of training and kept apart, and the folder of a reward model with the head
``click_gaussian``. Out: its weights and its config, replaced.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import minimize

from openrlhf_qs.clicks.preferences import read_preferences
from openrlhf_qs.files.printable import from_here, print_figures
from openrlhf_qs.garm.crosses import CROSSES, N_BUCKETS, buckets
from openrlhf_qs.garm.edit_head import edit_head, scale_means
from openrlhf_qs.garm.overlap import OVERLAPS, figures_of_turns, rarities, token_forms, turns_of
from openrlhf_qs.garm.shown import Clicks, clicks_of, texts_of
from openrlhf_qs.garm.spread import HEAD
from openrlhf_qs.registry import load_plugins

PENALTY = 10.0  # of the squared weights, nats: a weight is told from what some ten clicks say
MIN_SHOWN = 2  # suggestions that a weight must be of
MAX_SHOWN = 500_000  # suggestions that are read, the last ones; each takes some 3 kB
MIN_GAIN = 4.0  # nats on what is kept apart; four numbers fitted to noise gain 2
N_TREES, N_LEAVES, DEPTH = 300, 8, 5
TREES = {  # of LightGBM; docs/GARM.md has what was tried
    "learning_rate": 0.04,
    "num_leaves": N_LEAVES,
    "max_depth": DEPTH,
    "min_data_in_leaf": 50,
    "lambda_l2": 5.0,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "feature_fraction": 0.7,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "preferences", metavar="FILE.jsonl", help="preferences with clicks: those that the model was trained on"
    )
    parser.add_argument(
        "--kept_apart", required=True, metavar="FILE.jsonl", help="preferences used in neither training nor evaluation"
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="reward model; both are added in place")


def run(args: argparse.Namespace) -> None:
    load_plugins()
    report = fit(read_preferences(args.preferences), read_preferences(args.kept_apart), args.model)
    if isinstance(report, str):
        print(f"{from_here(args.model)}: no crosses and no overlaps. {report}")
        return
    print_figures(f"crosses and overlaps, in {from_here(args.model)}", report)


def fit(
    train: Sequence[Mapping[str, Any]], kept_apart: Sequence[Mapping[str, Any]], model: str | Path
) -> dict[str, Any] | str:
    """Fit crosses and overlaps and write them into the checkpoint ``model``.

    Returns:
        What is to be printed, or in a sentence why there are none.
    """
    from openrlhf_qs.garm.eval import load_on_device
    from openrlhf_qs.garm.reward_model import WIDE, check_checkpoint, is_adapter, suggestion_ids, turn_end_id

    mark = check_checkpoint(model)
    if mark["name"] != HEAD:
        raise ValueError(f"{model}: reward model {mark['name']!r}; crosses and overlaps are fitted only for {HEAD}")
    if is_adapter(model):
        return "It holds LoRA weights: its backbone is large enough to do without"
    there = [name for name in WIDE if name in mark]
    if there:
        raise ValueError(
            f"{model} has {' and '.join(there)} already: train it again (AGAIN=1 bash recipes/garm.sh), then fit them"
        )
    train, kept_apart = _with_clicks(train), _with_clicks(kept_apart)
    if not train or not kept_apart:
        return "The preferences have no clicks, or none are kept apart"
    scorer = load_on_device(model)
    end = turn_end_id(scorer.tokenizer)
    ids, ids_apart = (
        suggestion_ids(scorer.tokenizer, *texts_of(rows), scorer.max_len) for rows in (train, kept_apart)
    )
    crosses = of_crosses(ids, ids_apart, clicks_of(train), end)
    overlaps = of_overlaps(ids, ids_apart, clicks_of(train), end, token_forms(scorer.tokenizer))
    fits = [one for one in (crosses, overlaps) if one]
    deep, clicks = log_odds(kept_apart, scorer), clicks_of(kept_apart)
    _, without = stacked(clicks, deep)
    (a, *factors, shift), with_both = stacked(clicks, deep, *(one.log_odds for one in fits))
    if without - with_both < MIN_GAIN:
        return (
            f"On {len(deep):,} suggestions that none has seen they gain {max(without - with_both, 0):.1f} nats, "
            f"less than {MIN_GAIN:g}: the reward model knows what they know"
        )
    write(model, a, shift, [(one, factor) for one, factor in zip(fits, factors, strict=True) if factor > 0])
    return {
        "suggestions they were fitted on": len(ids),
        "suggestions kept apart": len(deep),
        "negative log-likelihood of a click there, before": without / len(deep),
        "with both": with_both / len(deep),
        "the reward model's log-odds, times": float(a),
        **{f"those of the {one.name}, times": float(factor) for one, factor in zip(fits, factors, strict=True)},
    }


class Fit(NamedTuple):
    """A model that was fitted to clicks.

    Attributes:
        name: in the mark and among the weights.
        log_odds: of the suggestions kept apart, ``[n]``.
        constant: that is in them, and not in what ``tensors`` say.
        options: of its module.
        tensors: of its module, for a factor of its log-odds.
    """

    name: str
    log_odds: np.ndarray
    constant: float
    options: dict[str, int]
    tensors: Callable[[float], dict[str, np.ndarray]]


def _with_clicks(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    rows, n_shown = [row for row in rows if row.get("clicks") is not None], 0
    for n, row in enumerate(reversed(rows)):
        n_shown += len(row["suggestions"])
        if n_shown > MAX_SHOWN:
            return rows[-n:]
    return rows


def of_crosses(ids: Sequence[Sequence[int]], apart: Sequence[Sequence[int]], clicks: Clicks, turn_end_id: int) -> Fit:
    """The crosses, from the tokens of the texts that were clicked or not, and of those kept apart."""
    features = _crosses(ids, turn_end_id)
    kept = np.flatnonzero(np.asarray(features.sum(axis=0)).ravel() >= MIN_SHOWN)
    weights, constant = ridge(features[:, kept], clicks)

    def tensors(factor: float) -> dict[str, np.ndarray]:
        weight = np.zeros((N_BUCKETS, 1), dtype=np.float32)
        weight[kept, 0] = factor * weights
        return {"weight": weight}

    options = {"n_buckets": N_BUCKETS, "turn_end_id": turn_end_id}
    return Fit(CROSSES, _crosses(apart, turn_end_id)[:, kept] @ weights + constant, constant, options, tensors)


def _crosses(ids: Sequence[Sequence[int]], turn_end_id: int) -> sparse.csr_matrix:
    """``[n, N_BUCKETS]``, 1 where a text has that cross."""
    of_texts = [buckets(tokens, turn_end_id, N_BUCKETS) for tokens in ids]
    starts, places = np.cumsum([0, *map(len, of_texts)]), np.concatenate(of_texts)
    return sparse.csr_matrix((np.ones(len(places)), places, starts), shape=(len(ids), N_BUCKETS))


def of_overlaps(
    ids: Sequence[Sequence[int]],
    apart: Sequence[Sequence[int]],
    clicks: Clicks,
    turn_end_id: int,
    forms: np.ndarray,
) -> Fit | None:
    """The trees on overlap figures, from the same; None where all texts have the same figures.

    Args:
        forms: of :func:`openrlhf_qs.garm.overlap.token_forms`.
    """
    rarity = rarities([turns_of(tokens, turn_end_id, forms)[-1] for tokens in ids], len(forms))
    figures, figures_apart = (
        np.array([figures_of_turns(turns_of(tokens, turn_end_id, forms), rarity) for tokens in of], dtype=np.float32)
        for of in (ids, apart)
    )
    if not np.ptp(figures, axis=0).any():
        return None
    trees, constant = boosted(figures, clicks)
    nodes = tree_arrays(trees)

    def tensors(factor: float) -> dict[str, np.ndarray]:
        value = (factor * nodes["value"]).astype(np.float32)
        bits = {"rarity": rarity, "threshold": nodes["threshold"], "value": value}
        return {"forms": forms, **nodes, **{name: array.view(np.int32) for name, array in bits.items()}}

    n_trees, n_nodes = nodes["figure"].shape
    options = {"n_tokens": len(forms), "n_trees": n_trees, "n_nodes": n_nodes, "depth": DEPTH}
    log_odds = trees.predict(figures_apart, raw_score=True) + constant
    return Fit(OVERLAPS, log_odds, constant, {"turn_end_id": turn_end_id, **options}, tensors)


def boosted(figures: np.ndarray, clicks: Clicks, seed: int = 0) -> tuple[Any, float]:
    """Gradient-boosted trees (Friedman 2001) by LightGBM, and the constant that they begin from: log-odds."""
    import lightgbm

    _, constant = ridge(sparse.csr_matrix((len(figures), 0)), clicks)

    def objective(log_odds: np.ndarray, _) -> tuple[np.ndarray, np.ndarray]:
        return clicks.slopes(log_odds + constant)

    options = {"objective": objective, "seed": seed, "deterministic": True, "num_threads": 1, "verbose": -1}
    return lightgbm.train(
        {**TREES, **options}, lightgbm.Dataset(figures, params={"feature_pre_filter": False}), N_TREES
    ), constant


def tree_arrays(trees) -> dict[str, np.ndarray]:
    """The nodes of LightGBM's trees ``[n_trees, n_nodes]``, as :class:`openrlhf_qs.garm.reward_model.Overlaps` has
    them; a leaf is its own child."""
    shape = (trees.num_trees(), 2 * N_LEAVES - 1)
    found = {name: np.zeros(shape, dtype=np.int32) for name in ("figure", "left", "right")}
    found |= {name: np.zeros(shape, dtype=np.float32) for name in ("threshold", "value")}

    def add(tree: int, node: Mapping[str, Any], place: int) -> int:
        """Writes ``node`` at ``place``; the next place that is free."""
        if "leaf_value" in node:
            found["value"][tree, place] = node["leaf_value"]
            found["left"][tree, place] = found["right"][tree, place] = place
            return place + 1
        found["figure"][tree, place] = node["split_feature"]
        threshold = np.float32(node["threshold"])
        if threshold > node["threshold"]:  # rounded up it could let a figure through that LightGBM does not
            threshold = np.nextafter(threshold, np.float32(-np.inf))
        found["threshold"][tree, place] = threshold
        found["left"][tree, place] = place + 1
        found["right"][tree, place] = after = add(tree, node["left_child"], place + 1)
        return add(tree, node["right_child"], after)

    for number, tree in enumerate(trees.dump_model()["tree_info"]):
        add(number, tree["tree_structure"], 0)
    return found


def ridge(features: sparse.csr_matrix, clicks: Clicks, penalty: float = PENALTY) -> tuple[np.ndarray, float]:
    """Weights ``[k]`` and the constant of the most likely linear log-odds, the weights held down."""

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        nll, slope = clicks.nll(features @ x[:-1] + x[-1])
        gradient = np.append(features.T @ slope + penalty * x[:-1], slope.sum())
        return nll + penalty / 2 * float(x[:-1] @ x[:-1]), gradient

    found = minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return found[:-1], float(found[-1])


def stacked(clicks: Clicks, *log_odds: np.ndarray) -> tuple[np.ndarray, float]:
    """The most likely factor of each of ``log_odds``, above 0 of the first and 0 or more of the others, and the
    constant, and their negative log-likelihood, nats."""
    columns = np.column_stack([*log_odds, np.ones(len(clicks.clicked))])

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        nll, slope = clicks.nll(columns @ x)
        return nll, columns.T @ slope

    start = np.append(np.full(len(log_odds), 1 / len(log_odds)), 0.0)
    bounds = [(1e-3, None), *[(0, None)] * (len(log_odds) - 1), (None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return found.x, float(found.fun)


def log_odds(rows: Sequence[Mapping[str, Any]], scorer) -> np.ndarray:
    """The reward model's log-odds of a click ``[n]`` of every suggestion of the rows, in their order."""
    import torch

    conversations, suggestions = texts_of(rows)
    found = np.zeros(len(suggestions))
    with torch.no_grad():
        for batch, (input_ids, mask, place) in scorer.rows(conversations, suggestions):
            raw, _ = scorer.model(input_ids, mask, return_output=True)
            found[batch] = scorer.model.head.click_log_odds(raw).mean(-1).cpu().numpy()[place]
    return found


def write(path: str | Path, scale: float, shift: float, parts: Sequence[tuple[Fit, float]]) -> None:
    """Give the checkpoint what was fitted, each with its factor, and its own log-odds their factor and a constant."""
    import torch

    from openrlhf_qs.registry import REWARD_MODELS

    def with_parts(config, weight, bias, others):
        mark = config["reward_model"]
        means = REWARD_MODELS.create(mark["name"], **mark["options"]).mean_outputs
        scale_means(config, weight, bias, others, means, scale)
        bias[means] += shift
        for one, factor in parts:
            bias[means] += factor * one.constant
            mark[one.name] = one.options
            for name, array in one.tensors(factor).items():
                others[f"{one.name}.{name}"] = torch.from_numpy(array)
        return weight, bias

    edit_head(path, with_parts)
