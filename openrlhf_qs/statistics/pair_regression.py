r"""Ridge logistic regression on pairs: which of two is the better, by features that each of them has.

:math:`P(\text{first better})=\sigma(w\cdot(x_1-x_2))`, without a constant, as the order of the two says nothing;
:math:`w` minimises the negative log-likelihood plus :math:`\|w\|^2/2C`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:  # the list of plugins need not wait for scipy
    from scipy import sparse


def fit(
    difference: np.ndarray | sparse.csr_matrix, weight: np.ndarray, c: float, label: ArrayLike = 1.0
) -> np.ndarray:
    """Coefficients ``[k]``, log-odds.

    Args:
        difference: ``[n, k]``, features of the first less those of the second; sparse or not.
        weight: ``[n]``, what a pair counts, 0 or more.
        c: inverse strength of the penalty, scikit-learn's ``C``.
        label: ``[n]``, in [0, 1], how often the first was the better one.
    """
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    # Each pair both ways round, each half: the likelihood of the pair, for which scikit-learn wants two classes.
    label, n = np.broadcast_to(label, len(weight)), len(weight)
    stack = sparse.vstack if sparse.issparse(difference) else np.concatenate
    first, counts = np.repeat([1, 0], n), np.concatenate((weight * label, weight * label)) / 2
    both = stack((difference, -difference))
    if (label < 1).any():
        both, first = stack((both, both)), np.concatenate((first, 1 - first))
        counts = np.concatenate((counts, np.tile(weight * (1 - label), 2) / 2))
    some = counts > 0
    model = LogisticRegression(C=c, fit_intercept=False, max_iter=1000, tol=1e-6)
    return model.fit(both[some], first[some], sample_weight=counts[some]).coef_[0]


def losses(margin: np.ndarray, label: ArrayLike = 1.0) -> np.ndarray:
    """Negative log-likelihood ``[n]`` of pairs with these log-odds, nats."""
    return label * np.logaddexp(0, -margin) + (1 - np.asarray(label)) * np.logaddexp(0, margin)


def cross_validated_c(
    difference: np.ndarray | sparse.csr_matrix,
    weight: np.ndarray,
    clusters: Sequence,
    grid: Sequence[float],
    n_folds: int,
    label: ArrayLike = 1.0,
) -> float:
    """The ``c`` of ``grid`` with the least loss on clusters that were not fitted; 1 where there are too few of them.

    Args:
        clusters: ``[n]``, what a pair belongs to, as its conversation: no cluster is on both sides.
    """
    fold, label = np.unique(clusters, return_inverse=True)[1] % n_folds, np.broadcast_to(label, len(weight))
    if len(np.unique(fold)) < n_folds:
        return 1.0

    def left_out(c: float) -> float:
        total = 0.0
        for n in range(n_folds):
            there, left = fold != n, fold == n
            coefficients = fit(difference[there], weight[there], c, label[there])
            total += float(weight[left] @ losses(difference[left] @ coefficients, label[left]))
        return total

    return float(grid[int(np.argmin([left_out(c) for c in grid]))])
