"""The objective of preference pairs: the head's own loss on the pairs from the data stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openrlhf_qs.registry import OBJECTIVES

if TYPE_CHECKING:  # it brings transformers, for which a list of plugins need not wait
    from torch import Tensor

    from openrlhf_qs.garm.impressions import ImpressionBatch


@OBJECTIVES.register("pairs")
class Pairs:
    """The probability that the clicked suggestion of a pair beats the other, weighted as the data stage determined.

    Impressions without a click, or with everything clicked, are not used.
    """

    whole_lists = False

    def __call__(self, head, raw: Tensor, batch: ImpressionBatch) -> Tensor:
        weight = batch.weight[:, None] * batch.member_weights(head.n_members)[batch.pair_impression]
        return head.loss(raw[batch.pairs[:, 0]], raw[batch.pairs[:, 1]], weight, batch.label)
