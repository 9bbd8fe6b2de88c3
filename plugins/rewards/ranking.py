"""Reward ``ranking``: how much a latent query helps the ranker of intents find what the user clicked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openrlhf_qs.registry import REWARDS

if TYPE_CHECKING:
    from torch import Tensor

    from openrlhf_qs.reward.rollout import RolloutBatch


@REWARDS.register("ranking")
class Ranking:
    """The ranker's log-probability of the clicked intent with the query, minus that without a query, nats.

    The ranker must not have seen the clicks of these prompts (``openrlhf-qs rank`` writes such a ranker to
    ``reward/``). A query that cannot be read counts as none, so it gains 0 before the penalty for malformed responses.

    Args:
        ranker: folder of a ranker.
        malformed: nats; the reward of a response that is not a query.
    """

    def __init__(self, ranker: str, malformed: float = -3.0) -> None:
        from openrlhf_qs.rank.ranker import Ranker

        if not malformed <= 0:
            raise ValueError(f"ranking.malformed must be at most 0, got {malformed}: it is what such a response costs")
        self.ranker = Ranker.load(ranker)
        self.malformed = malformed

    def __call__(self, batch: RolloutBatch) -> Tensor:
        import torch

        from openrlhf_qs.rank.best import gain

        queries = [parsed.suggestions[0] if parsed.well_formed else "" for parsed in batch.parsed]
        gains = torch.tensor(gain(self.ranker, batch.requests, queries), dtype=torch.float32)
        return gains.where(~batch.malformed, torch.tensor(float(self.malformed)))  # [batch]
