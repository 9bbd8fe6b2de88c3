"""Heads of the reward model: the Gaussian one (GaRM), and the scalar one that it is compared with.

In: what the head's linear layer says of a suggestion, ``[batch, n_outputs]``. Out: mean and standard deviation,
``[batch, 2]``, float32, reward units; and the loss of preference pairs. The model around a head is in
:mod:`openrlhf_qs.reward_model`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from openrlhf_qs.registry import REWARD_MODELS

UNIT_STD = math.log(math.e - 1)  # softplus of it is 1: a head that answers 0 has a standard deviation of 1
# Two of these differ like one logistic variable: |Phi(x / 1.702) - sigmoid(x)| < 0.01.
LOGISTIC_STD = 1.702 / math.sqrt(2)


def gaussian_preference_loss(
    chosen_mean: Tensor,
    chosen_std: Tensor,
    rejected_mean: Tensor,
    rejected_std: Tensor,
    link: Literal["probit", "probit_logistic"] = "probit",
) -> Tensor:
    r"""Negative log-probability that the chosen suggestion is the better one.

    Rewards are independent Gaussians, so their difference is one too (Thurstone 1927):
    ``probit`` :math:`-\log\Phi\big((\mu_c-\mu_r)/\sqrt{\sigma_c^2+\sigma_r^2}\big)`;
    ``probit_logistic`` adds the logistic noise of Bradley-Terry, as the Gaussian that is closest to it:
    :math:`1.702^2` under the root. The paper's own link could not be read (arXiv:2508.15811, Eq. 3-5).

    Args:
        chosen_mean, rejected_mean: ``[batch]``, reward units.
        chosen_std, rejected_std: ``[batch]``, reward units, > 0.

    Returns:
        ``[batch]``, nats, not reduced.
    """
    variance = chosen_std.float().square() + rejected_std.float().square()
    if link == "probit_logistic":
        variance = variance + 1.702**2
    z = (chosen_mean - rejected_mean).float() / variance.sqrt()
    # log(ndtr(z)) is -inf at z = -20, its gradient nan. Below -100 the float32 gradient of log_ndtr cancels.
    return -torch.special.log_ndtr(z.clamp(min=-100.0))


@REWARD_MODELS.register("gaussian")
class Gaussian:
    """A mean and a standard deviation for each suggestion, trained by the probability that one beats the other.

    Args:
        link: ``probit`` (scale-free) or ``probit_logistic`` (Bradley-Terry noise besides the two variances).
        gauge: weight of ``mean(log std)^2 + mean(mean)^2`` over the batch. Pairs say nothing of the common unit and
            zero of the rewards; this fixes both (std around 1, mean around 0) and leaves their differences free.
        std_floor: reward units; the smallest standard deviation, which bounds the gradient of the probit link.
    """

    n_outputs = 2

    def __init__(
        self, link: Literal["probit", "probit_logistic"] = "probit", gauge: float = 1.0, std_floor: float = 0.1
    ) -> None:
        if gauge < 0:
            raise ValueError(f"gaussian.gauge must be >= 0, got {gauge}: it is the weight of a penalty")
        if std_floor <= 0:
            raise ValueError(f"gaussian.std_floor must be > 0, got {std_floor}: at 0 the gradient has no bound")
        self.link = link
        self.gauge = gauge
        self.std_floor = std_floor

    def output(self, raw: Tensor) -> Tensor:
        """Head outputs ``[..., 2]`` to mean and standard deviation ``[..., 2]``."""
        mean, raw_std = raw.unbind(-1)
        return torch.stack((mean, F.softplus(raw_std + UNIT_STD) + self.std_floor), dim=-1)

    def loss(self, chosen: Tensor, rejected: Tensor, weight: Tensor) -> Tensor:
        """``[batch, 2]`` each (mean, std) and ``[batch]`` pair weights to one number, nats."""
        nll = gaussian_preference_loss(chosen[:, 0], chosen[:, 1], rejected[:, 0], rejected[:, 1], self.link)
        both = torch.cat((chosen, rejected))
        gauge = both[:, 1].log().mean().square() + both[:, 0].mean().square()
        return (weight * nll).mean() + self.gauge * gauge


@REWARD_MODELS.register("bradley_terry")
class BradleyTerry:
    """The usual scalar reward model, for comparison: every suggestion has the same standard deviation.

    Its loss is ``-log sigmoid(mean_chosen - mean_rejected)``; the constant standard deviation is the one with which
    two Gaussians differ like that logistic, so that its probabilities are read like those of ``gaussian``.
    """

    n_outputs = 1

    def output(self, raw: Tensor) -> Tensor:
        """Head outputs ``[..., 1]`` to mean and constant standard deviation ``[..., 2]``."""
        return torch.cat((raw, torch.full_like(raw, LOGISTIC_STD)), dim=-1)

    def loss(self, chosen: Tensor, rejected: Tensor, weight: Tensor) -> Tensor:
        """``[batch, 2]`` each (mean, std) and ``[batch]`` pair weights to one number, nats."""
        return -(weight * F.logsigmoid(chosen[:, 0] - rejected[:, 0])).mean()
