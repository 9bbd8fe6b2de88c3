"""Many comparisons at once: a test of a mean over few seeds, and what is left of it among a dozen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtr


def t_test(values: Sequence[float]) -> float:
    """Two-sided p-value that the mean of ``values`` ``[n]``, as differences by seed, is 0; nan for one value."""
    n = len(values)
    if n < 2:
        return math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    if error == 0:
        return 0.0 if np.mean(values) else 1.0
    return float(2 * stdtr(n - 1, -abs(float(np.mean(values))) / error))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    r"""Adjusted p-values: below 0.05, the family of all comparisons errs with a chance of at most 0.05 (Holm 1979).

    Sorted, :math:`\tilde p_{(i)}=\max_{j\le i}\min(1,(m-j+1)\,p_{(j)})`. A nan stays one and is not counted.
    """
    told = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted, largest = {name: math.nan for name in p_values}, 0.0
    for rank, (p, name) in enumerate(told):
        largest = max(largest, min(1.0, (len(told) - rank) * p))
        adjusted[name] = largest
    return adjusted
