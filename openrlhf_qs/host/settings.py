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
        plugin_files: absolute paths of Python files that register plugins.
        options: plugin name to its options.
    """

    device: Literal["cpu", "cuda"] = "cuda"
    sft_dataset: str = ""
    reward_model: str = ""
    on_error: Literal["raise", "skip"] = "raise"
    rewards: tuple[str, ...] = ()
    weights: str = ""
    plugin_files: tuple[str, ...] = ()
    options: dict[str, dict[str, str]] = field(default_factory=dict)

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
