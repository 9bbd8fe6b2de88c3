"""Out-of-distribution regularisation: keeps the policy where the reward model has seen data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from openrlhf_qs.registry import REWARDS

if TYPE_CHECKING:
    from torch import Tensor

    from openrlhf_qs.reward.rollout import RolloutBatch


@REWARDS.register("ood")
class OODPenalty:
    """Penalises responses that the reference policy finds unlikely: ``-max(0, log_ppl - threshold)``.

    The log-perplexity comes from the log-probs that OpenRLHF computes for its KL penalty, so it costs no forward pass.

    Args:
        form: ``hinge``, as above; ``linear``, ``-log_ppl``; ``quantile``, a hinge at that quantile of the reference
            policy's own samples, so that what it would write itself costs nothing; the fusion stage determines it and
            keeps it in weights.json. ``constraint``: ``-multiplier * log_ppl``, whose multiplier starts at 1, the
            weight from the fusion, and is adapted at every training step: it grows while the rollouts' mean is above
            the threshold, and shrinks below. A log of ordinary impressions hardly shows which weight keeps a policy
            near what the reward model has seen, but you can say how near it should stay.
        threshold: nats per token; below it there is no penalty. None is 0 for ``hinge``. For ``constraint`` it is the
            target of the mean; None is the mean of the reference policy's own samples, which the fusion stage
            determines, plus ``slack``.
        quantile: for ``quantile``; in (0, 1).
        slack: for ``constraint``; nats per token above the reference policy's own level.
        rate: for ``constraint``; the change of the logarithm of the multiplier in a step at twice the threshold; at
            0.5 it overshoots (docs/EVIDENCE.md).
    """

    needs = ("reference",)

    def __init__(
        self,
        form: Literal["hinge", "linear", "quantile", "constraint"] = "hinge",
        threshold: float | None = None,
        quantile: float = 0.9,
        slack: float = 0.0,
        rate: float = 0.1,
    ) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"ood.quantile must be between 0 and 1, got {quantile}: it is a share of the samples")
        if form == "linear" and threshold is not None:
            raise ValueError(f"ood.threshold = {threshold} but ood.form = linear has none; use ood.form=hinge")
        if not rate > 0:
            raise ValueError(f"ood.rate must be > 0, got {rate}: the multiplier would stay where it is")
        if form == "constraint" and threshold is not None and not threshold > 0:
            raise ValueError(
                f"ood.threshold must be > 0 with ood.form=constraint, got {threshold}: log_ppl is above it"
            )
        self.form = form
        self.threshold = 0.0 if threshold is None and form == "hinge" else threshold
        self.quantile = quantile
        self.slack, self.rate = slack, rate
        self.multiplier = 1.0

    def __call__(self, batch: RolloutBatch) -> Tensor:
        if self.form == "linear":
            return -batch.ref_log_ppl
        if self.form == "constraint":
            return -self.multiplier * batch.ref_log_ppl
        self._check_threshold()
        return -(batch.ref_log_ppl - self.threshold).clamp(min=0)

    def credit(self, batch: RolloutBatch) -> Tensor:
        """The penalty on the tokens of each suggestion, ``[batch, n]``: 0 if the whole response has none."""
        if batch.ref_log_ppl_share is None:
            return self(batch)[:, None].expand(-1, batch.task.n)
        credit = -self.multiplier * batch.ref_log_ppl_share
        return credit * (self(batch) < 0)[:, None] if self.form in ("hinge", "quantile") else credit

    def adapt(self, batch: RolloutBatch) -> float | None:
        """The multiplier for the next training step, after this one's rollouts; None if the form has none."""
        if self.form != "constraint":
            return None
        self._check_threshold()
        excess = batch.ref_log_ppl.mean().item() / self.threshold - 1
        self.multiplier *= math.exp(self.rate * min(excess, 1.0))
        return self.multiplier

    def calibrate(self, batch: RolloutBatch) -> dict[str, float]:
        """The options that the reference policy's own samples determine."""
        if self.form not in ("quantile", "constraint") or self.threshold is not None:
            return {}
        if self.form == "quantile":
            self.threshold = batch.ref_log_ppl.double().quantile(self.quantile).item()
        else:
            self.threshold = batch.ref_log_ppl.double().mean().item() + self.slack
        return {"threshold": self.threshold}

    def _check_threshold(self) -> None:
        if self.threshold is None:
            raise ValueError(
                f"ood.form = {self.form} has no threshold: give the weights of a fusion stage that ran with it, or "
                "ood.threshold in nats per token"
            )
