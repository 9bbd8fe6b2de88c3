"""Many comparisons at once."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from openrlhf_qs.statistics.multiple import holm, t_test


def test_the_p_value_is_that_of_students_t_test():
    values = [0.05, 0.11, 0.02, 0.08]
    assert t_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert math.isnan(t_test([0.3])) and t_test([0.2, 0.2]) == 0.0 and t_test([0.0, 0.0]) == 1.0


def test_holm_by_hand():
    # sorted .01, .02, .03, .4: times 4, 3, 2, 1 = .04, .06, .06, .4
    adjusted = holm({"a": 0.02, "b": 0.4, "c": 0.01, "d": 0.03, "none": math.nan})
    assert adjusted.pop("none") != 0 and adjusted == pytest.approx({"a": 0.06, "b": 0.4, "c": 0.04, "d": 0.06})


def test_an_adjusted_value_is_at_most_one_and_never_below_a_smaller_one():
    adjusted = holm({"a": 0.5, "b": 0.3, "c": 0.29})
    assert adjusted == pytest.approx({"a": 0.87, "b": 0.87, "c": 0.87})
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1.0
