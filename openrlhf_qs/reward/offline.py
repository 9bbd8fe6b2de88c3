"""A rollout batch without a rollout: conversations and responses from files, scored by the models themselves.

The way to see a reward before a GPU is spent on it; the fusion stage learns the weights on such batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.response import parse_response
from openrlhf_qs.reward.rollout import RolloutBatch, reward_fields


def offline_batch(
    conversations: Sequence[Sequence[Message]],
    responses: Sequence[str],
    ref_log_ppl: Sequence[float] | None = None,
    scorer=None,
    group: Sequence[int] | None = None,
) -> RolloutBatch:
    """The batch that training would have made of these responses.

    Args:
        ref_log_ppl: ``[n]``, nats per token, from :func:`openrlhf_qs.models.reference.reference_log_ppl`.
        scorer: a :class:`~openrlhf_qs.garm.reward_model.SuggestionScorer`; None leaves its numbers out.
        group: ``[n]``, a number for each prompt; None makes each response a group of its own.
    """
    parsed = [parse_response(response) for response in responses]
    rewards = {}
    if scorer is not None:
        pairs = [(c, s) for c, p in zip(conversations, parsed, strict=True) for s in p.suggestions]
        scores = scorer([c for c, _ in pairs], [s for _, s in pairs])
        rewards = reward_fields(zip(*(column.tolist() for column in scores), strict=True), parsed)
    return RolloutBatch(
        conversations=conversations,
        responses=responses,
        parsed=parsed,
        group=torch.arange(len(responses)) if group is None else torch.tensor(group),
        truncated=torch.zeros(len(responses), dtype=torch.bool),
        ref_log_ppl=None if ref_log_ppl is None else torch.tensor(ref_log_ppl),
        **rewards,
    )
