r"""How far users differ about a suggestion, read from what one user clicks at different times.

A click is one user's, once. Clicks of different users give the average probability of a click and nothing else: any
mean and deviation with that average explain them equally well (:mod:`openrlhf_qs.plugins.heads.click_gaussian`). What
shows a deviation is one user's *other* clicks: where tastes differ, whoever clicked one suggestion about costs clicks
the next one more often than the average user does, and whoever passed over it less often.

For two showings :math:`i, j` of one user, in different impressions, let :math:`r = y-\theta p` be what was clicked
less what was expected. To first order :math:`E[r_i r_j] = \theta_i p_i(1-p_i)\,\theta_j p_j(1-p_j)\,c_{ij}`, where
:math:`c_{ij}` is the covariance of their rewards over users. Users have tastes for words, each for itself, so
:math:`c_{ij}=\sum_{w\in i\cap j} k_w`, with one variance :math:`k_w\ge0` for each token. They are the least squares
solution, weighted by the inverse variances :math:`\theta p(1-\theta p)` and held down by a ridge penalty, as most
tokens are seen too seldom to say anything. The variance of a suggestion is the sum over its tokens.

Words that are new then have none, so what is kept is the head's: the logarithm of a suggestion's deviation, as far as
a linear layer on the backbone's last hidden state explains it. It goes into the head's weights; the log-odds of a
click, and with them every probability, stay as they were.

In: preferences with ``user_id`` and the folder of a reward model with the head ``click_gaussian``. Out: its weights
and options, replaced.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import minimize

from openrlhf_qs.clicks.preferences import read_preferences
from openrlhf_qs.files.printable import from_here, print_figures
from openrlhf_qs.garm.edit_head import edit_head
from openrlhf_qs.garm.shown import clicks_of, texts_of
from openrlhf_qs.models.template import as_plain_text
from openrlhf_qs.registry import load_plugins

HEAD = "click_gaussian"
TOKEN_PENALTY = 10.0  # of the tokens' variances: about that of ten pairs of showings that say something
HIDDEN_PENALTY = 0.1  # of the linear layer, a share of the mean square of the hidden states
MAX_OF_USER = 2000  # showings, two million pairs: of a bot there may be any number
MIN_VARIANCE = 0.01  # of a suggestion, log-odds squared: none of its tokens has any
NO_USERS = (
    "no user of these rows was shown anything twice, or none has a user_id: how far users differ cannot be had from "
    "single clicks; give a log with user_id, or leave the deviations constant"
)


class Showings(NamedTuple):
    """What one user was shown, ``[n]`` each, and ``tokens`` ``[n, vocabulary]``, 1 where a token is in it."""

    user: np.ndarray
    impression: np.ndarray
    residual: np.ndarray  # clicked less expected
    slope: np.ndarray  # of the expectation, by the reward's log-odds
    variance: np.ndarray  # of the residual
    tokens: sparse.csr_matrix


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "preferences",
        metavar="FILE.jsonl",
        help="preferences with user_id; those that the model was trained on will do",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="reward model; its deviations are set in place")
    parser.add_argument(
        "--optional_enable",
        action="store_true",
        help="if the log has no user ids, report that and leave the model unchanged",
    )


def run(args: argparse.Namespace) -> None:
    load_plugins()
    rows = read_preferences(args.preferences)
    if args.optional_enable and not _users_return(rows):
        print(f"{from_here(args.model)}: its deviations stay constant. {NO_USERS}")
        return
    report = fit(rows, args.model)
    print_figures(f"how far users differ about a suggestion, in {from_here(args.model)}", report)


def fit(rows: Sequence[Mapping[str, Any]], model: str | Path) -> dict[str, Any]:
    """Read the deviations from the rows' clicks and write them into the checkpoint ``model``.

    Returns:
        What is to be printed: users, pairs of showings, the deviations' mean and range.
    """
    rows = _of_users(rows)
    users = [row["user_id"] for row in rows]
    if not _users_return(rows):
        raise ValueError(NO_USERS)
    hidden, log_odds, tokens = read(rows, model)
    showings = showings_of(rows, log_odds, tokens)
    first, second = pairs_of(showings)
    variance = token_variances(showings, first, second)
    std = np.sqrt(np.maximum(showings.tokens @ variance, MIN_VARIANCE))
    weight, bias = linear(hidden, np.log(std))
    write(model, weight, bias)
    fitted = np.exp(hidden @ weight + bias)
    return {
        "users": len(set(users)),
        "pairs of showings to one user": len(first),
        "standard deviation, mean": float(fitted.mean()),
        "standard deviation, 5 %": float(np.quantile(fitted, 0.05)),
        "standard deviation, 95 %": float(np.quantile(fitted, 0.95)),
    }


def _of_users(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("user_id") is not None and row.get("clicks") is not None]


def _users_return(rows: Sequence[Mapping[str, Any]]) -> bool:
    users = [row["user_id"] for row in _of_users(rows)]
    return len(set(users)) < len(users)


def showings_of(rows: Sequence[Mapping[str, Any]], log_odds: np.ndarray, tokens: sparse.csr_matrix) -> Showings:
    """Every suggestion of the rows, in their order, with what the reward model expected of it.

    Args:
        log_odds: ``[n]``, of a click where it is looked at.
        tokens: ``[n, vocabulary]``.
    """
    lengths = [len(row["suggestions"]) for row in rows]
    clicks = clicks_of(rows)
    p = 1 / (1 + np.exp(-log_odds))
    by_attraction = clicks.examination * p
    expected = np.minimum(by_attraction + clicks.trust, 1.0)
    _, user = np.unique([row["user_id"] for row in rows], return_inverse=True)
    return Showings(
        user=np.repeat(user, lengths),
        impression=np.repeat(np.arange(len(rows)), lengths),
        residual=clicks.clicked - expected,
        slope=by_attraction * (1 - p),
        variance=expected * (1 - expected) + 1e-4,  # what is never clicked must not count without end
        tokens=tokens,
    )


def pairs_of(showings: Showings) -> tuple[np.ndarray, np.ndarray]:
    """Every two showings of one user in different impressions, as rows of ``showings``, ``[pairs]`` each; of a user
    with more than ``MAX_OF_USER`` showings, the last ones."""
    order = np.argsort(showings.user, kind="stable")
    bounds = np.flatnonzero(np.diff(showings.user[order], prepend=-1, append=-1))
    first, second = [], []
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        start = max(start, end - MAX_OF_USER)
        one, other = np.triu_indices(end - start, 1)
        first.append(order[start + one])
        second.append(order[start + other])
    first, second = np.concatenate(first), np.concatenate(second)
    apart = showings.impression[first] != showings.impression[second]
    return first[apart], second[apart]


def token_variances(
    showings: Showings, first: np.ndarray, second: np.ndarray, penalty: float = TOKEN_PENALTY
) -> np.ndarray:
    """``[vocabulary]``, at least 0: how much users differ about each token, log-odds squared."""
    size = showings.tokens.shape[1]  # of a large vocabulary, whose square no memory holds
    quadratic, linear_part = sparse.csr_matrix((size, size)), np.zeros(size)
    scale = 1 / np.sqrt(showings.variance)
    for start in range(0, len(first), 1 << 16):
        i, j = first[start : start + (1 << 16)], second[start : start + (1 << 16)]
        common = showings.tokens[i].multiply(showings.tokens[j]).tocsr()
        weight = scale[i] * scale[j]
        rows = sparse.diags(weight * showings.slope[i] * showings.slope[j]) @ common
        quadratic = quadratic + rows.T @ rows
        linear_part += rows.T @ (weight * showings.residual[i] * showings.residual[j])

    def loss(k: np.ndarray) -> tuple[float, np.ndarray]:
        gradient = quadratic @ k - linear_part + penalty * k
        return float(k @ (gradient - linear_part)) / 2, gradient

    return minimize(loss, np.zeros(size), jac=True, method="L-BFGS-B", bounds=[(0, None)] * size).x


def linear(hidden: np.ndarray, target: np.ndarray, penalty: float = HIDDEN_PENALTY) -> tuple[np.ndarray, float]:
    """Ridge regression of ``target`` ``[n]`` on ``hidden`` ``[n, width]``: weights and the constant."""
    centred, mean = hidden - hidden.mean(0), target.mean()
    gram = centred.T @ centred / len(hidden)
    gram[np.diag_indices(len(gram))] += penalty * np.trace(gram) / len(gram)
    weight = np.linalg.solve(gram, centred.T @ (target - mean) / len(hidden))
    return weight, float(mean - hidden.mean(0) @ weight)


def read(rows: Sequence[Mapping[str, Any]], model: str | Path) -> tuple[np.ndarray, np.ndarray, sparse.csr_matrix]:
    """What the model sees in every suggestion of the rows, in their order: hidden states ``[n, width]``, log-odds of a
    click ``[n]``, and which tokens are in it ``[n, vocabulary]``."""
    import torch

    from openrlhf_qs.garm.eval import load_on_device
    from openrlhf_qs.garm.reward_model import check_checkpoint

    mark = check_checkpoint(model)
    if mark["name"] != HEAD:
        raise ValueError(f"{model}: reward model {mark['name']!r}; deviations are estimated only for {HEAD}")
    scorer = load_on_device(model)
    conversations, suggestions = texts_of(rows)
    head = getattr(scorer.model, scorer.model.config.value_head_prefix)
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].float().cpu()))
    hidden = np.zeros((len(suggestions), head.in_features), dtype=np.float32)
    log_odds = np.zeros(len(suggestions))
    with torch.no_grad():
        for batch, (input_ids, mask, place) in scorer.rows(conversations, suggestions):
            seen.clear()
            raw, _ = scorer.model(input_ids, mask, return_output=True)
            hidden[batch] = seen[0][place].numpy()
            log_odds[batch] = scorer.model.head.click_log_odds(raw).mean(-1).cpu().numpy()[place]
    hook.remove()
    texts = [f" {as_plain_text(scorer.tokenizer, text)}" for text in suggestions]
    tokens = scorer.tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows_of = np.repeat(np.arange(len(tokens)), [len(set(one)) for one in tokens])
    columns = np.concatenate([sorted(set(one)) for one in tokens]).astype(int)
    shape = (len(tokens), len(scorer.tokenizer))
    return hidden, log_odds, sparse.csr_matrix((np.ones(len(columns)), (rows_of, columns)), shape=shape)


def write(path: str | Path, weight: np.ndarray, bias: float) -> None:
    """Give the checkpoint's head the logarithm of the standard deviation as its last output, or replace that."""
    import torch

    def with_std(config, weights, biases, others):
        options = config["reward_model"]["options"]
        n = len(biases) - bool(options.get("std_known"))
        options["std_known"] = True
        row, constant = torch.from_numpy(weight).to(weights)[None], torch.tensor([bias]).to(biases)
        return torch.cat((weights[:n], row)), torch.cat((biases[:n], constant))

    edit_head(path, with_std)
