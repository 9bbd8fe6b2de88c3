"""The objective of preference pairs: the head's own loss of those that the data stage made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openrlhf_qs.registry import OBJECTIVES

if TYPE_CHECKING:  # it brings transformers, for which a list of plugins need not wait
    from torch import Tensor

    from openrlhf_qs.garm.impressions import ImpressionBatch


@OBJECTIVES.register("pairs")
class Pairs:
    """The probability that the clicked one of two suggestions beats the other, weighted as the data stage says.

    Impressions without a click, and those where all was clicked, say nothing.
    """

    whole_lists = False

    def __call__(self, head, raw: Tensor, batch: ImpressionBatch) -> Tensor:
        weight = batch.weight[:, None] * batch.member_weights(head.n_members)[batch.pair_impression]
        return head.loss(raw[batch.pairs[:, 0]], raw[batch.pairs[:, 1]], weight, batch.label)
