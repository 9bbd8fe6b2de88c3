r"""How probable it is that one suggestion beats another, given what a reward model says of both.

Rewards are independent Gaussians, so their difference is one too, with mean :math:`m=\mu_c-\mu_r` and variance
:math:`v=\sigma_c^2+\sigma_r^2`. A *link* turns the two into a probability. Training minimises its negative logarithm,
evaluation reads the probability itself, both from here, so that what is measured is what was trained:

- ``probit``: :math:`\Phi(m/\sqrt v)`, exact for two Gaussians (Thurstone 1927); the same in any unit of reward.
- ``probit_logistic``: :math:`\Phi(m/\sqrt{1.702^2+v})`; the noise of Bradley-Terry besides, as the nearest Gaussian.
- ``mackay``: :math:`\mathrm{sigmoid}(m/\sqrt{1+\pi v/8})`, the same by MacKay's closed form (1992).
- ``quadrature``: :math:`E\,\mathrm{sigmoid}(m+\sqrt v\,x)`, the integral that these two approximate (Gauss-Hermite).
- ``dpl``: :math:`\mathrm{sigmoid}(\sqrt{2\pi}\,m/\sqrt v)`, the code of arXiv:2312.08358; up to 0.095 from ``probit``.
- ``jensen``: a bound of ``quadrature`` in training, the code of arXiv:2503.22480; see :func:`log_preference`.
- ``bradley_terry``: :math:`\mathrm{sigmoid}(m)` (1952), whatever the variance.
- ``click``: :math:`\mathrm{sigmoid}(\eta_c-\eta_r)` of the two log-odds of a click (:func:`click_log_odds`): the odds
  that of two suggestions which are looked at the one was clicked and the other was not.

Every function computes in float32 (float64 where it is given float64), whatever the type of its arguments: bfloat16
has no ``log_ndtr`` and makes ties. The equations of arXiv:2508.15811 could not be read; its link is unknown.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:  # a head names the links before anybody computes
    import torch
    from torch import Tensor

GaussianLink = Literal["probit", "probit_logistic", "mackay", "quadrature", "dpl", "jensen"]
Link = Literal[GaussianLink, "bradley_terry", "click"]

LOGISTIC_SCALE = 1.702  # |Phi(x / 1.702) - sigmoid(x)| < 0.01
TAIL = -20.0  # below, log_ndtr is its asymptotic series, right to 1e-10
N_NODES = 64  # the integral is right to 1e-6 at sqrt(variance) = 3, 5e-5 at 5, 4e-3 at 10


def preference_loss(
    chosen_mean: Tensor,
    chosen_std: Tensor,
    rejected_mean: Tensor,
    rejected_std: Tensor,
    label: Tensor | float = 1.0,
    link: Link = "probit",
) -> Tensor:
    r"""Cross-entropy between a label and the probability that the chosen suggestion is the better one.

    :math:`-y\log P(c\text{ better})-(1-y)\log P(r\text{ better})`.

    Args:
        chosen_mean, rejected_mean: ``[pairs]``, reward units.
        chosen_std, rejected_std: ``[pairs]``, reward units, > 0.
        label: ``[pairs]``, in [0, 1]: 1 is a click, a share of clicks is a soft label.

    Returns:
        ``[pairs]``, nats, not reduced. Gradients are finite and do not vanish, however wrong the pair is ordered.
    """
    difference, variance = _difference(chosen_mean, chosen_std, rejected_mean, rejected_std, link)
    chosen, rejected = log_preference(difference, variance, link), log_preference(-difference, variance, link)
    return -(label * chosen + (1 - label) * rejected)


def preference_probability(
    mean_a: Tensor, std_a: Tensor, mean_b: Tensor, std_b: Tensor, link: Link = "probit"
) -> Tensor:
    """Probability that ``a`` is better than ``b``, ``[n]``; of ``b`` over ``a`` it is one minus that.

    Args:
        mean_a, mean_b: ``[n]``, reward units.
        std_a, std_b: ``[n]``, reward units, > 0.
        link: the one that the reward model was trained with.
    """
    difference, variance = _difference(mean_a, std_a, mean_b, std_b, link)
    return log_preference(difference, variance, "quadrature" if link == "jensen" else link).exp()


def log_preference(difference: Tensor, variance: Tensor, link: Link) -> Tensor:
    r"""Log-probability that a suggestion is better, from the Gaussian of the rewards' difference, by the table above.

    ``jensen`` is no log-probability but its lower bound :math:`E\log\mathrm{sigmoid}(m+\sqrt v\,x)`, which the code of
    arXiv:2503.22480 trains on by 1,000 draws (here Gauss-Hermite). It falls with the variance for every mean, so a
    deviation that is trained on it shrinks to its floor, and means nothing. For comparison only.

    Args:
        difference: ``[n]``, mean of the difference, reward units; of ``click``, that of the log-odds of a click.
        variance: ``[n]``, its variance, > 0.

    Returns:
        ``[n]``, nats, at most 0.
    """
    import torch
    import torch.nn.functional as F

    if link == "probit":
        return log_ndtr(difference / variance.sqrt())
    if link == "probit_logistic":
        return log_ndtr(difference / (variance + LOGISTIC_SCALE**2).sqrt())
    if link == "mackay":
        return F.logsigmoid(difference / (1 + math.pi / 8 * variance).sqrt())
    if link == "dpl":
        return F.logsigmoid(math.sqrt(2 * math.pi) * difference / variance.sqrt())
    if link in ("bradley_terry", "click"):
        return F.logsigmoid(difference)
    nodes, log_weights = _normal_nodes(difference.dtype, difference.device)
    at_nodes = F.logsigmoid(difference[..., None] + variance.sqrt()[..., None] * nodes)
    if link == "quadrature":
        return torch.logsumexp(at_nodes + log_weights, dim=-1).clamp(max=0)  # rounding of the weights' sum
    if link == "jensen":
        return (at_nodes * log_weights.exp()).sum(-1)
    raise ValueError(f"unknown link {link!r}; known: {', '.join(Link.__args__)}")


def log_ndtr(z: Tensor) -> Tensor:
    r"""Logarithm of the standard normal's distribution function, with its gradient, for any z.

    In float32 the gradient of ``torch.special.log_ndtr`` loses its digits below -200; at -1e4 it is 6 times too large.
    Below ``TAIL`` this is the series :math:`-z^2/2-\log(-z\sqrt{2\pi})+\log(1-z^{-2}+3z^{-4}-15z^{-6}+\dots)`
    (Abramowitz & Stegun 26.2.12), whose gradient goes on as :math:`-z`.
    """
    import torch

    body = torch.special.log_ndtr(z.clamp(min=TAIL))
    x = z.clamp(max=TAIL)
    r = 1 / x.square()
    series = torch.log1p(-r * (1 - 3 * r * (1 - 5 * r * (1 - 7 * r))))
    tail = series - x.square() / 2 - torch.log(-x) - math.log(2 * math.pi) / 2
    return torch.where(z < TAIL, tail, body)


def click_log_odds(mean: Tensor, std: Tensor) -> Tensor:
    r"""Log-odds of a click of an average user, where a user clicks by the sigmoid of his reward.

    :math:`\mu/\sqrt{1+\pi\sigma^2/8}`, MacKay's closed form (1992) of the log-odds of :math:`E\,\mathrm{sigmoid}`.

    Args:
        mean, std: ``[n]``, of the users' rewards.
    """
    return mean / (1 + math.pi / 8 * std**2) ** 0.5


def mean_of_click_log_odds(log_odds: Tensor, std: Tensor) -> Tensor:
    """The mean reward with which :func:`click_log_odds` are ``log_odds``."""
    return log_odds * (1 + math.pi / 8 * std**2) ** 0.5


def _difference(mean_a: Tensor, std_a: Tensor, mean_b: Tensor, std_b: Tensor, link: Link) -> tuple[Tensor, Tensor]:
    """Mean and variance of what ``link`` takes the difference of, in float32 or float64."""
    import torch

    mean_a, std_a, mean_b, std_b = (
        value.to(torch.promote_types(value.dtype, torch.float32)) for value in (mean_a, std_a, mean_b, std_b)
    )
    if link == "click":
        mean_a, mean_b = click_log_odds(mean_a, std_a), click_log_odds(mean_b, std_b)
    return mean_a - mean_b, std_a.square() + std_b.square()


@functools.cache
def _normal_nodes(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes of the standard normal and the logarithms of their weights, ``[N_NODES]`` each."""
    import torch

    nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
    log_weights = np.log(weights / weights.sum())
    return (
        torch.tensor(nodes, dtype=dtype, device=device),
        torch.tensor(log_weights, dtype=dtype, device=device),
    )
