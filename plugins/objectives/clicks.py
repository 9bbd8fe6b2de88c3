"""Objectives over whole lists: every suggestion shown counts, not only those of impressions with a click.

In: a head, its outputs for a batch, and the batch (:class:`openrlhf_qs.garm.impressions.ImpressionBatch`). Out: one
number, nats. The head must have ``click_log_odds``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from openrlhf_qs.registry import OBJECTIVES

if TYPE_CHECKING:  # it brings transformers, for which a list of plugins need not wait
    from torch import Tensor

    from openrlhf_qs.garm.impressions import ImpressionBatch

MAX_PROBABILITY = 1 - 1e-6


@OBJECTIVES.register("clicks")
class Clicks:
    """The likelihood of every click and non-click under the position-based model.

    A position is examined with its examination probability, and an examined suggestion is clicked with the head's
    log-odds, whatever is shown beside it. So an unclicked suggestion far down says less than one at the top, and an
    impression without any click says that none of its suggestions is good. If positions are trusted, each also brings
    clicks of its own, and the head learns the rest (the affine model of Vardasbi et al. 2020, arXiv:2008.10242).
    """

    whole_lists = of_clicks = True

    def __call__(self, head, raw: Tensor, batch: ImpressionBatch) -> Tensor:
        log_odds = head.click_log_odds(raw)[batch.place]
        known = (values[..., None] for values in (batch.clicks, batch.examination, batch.trust))
        nll = click_loss(log_odds, *known)
        nll = nll * batch.shown[..., None] * batch.member_weights(log_odds.shape[-1])[:, None]
        return nll.sum(1).mean()


@OBJECTIVES.register("listwise")
class Listwise:
    """The likelihood of each click against the rest of its list, and of no click at all: a multinomial logit.

    A list is a choice between its suggestions, each with the head's log-odds plus the logarithm of its examination,
    and nothing, with log-odds of 0. The clicks that a position brings by itself add to the odds of what is shown
    there. A list with several clicks counts as that many choices.
    """

    whole_lists = of_clicks = True

    def __call__(self, head, raw: Tensor, batch: ImpressionBatch) -> Tensor:
        import torch

        log_odds = head.click_log_odds(raw)[batch.place] + batch.examination.log()[..., None]
        log_odds = torch.logaddexp(log_odds, batch.trust.log()[..., None])
        log_odds = log_odds.masked_fill(~batch.shown[..., None], -math.inf)
        nothing = torch.zeros_like(log_odds[:, :1])
        log_choice = torch.cat((log_odds, nothing), dim=1).log_softmax(1)
        clicks = batch.clicks * batch.shown
        none = (clicks.sum(1, keepdim=True) == 0).to(clicks)
        chosen = torch.cat((clicks, none), dim=1)[..., None]
        nll = -torch.where(chosen > 0, chosen * log_choice, 0.0).sum(1)
        return (nll * batch.member_weights(nll.shape[-1])).mean()


def click_loss(log_odds: Tensor, clicks: Tensor, examination: Tensor, trust: Tensor | float = 0.0) -> Tensor:
    r"""Negative log-likelihood of clicks on suggestions that are not always examined.

    For one showing, examined with probability :math:`\theta\le1`: :math:`-c\log q-(1-c)\log(1-q)` with
    :math:`q=\theta\,\mathrm{sigmoid}(\text{log-odds})+\beta`. For many, examined :math:`n>1` times: the binomial
    :math:`-c\log q-(n-c)\log(1-q)` with :math:`q=\mathrm{sigmoid}(\text{log-odds})+\beta/n`.

    Args:
        log_odds: of a click at full examination.
        clicks: their number, or their share if examination is at most 1.
        examination: relative to the top position, > 0.
        trust: :math:`\beta`, the clicks that positions brought by themselves.

    Returns:
        The broadcast shape, nats, not reduced.
    """
    import torch
    import torch.nn.functional as F

    once = examination.clamp(max=1)
    looks = examination.clamp(min=1)
    log_click = F.logsigmoid(log_odds) + once.log()
    log_click = torch.logaddexp(log_click, torch.as_tensor(trust / looks).log())
    no_click = torch.log1p(-log_click.exp().clamp(max=MAX_PROBABILITY))
    return -(clicks * log_click + (looks - clicks).clamp(min=0) * no_click)
