"""The head of a click model: how a population of users with Gaussian rewards clicks a suggestion that it examines.

A user whose reward for an examined suggestion is u clicks it with probability ``sigmoid(u)``, and the rewards of all
users are Gaussian. Each click comes from one user, so clicks of different users determine only the *average*
probability: every mean and deviation with the same average explain them equally well, and so it is with pairs of one
impression, whose odds are those of the two averages. The deviation shows in one way only: a user who clicked one
suggestion clicks similar ones more often than average. ``openrlhf-qs garm spread`` estimates it from that
(:mod:`openrlhf_qs.garm.spread`). Until then it is a constant, and any constant gives the same probabilities.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from openrlhf_qs.garm.preference_likelihood import mean_of_click_log_odds, preference_loss
from openrlhf_qs.plugins.heads.gaussian import member_weights
from openrlhf_qs.registry import REWARD_MODELS

if TYPE_CHECKING:
    from torch import Tensor

LOG_STD_RANGE = (math.log(0.05), math.log(5.0))  # log-odds; beyond this, something other than users differs


@REWARD_MODELS.register("click_gaussian")
class ClickGaussian:
    """The log-odds of a click, which give a mean; the standard deviation comes from ``garm spread``, or is constant.

    Its linear layer gives each member's log-odds of a click by an average user at full examination, then the logarithm
    of the standard deviation, if it is known.

    Args:
        std: log-odds; the standard deviation as long as it is not known.
        std_known: whether the last output is the logarithm of the standard deviation; ``garm spread`` sets it.
        n_members: number of heads in the ensemble.
    """

    link = "click"
    objective = "clicks"

    def __init__(self, std: float = 1.0, std_known: bool = False, n_members: int = 1) -> None:
        if not 0 < std < math.inf:
            raise ValueError(f"click_gaussian.std must be > 0 and finite, got {std}: it is a deviation")
        if n_members < 1:
            raise ValueError(f"click_gaussian.n_members must be >= 1, got {n_members}; 1 is a single head")
        self.std = std
        self.std_known = std_known
        self.n_members = n_members
        self.n_outputs = n_members + std_known
        self.mean_outputs = slice(n_members)  # what a temperature rescales

    def output(self, raw: Tensor) -> Tensor:
        """Head outputs ``[..., n_outputs]`` to mean, standard deviation, epistemic standard deviation ``[..., 3]``."""
        import torch

        log_odds = self.click_log_odds(raw)
        if self.std_known:
            std = raw[..., -1].float().clamp(*LOG_STD_RANGE).exp()
        else:
            std = torch.full_like(log_odds[..., 0], self.std)
        mean = mean_of_click_log_odds(log_odds, std[..., None])
        return torch.stack((mean.mean(-1), std, mean.std(-1, correction=0)), dim=-1)

    def click_log_odds(self, raw: Tensor) -> Tensor:
        """Head outputs to each member's log-odds of a click by an average user, float32 ``[..., n_members]``."""
        return raw.float()[..., : self.n_members]

    def loss(self, chosen_raw: Tensor, rejected_raw: Tensor, weight: Tensor, label: Tensor) -> Tensor:
        """Head outputs ``[pairs, n_outputs]``, pair weights ``[pairs]`` or ``[pairs, n_members]``, labels ``[pairs]``
        to one number, nats."""
        import torch

        chosen, rejected = self.click_log_odds(chosen_raw), self.click_log_odds(rejected_raw)
        no_std = torch.zeros_like(chosen)
        nll = preference_loss(chosen, no_std, rejected, no_std, label.float()[:, None], self.link)
        return (member_weights(weight, self.n_members) * nll).mean()
