"""95 % intervals: of a share, of a mean over clusters, over seeds, and of anything by resampling clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from openrlhf_qs.statistics.clusters import Clusters, as_clusters

Z_95 = NormalDist().inv_cdf(0.975)  # two-sided 95 % quantile of the standard normal, 1.959964
SIGNIFICANT_Z = 1.96  # |z| above which a difference of two counted shares is taken as known, at 5 %


class Interval(NamedTuple):
    """A mean over ``n`` values, and half its 95 % t interval; nan for one value."""

    mean: float
    half: float
    n: int


def in_words(
    value: float,
    interval: Sequence[float],
    more: str = "higher",
    less: str = "lower",
    spec: str = ".3f",
    unit: str = "",
) -> str:
    """A difference in a word that its sign chooses, and sizes in the direction of that word.

    ``0.031 lower (0.016 to 0.044)``, or, where the interval holds 0, ``0.004 lower (-0.010 to 0.018, no clear
    difference)``.

    Args:
        interval: 95 %, lower and upper end of ``value``.
        unit: stands after the number, as ``points``.
    """
    sign = -1 if value < 0 else 1
    low, high = sorted(sign * end for end in interval)
    doubt = "" if low > 0 else ", no clear difference"
    size = format(abs(value), spec) + (f" {unit}" if unit else "")
    return f"{size} {less if sign < 0 else more} ({format(low, spec)} to {format(high, spec)}{doubt})"


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    r"""95 % interval of a share seen in ``n`` trials, inside [0, 1] also at 0 and 1.

    :math:`\frac{\hat p+z^2/2n}{1+z^2/n}\pm\frac{z}{1+z^2/n}\sqrt{\hat p(1-\hat p)/n+z^2/4n^2}`. ``n`` need not be
    whole: Kish's effective number of weighted trials may be given.
    """
    scale = 1.0 + Z_95**2 / n
    middle = (share + Z_95**2 / (2 * n)) / scale
    half = Z_95 / scale * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def cluster_half_width(values: np.ndarray, clusters: Clusters | Sequence[Hashable]) -> float:
    """Half the 95 % t interval of the mean of ``values`` ``[n]`` where those of one cluster hang together.

    Deviations are added up in each cluster before they are squared (Liang and Zeger 1986); of clusters of several
    kinds, as conversations and users, :meth:`Clusters.squares`. With a cluster for each value it is the usual
    interval. ValueError where there is one cluster only.
    """
    from scipy.special import stdtrit

    clusters = as_clusters(clusters)
    n_clusters = clusters.n_clusters
    if n_clusters < 2:
        raise ValueError("an interval needs at least 2 clusters, found 1: give more conversations")
    squares = float(clusters.squares(np.reshape(values - np.mean(values), (-1, 1)))[0, 0])
    variance = n_clusters / (n_clusters - 1) * squares / len(values) ** 2
    return float(stdtrit(n_clusters - 1, 0.975)) * math.sqrt(variance)


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of few values, as of seeds, with half its 95 % t interval."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return Interval(float(np.mean(values)), math.nan, n)
    half = stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)
    return Interval(float(np.mean(values)), float(half), n)


def ratio_of_means(
    numerator: np.ndarray, denominator: np.ndarray, clusters: Clusters | Sequence[Hashable]
) -> tuple[float, float]:
    r""":math:`R=\bar a/\bar b` of values ``[n]`` of the same rows, and half its 95 % interval.

    By the delta method its standard error is that of the mean of :math:`(a_i-R\,b_i)/\bar b`: what makes one row
    large in both cancels.
    """
    mean = float(denominator.mean())
    ratio = float(numerator.mean()) / mean
    return ratio, cluster_half_width((numerator - ratio * denominator) / mean, clusters)


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], Sequence[float]],
    weight: np.ndarray,
    clusters: Clusters | Sequence[str],
    n_resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """95 % percentile intervals, resampling whole clusters (the pairs of one conversation) with replacement.

    Our own, because scipy.stats.bootstrap resamples rows, and a weight a row is all that our statistics need. Of
    clusters of several kinds, the first is resampled, and the interval widened about the statistic by how much larger
    the deviation by all kinds is, whose variances, by a bootstrap each, add up as in :meth:`Clusters.terms`.

    Args:
        statistic: takes pair weights ``[n]``, all at least 0, returns ``k`` numbers.
        weight: ``[n]``, > 0; a cluster drawn twice counts with twice its weight.
        clusters: ``[n]``, the cluster of each pair.

    Returns:
        ``[k, 2]``, lower and upper.
    """
    kinds, rng = as_clusters(clusters), np.random.default_rng(seed)
    resamples = [(sign, _resampled(statistic, weight, number, n_resamples, rng)) for sign, number in kinds.terms()]
    one_way = resamples[0][1]
    interval = np.percentile(one_way, [2.5, 97.5], axis=0).T
    if len(resamples) == 1:
        return interval
    variance = sum(sign * values.var(0) for sign, values in resamples)
    wider = np.sqrt(np.maximum(variance / np.maximum(one_way.var(0), 1e-30), 1.0))[:, None]
    centre = np.asarray(statistic(weight))[:, None]
    return centre + wider * (interval - centre)


def _resampled(
    statistic: Callable[[np.ndarray], Sequence[float]], weight: np.ndarray, cluster: np.ndarray, n_resamples: int, rng
) -> np.ndarray:
    """The statistic of each resample, ``[n_resamples, k]``."""
    n_clusters, found = int(cluster.max()) + 1, []
    for _ in range(n_resamples):
        times_drawn = np.bincount(rng.integers(n_clusters, size=n_clusters), minlength=n_clusters)
        found.append(statistic(weight * times_drawn[cluster]))
    return np.asarray(found)
