"""Which suggestion of a response earned its reward: an advantage for the tokens of each, not one for all.

A response of three suggestions has one reward, and a token of the first is praised or blamed for the other two as
well: noise, of which the policy gradient has enough. A reward that knows what each suggestion brought says so by a
method ``credit(batch) -> [batch, n]``. Where it has none, as where suggestions are compared with each other, all of
them brought the whole. The advantage of a suggestion's tokens is then its credit, less what the group's other
responses got for the suggestion in that place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openrlhf_qs.reward.normalisation import group_means

CREDITED_ESTIMATORS = ("group_norm", "rloo", "dr_grpo")  # OpenRLHF's, that compare the responses of a group
NO_SUGGESTION = -1


def suggestion_of_tokens(pieces: Sequence[str], n: int) -> list[int]:
    """The number, from 0, of the suggestion that each token belongs to; the line break after one is its last token.

    All are ``NO_SUGGESTION`` where the text has not exactly ``n`` lines that are not blank: no suggestion's tokens can
    be told from another's then.

    Args:
        pieces: the text of each token, in their order.
        n: suggestions that were asked for.
    """
    numbers, number, begun = [], 0, False
    for piece in pieces:
        numbers.append(number)
        *lines, rest = piece.split("\n")
        for line in lines:
            number += begun or bool(line.strip())
            begun = False
        begun = begun or bool(rest.strip())
    n_lines = number + begun
    if n_lines != n:
        return [NO_SUGGESTION] * len(numbers)
    return [min(one, n - 1) for one in numbers]


def suggestion_log_probs(pieces: Sequence[str], log_probs: Sequence[float], n: int) -> list[float]:
    """Of each of ``n`` suggestions the mean log-probability of its own tokens, nats; that of the whole response where
    they cannot be told from another's.

    Args:
        pieces, log_probs: the text and the log-probability of each token.
    """
    own: list[list[float]] = [[] for _ in range(n)]
    for place, log_prob in zip(suggestion_of_tokens(pieces, n), log_probs, strict=True):
        if place != NO_SUGGESTION:
            own[place].append(log_prob)
    return [sum(some) / len(some) for some in (one or log_probs for one in own)]


def centred_credit(credit: Tensor, total: Tensor, whole: Tensor, group: Tensor) -> Tensor:
    """What each suggestion brought, beside those in the same place of the group's other responses, ``[batch, n]``.

    Args:
        credit: ``[batch, n]``, reward units.
        total: ``[batch]``, the rewards.
        whole: ``[batch]``, bool; the response has one reward alone: it is malformed, say. All its suggestions get
            ``total`` less the group's mean, and the others of the group are compared with each other, and share what
            they are above it.
        group: ``[batch]``, numbers from 0.
    """
    told = (~whole).float()[:, None]
    share = group_means(told, group).clamp(min=1e-9)
    among_told = (credit - group_means(credit * told, group) / share) + (
        group_means(total[:, None] * told, group) / share - group_means(total[:, None], group)
    )
    return torch.where(whole[:, None], total[:, None] - group_means(total[:, None], group), among_told)


def group_norm_scales(centred: Tensor, credit: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """What responses and suggestions are multiplied by under OpenRLHF's ``group_norm``, ``[batch, 1]`` each.

    A response is divided by the deviation of its group's totals, as OpenRLHF does, and a suggestion by that of the
    group's credits where it is larger. Credits that cancel out make totals that hardly differ: divided by their
    deviation, they would be most of a batch's gradient. 0 for both where totals are equal: no signal, no credit.

    Args:
        centred: ``[batch, 1]``, totals less the mean of their group.
        credit: ``[batch, n]``, from :func:`centred_credit`.
        group: ``[batch]``, numbers from 0.
    """
    n = torch.bincount(group)[group][:, None]
    squares = torch.cat([centred.square(), credit.square().mean(1, keepdim=True)], dim=1)
    of_total, of_credit = (group_means(squares, group) * n / (n - 1).clamp(min=1)).sqrt().split(1, dim=1)
    signal = of_total > 0
    larger = torch.maximum(of_total, of_credit)
    return torch.where(signal, 1 / (of_total + 1e-9), 0.0), torch.where(signal, 1 / (larger + 1e-9), 0.0)
