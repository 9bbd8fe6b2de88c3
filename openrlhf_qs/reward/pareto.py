"""The point of a Pareto front where giving up more of one gains least of the others. The front itself is Optuna's."""

from __future__ import annotations

import numpy as np


def knee(values: np.ndarray, min_span: float = 0.0) -> int:
    """The point of a front that is farthest from the plane through its extremes.

    Each objective is scaled to [0, 1] on the front. In two dimensions its extremes are then (1, 0) and (0, 1); in more
    we take the unit vectors, the plane where the scaled objectives add up to 1. The farthest on the good side is the
    one with the largest sum; the first one of equals.

    Args:
        values: ``[n, objectives]``, more is better.
        min_span: the least that an objective's range on the front is taken for: without it the noise of one that
            hardly changes counts as much as the whole range of another.
    """
    low, span = values.min(0), np.maximum(np.ptp(values, axis=0), min_span)
    return int(((values - low) / np.where(span > 0, span, 1.0)).sum(1).argmax())
