import numpy as np
import pytest
from scipy import sparse

from openrlhf_qs.statistics import pair_regression

X = np.array([[1.0, 0], [2, 1], [0.5, -1], [-1, 0.3]])


@pytest.mark.parametrize("label", [1.0, np.array([1.0, 0.7, 0.5, 0.0])])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_the_coefficients_are_where_the_slope_of_the_penalised_likelihood_is_zero(form, label):
    weight, c = np.array([1.0, 2.0, 0.5, 1.0]), 5.0
    found = pair_regression.fit(form(X), weight, c, label)
    probability = 1 / (1 + np.exp(-X @ found))
    np.testing.assert_allclose(X.T @ (weight * (label - probability)) - found / c, 0, atol=1e-5)


def test_which_of_the_two_is_called_the_first_changes_nothing():
    label = np.array([1.0, 0.7, 0.5, 0.0])
    one = pair_regression.fit(X, np.ones(4), 1.0, label)
    np.testing.assert_allclose(pair_regression.fit(-X, np.ones(4), 1.0, 1 - label), one, atol=1e-6)


def test_a_loss_is_the_negative_log_likelihood_of_its_label():
    margin, label = np.array([0.0, 2.0, -3.0]), np.array([1.0, 0.25, 1.0])
    p = 1 / (1 + np.exp(-margin))
    np.testing.assert_allclose(pair_regression.losses(margin, label), -label * np.log(p) - (1 - label) * np.log(1 - p))


def test_noise_is_held_down_more_than_a_signal_is():
    rng = np.random.default_rng(0)
    x, clusters = rng.normal(size=(300, 6)), np.repeat(np.arange(100), 3)

    def strength(true: np.ndarray) -> float:
        label = (rng.random(300) < 1 / (1 + np.exp(-x @ true))).astype(float)
        return pair_regression.cross_validated_c(x, np.ones(300), clusters, [0.001, 0.1, 10], 5, label)

    assert strength(np.zeros(6)) < strength(np.array([2.0, 2, 0, 0, 0, 0]))


def test_with_fewer_clusters_than_folds_the_penalty_is_not_looked_for():
    assert pair_regression.cross_validated_c(X, np.ones(4), ["a", "a", "b", "b"], [0.1, 10], 3) == 1.0
