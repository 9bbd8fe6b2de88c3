"""Out-of-distribution regularisation: keep the policy where the reward model has seen data."""

from __future__ import annotations

from torch import Tensor

from openrlhf_qs.registry import REWARDS
from openrlhf_qs.rollout import RolloutBatch


@REWARDS.register("ood")
class OODPenalty:
    """Take reward away where the reference policy finds a response unlikely: ``-max(0, log_ppl - threshold)``.

    The log-perplexity comes from the log-probs that OpenRLHF computes for its KL penalty: it costs no forward pass.

    Args:
        threshold: nats per token; below it nothing is taken.
    """

    needs = ("reference",)

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold = threshold

    def __call__(self, batch: RolloutBatch) -> Tensor:
        return -(batch.ref_log_ppl - self.threshold).clamp(min=0)
