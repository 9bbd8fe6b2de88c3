"""Out-of-distribution regularisation: keep the policy where the reward model has seen data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from openrlhf_qs.registry import REWARDS
from openrlhf_qs.reward.rollout import RolloutBatch


@REWARDS.register("ood")
class OODPenalty:
    """Take reward away where the reference policy finds a response unlikely: ``-max(0, log_ppl - threshold)``.

    The log-perplexity comes from the log-probs that OpenRLHF computes for its KL penalty: it costs no forward pass.

    Args:
        form: ``hinge``, as above; ``linear``, ``-log_ppl``; ``quantile``, a hinge at that quantile of the reference
            policy's own samples: what it would say itself is free. The fusion stage finds it and keeps it in
            weights.json.
        threshold: nats per token; below it nothing is taken. None is 0 for ``hinge``.
        quantile: of ``quantile``; in (0, 1).
    """

    needs = ("reference",)

    def __init__(
        self,
        form: Literal["hinge", "linear", "quantile"] = "hinge",
        threshold: float | None = None,
        quantile: float = 0.9,
    ) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"ood.quantile must be between 0 and 1, got {quantile}: it is a share of the samples")
        if form == "linear" and threshold is not None:
            raise ValueError(f"ood.threshold = {threshold} with ood.form = linear, which has none; use ood.form=hinge")
        self.form = form
        self.threshold = 0.0 if threshold is None and form == "hinge" else threshold
        self.quantile = quantile

    def __call__(self, batch: RolloutBatch) -> Tensor:
        if self.form == "linear":
            return -batch.ref_log_ppl
        if self.threshold is None:
            raise ValueError(
                "ood.form = quantile has no threshold: give the weights of a fusion stage that ran with it, or "
                "ood.threshold in nats per token"
            )
        return -(batch.ref_log_ppl - self.threshold).clamp(min=0)

    def credit(self, batch: RolloutBatch) -> Tensor:
        """What the tokens of each suggestion take, ``[batch, n]``: nothing where the whole response is free."""
        if batch.ref_log_ppl_share is None:
            return self(batch)[:, None].expand(-1, batch.task.n)
        taken = torch.ones_like(batch.ref_log_ppl) if self.form == "linear" else (self(batch) < 0).float()
        return -batch.ref_log_ppl_share * taken[:, None]

    def calibrate(self, batch: RolloutBatch) -> dict[str, float]:
        """The options that the reference policy's own samples decide."""
        if self.form != "quantile" or self.threshold is not None:
            return {}
        self.threshold = torch.quantile(batch.ref_log_ppl.double(), self.quantile).item()
        return {"threshold": self.threshold}
