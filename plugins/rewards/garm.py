"""Rewards from the Gaussian reward model: how much users like a response's suggestions, and how certain that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from openrlhf_qs.garm.preference_likelihood import click_log_odds
from openrlhf_qs.registry import REWARDS

if TYPE_CHECKING:
    from torch import Tensor

    from openrlhf_qs.reward.rollout import RolloutBatch

Uncertainty = Literal["aleatoric", "epistemic", "total"]


@REWARDS.register("garm")
class Garm:
    """How much users like the suggestions, by the reward model: its average mean, or the probability of a click.

    Args:
        form: ``mean``; ``lower``, ``mean - k * sigma``; ``risk``, ``mean - sigma^2 / (2 * beta)``, which is
            ``-beta * log E exp(-reward / beta)`` of a Gaussian (arXiv:2606.09073); ``quantile``, below which a draw of
            the reward lies with probability ``q``; ``click_chance``, the probability of a click on at least one of the
            suggestions, ``1 - prod(1 - examination * p)`` with the click probabilities ``p`` of an average user, in
            [0, 1]. A reward model trained on pairs alone knows no click probabilities, only their order.
        uncertainty: what sigma is: ``aleatoric``, how much users differ; ``epistemic``, how much the members of an
            ensemble differ; ``total``, the root of the sum of their squares.
        k: for ``lower``; standard deviations.
        beta: for ``risk``; reward units.
        q: for ``quantile``; in (0, 1), below 0.5 to be cautious.
        missing: reward units; the value of a missing suggestion. Averaging over fewer would reward a policy for
            giving only its best one.
        examination: for ``click_chance``; the probability that each position is examined, from the top, separated by
            commas (``log.json`` has them); empty: 1 for each.
    """

    needs = ("reward_model",)

    def __init__(
        self,
        form: Literal["mean", "lower", "risk", "quantile", "click_chance"] = "mean",
        uncertainty: Uncertainty = "aleatoric",
        k: float = 1.0,
        beta: float = 1.0,
        q: float = 0.25,
        missing: float = -3.0,
        examination: str = "",
    ) -> None:
        if not beta > 0:
            raise ValueError(f"garm.beta must be > 0, got {beta}: it divides the variance")
        if not 0 < q < 1:
            raise ValueError(f"garm.q must be between 0 and 1, got {q}: it is a probability")
        self.form = form
        self.examination = _examination(examination)
        self.uncertainty = uncertainty
        self.k = k
        self.beta = beta
        self.z = NormalDist().inv_cdf(q)
        self.missing = missing

    def __call__(self, batch: RolloutBatch) -> Tensor:
        import torch

        if self.form == "click_chance":
            return 1 - (1 - self._clicks(batch)).prod(dim=1)
        return torch.tensor(
            [
                _average([self.value(m, s) for m, s in zip(means, sigmas, strict=True)], self.missing, parsed.n)
                for means, sigmas, parsed in zip(
                    batch.reward_mean, _sigmas(batch, self.uncertainty), batch.parsed, strict=True
                )
            ]
        )

    def credit(self, batch: RolloutBatch) -> Tensor:
        """What each suggestion adds to the average, or to the probability of a click, ``[batch, n]``."""
        import torch

        if self.form == "click_chance":
            clicks = self._clicks(batch)
            others = torch.stack(
                [(1 - clicks).index_fill(1, torch.tensor([n]), 1.0).prod(1) for n in range(clicks.shape[1])], 1
            )
            return clicks * others
        return _shares(
            [
                [self.value(m, s) for m, s in zip(means, sigmas, strict=True)]
                for means, sigmas in zip(batch.reward_mean, _sigmas(batch, self.uncertainty), strict=True)
            ],
            self.missing,
            batch.task.n,
        )

    def _clicks(self, batch: RolloutBatch) -> Tensor:
        """The probability that each suggestion is examined and clicked, ``[batch, n]``; 0 for missing ones."""
        import torch

        n = max([batch.task.n, *map(len, batch.reward_mean)])  # an impression may have shown more
        if self.examination and len(self.examination) < n:
            raise ValueError(
                f"garm.examination has {len(self.examination)} positions for {n} suggestions; give one for each"
            )
        clicks = torch.zeros(len(batch.reward_mean), n)
        for row, (means, stds) in enumerate(zip(batch.reward_mean, batch.reward_std, strict=True)):
            clicks[row, : len(means)] = click_log_odds(torch.tensor(means), torch.tensor(stds)).sigmoid()
        return clicks * torch.tensor(self.examination[:n] or [1.0] * n)

    def value(self, mean: float, sigma: float) -> float:
        """One suggestion's reward."""
        if self.form == "lower":
            return mean - self.k * sigma
        if self.form == "risk":
            return mean - sigma**2 / (2 * self.beta)
        if self.form == "quantile":
            return mean + self.z * sigma
        return mean


@REWARDS.register("garm_sigma")
class GarmSigma:
    """How certain the reward model is: its negative standard deviation, averaged over a response.

    Args:
        uncertainty: as in ``garm``.
        missing: reward units; the standard deviation of a missing suggestion.
    """

    needs = ("reward_model",)

    def __init__(self, uncertainty: Uncertainty = "aleatoric", missing: float = 3.0) -> None:
        self.uncertainty = uncertainty
        self.missing = missing

    def __call__(self, batch: RolloutBatch) -> Tensor:
        import torch

        rows = zip(_sigmas(batch, self.uncertainty), batch.parsed, strict=True)
        return -torch.tensor([_average(sigmas, self.missing, parsed.n) for sigmas, parsed in rows])

    def credit(self, batch: RolloutBatch) -> Tensor:
        """What each suggestion adds to the average, ``[batch, n]``."""
        return -_shares(_sigmas(batch, self.uncertainty), self.missing, batch.task.n)


def _examination(text: str) -> list[float]:
    try:
        places = [float(one) for one in text.split(",") if text]
    except ValueError:
        places = [math.nan]
    if not all(0 < one <= 1 for one in places):
        raise ValueError(f"garm.examination = {text!r}: give probabilities above 0, at most 1, as in 1,0.75,0.55")
    return places


def _sigmas(batch: RolloutBatch, uncertainty: Uncertainty) -> Sequence[Sequence[float]]:
    if uncertainty == "aleatoric":
        return batch.reward_std
    if uncertainty == "epistemic":
        return batch.reward_epistemic_std
    return [
        [math.hypot(std, epistemic) for std, epistemic in zip(*row, strict=True)]
        for row in zip(batch.reward_std, batch.reward_epistemic_std, strict=True)
    ]


def _average(values: Sequence[float], missing: float, n: int) -> float:
    return (sum(values) + missing * (n - len(values))) / n


def _shares(values: Sequence[Sequence[float]], missing: float, n: int) -> Tensor:
    import torch

    return torch.tensor([[*row, *[missing] * (n - len(row))] for row in values]).view(-1, n) / n
