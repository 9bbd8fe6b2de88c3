"""Rewards from the Gaussian reward model: how much users like the suggestions, and how sure it is, over a response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from openrlhf_qs.registry import REWARDS
from openrlhf_qs.reward.rollout import RolloutBatch

Uncertainty = Literal["aleatoric", "epistemic", "total"]


@REWARDS.register("garm")
class Garm:
    """How much users like the suggestions: the mean of the reward model, or less where it is unsure, on average.

    Args:
        form: ``mean``; ``lower``, ``mean - k * sigma``; ``risk``, ``mean - sigma^2 / (2 * beta)``, which is
            ``-beta * log E exp(-reward / beta)`` of a Gaussian (arXiv:2606.09073); ``quantile``, which a draw of the
            reward is below with probability ``q``.
        uncertainty: sigma: ``aleatoric``, how far users differ; ``epistemic``, how far the members of an ensemble
            differ; ``total``, the root of the sum of their squares.
        k: of ``lower``; standard deviations.
        beta: of ``risk``; reward units.
        q: of ``quantile``; in (0, 1), below 0.5 to be careful.
        missing: reward units; what a suggestion that is not there counts. Averaging over fewer would pay a policy for
            giving only its best one.
    """

    needs = ("reward_model",)

    def __init__(
        self,
        form: Literal["mean", "lower", "risk", "quantile"] = "mean",
        uncertainty: Uncertainty = "aleatoric",
        k: float = 1.0,
        beta: float = 1.0,
        q: float = 0.25,
        missing: float = -3.0,
    ) -> None:
        if not beta > 0:
            raise ValueError(f"garm.beta must be > 0, got {beta}: it divides the variance")
        if not 0 < q < 1:
            raise ValueError(f"garm.q must be between 0 and 1, got {q}: it is a probability")
        self.form = form
        self.uncertainty = uncertainty
        self.k = k
        self.beta = beta
        self.z = NormalDist().inv_cdf(q)
        self.missing = missing

    def __call__(self, batch: RolloutBatch) -> Tensor:
        return torch.tensor(
            [
                _average([self.value(m, s) for m, s in zip(means, sigmas, strict=True)], self.missing, parsed.n)
                for means, sigmas, parsed in zip(
                    batch.reward_mean, _sigmas(batch, self.uncertainty), batch.parsed, strict=True
                )
            ]
        )

    def credit(self, batch: RolloutBatch) -> Tensor:
        """What each suggestion adds to the average, ``[batch, n]``."""
        return _shares(
            [
                [self.value(m, s) for m, s in zip(means, sigmas, strict=True)]
                for means, sigmas in zip(batch.reward_mean, _sigmas(batch, self.uncertainty), strict=True)
            ],
            self.missing,
            batch.task.n,
        )

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
    """How sure the reward model is: its negative standard deviation, averaged over a response.

    Args:
        uncertainty: as in ``garm``.
        missing: reward units; the standard deviation that a suggestion which is not there counts.
    """

    needs = ("reward_model",)

    def __init__(self, uncertainty: Uncertainty = "aleatoric", missing: float = 3.0) -> None:
        self.uncertainty = uncertainty
        self.missing = missing

    def __call__(self, batch: RolloutBatch) -> Tensor:
        rows = zip(_sigmas(batch, self.uncertainty), batch.parsed, strict=True)
        return -torch.tensor([_average(sigmas, self.missing, parsed.n) for sigmas, parsed in rows])

    def credit(self, batch: RolloutBatch) -> Tensor:
        """What each suggestion adds to the average, ``[batch, n]``."""
        return -_shares(_sigmas(batch, self.uncertainty), self.missing, batch.task.n)


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
    return torch.tensor([[*row, *[missing] * (n - len(row))] for row in values]).view(-1, n) / n
