import json
import warnings

import numpy as np
import pytest

from openrlhf_qs import fusion as stage
from openrlhf_qs.composite import Part, read_weights
from openrlhf_qs.fusion import learn_parts
from openrlhf_qs.plugins.fusions import EqualFusion, LogisticRegressionFusion


def synthetic(coefs, n=4000, seed=0):
    """Parts ``[n, len(coefs)]`` of unit deviation, and clicks of which ``coefs`` are the log-odds."""
    random = np.random.default_rng(seed)
    parts = random.normal(size=(n, len(coefs)))
    return parts, (random.random(n) < 1 / (1 + np.exp(-parts @ np.array(coefs)))).astype(float)


def test_logistic_regression_finds_the_weights_clicks_were_made_with():
    parts, clicked = synthetic([2.0, 1.0, 0.5])
    weights = LogisticRegressionFusion(floor=0.0)(parts, clicked, ["a", "b", "c"])
    # 2 : 1 : 0.5, of 3.5 in all
    np.testing.assert_allclose(weights, [2 / 3.5, 1 / 3.5, 0.5 / 3.5], atol=0.03)
    assert sum(weights) == pytest.approx(1)


def test_a_part_that_clicks_fall_with_is_set_to_the_floor_with_a_warning():
    parts, clicked = synthetic([2.0, -1.0])
    with pytest.warns(UserWarning, match=r"reward 'b' has the weight -[\d.]+: clicks fall as it rises"):
        weights = LogisticRegressionFusion(floor=0.25)(parts, clicked, ["a", "b"])
    # 1 and the floor of 0.25, of 1.25 in all
    np.testing.assert_allclose(weights, [0.8, 0.2])


def test_a_useful_part_keeps_at_least_the_floor_without_a_warning():
    parts, clicked = synthetic([2.0, 0.1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = LogisticRegressionFusion(floor=0.25)(parts, clicked, ["a", "b"])
    np.testing.assert_allclose(weights, [0.8, 0.2])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_kind_of_impression_alone_is_refused(value):
    with pytest.raises(ValueError, match="needs impressions with and without a click"):
        LogisticRegressionFusion()(np.eye(4), np.full(4, value), list("abcd"))


@pytest.mark.filterwarnings("ignore:reward")
def test_parts_none_of_which_rises_with_clicks_are_refused():
    parts, clicked = synthetic([-1.0, -2.0])
    with pytest.raises(ValueError, match="no reward rises with clicks"):
        LogisticRegressionFusion()(parts, clicked, ["a", "b"])


@pytest.mark.parametrize("floor", [-0.1, 1.1])
def test_a_floor_that_is_no_share_is_refused(floor):
    with pytest.raises(ValueError, match=f"floor must be in .0, 1., got {floor}"):
        LogisticRegressionFusion(floor=floor)


def test_equal_weights_add_up_to_one():
    assert EqualFusion()(np.eye(4), np.ones(4), list("abcd")) == [0.25] * 4


def test_the_policy_gives_the_zero_and_both_together_the_deviation():
    seen = {}

    def fusion(parts, clicked, names):
        seen.update(parts=parts, clicked=clicked, names=names)
        return [0.75, 0.25]

    sampled = np.array([[0.0, 10.0], [2.0, 10.0]])  # means 1 and 10
    logged = np.array([[4.0, 10.0], [6.0, 30.0]])
    parts = learn_parts(["a", "b"], sampled, logged, np.array([0.0, 1.0]), fusion)
    # deviation of 0, 2, 4, 6: sqrt((9 + 1 + 1 + 9) / 4) = sqrt(5)
    # of 10, 10, 10, 30: sqrt((3 * 25 + 225) / 4) = sqrt(75)
    assert parts == {
        "a": Part(weight=0.75, mean=1.0, std=pytest.approx(5**0.5)),
        "b": Part(weight=0.25, mean=10.0, std=pytest.approx(75**0.5)),
    }
    # what the fusion learns from: (4 - 1) / sqrt(5), (6 - 1) / sqrt(5);  0, 20 / sqrt(75)
    np.testing.assert_allclose(seen["parts"], [[3 / 5**0.5, 0.0], [5 / 5**0.5, 20 / 75**0.5]])
    assert seen["clicked"].tolist() == [0.0, 1.0] and seen["names"] == ["a", "b"]


def test_a_part_that_never_changes_is_refused_by_name():
    sampled, logged = np.array([[0.0, 7.0], [1.0, 7.0]]), np.array([[2.0, 7.0]])
    with pytest.raises(ValueError, match="reward 'b' is the same for every response: .*leave it out"):
        learn_parts(["a", "b"], sampled, logged, np.array([1.0]), EqualFusion())


@pytest.mark.filterwarnings("ignore:reward")
def test_the_unit_of_a_reward_does_not_change_its_weight():
    parts, clicked = synthetic([2.0, 1.0])
    learned = [
        learn_parts(["a", "b"], parts * unit, parts * unit, clicked, LogisticRegressionFusion())
        for unit in (np.array([1.0, 1.0]), np.array([1000.0, 0.001]))
    ]
    for name in ("a", "b"):
        assert learned[0][name].weight == pytest.approx(learned[1][name].weight, rel=1e-6)


def test_what_is_written_is_what_the_composite_reward_reads(tmp_path):
    parts = {"garm": Part(0.7, -0.25, 1.5), "ood": Part(0.3, 0.1, 2.0)}
    file = tmp_path / "fusion" / "weights.json"
    stage._write(str(file), parts, "equal", n_impressions=10, n_responses=20)
    assert read_weights(file) == parts
    assert json.loads(file.read_text())["n_impressions"] == 10
    assert list(file.parent.iterdir()) == [file]
