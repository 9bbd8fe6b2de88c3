"""What every reward sees: one rollout batch with all responses to all its prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import ParsedResponse
from openrlhf_qs.form.task import SUGGEST, Task

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RolloutBatch:
    """One rollout batch of ``batch`` responses.

    Attributes:
        requests: ``[batch]``, what the suggestions are for.
        responses: ``[batch]``, the policy's texts, without special tokens.
        parsed: ``[batch]``, the suggestions in the responses, and what is wrong with each response.
        group: ``[batch]``, long; responses to the same prompt have the same number.
        task: what the policy was asked.
        ref_log_ppl: ``[batch]``, nats per token under the reference policy; None if no reward needs it.
        ref_log_ppl_share: ``[batch, n]``, what the tokens of each suggestion add to ``ref_log_ppl``; None if it is not
            known.
        reward_mean, reward_std, reward_epistemic_std: one list per response, with a number for each suggestion in
            ``parsed``, reward units, from the reward model (:class:`openrlhf_qs.garm.reward_model.Scores`); None if
            no reward needs it.
    """

    requests: Sequence[Request]
    responses: Sequence[str]
    parsed: Sequence[ParsedResponse]
    group: Tensor
    task: Task = SUGGEST
    ref_log_ppl: Tensor | None = None
    ref_log_ppl_share: Tensor | None = None
    reward_mean: Sequence[Sequence[float]] | None = None
    reward_std: Sequence[Sequence[float]] | None = None
    reward_epistemic_std: Sequence[Sequence[float]] | None = None

    @property
    def conversations(self) -> list[Sequence[Message]]:
        """``[batch]``, the conversations of the requests."""
        return [request.conversation for request in self.requests]

    @property
    def malformed(self) -> Tensor:
        """``[batch]``, bool: the response is not what was asked for, or was cut off at the token limit."""
        import torch

        return torch.tensor([not parsed.well_formed for parsed in self.parsed], dtype=torch.bool)

    def take(self, rows: Sequence[int]) -> RolloutBatch:
        """The responses at ``rows``, in that order."""
        from torch import Tensor

        def taken(value):
            if value is None or isinstance(value, Task):
                return value
            return value[list(rows)] if isinstance(value, Tensor) else [value[row] for row in rows]

        return RolloutBatch(**{name: taken(value) for name, value in vars(self).items()})


def reward_fields(
    rewards: Iterable[Sequence[float]], parsed: Sequence[ParsedResponse]
) -> dict[str, list[list[float]]]:
    """The reward model's three numbers per suggestion, in the order of the responses, as fields of a RolloutBatch.

    Padding rows after the last suggestion are left out.
    """
    rows = iter(rewards)
    by_response = [[next(rows) for _ in p.suggestions] for p in parsed]
    names = ("reward_mean", "reward_std", "reward_epistemic_std")
    return {name: [[row[n] for row in response] for response in by_response] for n, name in enumerate(names)}
