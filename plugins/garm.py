"""Rewards from the Gaussian reward model: its mean, and its negative standard deviation, averaged over suggestions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openrlhf_qs.registry import REWARDS
from openrlhf_qs.response import N_SUGGESTIONS
from openrlhf_qs.rollout import RolloutBatch


@REWARDS.register("garm")
class GarmMean:
    """How much users like the suggestions: the reward model's mean, averaged over the three.

    Args:
        missing: reward units; what a suggestion that is not there counts. Averaging over fewer would pay a policy for
            giving only its best one.
    """

    needs = ("reward_model",)

    def __init__(self, missing: float = -3.0) -> None:
        self.missing = missing

    def __call__(self, batch: RolloutBatch) -> Tensor:
        return torch.tensor([_average(means, self.missing) for means in batch.reward_mean])


@REWARDS.register("garm_sigma")
class GarmSigma:
    """How sure the reward model is: its negative standard deviation, averaged over the three.

    Args:
        missing: reward units; the standard deviation that a suggestion which is not there counts.
    """

    needs = ("reward_model",)

    def __init__(self, missing: float = 3.0) -> None:
        self.missing = missing

    def __call__(self, batch: RolloutBatch) -> Tensor:
        return -torch.tensor([_average(stds, self.missing) for stds in batch.reward_std])


def _average(values: Sequence[float], missing: float) -> float:
    return (sum(values) + missing * (N_SUGGESTIONS - len(values))) / N_SUGGESTIONS
