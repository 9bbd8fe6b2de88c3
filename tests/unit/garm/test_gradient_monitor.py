import warnings

import pytest

from openrlhf_qs.garm.gradient_monitor import GradientMonitor


def test_a_large_norm_is_warned_of_once_with_the_cure():
    monitor = GradientMonitor(warn=10.0, stop=1e3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.check(10.0, step=1)
    with pytest.warns(RuntimeWarning, match=r"step 2: gradient norm 12, above 10; if it stays, raise gaussian.std_f"):
        monitor.check(12.0, step=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.check(500.0, step=3)


@pytest.mark.parametrize("norm", [1e5 + 1, float("inf"), float("nan")])
def test_a_norm_beyond_use_stops_training(norm):
    with pytest.raises(ValueError, match=r"step 7: gradient norm .*, the limit is 100000; .* gaussian.link"):
        GradientMonitor().check(norm, step=7)


def test_a_norm_of_ten_thousand_is_not_silent():
    with pytest.warns(RuntimeWarning):
        GradientMonitor().check(1e4, step=1)


def test_limits_the_wrong_way_round_are_refused():
    with pytest.raises(ValueError, match="give 0 < warn <= stop"):
        GradientMonitor(warn=100.0, stop=10.0)
