"""A rollout batch without a rollout: conversations and responses from files, scored by the models themselves.

Use it to try a reward before spending a GPU on it; the fusion stage learns the weights on such batches.
"""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import SUGGEST, Task
from openrlhf_qs.reward.rollout import RolloutBatch, reward_fields


def offline_batch(
    requests: Sequence[Request],
    responses: Sequence[str],
    ref_log_ppl: Sequence[float] | None = None,
    scorer=None,
    group: Sequence[int] | None = None,
    task: Task = SUGGEST,
    finish_reasons: Sequence[str] | None = None,
    n_shown: Sequence[int] | None = None,
) -> RolloutBatch:
    """The batch that training would have made from these responses.

    Args:
        ref_log_ppl: ``[n]``, nats per token, from :func:`openrlhf_qs.models.reference.reference_log_ppl`.
        scorer: a :class:`~openrlhf_qs.garm.reward_model.SuggestionScorer`; None leaves its values out.
        group: ``[n]``, the prompt number of each response; None makes each response a group of its own.
        task: what the policy was asked, and how its responses are read.
        finish_reasons: ``[n]``, why each response ended; None: none was cut off at the token limit.
        n_shown: ``[n]``, for impressions: how many suggestions each showed, whatever ``task`` asks for.
    """
    import torch

    n_texts = n_shown or [task.n] * len(responses)
    finish_reasons = finish_reasons or ["stop"] * len(responses)
    parsed = [task.read(*one) for one in zip(responses, finish_reasons, n_texts, strict=True)]
    rewards = {}
    if scorer is not None:
        pairs = [(r.conversation, s) for r, p in zip(requests, parsed, strict=True) for s in p.suggestions]
        scores = scorer([c for c, _ in pairs], [s for _, s in pairs])
        rewards = reward_fields(zip(*(column.tolist() for column in scores), strict=True), parsed)
    return RolloutBatch(
        requests=requests,
        responses=responses,
        parsed=parsed,
        group=torch.arange(len(responses)) if group is None else torch.tensor(group),
        task=task,
        ref_log_ppl=None if ref_log_ppl is None else torch.tensor(ref_log_ppl),
        **rewards,
    )
