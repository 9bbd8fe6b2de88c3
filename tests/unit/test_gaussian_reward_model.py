import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from openrlhf_qs.plugins.gaussian_reward_model import LOGISTIC_STD, BradleyTerry, Gaussian, gaussian_preference_loss

GAUSSIAN = {"name": "gaussian", "options": {"std_floor": "0.2"}}
CONVERSATIONS = [
    [{"role": "user", "content": "How do I bake bread?"}, {"role": "assistant", "content": "Mix, wait, bake."}],
    [{"role": "user", "content": "Why do cats purr?"}],
    [{"role": "user", "content": "How does a heat pump work? " * 5}],
]
SUGGESTIONS = ["How long should the dough rise?", "Do big cats purr as well?", "What does it cost to run?"]


def numbers(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


# The loss


@pytest.mark.parametrize(("link", "noise"), [("probit", 0.0), ("probit_logistic", 1.702**2)])
def test_the_loss_is_the_log_probability_that_one_gaussian_is_above_the_other(link, noise):
    random = np.random.default_rng(0)
    chosen_mean, rejected_mean = random.normal(size=(2, 100))
    chosen_std, rejected_std = random.uniform(0.1, 3, size=(2, 100))
    loss = gaussian_preference_loss(
        *(torch.tensor(value) for value in (chosen_mean, chosen_std, rejected_mean, rejected_std)), link
    )
    z = (chosen_mean - rejected_mean) / np.sqrt(chosen_std**2 + rejected_std**2 + noise)
    np.testing.assert_allclose(loss.numpy(), -norm.logcdf(z), rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_pair_that_can_be_worked_out_by_hand():
    # (2 - (-3)) / sqrt(3^2 + 4^2) = 1, and Phi(1) = 0.841345; equal means: Phi(0) = 1/2
    loss = gaussian_preference_loss(numbers(2.0, 1.0), numbers(3.0, 0.5), numbers(-3.0, 1.0), numbers(4.0, 2.0))
    torch.testing.assert_close(loss, numbers(-math.log(0.841345), math.log(2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("link", ["probit", "probit_logistic"])
def test_the_probabilities_of_a_pair_and_of_the_swapped_pair_add_up_to_one(link):
    a, b = (numbers(0.3, -2.0, 5.0), numbers(0.1, 1.0, 2.0)), (numbers(0.2, 1.5, -4.0), numbers(0.4, 0.1, 1.0))
    one, other = gaussian_preference_loss(*a, *b, link), gaussian_preference_loss(*b, *a, link)
    torch.testing.assert_close((-one).exp() + (-other).exp(), torch.ones(3))


@pytest.mark.parametrize("z", [-1e4, -1e3, -101.0, -99.0, -20.0, 0.0, 20.0, 1e4])
def test_loss_and_gradients_stay_finite_however_wrong_or_sure_the_model_is(z):
    head = Gaussian()
    # both at the floor of 0.1: the deviation of the difference is 0.1 * sqrt(2)
    raw_chosen = numbers(z * 0.1 * math.sqrt(2), -1e3).requires_grad_()
    raw_rejected = numbers(0.0, -1e3).requires_grad_()
    chosen, rejected = head.output(raw_chosen[None]), head.output(raw_rejected[None])
    torch.testing.assert_close(chosen[0, 1], torch.tensor(0.1))
    loss = head.loss(chosen, rejected, torch.ones(1))
    loss.backward()
    assert loss.isfinite() and raw_chosen.grad.isfinite().all() and raw_rejected.grad.isfinite().all()


@pytest.mark.parametrize("z", [-90.0, -20.0, -1.0, 1.0])
def test_the_gradient_pulls_the_chosen_mean_up(z):
    chosen_mean = numbers(z).requires_grad_()
    # the deviation of the difference is 1, so the gradient is -phi(z) / Phi(z)
    gaussian_preference_loss(chosen_mean, numbers(0.6), numbers(0.0), numbers(0.8)).sum().backward()
    expected = -np.exp(norm.logpdf(z) - norm.logcdf(z))
    assert chosen_mean.grad.item() == pytest.approx(expected, rel=1e-3)


def test_a_hopeless_pair_costs_what_it_costs_at_a_hundred_deviations():
    # -log Phi(-100) = 5005.52
    loss = gaussian_preference_loss(numbers(-100.0, -1e4), numbers(0.6), numbers(0.0), numbers(0.8))
    torch.testing.assert_close(loss, numbers(5005.52, 5005.52))


def test_bfloat16_goes_in_and_float32_comes_out():
    values = [numbers(1.5, dtype=torch.bfloat16) for _ in range(4)]
    loss = gaussian_preference_loss(*values)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, numbers(math.log(2)))


# The heads


def test_a_head_that_answers_zero_has_mean_zero_and_deviation_one_above_the_floor():
    # softplus(log(e - 1)) = 1, and the floor is added
    torch.testing.assert_close(Gaussian(std_floor=0.25).output(torch.zeros(2, 2)), torch.tensor([[0.0, 1.25]] * 2))


def test_the_deviation_never_falls_below_the_floor():
    raw = torch.tensor([[3.0, -1e4], [-3.0, 1e4]])
    torch.testing.assert_close(Gaussian(std_floor=0.1).output(raw), torch.tensor([[3.0, 0.1], [-3.0, 1e4 + 0.64132]]))


def test_the_gaussian_loss_is_the_weighted_mean_and_the_gauge():
    chosen, rejected = torch.tensor([[1.0, 3.0], [0.0, 1.0]]), torch.tensor([[-4.0, 4.0], [0.0, 1.0]])
    # z = 5 / 5 = 1 with weight 0.5, z = 0 with weight 2: (0.5 * 0.172753 + 2 * 0.693147) / 2 = 0.736336
    # gauge: log stds log 3, 0, log 4, 0: (log 12 / 4)^2 = 0.385917;  means 1, 0, -4, 0: (-3 / 4)^2 = 0.5625
    loss = Gaussian(gauge=2.0).loss(chosen, rejected, numbers(0.5, 2.0))
    torch.testing.assert_close(loss, torch.tensor(0.736336 + 2 * (0.385917 + 0.5625)), rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_is_no_special_case():
    pair = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.0]])
    twice = [torch.cat((one, one)) for one in pair]
    torch.testing.assert_close(Gaussian().loss(*pair, torch.ones(1)), Gaussian().loss(*twice, torch.ones(2)))


@pytest.mark.parametrize(("option", "value"), [("gauge", -0.1), ("std_floor", 0.0)])
def test_an_option_that_cannot_be_is_refused(option, value):
    with pytest.raises(ValueError, match=f"gaussian.{option} must be .*, got {value}"):
        Gaussian(**{option: value})


def test_the_bradley_terry_loss_is_that_of_the_difference():
    chosen, rejected = torch.tensor([[2.0, 9.0], [0.0, 9.0]]), torch.tensor([[1.0, 9.0], [0.0, 9.0]])
    # -log sigmoid(1) = log(1 + exp(-1)) = 0.313262, weight 1; log 2 with weight 3; over 2 pairs
    loss = BradleyTerry().loss(chosen, rejected, numbers(1.0, 3.0))
    torch.testing.assert_close(loss, torch.tensor((0.313262 + 3 * 0.693147) / 2), rtol=1e-5, atol=1e-5)


def test_two_bradley_terry_rewards_differ_like_the_logistic():
    mean_difference = torch.linspace(-12, 12, 2001)
    rewards = BradleyTerry().output(mean_difference[:, None])
    torch.testing.assert_close(rewards[:, 0], mean_difference)
    assert (rewards[:, 1] == LOGISTIC_STD).all()
    phi = torch.special.ndtr(mean_difference / (rewards[:, 1] * math.sqrt(2)))
    assert (phi - mean_difference.sigmoid()).abs().max() < 0.01
