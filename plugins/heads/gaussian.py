"""Heads of the reward model: the Gaussian one (GaRM), and those it is compared with.

In: the outputs of the head's linear layer for a suggestion, ``[..., n_outputs]``. Out: mean, standard deviation and
epistemic standard deviation, ``[..., 3]``, float32, reward units; and the loss of preference pairs. ``link`` names the
likelihood (:mod:`openrlhf_qs.garm.preference_likelihood`) by which they are read as probabilities. The model around a
head is in :mod:`openrlhf_qs.garm.reward_model`.

``n_members`` heads on one backbone are an ensemble. Each has its own initial weights and its own weights of the
impressions (:meth:`openrlhf_qs.garm.impressions.ImpressionBatch.member_weights`), so they agree where the clicks are
informative and differ elsewhere. A single head cannot give this difference, the epistemic part: its deviation is the
noise of the clicks.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Literal

from openrlhf_qs.garm.preference_likelihood import (
    LOGISTIC_SCALE,
    GaussianLink,
    click_log_odds,
    log_ndtr,
    preference_loss,
)
from openrlhf_qs.registry import REWARD_MODELS

if TYPE_CHECKING:
    from torch import Tensor

UNIT_STD = math.log(math.e - 1)  # softplus of it is 1: a head that answers 0 has a standard deviation of 1
LOGISTIC_STD = LOGISTIC_SCALE / math.sqrt(2)  # two of these differ like one logistic variable, to 0.01
PURM_TAU = 10.0
MAX_LOG_VARIANCE = 6.0
MIN_VARIANCE = 1e-6

Scale = Literal["softplus", "variance_softplus", "exp", "log_variance"]


@REWARD_MODELS.register("gaussian")
class Gaussian:
    """A mean and a standard deviation per suggestion, trained on the probability that one beats the other.

    Args:
        link: the likelihood. With ``probit``, only ``kl`` or ``gauge`` fixes the unit of the rewards; links with
            logistic noise (``probit_logistic``, ``mackay``, ``quadrature``) keep gradients bounded at small
            deviations.
        scale: from the head's number to a standard deviation, which is 1 at 0: ``softplus``; ``variance_softplus``,
            the root of a softplus (arXiv:2605.11865); ``exp`` of a tenth (arXiv:2503.22480); ``log_variance``, kept
            between -6 and 6 by a hyperbolic tangent.
        std_floor: reward units; the smallest standard deviation, added to that of ``scale``. Bounds the gradient of
            ``probit`` and ``dpl``.
        kl: weight of the mean KL divergence of ``N(mean, std^2)`` from ``N(0, 1)``, nats. Pairs do not determine the
            common unit and zero of the rewards; this fixes both, and keeps deviations from vanishing or growing
            without bound.
        gauge: weight of ``mean(log std)^2 + mean(mean)^2`` over the batch, which also fixes them but leaves the
            differences free. All suggestions of a batch push the same way, so its noise drowns the signal of the
            pairs: with weight 1 the head is less accurate after the same number of steps (docs/GARM.md).
        mean_variance: weight of the mean variance. With ``probit`` it only shrinks the unit.
        log_variance: weight of the mean squared log-variance, a log-normal prior on it.
        anchor: weight of two anchors, nats: a chosen suggestion lies above 0.5, a rejected one below -0.5 (ordinal
            probit, as in arXiv:2605.11865, with the label in place of an external score).
        beta: each pair is weighted by its deviation to the power ``2 * beta``, without gradient, as in beta-NLL
            (arXiv:2203.09168); above 0, pairs that the model takes for noise are not ignored.
        n_members: number of heads in the ensemble.
    """

    def __init__(
        self,
        link: GaussianLink = "probit",
        scale: Scale = "softplus",
        std_floor: float = 0.1,
        kl: float = 0.1,
        gauge: float = 0.0,
        mean_variance: float = 0.0,
        log_variance: float = 0.0,
        anchor: float = 0.0,
        beta: float = 0.5,
        n_members: int = 1,
    ) -> None:
        weights = {
            "kl": kl,
            "gauge": gauge,
            "mean_variance": mean_variance,
            "log_variance": log_variance,
            "anchor": anchor,
            "beta": beta,
        }
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"gaussian.{name} must be >= 0 and finite, got {value}: it is a weight")
        if not (std_floor > 0 or std_floor == 0 and link not in ("probit", "dpl")):
            raise ValueError(f"gaussian.std_floor must be > 0, got {std_floor}: at 0 the gradient has no bound")
        if link == "jensen":
            warnings.warn(
                "link jensen is a bound that falls with the deviation: its deviations shrink to the floor and mean "
                "nothing; it exists for comparison only, use probit or mackay",
                stacklevel=2,
            )
        self.link = link
        self.scale = scale
        self.std_floor = std_floor
        self.kl = kl
        self.gauge = gauge
        self.mean_variance = mean_variance
        self.log_variance = log_variance
        self.anchor = anchor
        self.beta = beta
        self.n_members = _checked_members(n_members)
        self.n_outputs = 2 * n_members
        self.mean_outputs = slice(0, None, 2)  # a mean, then a standard deviation, for each member

    def output(self, raw: Tensor) -> Tensor:
        """Head outputs ``[..., n_outputs]`` to mean, standard deviation, epistemic standard deviation ``[..., 3]``."""
        import torch

        mean, std = self.members(raw)
        return torch.stack((mean.mean(-1), std.square().mean(-1).sqrt(), mean.std(-1, correction=0)), dim=-1)

    def loss(self, chosen_raw: Tensor, rejected_raw: Tensor, weight: Tensor, label: Tensor) -> Tensor:
        """Head outputs ``[pairs, n_outputs]``, weights ``[pairs]`` or ``[pairs, n_members]``, labels ``[pairs]`` to
        one number, nats."""
        import torch

        (chosen_mean, chosen_std), (rejected_mean, rejected_std) = self.members(chosen_raw), self.members(rejected_raw)
        label = label.float()[:, None]
        nll = preference_loss(chosen_mean, chosen_std, rejected_mean, rejected_std, label, self.link)
        if self.beta:
            nll = nll * ((chosen_std.square() + rejected_std.square()) / 2).detach() ** self.beta
        if self.anchor:
            nll = nll + self.anchor * anchor_loss(chosen_mean, chosen_std, label)
            nll = nll + self.anchor * anchor_loss(rejected_mean, rejected_std, 1 - label)
        regulariser = self.regulariser(torch.cat((chosen_mean, rejected_mean)), torch.cat((chosen_std, rejected_std)))
        return (member_weights(weight, self.n_members) * nll).mean() + regulariser

    def click_log_odds(self, raw: Tensor) -> Tensor:
        """Each member's log-odds of a click by an average user, float32 ``[..., n_members]``, if users click with the
        sigmoid of their reward."""
        return click_log_odds(*self.members(raw))

    def members(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the members, float32 ``[..., n_members]`` each."""
        import torch
        import torch.nn.functional as F

        mean, raw_std = raw.float().unflatten(-1, (self.n_members, 2)).unbind(-1)
        if self.scale == "softplus":
            std = F.softplus(raw_std + UNIT_STD)
        elif self.scale == "variance_softplus":
            std = (F.softplus(raw_std + UNIT_STD) + MIN_VARIANCE).sqrt()
        elif self.scale == "exp":
            std = (raw_std / PURM_TAU).exp()
        else:
            std = (MAX_LOG_VARIANCE * torch.tanh(raw_std / MAX_LOG_VARIANCE) / 2).exp()
        return mean, std + self.std_floor

    def regulariser(self, mean: Tensor, std: Tensor) -> Tensor:
        """The weighted penalties of a batch ``[suggestions, n_members]``, averaged over members, one number."""
        log_std = std.log()
        penalty = self.gauge * (log_std.mean(0).square() + mean.mean(0).square())
        penalty = penalty + self.kl * ((std.square() + mean.square() - 1) / 2 - log_std).mean(0)
        penalty = penalty + self.mean_variance * std.square().mean(0)
        penalty = penalty + self.log_variance * (2 * log_std).square().mean(0)
        return penalty.mean()


@REWARD_MODELS.register("dpl")
class DPL(Gaussian):
    """The mean-and-variance model of distributional preference learning (arXiv:2312.08358), as in its code.

    A logistic function instead of the normal distribution function, a softplus without a floor, no gauge.

    Args:
        mean_variance: weight of the mean variance; 0 in its published checkpoints.
    """

    def __init__(self, mean_variance: float = 0.0) -> None:
        super().__init__(link="dpl", std_floor=1e-6, kl=0.0, beta=0.0, mean_variance=mean_variance)


@REWARD_MODELS.register("purm")
class PURM(Gaussian):
    """The probabilistic uncertain reward model (arXiv:2503.22480), as in its code: link ``jensen``, scale ``exp``.

    Its 1,000 random draws per pair are replaced by Gauss-Hermite nodes.
    """

    def __init__(self) -> None:
        super().__init__(link="jensen", scale="exp", std_floor=0.0, kl=0.0, beta=0.0)


@REWARD_MODELS.register("bradley_terry")
class BradleyTerry:
    """The usual scalar reward model, for comparison: every suggestion has the same standard deviation.

    Its loss is ``-log sigmoid(mean_chosen - mean_rejected)``; the constant standard deviation makes the
    difference of two Gaussians match that logistic, so that it is comparable with those of ``gaussian``.

    Args:
        gauge: weight of ``mean(mean)^2`` over the batch, which fixes the zero of the rewards. An ensemble needs it:
            members with different zeros would seem unsure.
        n_members: number of heads in the ensemble.
    """

    link = "bradley_terry"
    mean_outputs = slice(None)

    def __init__(self, gauge: float = 0.0, n_members: int = 1) -> None:
        if not 0 <= gauge < math.inf:
            raise ValueError(f"bradley_terry.gauge must be >= 0 and finite, got {gauge}: it is a weight")
        if n_members > 1 and gauge == 0:
            raise ValueError(
                f"bradley_terry.gauge must be > 0 for {n_members} members: each has a zero of its own, and they would "
                "seem unsure; set it to 1"
            )
        self.gauge = gauge
        self.n_members = self.n_outputs = _checked_members(n_members)

    def output(self, raw: Tensor) -> Tensor:
        """Head outputs ``[..., n_members]`` to mean, constant deviation, epistemic standard deviation ``[..., 3]``."""
        import torch

        mean = raw.float().mean(-1)
        return torch.stack((mean, torch.full_like(mean, LOGISTIC_STD), raw.float().std(-1, correction=0)), dim=-1)

    def click_log_odds(self, raw: Tensor) -> Tensor:
        """Each member's log-odds of a click, float32 ``[..., n_members]``: the means."""
        return raw.float()

    def loss(self, chosen_raw: Tensor, rejected_raw: Tensor, weight: Tensor, label: Tensor) -> Tensor:
        """Head outputs ``[pairs, n_members]``, weights of that shape or ``[pairs]``, labels ``[pairs]`` to one number,
        nats."""
        import torch

        no_std = torch.zeros_like(chosen_raw)
        nll = preference_loss(chosen_raw, no_std, rejected_raw, no_std, label.float()[:, None], self.link)
        zero = torch.cat((chosen_raw, rejected_raw)).float().mean(0).square().mean()
        return (member_weights(weight, self.n_members) * nll).mean() + self.gauge * zero


def anchor_loss(mean: Tensor, std: Tensor, label: Tensor, threshold: float = 0.5) -> Tensor:
    r"""Negative log-probability that a reward lies on its side: above ``threshold`` or below ``-threshold``.

    :math:`-y\log\Phi((\mu-\tau)/\sigma)-(1-y)\log\Phi((-\tau-\mu)/\sigma)`, the outer classes of an ordinal probit.

    Args:
        mean, std: the reward's, same shape.
        label: 1 for above, 0 for below, or between; broadcasts.

    Returns:
        The shape of ``mean``, nats, not reduced.
    """
    return -(label * log_ndtr((mean - threshold) / std) + (1 - label) * log_ndtr((-threshold - mean) / std))


def member_weights(weight: Tensor, n_members: int) -> Tensor:
    """Pair weights ``[pairs]``, or ``[pairs, n_members]`` where each member has its own, to ``[pairs, n_members]``."""
    return weight.float().reshape(len(weight), -1).expand(-1, n_members)


def _checked_members(n_members: int) -> int:
    if n_members < 1:
        raise ValueError(f"n_members must be >= 1, got {n_members}; 1 is a single head, 5 a usual ensemble")
    return n_members
