"""What every reward sees: one rollout batch, all responses to all its prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.response import ParsedResponse


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
        reward_mean, reward_std, reward_epistemic_std: a list each a response, a number for each suggestion in
            ``parsed``, reward units, from the reward model (:class:`openrlhf_qs.garm.reward_model.Scores`); None where
            no reward needs it.
    """

    conversations: Sequence[Sequence[Message]]
    responses: Sequence[str]
    parsed: Sequence[ParsedResponse]
    group: Tensor
    truncated: Tensor
    ref_log_ppl: Tensor | None = None
    reward_mean: Sequence[Sequence[float]] | None = None
    reward_std: Sequence[Sequence[float]] | None = None
    reward_epistemic_std: Sequence[Sequence[float]] | None = None

    def take(self, rows: Sequence[int]) -> RolloutBatch:
        """The responses at ``rows``, in that order."""

        def taken(value):
            if value is None:
                return None
            return value[list(rows)] if isinstance(value, Tensor) else [value[row] for row in rows]

        return RolloutBatch(**{name: taken(value) for name, value in vars(self).items()})


def reward_fields(
    rewards: Iterable[Sequence[float]], parsed: Sequence[ParsedResponse]
) -> dict[str, list[list[float]]]:
    """The reward model's three numbers a suggestion, in the order of the responses, as fields of a RolloutBatch.

    Rows beyond the last suggestion, which fill up a batch, are left out.
    """
    rows = iter(rewards)
    by_response = [[next(rows) for _ in p.suggestions] for p in parsed]
    names = ("reward_mean", "reward_std", "reward_epistemic_std")
    return {name: [[row[n] for row in response] for response in by_response] for n, name in enumerate(names)}
