r"""The weights of a reward model's crosses (:mod:`openrlhf_qs.garm.crosses`), from clicks, beside what it has learnt.

A linear model of the crosses alone is fitted to the clicks that the reward model was trained on: whoever looks at a
place, which :math:`\theta` of the users do, clicks with the probability :math:`\sigma(w\cdot x)`; a ridge penalty
holds :math:`w` down. Both models know these clicks too well to be weighed on them, so the log-odds of a click become
:math:`a\,z+b\,w\cdot x+c`, with :math:`z` the reward model's, on impressions that neither has seen (stacking,
Wolpert 1992). Where the crosses do not help there, the reward model stays as it is.

In: preferences with clicks, of training and kept apart, and the folder of a reward model with the head
``click_gaussian``. Out: its weights and its config, replaced.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import minimize

from openrlhf_qs.clicks.preferences import read_preferences
from openrlhf_qs.files.printable import from_here, print_figures
from openrlhf_qs.garm.crosses import CROSSES, N_BUCKETS, buckets
from openrlhf_qs.garm.edit_head import edit_head, scale_means
from openrlhf_qs.garm.shown import Clicks, clicks_of, texts_of
from openrlhf_qs.garm.spread import HEAD
from openrlhf_qs.registry import load_plugins

PENALTY = 10.0  # of the squared weights, nats: a weight is told from what some ten clicks say
MIN_SHOWN = 2  # suggestions that a weight must be of
MAX_SHOWN = 500_000  # suggestions that are read, the last ones; each takes some 3 kB
MIN_GAIN = 4.0  # nats on what is kept apart; three numbers fitted to noise gain 1.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preferences", metavar="FILE.jsonl", help="with clicks: those that it was trained on")
    parser.add_argument(
        "--kept_apart", required=True, metavar="FILE.jsonl", help="of neither training nor the evaluation"
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="reward model; the crosses are added in place")


def run(args: argparse.Namespace) -> None:
    load_plugins()
    report = fit(read_preferences(args.preferences), read_preferences(args.kept_apart), args.model)
    if isinstance(report, str):
        print(f"{from_here(args.model)}: no crosses. {report}")
        return
    print_figures(f"crosses of a question's and a suggestion's words, in {from_here(args.model)}", report)


def fit(
    train: Sequence[Mapping[str, Any]], kept_apart: Sequence[Mapping[str, Any]], model: str | Path
) -> dict[str, Any] | str:
    """Fit the crosses and write them into the checkpoint ``model``.

    Returns:
        What is to be printed, or in a sentence why there are none.
    """
    from openrlhf_qs.garm.eval import load_on_device
    from openrlhf_qs.garm.reward_model import check_checkpoint, is_adapter, turn_end_id

    mark = check_checkpoint(model)
    if mark["name"] != HEAD:
        raise ValueError(f"{model}: reward model {mark['name']!r}; crosses are fitted for {HEAD} alone")
    if is_adapter(model):
        return "It holds LoRA weights: its backbone is large enough to do without"
    if CROSSES in mark:
        raise ValueError(f"{model} has crosses already: train it again (AGAIN=1 bash recipes/garm.sh), then fit them")
    train, kept_apart = _with_clicks(train), _with_clicks(kept_apart)
    if not train or not kept_apart:
        return "The preferences have no clicks, or none are kept apart"
    scorer = load_on_device(model)
    end = turn_end_id(scorer.tokenizer)
    features = crosses_of(train, scorer, end)
    shown = np.asarray((features > 0).sum(axis=0)).ravel()
    kept = np.flatnonzero(shown >= MIN_SHOWN)
    weights, constant = ridge(features[:, kept], clicks_of(train))
    wide = crosses_of(kept_apart, scorer, end)[:, kept] @ weights + constant
    deep = log_odds(kept_apart, scorer)
    clicks = clicks_of(kept_apart)
    (scale, shift), without = stacked(clicks, deep)
    (a, b, c), with_crosses = stacked(clicks, deep, wide)
    if b <= 0 or without - with_crosses < MIN_GAIN:
        return (
            f"On {len(deep):,} suggestions that neither has seen they gain {max(without - with_crosses, 0):.1f} nats, "
            f"less than {MIN_GAIN:g}: the reward model knows what they know"
        )
    write(model, kept, b * weights, a, b * constant + c, end)
    return {
        "suggestions it was fitted on": len(features.indptr) - 1,
        "weights": len(kept),
        "suggestions kept apart": len(deep),
        "negative log-likelihood of a click there, before": without / len(deep),
        "with crosses": with_crosses / len(deep),
        "the reward model's log-odds, times": float(a),
        "those of the crosses, times": float(b),
    }


def _with_clicks(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    rows, n_shown = [row for row in rows if row.get("clicks") is not None], 0
    for n, row in enumerate(reversed(rows)):
        n_shown += len(row["suggestions"])
        if n_shown > MAX_SHOWN:
            return rows[-n:]
    return rows


def crosses_of(rows: Sequence[Mapping[str, Any]], scorer, turn_end_id: int) -> sparse.csr_matrix:
    """``[n, N_BUCKETS]``, 1 where a suggestion of the rows has that cross."""
    from openrlhf_qs.garm.reward_model import suggestion_ids

    ids = suggestion_ids(scorer.tokenizer, *texts_of(rows), scorer.max_len)
    of_texts = [buckets(tokens, turn_end_id, N_BUCKETS) for tokens in ids]
    starts, places = np.cumsum([0, *map(len, of_texts)]), np.concatenate(of_texts)
    return sparse.csr_matrix((np.ones(len(places)), places, starts), shape=(len(ids), N_BUCKETS))


def ridge(features: sparse.csr_matrix, clicks: Clicks, penalty: float = PENALTY) -> tuple[np.ndarray, float]:
    """Weights ``[k]`` and the constant of the most likely linear log-odds, the weights held down."""

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        nll, slope = clicks.nll(features @ x[:-1] + x[-1])
        gradient = np.append(features.T @ slope + penalty * x[:-1], slope.sum())
        return nll + penalty / 2 * float(x[:-1] @ x[:-1]), gradient

    found = minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return found[:-1], float(found[-1])


def stacked(clicks: Clicks, *log_odds: np.ndarray) -> tuple[np.ndarray, float]:
    """The most likely factor of each of ``log_odds`` and the constant, and their negative log-likelihood, nats."""
    columns = np.column_stack([*log_odds, np.ones(len(clicks.clicked))])

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        nll, slope = clicks.nll(columns @ x)
        return nll, columns.T @ slope

    start = np.append(np.full(len(log_odds), 1 / len(log_odds)), 0.0)
    found = minimize(loss, start, jac=True, method="L-BFGS-B")
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


def write(path: str | Path, kept: np.ndarray, weights: np.ndarray, scale: float, shift: float, end: int) -> None:
    """Give the checkpoint its crosses, and its head the factor and the constant that go with them."""
    import torch

    from openrlhf_qs.registry import REWARD_MODELS

    def with_crosses(config, weight, bias, others):
        mark = config["reward_model"]
        means = REWARD_MODELS.create(mark["name"], **mark["options"]).mean_outputs
        scale_means(config, weight, bias, others, means, scale)
        bias[means] += shift
        mark[CROSSES] = {"n_buckets": N_BUCKETS, "turn_end_id": end}
        others[f"{CROSSES}.weight"] = torch.zeros(N_BUCKETS, 1)
        others[f"{CROSSES}.weight"][torch.from_numpy(kept), 0] = torch.from_numpy(weights).float()
        return weight, bias

    edit_head(path, with_crosses)
