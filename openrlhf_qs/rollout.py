"""What every reward sees: one rollout batch, all responses to all its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from openrlhf_qs.prompt import Message
from openrlhf_qs.response import ParsedResponse


@dataclass(frozen=True)
class RolloutBatch:
    """One rollout batch of ``batch`` responses.

    Attributes:
        conversations: ``[batch]``, what the suggestions follow.
        responses: ``[batch]``, the policy's texts, without special tokens.
        parsed: ``[batch]``, the suggestions in them.
        group: ``[batch]``, long; responses to the same prompt have the same number.
        truncated: ``[batch]``, bool; the response ended at the token limit.
        ref_log_ppl: ``[batch]``, nats per token under the reference policy; None where no reward needs it.
        reward_mean, reward_std: one pair of lists a response, a number for each suggestion in ``parsed``, reward
            units, from the reward model; None where no reward needs it.
    """

    conversations: Sequence[Sequence[Message]]
    responses: Sequence[str]
    parsed: Sequence[ParsedResponse]
    group: Tensor
    truncated: Tensor
    ref_log_ppl: Tensor | None = None
    reward_mean: Sequence[Sequence[float]] | None = None
    reward_std: Sequence[Sequence[float]] | None = None
