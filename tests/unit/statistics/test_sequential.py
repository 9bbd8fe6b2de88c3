"""Intervals at every look, and sample sizes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from openrlhf_qs.statistics.sequential import sequence_factor, times_as_many


def test_the_factor_is_least_where_it_was_planned():
    # relative to the deviation of one unit: what is narrowest at n units
    best = minimize_scalar(lambda planned: sequence_factor(1000, planned), bounds=(50, 20_000), method="bounded").x
    assert best == pytest.approx(1000, rel=0.05)  # the formula is the first term of a series
    assert sequence_factor(1000, 1000) == pytest.approx(3.035, abs=1e-3)


def test_of_two_thousand_walks_few_ever_leave_the_sequence_and_many_the_interval_of_one_look():
    rng = np.random.default_rng(0)
    n = np.arange(50, 2001)
    factor = np.array([sequence_factor(one, 2000) for one in n])
    left = {"always": 0, "one look": 0}
    for _ in range(1000):
        z = np.abs(rng.normal(size=2000).cumsum()[49:]) / np.sqrt(n)
        left["always"] += bool((z > factor).any())
        left["one look"] += bool((z > 1.96).any())
    # 5 % of 1000 are 50 at the most, with a standard deviation of 6.9
    assert left["always"] <= 65 and left["one look"] > 300


def test_the_sample_of_a_lift_is_that_of_the_textbook():
    # rates of .3 and .33, n in each arm: 2 p (1 - p) (1.96 + .8416)^2 / .03^2 where the arms' variances are alike
    p, n = 0.3, 1000
    error = (2 * p * (1 - p) / n) ** 0.5
    assert n * times_as_many(error, 0.03) == pytest.approx(
        2 * p * (1 - p) * (norm.ppf(0.975) + norm.ppf(0.8)) ** 2 / 0.03**2
    )
