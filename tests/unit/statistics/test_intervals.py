"""Intervals: of a share, over seeds, over clusters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from openrlhf_qs.statistics.intervals import (
    Z_95,
    cluster_bootstrap,
    in_words,
    ratio_of_means,
    t_interval,
    wilson_interval,
)


def test_the_quantile_is_that_of_the_normal_distribution():
    assert pytest.approx(stats.norm.ppf(0.975)) == Z_95


def test_wilson_interval_by_hand_and_at_the_ends():
    # n = 10, p = 0.5, z^2 = 3.8415: middle 0.5, half 1.96 / 1.38415 * sqrt(0.025 + 0.0096036) = 0.2634
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(0.0, 10)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0, abs=1e-12)


def test_the_interval_of_a_ratio_covers_it_in_95_of_100_samples_and_no_part_is_counted_that_both_share():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        size = rng.gamma(2.0, 1.0, 200)  # large in both
        ratio, half = ratio_of_means(size * 1.3 + rng.normal(0, 0.2, 200), size, range(200))
        covered += abs(ratio - 1.3) < half
        assert half < 0.05
    assert 0.92 < covered / 400 < 0.98


def test_bootstrap_over_clusters_is_wider_than_over_pairs_that_repeat_each_other():
    rng = np.random.default_rng(1)
    value = np.repeat(rng.normal(size=50), 10)  # ten copies in each of 50 clusters

    def mean(weight):
        return [np.average(value, weights=weight)]

    weight = np.ones(500)
    [clustered] = cluster_bootstrap(mean, weight, np.repeat(np.arange(50), 10).astype(str), 300)
    [alone] = cluster_bootstrap(mean, weight, np.arange(500).astype(str), 300)
    # the standard error grows by sqrt(10) = 3.16
    assert 2.4 < (clustered[1] - clustered[0]) / (alone[1] - alone[0]) < 4.2


def test_the_interval_over_seeds_is_that_of_students_t():
    values = [0.5, 0.6, 0.55]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    one = t_interval(values)
    assert (one.mean - one.half, one.mean + one.half, one.n) == pytest.approx((low, high, 3))
    assert math.isnan(t_interval([0.5]).half)


def test_a_difference_in_words_turns_with_its_sign_and_says_where_nothing_is_sure():
    assert in_words(0.031, [0.016, 0.044]) == "0.031 higher (0.016 to 0.044)"
    assert in_words(-0.119, [-0.15, -0.08]) == "0.119 lower (0.080 to 0.150)"
    assert in_words(-0.004, [-0.018, 0.01]) == "0.004 lower (-0.010 to 0.018, no clear difference)"
    assert in_words(4.66, [2.9, 6.6], "more", "less", ".1f", "points") == "4.7 points more (2.9 to 6.6)"
