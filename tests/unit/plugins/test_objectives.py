import math

import pytest
import torch

from openrlhf_qs.garm.impressions import ImpressionBatch
from openrlhf_qs.garm.preference_likelihood import preference_probability
from openrlhf_qs.plugins.heads.click_gaussian import ClickGaussian
from openrlhf_qs.plugins.heads.gaussian import BradleyTerry, Gaussian
from openrlhf_qs.plugins.objectives.clicks import Clicks, Listwise, click_loss
from openrlhf_qs.plugins.objectives.pairs import Pairs


def batch(clicks, examination, shown=None, pairs=(), weight=(), label=(), trust=None):
    clicks = torch.tensor(clicks, dtype=torch.float32)
    shown = torch.ones(clicks.shape, dtype=torch.bool) if shown is None else torch.tensor(shown)
    return ImpressionBatch(
        key=torch.arange(len(clicks)),
        place=(shown.flatten().cumsum(0) - 1).clamp(min=0).view(clicks.shape) * shown,
        shown=shown,
        clicks=clicks,
        examination=torch.tensor(examination),
        trust=torch.zeros(clicks.shape) if trust is None else torch.tensor(trust),
        pairs=torch.tensor(pairs, dtype=torch.long).view(-1, 2),
        pair_impression=torch.zeros(len(pairs), dtype=torch.long),
        weight=torch.tensor(weight),
        label=torch.tensor(label),
    )


def log_odds(*probabilities):
    return torch.tensor([[math.log(p / (1 - p))] for p in probabilities])


def test_every_click_and_every_click_not_made_counts_by_how_much_its_place_is_looked_at():
    shown = batch([[1, 0], [0, 0]], [[1.0, 0.5], [1.0, 0.5]])
    loss = Clicks()(ClickGaussian(), log_odds(0.4, 0.2, 0.1, 0.6), shown)
    # a click of .4; none of .5 * .2; none of .1; none of .5 * .6; over two impressions
    expected = -(math.log(0.4) + math.log(0.9) + math.log(0.9) + math.log(0.7)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_click_that_the_place_brings_by_itself_is_none_of_attraction():
    trusted = batch([[1, 0]], [[1.0, 0.5]], trust=[[0.1, 0.02]])
    # a click of .4 + .1; none of .5 * .2 + .02
    loss = Clicks()(ClickGaussian(), log_odds(0.4, 0.2), trusted)
    assert loss.item() == pytest.approx(-math.log(0.5) - math.log(0.88), rel=1e-5)
    # of many shows: 10 looks and 1 click that places brought, .3 + .1 a look
    many = click_loss(log_odds(0.3), torch.tensor(4.0), torch.tensor(10.0), torch.tensor(1.0))
    assert many.item() == pytest.approx(-4 * math.log(0.4) - 6 * math.log(0.6), rel=1e-5)
    # a choice between odds of 2/3 + .1, of .5 / 4 + .02, and 1
    loss = Listwise()(ClickGaussian(), log_odds(0.4, 0.2), trusted)
    assert loss.item() == pytest.approx(-math.log((2 / 3 + 0.1) / (2 / 3 + 0.1 + 0.145 + 1)), rel=1e-5)


def test_the_click_likelihood_finds_attraction_whatever_place_is_trusted():
    """Two suggestions of one attraction, .3, one always at a trusted top, one at the bottom: 1000 shows each."""
    raw = torch.zeros(2, 1, requires_grad=True)
    counts, looks, brought = (
        torch.tensor([[390.0], [165.0]]),
        torch.tensor([[1.0], [0.55]]),
        torch.tensor([[0.09], [0.0]]),
    )
    for _ in range(400):
        loss = counts * click_loss(raw, torch.ones(1), looks, brought)
        loss = (loss + (1000 - counts) * click_loss(raw, torch.zeros(1), looks, brought)).sum()
        (gradient,) = torch.autograd.grad(loss, raw)
        raw = (raw - gradient / 200).detach().requires_grad_()
    # .3 + .09 of 1000, and .55 * .3 of 1000
    torch.testing.assert_close(raw.sigmoid(), torch.full((2, 1), 0.3), atol=1e-3, rtol=0)


def test_a_place_without_a_suggestion_says_nothing():
    both = batch([[1, 0], [0, 0]], [[1.0, 0.5], [1.0, 1.0]], shown=[[True, True], [True, False]])
    raw = log_odds(0.4, 0.2, 0.1)
    full = Clicks()(ClickGaussian(), raw, both) * 2
    alone = Clicks()(ClickGaussian(), raw[:2], batch([[1, 0]], [[1.0, 0.5]]))
    assert full.item() == pytest.approx(alone.item() - math.log(0.9), rel=1e-5)
    single = Listwise()(ClickGaussian(), raw[2:], batch([[0]], [[1.0]]))
    padded = Listwise()(ClickGaussian(), raw, both) * 2 - Listwise()(
        ClickGaussian(), raw[:2], batch([[1, 0]], [[1.0, 0.5]])
    )
    assert padded.item() == pytest.approx(single.item(), rel=1e-5)


def test_many_showings_are_a_binomial():
    loss = click_loss(log_odds(0.25), torch.tensor(3.0), torch.tensor(10.0))
    assert loss.item() == pytest.approx(-(3 * math.log(0.25) + 7 * math.log(0.75)), rel=1e-5)


def test_the_loss_and_its_gradient_are_finite_for_any_log_odds():
    raw = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], requires_grad=True)
    for clicks in (0.0, 1.0):
        loss = click_loss(raw, torch.tensor(clicks), torch.tensor(1.0))
        [gradient] = torch.autograd.grad(loss.sum(), raw)
        assert loss.isfinite().all() and gradient.isfinite().all()


def test_the_click_likelihood_is_least_at_the_true_probability():
    # 200 looks at the top, 30 clicks: .15
    raw = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = 30 * click_loss(raw, torch.ones(1), torch.ones(1)) + 170 * click_loss(
            raw, torch.zeros(1), torch.ones(1)
        )
        loss.sum().backward()
        return loss.sum()

    optimizer.step(closure)
    assert raw.sigmoid().item() == pytest.approx(0.15, abs=1e-4)


def test_a_list_is_a_choice_between_its_suggestions_and_nothing():
    shown = batch([[0, 1], [0, 0]], [[1.0, 0.5], [1.0, 1.0]])
    raw = torch.tensor([[math.log(3.0)], [math.log(4.0)], [math.log(2.0)], [math.log(5.0)]])
    # the second of 3 : 4 * .5 : 1, then nothing of 2 : 5 : 1
    expected = -(math.log(2 / 6) + math.log(1 / 8)) / 2
    assert Listwise()(ClickGaussian(), raw, shown).item() == pytest.approx(expected, rel=1e-5)


def test_pairs_are_the_heads_own_loss():
    raw = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    shown = batch([[1, 0, 0]], [[1.0] * 3], pairs=[(0, 1), (0, 2)], weight=[1.0, 0.5], label=[1.0, 0.75])
    expected = Gaussian().loss(raw[[0, 0]], raw[[1, 2]], shown.weight, shown.label)
    torch.testing.assert_close(Pairs()(Gaussian(), raw, shown), expected)


@pytest.mark.parametrize("head", [ClickGaussian(), BradleyTerry(), Gaussian()], ids=lambda head: type(head).__name__)
def test_what_the_clicks_objective_learns_is_what_the_output_says(head):
    raw = torch.randn(50, head.n_outputs, generator=torch.Generator().manual_seed(0))
    mean, std, _ = head.output(raw).unbind(-1)
    if isinstance(head, BradleyTerry):
        std = torch.zeros_like(std)  # it knows no deviation of users
    draws = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.0005, 0.9995, 1000))
    averaged = (mean[:, None] + std[:, None] * draws).sigmoid().mean(1)
    # MacKay's closed form is right to .02
    torch.testing.assert_close(head.click_log_odds(raw)[:, 0].sigmoid(), averaged, atol=0.02, rtol=0)


def test_a_deviation_changes_no_click_and_no_pair_so_clicks_of_different_users_cannot_tell_it():
    log_odds = torch.tensor([[-2.0], [-1.0]])
    outputs = [ClickGaussian(std=std).output(log_odds) for std in (0.5, 2.0)]
    assert outputs[0][0, 0] != outputs[1][0, 0] and outputs[0][0, 1] != outputs[1][0, 1]
    first, second = (
        preference_probability(one[:1, 0], one[:1, 1], one[1:, 0], one[1:, 1], "click") for one in outputs
    )
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, torch.sigmoid(torch.tensor([-1.0])))


def test_a_deviation_that_is_known_is_the_exponential_of_the_last_output():
    head = ClickGaussian(std_known=True)
    mean, std, epistemic = head.output(torch.tensor([[-1.0, math.log(2.0)]]))[0].tolist()
    assert std == pytest.approx(2.0) and epistemic == 0
    assert mean == pytest.approx(-math.sqrt(1 + math.pi / 8 * 4))


def test_a_head_of_clicks_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="click_gaussian.std must be > 0"):
        ClickGaussian(std=0.0)
    with pytest.raises(ValueError, match="n_members must be >= 1, got 0"):
        ClickGaussian(n_members=0)
