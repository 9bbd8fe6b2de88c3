"""Intervals that hold at every look: a confidence sequence, and the sample that a difference needs."""

from __future__ import annotations

import math
from statistics import NormalDist

ALPHA = 0.05


def sequence_factor(n: float, n_planned: float) -> float:
    r"""What a standard error from ``n`` independent units is multiplied by, so that the interval of 95 % holds at all
    looks together, however often and whenever one looks.

    :math:`\sqrt{\frac{n\rho^2+1}{n\rho^2}\log\frac{n\rho^2+1}{\alpha^2}}`, the asymptotic confidence sequence of
    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), *Time-uniform central limit theory and asymptotic
    confidence sequences*, arXiv:2103.06476, with
    :math:`\rho^2=(-2\log\alpha+\log(1-2\log\alpha))/n_\text{planned}`, which makes it narrowest at ``n_planned``
    units, where it is 3.0: half as wide again as the 1.96 of a single look.
    """
    rho_squared = (-2 * math.log(ALPHA) + math.log(1 - 2 * math.log(ALPHA))) / n_planned
    spread = n * rho_squared
    return math.sqrt((spread + 1) / spread * math.log((spread + 1) / ALPHA**2))


def times_as_many(standard_error: float, difference: float, power: float = 0.8) -> float:
    """How many times the data are needed to find ``difference`` with that power in a two-sided test at 5 %, where the
    data at hand give it ``standard_error``."""
    z = NormalDist().inv_cdf(1 - ALPHA / 2) + NormalDist().inv_cdf(power)
    return (z * standard_error / difference) ** 2
