"""Judge ``built_in_world``: the simulated users of the built-in world, who also produce the log if none is given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.registry import JUDGES
from openrlhf_qs.world.ceiling import best_suggestions, fixed_suggestions, unspoken_aspects
from openrlhf_qs.world.expected_clicks import expected_clicks
from openrlhf_qs.world.users import check_lengths, click_probabilities, conversation_seed, draw_users, read_scene


@JUDGES.register("built_in_world")
class BuiltInWorld:
    """Simulated users who click suggestions that suit them.

    Every row gets one fresh user, who depends only on the seed, the conversation, and how often the conversation came
    before in the same call: two policies judged on the same conversations get the same users, whatever the order of
    the rows.

    Args:
        seed: another seed draws other users; the world stays the same.
    """

    def __init__(self, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"built_in_world.seed must be >= 0, got {seed}")
        self.seed = seed

    def __call__(
        self, conversations: Sequence[list[Message]], suggestions: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Click probabilities ``[n][k]``, including examination of the position; ValueError if the lengths differ."""
        check_lengths(conversations, suggestions)
        n_seen: dict[int, int] = {}
        probabilities = []
        for conversation, shown in zip(conversations, suggestions, strict=True):
            key = conversation_seed(conversation)
            n_seen[key] = n_seen.get(key, -1) + 1
            user = draw_users(np.random.default_rng([self.seed, key, n_seen[key]]), 1)[0]
            probabilities.append(click_probabilities(conversation, shown, user))
        return probabilities

    def chance_of_a_click(
        self, conversations: Sequence[list[Message]], suggestions: Sequence[Sequence[str]]
    ) -> list[float]:
        """The probability ``[n]`` that a user clicks at least one suggestion, averaged over all users, not drawn."""
        return expected_clicks(conversations, suggestions)[1].tolist()

    def limits(self, conversations: Sequence[list[Message]], n: int) -> dict[str, list[list[str]]]:
        """``ceiling``, the best that users can be shown, and ``fixed_templates``, the best without a policy: the same
        ``n`` templates everywhere. Empty if a conversation is not from this world or has fewer than ``n`` aspects
        left."""
        scenes = [read_scene(conversation) for conversation in conversations]
        if any(scene.domain is None or len(unspoken_aspects(scene)) < n for scene in scenes):
            return {}
        return {
            "fixed_templates": fixed_suggestions(conversations, n),
            "ceiling": [best_suggestions(conversation, n) for conversation in conversations],
        }
