"""The oracle: what the users of the built-in world will do. An upper bound for comparison, not a reward to use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openrlhf_qs.registry import REWARDS
from openrlhf_qs.world.expected_clicks import expected_clicks

if TYPE_CHECKING:
    from torch import Tensor

    from openrlhf_qs.reward.rollout import RolloutBatch


@REWARDS.register("oracle_of_the_built_in_world")
class Oracle:
    """The true probability that a user of the built-in world clicks at least one suggestion, over all users.

    It knows what no reward can know, and its users are those of ``evaluate --judge built_in_world``: a policy trained
    on it shows how far the optimiser gets with a perfect reward, and says nothing about a reward model. In a malformed
    response, the suggestions that can be read count, as in ``evaluate``.
    """

    def __call__(self, batch: RolloutBatch) -> Tensor:
        import torch

        return torch.tensor(self._asked(batch)[1].tolist(), dtype=torch.float32)  # [batch], in [0, 1]

    def credit(self, batch: RolloutBatch) -> Tensor:
        """The probability of a click on each suggestion, ``[batch, n]``; 0 for missing ones."""
        import torch

        chances = torch.zeros(len(batch.parsed), batch.task.n)
        for row, of_row in zip(chances, self._asked(batch)[0], strict=True):
            row[: len(of_row)] = torch.tensor(of_row.tolist())
        return chances

    def _asked(self, batch: RolloutBatch) -> tuple:
        return expected_clicks(batch.conversations, [parsed.suggestions for parsed in batch.parsed])
