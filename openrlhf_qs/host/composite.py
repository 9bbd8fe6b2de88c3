"""The composite reward of a GRPO run, from its settings."""

from __future__ import annotations

from openrlhf_qs.host.settings import Settings
from openrlhf_qs.reward.composite import CompositeReward, read_weights


def composite_of(settings: Settings) -> CompositeReward:
    """ValueError where the parts, their options and the weights do not fit."""
    grpo = settings.stage
    return CompositeReward(
        grpo.reward,
        settings.options,
        read_weights(grpo.weights) if grpo.weights else None,
        grpo.normalisation or None,
        grpo.on_failure,
        grpo.gate_floor,
    )
