import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from openrlhf_qs.garm.preference_likelihood import preference_loss
from openrlhf_qs.plugins.heads.click_gaussian import ClickGaussian
from openrlhf_qs.plugins.heads.gaussian import DPL, LOGISTIC_STD, PURM, UNIT_STD, BradleyTerry, Gaussian
from openrlhf_qs.registry import REWARD_MODELS


def numbers(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


def raw(mean, std, floor=0.0):
    """What the linear layer must say for this mean and standard deviation, with scale softplus; ``[n, 2]``."""
    std = torch.as_tensor(std, dtype=torch.float64) - floor
    return torch.stack((torch.as_tensor(mean, dtype=torch.float64), std.expm1().log() - UNIT_STD), dim=-1).float()


def plain(**options):
    """No regulariser, and no floor to speak of."""
    return Gaussian(**({"kl": 0.0, "beta": 0.0, "std_floor": 1e-6} | options))


ONE_PAIR = raw([2.0], [3.0]), raw([-3.0], [4.0])  # z = 5 / 5 = 1: P(chosen better) = 0.841345 under probit


# Output


def test_a_head_that_answers_zero_has_mean_zero_and_deviation_one_above_the_floor():
    for scale in ("softplus", "exp", "log_variance"):
        output = Gaussian(scale=scale, std_floor=0.25).output(torch.zeros(2, 2))
        torch.testing.assert_close(output, torch.tensor([[0.0, 1.25, 0.0]] * 2))
    output = Gaussian(scale="variance_softplus", std_floor=0.25).output(torch.zeros(2, 2))
    torch.testing.assert_close(output, torch.tensor([[0.0, 1.25, 0.0]] * 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("softplus", math.log1p(math.exp(2.0) * (math.e - 1))),
        ("variance_softplus", math.sqrt(math.log1p(math.exp(2.0) * (math.e - 1)) + 1e-6)),
        ("exp", math.exp(0.2)),
        ("log_variance", math.exp(3 * math.tanh(2.0 / 6))),
    ],
)
def test_a_scale_is_its_formula(scale, expected):
    output = Gaussian("mackay", scale, std_floor=0.0).output(numbers(-1.5, 2.0))
    torch.testing.assert_close(output, numbers(-1.5, expected, 0.0))


@pytest.mark.parametrize("scale", ["softplus", "variance_softplus", "exp", "log_variance"])
def test_the_deviation_never_falls_below_the_floor_and_keeps_a_finite_gradient(scale):
    at = numbers(3.0, -1e4).requires_grad_()
    std = Gaussian(scale=scale, std_floor=0.1).output(at)[1]
    std.backward()
    assert 0.1 <= std.item() < 0.16 and at.grad.isfinite().all()


def test_bfloat16_goes_in_and_float32_comes_out():
    for head in (Gaussian(), BradleyTerry()):
        one, other = torch.ones(2, 3, head.n_outputs, dtype=torch.bfloat16)
        assert head.output(one).dtype == torch.float32
        weight = torch.ones(3, dtype=torch.bfloat16)
        loss = head.loss(one, other, weight, weight)
        assert loss.dtype == torch.float32 and loss.isfinite()


# Loss


def test_the_loss_is_the_weighted_mean_and_the_gauge():
    chosen, rejected = raw([1.0, 0.0], [3.0, 1.0], 1e-3), raw([-4.0, 0.0], [4.0, 1.0], 1e-3)
    # z = 5 / 5 = 1 with weight 0.5, z = 0 with weight 2: (0.5 * 0.172753 + 2 * 0.693147) / 2 = 0.736336
    # gauge: log stds log 3, 0, log 4, 0: (log 12 / 4)^2 = 0.385917;  means 1, 0, -4, 0: (-3 / 4)^2 = 0.5625
    loss = plain(gauge=2.0, std_floor=1e-3).loss(chosen, rejected, numbers(0.5, 2.0), torch.ones(2))
    torch.testing.assert_close(loss, torch.tensor(0.736336 + 2 * (0.385917 + 0.5625)), rtol=1e-5, atol=1e-5)


def test_a_soft_label_is_shared_between_the_two_suggestions():
    loss = plain().loss(*ONE_PAIR, numbers(1.0), numbers(0.7))
    expected = -0.7 * norm.logcdf(1.0) - 0.3 * norm.logcdf(-1.0)
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("link", ["probit_logistic", "mackay", "quadrature"])
def test_the_link_is_an_option(link):
    loss = plain(link=link).loss(*ONE_PAIR, numbers(1.0), numbers(1.0))
    expected = preference_loss(numbers(2.0), numbers(3.0), numbers(-3.0), numbers(4.0), link=link)[0]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        # deviations 3 and 4, means 2 and -3
        ("kl", kl_divergence(Normal(numbers(2.0, -3.0), numbers(3.0, 4.0)), Normal(0.0, 1.0)).mean().item()),
        ("mean_variance", (9 + 16) / 2),
        ("log_variance", (math.log(9) ** 2 + math.log(16) ** 2) / 2),
        # the chosen one above 0.5: (2 - 0.5) / 3 = 0.5; the rejected one below -0.5: (-0.5 + 3) / 4 = 0.625
        ("anchor", -norm.logcdf(0.5) - norm.logcdf(0.625)),
    ],
)
def test_a_penalty_is_its_formula(penalty, expected):
    one = numbers(1.0)
    without = plain().loss(*ONE_PAIR, one, one)
    with_penalty = plain(**{penalty: 0.1}).loss(*ONE_PAIR, one, one)
    assert (with_penalty - without).item() == pytest.approx(0.1 * expected, rel=1e-4)


def test_beta_weighs_a_pair_by_its_variance_without_a_gradient_through_it():
    one = numbers(1.0)
    # the mean variance of the pair is (9 + 16) / 2 = 12.5, its root that of beta = 0.5
    gradients = []
    for beta in (0.0, 0.5):
        pair = [value.clone().requires_grad_() for value in ONE_PAIR]
        loss = plain(beta=beta).loss(*pair, one, one)
        loss.backward()
        gradients.append((loss.detach(), pair[0].grad))
    for equal, weighed in zip(*gradients, strict=True):
        torch.testing.assert_close(weighed, equal * 12.5**0.5, rtol=1e-4, atol=1e-6)


def of_head(head) -> str:
    return f"{type(head).__name__} of {head.n_members}"


@pytest.mark.parametrize("head", [Gaussian(), Gaussian(n_members=3), BradleyTerry(), DPL(), PURM()], ids=of_head)
def test_a_batch_of_one_is_no_special_case_and_swapping_with_the_label_changes_nothing(head):
    torch.manual_seed(0)
    chosen, rejected = torch.randn(2, 1, head.n_outputs)
    with torch.no_grad():
        loss = head.loss(chosen, rejected, torch.ones(1), numbers(0.8))
        twice = head.loss(chosen.expand(2, -1), rejected.expand(2, -1), torch.ones(2), numbers(0.8, 0.8))
        swapped = head.loss(rejected, chosen, torch.ones(1), numbers(0.2))
    torch.testing.assert_close(twice, loss)
    torch.testing.assert_close(swapped, loss)


@pytest.mark.parametrize("link", ["probit", "probit_logistic", "mackay", "quadrature"])
@pytest.mark.parametrize("scale", ["softplus", "variance_softplus", "exp", "log_variance"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_stay_finite_however_wrong_or_sure_the_model_is(link, scale, dtype):
    head = Gaussian(link, scale, kl=0.1, anchor=0.1, mean_variance=0.1, log_variance=0.1)
    mean = numbers(-1e4, -1e3, -14.0, -1.0, 0.0, 14.0, 1e4)
    chosen = torch.stack((mean, torch.full_like(mean, -1e3)), dim=-1).to(dtype).requires_grad_()
    rejected = torch.stack((torch.zeros_like(mean), numbers(*[-1e3, 20.0] * 3, -1e3)), dim=-1).to(dtype)
    rejected.requires_grad_()
    loss = head.loss(chosen, rejected, torch.ones(7), numbers(1.0, 0.5, 0.0, 1.0, 1.0, 0.0, 0.9))
    loss.backward()
    assert loss.isfinite() and chosen.grad.isfinite().all() and rejected.grad.isfinite().all()


def test_the_gradient_of_a_pair_ten_thousand_deviations_off_pulls_it_right():
    chosen = numbers(-1e4 * 0.1 * math.sqrt(2), -1e3)[None].requires_grad_()  # both deviations at the floor of 0.1
    plain(std_floor=0.1).loss(chosen, numbers(0.0, -1e3)[None], torch.ones(1), torch.ones(1)).backward()
    # -phi(z) / Phi(z) = z for z this low, over the deviation of the difference
    assert chosen.grad[0, 0].item() == pytest.approx(-1e4 / (0.1 * math.sqrt(2)), rel=1e-3)


@pytest.mark.parametrize(
    ("option", "value"),
    [("gauge", -0.1), ("std_floor", 0.0), ("std_floor", -1.0), ("kl", math.inf), ("beta", -1.0), ("anchor", math.nan)],
)
def test_an_option_that_cannot_be_is_refused(option, value):
    with pytest.raises(ValueError, match=f"gaussian.{option} must be .*, got {value}"):
        Gaussian(**{option: value})


# Ensembles


def test_an_ensemble_tells_the_noise_of_clicks_from_its_own_doubt():
    head = Gaussian(n_members=2, std_floor=1e-6)
    # members: mean 1, deviation 3 and mean 5, deviation 4
    output = head.output(torch.cat((raw(1.0, 3.0), raw(5.0, 4.0))))
    # mean 3; root of (9 + 16) / 2; the means are 2 from theirs
    torch.testing.assert_close(output, numbers(3.0, 12.5**0.5, 2.0), rtol=1e-4, atol=1e-5)
    scalar = BradleyTerry(gauge=1.0, n_members=2).output(numbers(1.0, 5.0))
    torch.testing.assert_close(scalar, numbers(3.0, LOGISTIC_STD, 2.0))


def test_the_loss_of_an_ensemble_is_the_mean_of_its_members_losses_each_with_its_own_gauge():
    torch.manual_seed(0)
    chosen, rejected, weight, label = torch.randn(5, 6), torch.randn(5, 6), torch.rand(5), torch.rand(5)
    with torch.no_grad():
        together = Gaussian(n_members=3).loss(chosen, rejected, weight, label)
        alone = [
            Gaussian().loss(chosen[:, n : n + 2], rejected[:, n : n + 2], weight, label).item() for n in (0, 2, 4)
        ]
    assert together.item() == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize(
    "head", [Gaussian(n_members=4), BradleyTerry(gauge=1.0, n_members=4), ClickGaussian(n_members=4)]
)
def test_members_that_start_alike_come_apart_where_they_weigh_pairs_differently(head):
    raw_pair = torch.zeros(8, head.n_outputs, requires_grad=True), torch.zeros(8, head.n_outputs)
    head.loss(*raw_pair, torch.rand(8, 4), torch.ones(8)).backward()
    gradient = raw_pair[0].grad[:, head.mean_outputs]
    assert gradient.std(dim=-1).min() > 0


def test_one_head_has_no_doubt_of_its_own_and_no_random_weights():
    pair = torch.randn(2, 8, 2, requires_grad=True)
    losses = {Gaussian().loss(*pair, torch.ones(8), torch.ones(8)).item() for _ in range(3)}
    assert len(losses) == 1 and (Gaussian().output(pair)[..., 2] == 0).all()


def test_an_ensemble_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="n_members must be >= 1, got 0"):
        Gaussian(n_members=0)
    with pytest.raises(ValueError, match="bradley_terry.gauge must be > 0 for 3 members"):
        BradleyTerry(n_members=3)


# Those that it is compared with


def test_the_bradley_terry_loss_is_that_of_the_difference():
    chosen, rejected = torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0], [0.0]])
    # -log sigmoid(1) = log(1 + exp(-1)) = 0.313262, weight 1; log 2 with weight 3; over 2 pairs
    loss = BradleyTerry().loss(chosen, rejected, numbers(1.0, 3.0), torch.ones(2))
    torch.testing.assert_close(loss, torch.tensor((0.313262 + 3 * 0.693147) / 2), rtol=1e-5, atol=1e-5)
    # means 2, 0, 1, 0: (3 / 4)^2
    gauged = BradleyTerry(gauge=2.0).loss(chosen, rejected, numbers(1.0, 3.0), torch.ones(2))
    torch.testing.assert_close(gauged - loss, torch.tensor(2 * 0.5625))


def test_two_bradley_terry_rewards_differ_like_the_logistic():
    mean_difference = torch.linspace(-12, 12, 2001)
    rewards = BradleyTerry().output(mean_difference[:, None])
    torch.testing.assert_close(rewards[:, 0], mean_difference)
    assert (rewards[:, 1] == LOGISTIC_STD).all() and (rewards[:, 2] == 0).all()
    phi = torch.special.ndtr(mean_difference / (rewards[:, 1] * math.sqrt(2)))
    assert (phi - mean_difference.sigmoid()).abs().max() < 0.01


def test_dpl_is_its_published_code():
    chosen, rejected = torch.tensor([[0.3, 1.2]]), torch.tensor([[0.9, -0.4]])
    loss = DPL(mean_variance=0.5).loss(chosen, rejected, torch.ones(1), torch.ones(1))
    std = torch.nn.functional.softplus(numbers(1.2, -0.4) + UNIT_STD)  # ours starts at 1
    z = (0.3 - 0.9) / std.square().sum().sqrt()
    expected = torch.nn.functional.softplus(-math.sqrt(2 * math.pi) * z) + 0.5 * std.square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_purm_is_the_mean_loss_of_its_random_draws():
    chosen, rejected = torch.tensor([[0.3, 1.2]]), torch.tensor([[0.9, -0.4]])
    torch.manual_seed(0)
    difference = (0.3 - 0.9) + torch.randn(1_000_000) * math.sqrt(math.exp(0.24) + math.exp(-0.08))
    drawn = -torch.nn.functional.logsigmoid(difference).mean()
    torch.testing.assert_close(PURM().loss(chosen, rejected, *torch.ones(2, 1)), drawn, rtol=5e-3, atol=0)


def test_a_likelihood_that_is_none_is_warned_of():
    with pytest.warns(UserWarning, match="its deviations shrink"):
        Gaussian("jensen")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Gaussian("mackay")


def test_options_come_as_text():
    head = REWARD_MODELS.create("gaussian", link="mackay", scale="exp", n_members="3", kl="0.5")
    assert (head.link, head.scale, head.n_members, head.kl, head.n_outputs) == ("mackay", "exp", 3, 0.5, 6)
    with pytest.raises(ValueError, match="gaussian.link = 'bradley_terry'"):
        REWARD_MODELS.create("gaussian", link="bradley_terry")
