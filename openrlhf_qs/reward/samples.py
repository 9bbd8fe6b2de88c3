"""What a policy writes while it is trained, with all parts of its reward: ``samples.jsonl`` beside the policy.

In: at some steps, the responses to the same few prompts (kind ``same``) and those of the step's own rollouts with the
largest and the smallest reward (``highest``, ``lowest``), scored. Out: a row each, which the report shows. A resumed
run forgets the rows of steps that it does again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_qs.files.run_folder import GrpoFolder
from openrlhf_qs.files.whole import appended_lines, write_json_lines
from openrlhf_qs.reward.composite import CompositeReward
from openrlhf_qs.reward.monitors import newest_step
from openrlhf_qs.reward.rollout import RolloutBatch

if TYPE_CHECKING:
    from torch import Tensor

N_EXTREMES = 2  # responses of a step with the largest, and with the smallest reward
N_SAME = 8  # prompts that are asked again and again
CARRIED = "same_prompts"  # attribute of a rollout's sample in which the answers to them travel


def taken_off(rollout: Sequence[Any]) -> list[Any]:
    """The answers to the same prompts that travel on OpenRLHF's samples of a rollout; these carry none any more."""
    return [answer for sample in rollout for answer in vars(sample).pop(CARRIED, ())]


class SampleLog:
    """The file of one run. ``step`` is that of the policy, as OpenRLHF counts: 1 is the first."""

    def __init__(self, ckpt, composite: CompositeReward) -> None:
        """
        Args:
            ckpt: OpenRLHF's ``--ckpt`` flags.
            composite: what the responses are scored with.
        """
        self.file = GrpoFolder(Path(ckpt.output_dir)).samples
        self.composite = composite
        self.step = newest_step(Path(ckpt.path)) if ckpt.load_enable else 0
        write_json_lines(self.file, [row for row in appended_lines(self.file) if row["step"] <= self.step])

    def write(self, kind: str, batch: RolloutBatch, raw: Mapping[str, Tensor]) -> None:
        """Append a row for each response of ``batch``; ``raw`` is what each part says, ``[batch]``."""
        with open(self.file, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows(kind, batch, raw))

    def write_extremes(self, batch: RolloutBatch, raw: Mapping[str, Tensor], total: Tensor) -> None:
        """Append the responses of a step whose ``total``, ``[batch]``, is the largest and the smallest."""
        order = total.argsort(descending=True, stable=True).tolist()
        n = min(N_EXTREMES, len(order) // 2)
        for kind, rows in (("highest", order[:n]), ("lowest", order[::-1][:n])):
            self.write(kind, batch.take(rows), {name: value[rows] for name, value in raw.items()})

    def rows(self, kind: str, batch: RolloutBatch, raw: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Rows of the file.

        ``parts``: each as it is. ``weighted``: each in deviations of the SFT policy times its weight, whatever
        training normalises by, so that steps can be compared. ``garm``: mean and std of each suggestion, where there
        is a reward model. What failed is null.
        """
        weighted = self.composite.in_sft_units(raw)
        garm = _pairs(batch.reward_mean, batch.reward_std) if batch.reward_mean else [None] * len(batch.parsed)
        return [
            {
                "step": self.step,
                "kind": kind,
                "conversation": list(batch.conversations[n]),
                "suggestions": list(parsed.suggestions),
                "malformed": not parsed.well_formed,
                "parts": {name: _number(value[n]) for name, value in raw.items()},
                "weighted": {name: _number(value[n]) for name, value in weighted.items()},
                **({"garm": garm[n]} if garm[n] is not None else {}),
            }
            for n, parsed in enumerate(batch.parsed)
        ]


def _pairs(means: Sequence[Sequence[float]], stds: Sequence[Sequence[float]]) -> list[list[list[float]]]:
    return [[list(pair) for pair in zip(*one, strict=True)] for one in zip(means, stds, strict=True)]


def _number(value: Tensor) -> float | None:
    return float(value) if math.isfinite(value) else None
