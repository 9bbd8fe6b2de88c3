import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

from openrlhf_qs.garm.preference_likelihood import (
    Link,
    log_ndtr,
    log_preference,
    preference_loss,
    preference_probability,
)

LINKS = Link.__args__
PROBABILITIES = [link for link in LINKS if link != "jensen"]  # jensen trains on a bound of one


def numbers(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


def expected_sigmoid(mean, std, function=expit):
    """E function(mean + std x) over the standard normal, by adaptive quadrature."""
    return quad(lambda x: function(mean + std * x) * norm.pdf(x), -12, 12, epsabs=1e-12, limit=200)[0]


CLOSED_FORMS = {
    "probit": lambda m, v: norm.cdf(m / np.sqrt(v)),
    "probit_logistic": lambda m, v: norm.cdf(m / np.sqrt(v + 1.702**2)),
    "mackay": lambda m, v: expit(m / np.sqrt(1 + np.pi * v / 8)),
    "dpl": lambda m, v: expit(np.sqrt(2 * np.pi) * m / np.sqrt(v)),
    "bradley_terry": lambda m, v: expit(m),
    "quadrature": np.vectorize(lambda m, v: expected_sigmoid(m, np.sqrt(v))),
    "jensen": np.vectorize(lambda m, v: expected_sigmoid(m, np.sqrt(v))),
}


@pytest.mark.parametrize("link", LINKS)
def test_the_probability_of_each_link_is_its_formula(link):
    random = np.random.default_rng(0)
    mean_a, mean_b = random.normal(size=(2, 50))
    std_a, std_b = random.uniform(0.1, 2, size=(2, 50))
    found = preference_probability(*map(torch.from_numpy, (mean_a, std_a, mean_b, std_b)), link)
    if link == "click":  # of the two log-odds
        log_odds_a, log_odds_b = (m / np.sqrt(1 + np.pi / 8 * s**2) for m, s in ((mean_a, std_a), (mean_b, std_b)))
        expected = 1 / (1 + np.exp(log_odds_b - log_odds_a))
    else:
        expected = CLOSED_FORMS[link](mean_a - mean_b, std_a**2 + std_b**2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("link", PROBABILITIES)
def test_the_loss_is_the_negative_logarithm_of_the_probability_that_evaluation_reads(link):
    pair = numbers(0.3, -2.0), numbers(0.4, 1.0), numbers(-0.2, 1.5), numbers(0.9, 0.6)
    torch.testing.assert_close((-preference_loss(*pair, link=link)).exp(), preference_probability(*pair, link))


def test_jensen_trains_on_the_expected_logarithm_which_falls_with_the_variance_for_every_mean():
    difference, std = numbers(-2.0, 0.0, 3.0, dtype=torch.float64), numbers(0.5, 1.0, 2.0, dtype=torch.float64)
    found = log_preference(difference, std.square(), "jensen")
    expected = [
        expected_sigmoid(m, s, lambda z: -np.logaddexp(0, -z))
        for m, s in zip(difference.tolist(), std.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    variance = torch.full((3,), 1.0, dtype=torch.float64, requires_grad=True)
    log_preference(difference, variance, "jensen").sum().backward()
    assert (variance.grad < 0).all()


@pytest.mark.parametrize("link", ["mackay", "probit_logistic"])
def test_the_closed_forms_are_near_the_integral_they_stand_for(link):
    difference, std = torch.meshgrid(torch.linspace(-6, 6, 61), torch.linspace(0.01, 3, 31), indexing="ij")
    exact = log_preference(difference, std.square(), "quadrature").exp()
    assert (log_preference(difference, std.square(), link).exp() - exact).abs().max() < 0.02


def test_a_pair_that_can_be_worked_out_by_hand():
    # (2 - (-3)) / sqrt(3^2 + 4^2) = 1, and Phi(1) = 0.841345; equal means: Phi(0) = 1/2
    loss = preference_loss(numbers(2.0, 1.0), numbers(3.0, 0.5), numbers(-3.0, 1.0), numbers(4.0, 2.0))
    torch.testing.assert_close(loss, numbers(-math.log(0.841345), math.log(2)), rtol=1e-5, atol=1e-6)


def test_a_soft_label_weighs_the_two_outcomes():
    pair = numbers(2.0), numbers(3.0), numbers(-3.0), numbers(4.0)
    # z = 1 again: -0.7 log Phi(1) - 0.3 log Phi(-1)
    expected = -0.7 * math.log(0.841345) - 0.3 * math.log(0.158655)
    torch.testing.assert_close(preference_loss(*pair, numbers(0.7)), numbers(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("link", LINKS)
@given(
    mean=st.lists(st.floats(-20, 20), min_size=2, max_size=2),
    std=st.lists(st.floats(0.1, 10), min_size=2, max_size=2),
    label=st.floats(0, 1),
)
def test_swapping_a_pair_and_its_label_changes_nothing(link, mean, std, label):
    a, b = [(numbers(m), numbers(s)) for m, s in zip(mean, std, strict=True)]
    torch.testing.assert_close(preference_loss(*a, *b, label, link), preference_loss(*b, *a, 1 - label, link))
    both = preference_probability(*a, *b, link) + preference_probability(*b, *a, link)
    torch.testing.assert_close(both, torch.ones(1))


@pytest.mark.parametrize("link", ["probit", "dpl"])
def test_a_link_without_noise_of_its_own_knows_no_unit(link):
    one = preference_loss(numbers(1.0), numbers(0.5), numbers(0.2), numbers(0.8), link=link)
    hundred = preference_loss(numbers(100.0), numbers(50.0), numbers(20.0), numbers(80.0), link=link)
    torch.testing.assert_close(one, hundred)


@pytest.mark.parametrize("link", ["mackay", "quadrature", "jensen"])
def test_logistic_links_without_deviation_are_bradley_terry(link):
    difference = torch.linspace(-5, 5, 11)
    expected = log_preference(difference, torch.ones(11), "bradley_terry")
    torch.testing.assert_close(log_preference(difference, torch.full((11,), 1e-12), link), expected)


# Extremes


@pytest.mark.parametrize("link", LINKS)
def test_a_probability_never_leaves_zero_to_one(link):
    difference = torch.linspace(-60, 60, 2001)
    for std in (0.1, 1.0, 5.0):
        stds = torch.full_like(difference, std)
        found = preference_probability(difference, stds, torch.zeros_like(difference), stds, link)
        assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("label", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_finite_however_far_off_a_pair_is(link, label, dtype):
    z = numbers(-1e4, -1e3, -101.0, -99.0, -20.0, -1e-3, 0.0, 20.0, 1e4)
    std = torch.full_like(z, 0.1)
    values = [value.to(dtype).requires_grad_() for value in (z * 0.1 * math.sqrt(2), std, torch.zeros_like(z), std)]
    loss = preference_loss(*values, label, link)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all()
    assert all(value.grad is None or value.grad.isfinite().all() for value in values)


@pytest.mark.parametrize("link", LINKS)
def test_the_gradient_of_a_hopeless_pair_does_not_vanish(link):
    mean = numbers(-1e4).requires_grad_()
    preference_loss(mean, numbers(0.6), numbers(0.0), numbers(0.8), link=link).sum().backward()
    assert mean.grad.item() < -0.5


@pytest.mark.parametrize("z", [-1e4, -1e3, -200.0, -20.1, -20.0, -19.9, -5.0, -1.0, 0.0, 5.0])
def test_log_ndtr_and_its_gradient_are_right_in_float32(z):
    at = numbers(z).requires_grad_()
    value = log_ndtr(at)
    value.sum().backward()
    assert value.item() == pytest.approx(norm.logcdf(z), rel=1e-6)
    # phi(z) / Phi(z)
    assert at.grad.item() == pytest.approx(np.exp(norm.logpdf(z) - norm.logcdf(z)), rel=1e-4)


@pytest.mark.parametrize("link", LINKS)
def test_float32_is_near_float64(link):
    random = np.random.default_rng(1)
    values = [random.normal(size=200) * 3, random.uniform(0.1, 3, 200), np.zeros(200), random.uniform(0.1, 3, 200)]
    losses, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        given_values = [torch.tensor(value, dtype=dtype, requires_grad=True) for value in values]
        losses.append(preference_loss(*given_values, 0.8, link))
        losses[-1].sum().backward()
        gradients.append(given_values[0].grad)
    torch.testing.assert_close(*(loss.double() for loss in losses), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*(gradient.double() for gradient in gradients), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("link", LINKS)
def test_gradients_are_those_of_finite_differences(link):
    random = np.random.default_rng(2)
    values = [random.normal(size=4), random.uniform(0.2, 2, 4), random.normal(size=4), random.uniform(0.2, 2, 4)]
    values = [torch.tensor(value, requires_grad=True) for value in values]
    torch.autograd.gradcheck(lambda *pair: preference_loss(*pair, 0.7, link), values)


def test_an_unknown_link_lists_those_there_are():
    with pytest.raises(ValueError, match="unknown link 'cauchy'; known: probit, probit_logistic, mackay"):
        preference_loss(*[numbers(1.0)] * 4, link="cauchy")
