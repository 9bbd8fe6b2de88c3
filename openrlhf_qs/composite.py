"""The composite reward: every part scores the rollout batch, is normalised, weighted, and added.

``fusion/weights.json`` holds, for each part, its weight and the mean and deviation by which it is normalised (those of
the SFT policy's own responses)::

    {"rewards": {"garm": {"weight": 1.0, "mean": 0.3, "std": 0.6}, ...}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openrlhf_qs.registry import REWARDS
from openrlhf_qs.rollout import RolloutBatch

NEEDS = {
    "reward_model": "a reward model: give its checkpoint as --reward.model_name_or_path",
    "reference": "the reference policy's log-probs: set --algo.kl.init_coef above 0",
}


@dataclass(frozen=True)
class Part:
    """How one reward enters the sum: ``weight * (reward - mean) / std``."""

    weight: float = 1.0
    mean: float = 0.0
    std: float = 1.0


class CompositeReward:
    """The weighted sum of registered rewards over one rollout batch."""

    def __init__(
        self,
        names: Sequence[str],
        options: Mapping[str, Mapping[str, str]] | None = None,
        parts: Mapping[str, Part] | None = None,
    ) -> None:
        """
        Args:
            names: registered rewards, each once.
            options: for each name, its options.
            parts: from :func:`read_weights`; None adds the raw rewards. ValueError where its names are not ``names``.
        """
        options = options or {}
        if len(set(names)) != len(names):
            raise ValueError(f"reward {','.join(names)}: a name stands twice")
        self.rewards = {name: REWARDS.create(name, **options.get(name, {})) for name in names}
        if parts is not None and set(parts) != set(names):
            missing = ", ".join(sorted(set(names) - set(parts))) or "none"
            unknown = ", ".join(sorted(set(parts) - set(names))) or "none"
            raise ValueError(
                f"the weights do not fit the rewards {','.join(names)}: without a weight: {missing}; "
                f"a weight, but not loaded: {unknown}; run the fusion stage again with these rewards"
            )
        self.parts = parts if parts is not None else {name: Part() for name in names}

    def needs(self) -> set[str]:
        """What the rewards cannot do without: keys of :data:`NEEDS`."""
        return {need for reward in self.rewards.values() for need in getattr(reward, "needs", ())}

    def score(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """Each reward as it is, ``[batch]`` float32. ValueError names reward, prompt, response of a nan or inf."""
        raw = {}
        for name, reward in self.rewards.items():
            value = torch.as_tensor(reward(batch), dtype=torch.float32)
            if value.shape != (len(batch.responses),):
                raise ValueError(
                    f"reward {name!r} returned shape {list(value.shape)} for {len(batch.responses)} responses; "
                    "give one number a response"
                )
            bad = (~value.isfinite()).nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"reward {name!r} is {value[bad[0]].item()} for response {batch.responses[bad[0]]!r} to "
                    f"{batch.conversations[bad[0]][-1]['content']!r} ({len(bad)} of {len(value)} responses); it would "
                    "turn the advantages of its whole group into nan"
                )
            raw[name] = value
        return raw

    def total(self, raw: Mapping[str, Tensor]) -> Tensor:
        """The composite reward ``[batch]``: here, and only here, parts meet weights."""
        values = torch.stack([raw[name] for name in self.parts], dim=-1)  # [batch, n_rewards]
        weight, mean, std = torch.tensor([[p.weight, p.mean, p.std] for p in self.parts.values()]).T
        return ((values - mean) / std) @ weight


def read_weights(path: str | Path) -> dict[str, Part]:
    """The parts of a weights file. ValueError where it is none, or a number in it would make rewards nan or inf."""
    try:
        parts = {name: Part(**part) for name, part in json.loads(Path(path).read_text())["rewards"].items()}
        usable = {name: all(map(math.isfinite, vars(part).values())) and part.std > 0 for name, part in parts.items()}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: run the fusion stage first") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no weights file of the fusion stage: {error!r}") from None
    for name, part in parts.items():
        if not usable[name]:
            raise ValueError(f"{path}: {name} has {part}; give finite numbers and a std above 0")
    return parts
