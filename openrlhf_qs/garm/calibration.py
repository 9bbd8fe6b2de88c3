r"""How reliable a reward model's preference probabilities are, measured on pairs with known outcome.

In: ``probability``, for each pair the model's :math:`P(\text{chosen better})`, and a ``weight`` per pair. Out:
accuracy, negative log-likelihood, Brier score and expected calibration error, with intervals that allow for dependence
among the pairs of an impression.

The order of a pair's suggestions carries no information, so a pair is one observation seen from two sides: ``(p, 1)``
from the chosen and ``(1 - p, 0)`` from the rejected suggestion; with a soft ``label`` y, ``(p, y)`` and
``(1 - p, 1 - y)``. Binning only the first side would compare ``p`` with a label that is always 1, and report
``1 - mean(p)`` for any model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from openrlhf_qs.statistics.clusters import Clusters, as_clusters
from openrlhf_qs.statistics.intervals import cluster_bootstrap, wilson_interval

N_BINS = 20
ECE_LIMIT = 0.15  # above it the probabilities of a reward model are flagged


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of the reliability diagram.

    Attributes:
        lower, upper: edges of the bin of predicted probability.
        predicted: weighted mean of the predicted probabilities in it.
        observed: weighted share that really was the chosen one.
        ci95: Wilson interval of ``observed``.
        n_pairs: pairs with one of their two sides in this bin.
    """

    lower: float
    upper: float
    predicted: float
    observed: float
    ci95: tuple[float, float]
    n_pairs: int


def preference_probability(
    mean_a: ArrayLike, std_a: ArrayLike, mean_b: ArrayLike, std_b: ArrayLike, link: str = "probit"
) -> np.ndarray:
    """Probability that suggestion ``a`` is better than ``b``, both rewards independent Gaussians.

    Args:
        mean_a, mean_b: ``[n]``, reward units.
        std_a, std_b: ``[n]``, reward units, > 0.
        link: the likelihood in :mod:`openrlhf_qs.garm.preference_likelihood` that the reward model was trained with,
            as in :attr:`openrlhf_qs.garm.reward_model.SuggestionScorer.link`.

    Returns:
        ``[n]``, in [0, 1]. ValueError if a mean or standard deviation is not finite, or a deviation is not positive.
    """
    mean_a, std_a, mean_b, std_b = (np.asarray(x, dtype=np.float64) for x in (mean_a, std_a, mean_b, std_b))
    bad = ~(np.isfinite(mean_a - mean_b) & np.isfinite(std_a + std_b) & (std_a > 0) & (std_b > 0))
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {bad.size} pairs have a mean that is not finite or a std that is not positive, the first "
            f"at {int(np.flatnonzero(bad)[0])}; check the reward model"
        )
    import torch

    from openrlhf_qs.garm import preference_likelihood

    values = (torch.from_numpy(value) for value in np.broadcast_arrays(mean_a, std_a, mean_b, std_b))
    return preference_likelihood.preference_probability(*values, link).numpy()


def accuracy(probability: np.ndarray, weight: np.ndarray, label: ArrayLike = 1.0) -> float:
    """Weighted share of pairs whose better suggestion is preferred; a tie (probability 0.5) counts one half."""
    return float(np.average(correctness(probability, label), weights=weight))


def correctness(probability: np.ndarray, label: ArrayLike = 1.0) -> np.ndarray:
    """``[n]``: the label of the side that the model prefers, 1 or 0 for a hard label; a tie is one half."""
    prefers = np.heaviside(probability - 0.5, 0.5)
    return label * prefers + (1 - np.asarray(label)) * (1 - prefers)


def negative_log_likelihood(probability: np.ndarray, weight: np.ndarray, label: ArrayLike = 1.0) -> float:
    r"""Weighted mean of :math:`-y\log p-(1-y)\log(1-p)`, nats; a coin scores 0.693. 1e-12 is the least probability."""
    chosen, rejected = (-np.log(np.maximum(p, 1e-12)) for p in (probability, 1 - probability))
    return float(np.average(label * chosen + (1 - np.asarray(label)) * rejected, weights=weight))


def brier_score(probability: np.ndarray, weight: np.ndarray, label: ArrayLike = 1.0) -> float:
    """Weighted mean of ``y (1 - p)^2 + (1 - y) p^2``, the same from either side of a pair; a coin scores 0.25."""
    label = np.asarray(label)
    return float(np.average(label * (1 - probability) ** 2 + (1 - label) * probability**2, weights=weight))


def expected_calibration_error(
    probability: np.ndarray, weight: np.ndarray, n_bins: int = N_BINS, label: ArrayLike = 1.0
) -> float:
    r"""Weighted mean distance between predicted and observed, over bins of the symmetrised pairs.

    :math:`\sum_b \frac{w_b}{\sum w}\,|\bar p_b-\bar y_b|` with ``n_bins`` bins of equal width over [0, 1]. For an even
    ``n_bins`` this equals the confidence form, :math:`|\text{confidence}-\text{accuracy}|` over ``n_bins / 2`` bins of
    [0.5, 1]. An odd number has a bin around 0.5 where the two sides of a pair cancel and hide its error: refused.

    A finite sample never shows 0, however good the model: see :func:`calibrated_ece`. Ours, because pairs have weights
    and two sides: torchmetrics' CalibrationError takes neither.
    """
    sums = _bin_sums(probability, weight, n_bins, label)
    return float(np.abs(sums.predicted - sums.observed).sum() / sums.weight.sum())


def reliability_bins(
    probability: np.ndarray, weight: np.ndarray, n_bins: int = N_BINS, label: ArrayLike = 1.0
) -> list[ReliabilityBin]:
    """The bins of :func:`expected_calibration_error` that are not empty, from 0 to 1; mirrored at (0.5, 0.5).

    The Wilson interval takes Kish's effective number of pairs, ``(sum w)^2 / sum w^2``, for n.
    """
    sums = _bin_sums(probability, weight, n_bins, label)
    bins = []
    for b in np.flatnonzero(sums.n_pairs):
        observed = sums.observed[b] / sums.weight[b]
        bins.append(
            ReliabilityBin(
                lower=b / n_bins,
                upper=(b + 1) / n_bins,
                predicted=float(sums.predicted[b] / sums.weight[b]),
                observed=float(observed),
                ci95=wilson_interval(observed, sums.weight[b] ** 2 / sums.weight_squared[b]),
                n_pairs=int(sums.n_pairs[b]),
            )
        )
    return bins


def calibrated_ece(
    probability: np.ndarray,
    weight: np.ndarray,
    n_bins: int = N_BINS,
    n_draws: int = 200,
    seed: int = 0,
    clusters: Clusters | Sequence[str] | None = None,
) -> float:
    """The error a perfectly calibrated model with these very probabilities would show on average: the noise floor.

    Draws which suggestion of each pair is the chosen one from the probabilities themselves, ``n_draws`` times. Pairs
    of one cluster, as those of many users under one conversation, are no new evidence each: the floor is that of
    independent pairs times the root of how much further the clusters' residuals spread (:func:`design_effect`).
    """
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(n_draws):
        drawn = np.where(rng.random(probability.shape) < probability, probability, 1 - probability)
        errors.append(expected_calibration_error(drawn, weight, n_bins))
    spread = 1.0 if clusters is None else design_effect(probability, weight, clusters)
    return float(np.mean(errors) * np.sqrt(spread))


def design_effect(probability: np.ndarray, weight: np.ndarray, clusters: Clusters | Sequence[str]) -> float:
    """Variance of the sum of all residuals, as the clusters show it, over what independent pairs have; at least 1.

    A residual is outcome minus probability of the side that the model prefers; their mean, which is miscalibration, is
    taken out first.
    """
    sure = np.maximum(probability, 1 - probability)
    residual = np.where(probability == 0.5, 0.0, (probability > 0.5) - sure)
    residual -= np.average(residual, weights=weight)
    of_clusters = as_clusters(clusters).squares((weight * residual)[:, None])[0, 0]
    alone = (weight**2 * residual**2).sum()
    return float(max(of_clusters / alone, 1.0)) if alone > 0 else 1.0


def calibration_metrics(
    probability: ArrayLike,
    weight: ArrayLike,
    clusters: Clusters | Sequence[str],
    n_bins: int = N_BINS,
    n_resamples: int = 1000,
    seed: int = 0,
    label: ArrayLike = 1.0,
) -> dict[str, object]:
    """All figures of this module at once, ready for JSON.

    Args:
        probability: ``[n]``, P(chosen better) in [0, 1].
        weight: ``[n]``, > 0.
        clusters: ``[n]``, the conversation each pair comes from, and the user: pairs of one hang together.
        n_bins: bins over [0, 1], even.
        label: ``[n]`` or one for all, in [0, 1]: how probable it really is that the chosen one is the better one.

    Returns:
        ``n_pairs``, ``n_bins``; ``accuracy``, ``nll``, ``brier``, ``ece``, each with its
        ``*_ci95``; ``ece_if_calibrated``, None for soft labels, whose own noise is not known; ``reliability``, the
        bins. Resampling adds noise to the bins, so the interval of the ECE leans upwards.
    """
    probability, weight = np.asarray(probability, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    if not (probability.ndim == 1 and 0 < len(probability) == len(weight) == len(clusters)):
        raise ValueError(
            f"probabilities of shape {probability.shape}, {len(weight)} weights and {len(clusters)} clusters; "
            "give one of each a pair, and at least one pair"
        )
    if not ((weight > 0) & np.isfinite(weight)).all():
        raise ValueError("pair weights must be finite and greater than 0; leave out pairs that must not count")
    label = np.asarray(label, dtype=np.float64)
    if not ((label >= 0) & (label <= 1)).all():
        raise ValueError("pair labels must be probabilities, in [0, 1]; check the column label")

    def figures(weight: np.ndarray) -> list[float]:
        return [
            accuracy(probability, weight, label),
            negative_log_likelihood(probability, weight, label),
            brier_score(probability, weight, label),
            expected_calibration_error(probability, weight, n_bins, label),
        ]

    metrics: dict[str, object] = {"n_pairs": len(probability), "n_bins": n_bins}
    values = figures(weight)
    intervals = cluster_bootstrap(figures, weight, clusters, n_resamples, seed)
    for name, value, interval in zip(("accuracy", "nll", "brier", "ece"), values, intervals, strict=True):
        metrics[name] = value
        metrics[f"{name}_ci95"] = interval.tolist()
    hard = (label == 1).all()
    metrics["ece_if_calibrated"] = (
        calibrated_ece(probability, weight, n_bins, seed=seed, clusters=clusters) if hard else None
    )
    bins = reliability_bins(probability, weight, n_bins, label)
    metrics["reliability"] = [vars(b) | {"ci95": list(b.ci95)} for b in bins]
    return metrics


def calibration_verdict(metrics: Mapping[str, Any]) -> str:
    """Accuracy and ECE in words: whether the model beats a coin, then whether the ECE is above ``ECE_LIMIT``."""
    low, high = metrics["ece_ci95"]
    verdict = (
        f"GaRM prefers the clicked suggestion in {metrics['accuracy']:.1%} of {metrics['n_pairs']:,} pairs. "
        f"Its ECE is {metrics['ece']:.3f} (95 % interval {low:.3f} to {high:.3f}; a perfectly calibrated model would "
        f"show {metrics['ece_if_calibrated']:.3f} on as many pairs)"
    )
    coin = [
        name
        for name, beaten in (
            ("accuracy", metrics["accuracy_ci95"][0] > 0.5),
            ("NLL", metrics["nll_ci95"][1] < math.log(2)),
        )
        if not beaten
    ]
    if coin:
        return f"{verdict}. Its {' and '.join(coin)} cannot be told from a coin's, so its probabilities say nothing."
    if metrics["ece"] > ECE_LIMIT:
        return f"{verdict}. That is above {ECE_LIMIT}: its probabilities and deviations cannot be trusted as they are."
    return f"{verdict}. That is at most {ECE_LIMIT}, and it is better than a coin: its probabilities can be used."


def accuracy_by(
    value: np.ndarray, probability: np.ndarray, weight: np.ndarray, n_groups: int = 10
) -> list[dict[str, object]]:
    """Accuracy in groups of equally many pairs, by rising ``value``; of fewer pairs than groups, one group a pair.

    Args:
        value: ``[n]``, what the pairs are sorted by, as confidence or log-perplexity.

    Returns:
        A row a group: ``lower``, ``upper`` and ``mean`` of the value, ``accuracy``, ``ci95`` (Wilson, of Kish's
        effective number of pairs), ``n_pairs``.
    """
    right = correctness(probability)
    groups = []
    for rows in np.array_split(np.argsort(value, kind="stable"), min(n_groups, len(value))):
        share = np.average(right[rows], weights=weight[rows])
        groups.append(
            {
                "lower": float(value[rows].min()),
                "upper": float(value[rows].max()),
                "mean": float(np.average(value[rows], weights=weight[rows])),
                "accuracy": float(share),
                "ci95": list(wilson_interval(share, weight[rows].sum() ** 2 / (weight[rows] ** 2).sum())),
                "n_pairs": len(rows),
            }
        )
    return groups


@dataclass(frozen=True)
class _BinSums:
    """Sums over the sides in each bin, ``[n_bins]`` each; ``predicted`` and ``observed`` are weighted."""

    weight: np.ndarray
    weight_squared: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray
    n_pairs: np.ndarray


def _bin_sums(probability: np.ndarray, weight: np.ndarray, n_bins: int, label: ArrayLike = 1.0) -> _BinSums:
    if n_bins < 2 or n_bins % 2:
        raise ValueError(f"n_bins = {n_bins}: give an even number, an odd one hides the error of the pairs around 0.5")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("a preference probability is outside [0, 1] or not a number; check the reward model")
    # The two sides of a pair lie in mirrored bins also when p is on an edge, which plain rounding would not give.
    upper_bin = np.minimum((np.maximum(probability, 1 - probability) * n_bins).astype(int), n_bins - 1)
    chosen_bin = np.where(probability >= 0.5, upper_bin, n_bins - 1 - upper_bin)
    chosen_observed = np.where(probability == 0.5, 0.5, label)  # a tie is half right, from either side

    bins = np.concatenate([chosen_bin, n_bins - 1 - chosen_bin])
    predicted = np.concatenate([probability, 1 - probability])
    observed = np.concatenate([chosen_observed, 1 - chosen_observed])
    weight = np.concatenate([weight, weight])

    def per_bin(values: np.ndarray) -> np.ndarray:
        return np.bincount(bins, weights=values, minlength=n_bins)

    return _BinSums(
        weight=per_bin(weight),
        weight_squared=per_bin(weight**2),
        predicted=per_bin(weight * predicted),
        observed=per_bin(weight * observed),
        n_pairs=np.bincount(bins, minlength=n_bins),
    )
