"""First weights of the composite reward."""

from __future__ import annotations

import warnings

import numpy as np

from openrlhf_qs.registry import FUSIONS


@FUSIONS.register("logistic_regression")
class LogisticRegressionFusion:
    """Weights that tell clicked impressions from the others: ridge-regularised logistic regression on the parts.

    Every part is written so that more is better, so a negative weight is noise or a fault of the part: it is set to
    the floor, with a warning. The floor itself is there because a log of ordinary impressions cannot show what
    protects from responses that no policy has given yet.

    Args:
        floor: share of the largest weight that every part keeps, in [0, 1].
        c: inverse strength of the ridge penalty (scikit-learn's ``C``), on parts of unit deviation.
    """

    def __init__(self, floor: float = 0.2, c: float = 1.0) -> None:
        if not 0 <= floor <= 1:
            raise ValueError(f"logistic_regression.floor must be in [0, 1], got {floor}: it is a share")
        self.floor = floor
        self.c = c

    def __call__(self, parts: np.ndarray, clicked: np.ndarray, names: list[str]) -> list[float]:
        """Parts ``[n, n_rewards]`` in deviations, clicks ``[n]`` 0/1; weights that add up to 1."""
        from sklearn.linear_model import LogisticRegression

        if len(np.unique(clicked)) < 2:
            raise ValueError("fusion needs impressions with and without a click; found only one kind")
        weights = LogisticRegression(C=self.c, max_iter=1000).fit(parts, clicked).coef_[0]
        for name, weight in zip(names, weights, strict=True):
            if weight < 0:
                warnings.warn(f"reward {name!r} has the weight {weight:.3f}: clicks fall as it rises", stacklevel=2)
        if weights.max() <= 0:
            raise ValueError("no reward rises with clicks: the weights mean nothing; look at the parts one by one")
        weights = np.maximum(weights, self.floor * weights.max())
        return (weights / weights.sum()).tolist()


@FUSIONS.register("equal")
class EqualFusion:
    """The same weight for every part: the baseline."""

    def __call__(self, parts: np.ndarray, clicked: np.ndarray, names: list[str]) -> list[float]:
        """Weights that add up to 1, whatever the data say."""
        return [1 / len(names)] * len(names)
