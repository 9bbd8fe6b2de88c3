"""What one run was asked to do, carried from the driver to every process of it in one environment variable."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Literal

VARIABLE = "OPENRLHF_QS_SETTINGS"


@dataclass(frozen=True)
class Settings:
    """One run's choice of plugins and devices; without it no process is touched.

    Attributes:
        device: ``cpu`` also brings the patches that a host without a GPU needs.
        sft_dataset: the assembly that makes responses from candidates, empty for OpenRLHF's own dataset.
        reward_model: the head that ``garm`` trains, empty for what the checkpoint says.
        on_error: what happens to bad pairs in ``garm``; ``skip`` counts them.
        rewards: the parts of the composite reward, in order; empty for OpenRLHF's own scalar reward.
        weights: file of the fusion stage, empty for weight 1 on raw parts.
        normalisation: of the parts, one of ``NORMALISATIONS``; empty for that of the weights.
        on_failure: what a part that fails leads to, one of :data:`openrlhf_qs.reward.composite.ON_FAILURE`.
        gate_floor: the total reward of a response that a gate stops.
        plugin_files: absolute paths of Python files that register plugins.
        options: plugin name to its options.
        monitor: what an alarm of GRPO's monitors leads to; ``off`` for no monitors.
        monitor_thresholds: monitor to its threshold, where that is not the default.
        monitor_window: steps at the beginning and at the end that the monitors compare.
        monitor_judge: the judge whose clicks are written beside the monitors' statistics, empty for none.
    """

    device: Literal["cpu", "cuda"] = "cuda"
    sft_dataset: str = ""
    reward_model: str = ""
    on_error: Literal["raise", "skip"] = "raise"
    rewards: tuple[str, ...] = ()
    weights: str = ""
    normalisation: str = ""
    on_failure: str = "raise"
    gate_floor: float = -3.0
    plugin_files: tuple[str, ...] = ()
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    monitor: Literal["warn", "stop", "off"] = "off"
    monitor_thresholds: dict[str, float] = field(default_factory=dict)
    monitor_window: int = 5
    monitor_judge: str = ""

    def to_environment(self) -> dict[str, str]:
        """The variable to set for a child process."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Settings | None:
        """The settings of this process' run, None where it belongs to none."""
        text = os.environ.get(VARIABLE)
        if not text:
            return None
        fields = json.loads(text)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
