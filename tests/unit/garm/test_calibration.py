import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_qs.garm.calibration import (
    accuracy,
    brier_score,
    calibrated_ece,
    calibration_metrics,
    design_effect,
    expected_calibration_error,
    negative_log_likelihood,
    preference_probability,
    reliability_bins,
)

ONE = np.ones(1)


def confidence_ece(probability, weight, n_bins):
    """The other definition, written plainly: |confidence - accuracy| over bins of [0.5, 1]."""
    confidence = np.maximum(probability, 1 - probability)
    correct = np.where(probability == 0.5, 0.5, probability > 0.5)
    bins = np.minimum(((confidence - 0.5) * 2 * n_bins).astype(int), n_bins - 1)
    gap = sum(abs(np.sum((weight * (confidence - correct))[bins == b])) for b in range(n_bins))
    return gap / weight.sum()


def test_preference_probability_is_phi_of_the_standardised_difference():
    # (2 - 1) / sqrt(0.6^2 + 0.8^2) = 1 / 1; Phi(1) = 0.841345
    assert preference_probability([2.0], [0.6], [1.0], [0.8]) == pytest.approx([0.841345], abs=1e-6)


def test_swapping_a_pair_gives_the_other_side_of_one():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(size=50)
    sa, sb = rng.uniform(0.1, 2, size=(2, 50))
    np.testing.assert_allclose(preference_probability(a, sa, b, sb) + preference_probability(b, sb, a, sa), 1.0)


def test_extreme_means_stay_probabilities():
    assert preference_probability([1e30, -1e30], [1e-3, 1e-3], [0, 0], [1, 1]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("mean", "std"), [(float("nan"), 1.0), (0.0, 0.0), (0.0, -1.0), (float("inf"), 1.0)])
def test_a_mean_or_std_that_cannot_be_is_refused(mean, std):
    with pytest.raises(ValueError, match="1 of 2 pairs .* the first at 1"):
        preference_probability([0.0, mean], [1.0, std], [0.0, 0.0], [1.0, 1.0])


def test_accuracy_nll_and_brier_by_hand():
    p, w = np.array([0.8, 0.5, 0.4]), np.array([1.0, 1.0, 2.0])
    # right (1), tie (1/2), wrong (0, twice): 1.5 of 4
    assert accuracy(p, w) == pytest.approx(0.375)
    # -(ln 0.8 + ln 0.5 + 2 ln 0.4) / 4 = (0.223144 + 0.693147 + 1.832581) / 4
    assert negative_log_likelihood(p, w) == pytest.approx(0.687218, abs=1e-6)
    # (0.04 + 0.25 + 2 * 0.36) / 4
    assert brier_score(p, w) == pytest.approx(0.2525)


def test_a_certain_mistake_costs_much_but_is_finite():
    assert negative_log_likelihood(np.zeros(1), ONE) == pytest.approx(27.631, abs=1e-3)


def test_ece_by_hand():
    # sides: (0.9, 1), (0.1, 0), (0.9 seen from a wrong pair: 0.1, 1), (0.9, 0). Bin 0.9: predicted 0.9, observed 0.5;
    # bin 0.1: predicted 0.1, observed 0.5. Both are 0.4 off.
    assert expected_calibration_error(np.array([0.9, 0.1]), np.ones(2)) == pytest.approx(0.4)


def test_ece_knows_that_always_first_is_no_answer():
    # 80 of 100 pairs right at confidence 0.8 is perfect; the one-sided binning would say 1 - mean(p) = 0.32
    p = np.array([0.8] * 80 + [0.2] * 20)
    assert expected_calibration_error(p, np.ones(100)) == pytest.approx(0.0, abs=1e-12)


def test_an_odd_number_of_bins_is_refused():
    with pytest.raises(ValueError, match="n_bins = 15: give an even number"):
        expected_calibration_error(np.array([0.5]), ONE, n_bins=15)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 5)), min_size=1, max_size=40),
    st.sampled_from([2, 4, 10, 20]),
)
@settings(max_examples=200, deadline=None)
def test_symmetrised_and_confidence_form_agree_for_even_bins(pairs, n_bins):
    p, w = (np.array(column) for column in zip(*pairs, strict=True))
    # an edge may fall to either bin by a rounding of the last bit: such p are no test of the definition
    confidence = np.maximum(p, 1 - p)
    p = np.where(np.abs(confidence * n_bins - np.round(confidence * n_bins)) < 1e-9, 0.5, p)
    assert expected_calibration_error(p, w, n_bins) == pytest.approx(confidence_ece(p, w, n_bins // 2), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(deadline=None)
def test_the_reliability_diagram_is_mirrored_and_holds_every_pair_twice(p):
    bins = reliability_bins(np.array(p), np.ones(len(p)))
    assert sum(b.n_pairs for b in bins) == 2 * len(p)
    for low, high in zip(bins, reversed(bins), strict=True):
        assert low.predicted + high.predicted == pytest.approx(1)
        assert low.observed + high.observed == pytest.approx(1)
        assert low.ci95[0] <= low.observed + 1e-9 and low.observed - 1e-9 <= low.ci95[1]


def test_weights_count_like_repeated_pairs():
    p = np.array([0.9, 0.3, 0.62])
    repeated = np.repeat(p, [3, 1, 2])
    weighted = np.array([3.0, 1.0, 2.0])
    for figure in (accuracy, negative_log_likelihood, brier_score, expected_calibration_error):
        assert figure(p, weighted) == pytest.approx(figure(repeated, np.ones(6)))


def test_a_calibrated_model_sits_on_its_noise_floor_and_an_overconfident_one_above():
    rng = np.random.default_rng(3)
    p = rng.uniform(0.5, 1, size=4000)
    p = np.where(rng.random(4000) < p, p, 1 - p)  # right as often as it says
    overconfident = np.where(p > 0.5, 0.99, 0.01)
    floor = calibrated_ece(p, np.ones(4000))
    assert 0.005 < floor < 0.03
    assert abs(expected_calibration_error(p, np.ones(4000)) - floor) < 0.01
    assert expected_calibration_error(overconfident, np.ones(4000)) > 0.2


def test_calibration_metrics_hold_every_figure_with_its_interval():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.3, 1, size=400)
    metrics = calibration_metrics(p, np.ones(400), [f"i{n // 2}" for n in range(400)], n_resamples=200)
    assert (metrics["n_pairs"], metrics["n_bins"]) == (400, 20)
    for name in ("accuracy", "nll", "brier"):
        low, high = metrics[f"{name}_ci95"]
        assert low < metrics[name] < high
    assert sum(b["n_pairs"] for b in metrics["reliability"]) == 800
    assert metrics == calibration_metrics(p, np.ones(400), [f"i{n // 2}" for n in range(400)], n_resamples=200)


def test_one_pair_is_enough():
    assert calibration_metrics([0.7], [1.0], ["i"], n_resamples=10)["ece"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("p", "w", "clusters", "said"),
    [
        ([0.5], [1.0], [], "give one of each a pair"),
        ([], [], [], "at least one pair"),
        ([float("nan")], [1.0], ["i"], "not a number"),
        ([1.5], [1.0], ["i"], "outside"),
        ([0.5], [-1.0], ["i"], "weights must be"),
        ([0.5], [0.0], ["i"], "greater than 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(p, w, clusters, said):
    with pytest.raises(ValueError, match=said):
        calibration_metrics(p, w, clusters, n_resamples=2)


def test_many_users_of_one_conversation_are_no_new_evidence_each_for_the_floor():
    # 30 conversations of 200 users: the model says 0.7, the truth of a conversation is that on average
    rng = np.random.default_rng(0)
    floors, errors, alone = [], [], []
    for _ in range(20):
        true = rng.beta(3.5, 1.5, 30)
        right = rng.random((30, 200)) < true[:, None]
        probability = np.where(right, 0.7, 0.3).ravel()
        clusters = np.repeat(np.arange(30), 200).astype(str)
        weight = np.ones(len(probability))
        errors.append(expected_calibration_error(probability, weight))
        floors.append(calibrated_ece(probability, weight, n_draws=20, clusters=clusters))
        alone.append(calibrated_ece(probability, weight, n_draws=20))
    assert np.mean(floors) == pytest.approx(np.mean(errors), rel=0.25)
    assert np.mean(alone) < 0.25 * np.mean(errors)


def test_without_clusters_that_differ_the_floor_is_that_of_independent_pairs():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 4000)
    probability = np.where(rng.random(4000) < sure, sure, 1 - sure)
    clusters = np.repeat(np.arange(1000), 4).astype(str)
    assert design_effect(probability, np.ones(4000), clusters) < 1.15
