"""What one run was asked to do, carried from the driver to every process of it in one environment variable.

Each stage has a dataclass. Its fields are our flags of that stage: ``reward_model`` is ``--qs.reward_model``, with the
default and the words that stand here.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from openrlhf_qs.form.response import N_SUGGESTIONS

VARIABLE = "OPENRLHF_QS_SETTINGS"


def flag(default: Any, help: str, **how: Any) -> Any:
    """A field that is a flag, too; ``how`` goes to ``add_argument``."""
    return field(default=default, metadata={"help": help, "type": type(default), **how})


def words(text: str) -> tuple[str, ...]:
    """What stands between the commas."""
    return tuple(filter(None, text.split(",")))


def absolute(text: str) -> str:
    """The path from the root, for Ray's workers run in another folder; empty where it is empty."""
    return str(Path(text).resolve()) if text else ""


@dataclass(frozen=True)
class SFTSettings:
    """The stage ``sft``; what the policy is asked for goes into ``task.json`` beside it, for the later stages."""

    n_suggestions: int = flag(N_SUGGESTIONS, "suggestions per response, 1 to 8")
    prompt_template: str = flag(
        "", "text file with the instruction, in any language; $n in it stands for the number", type=absolute
    )
    sft_dataset: str = flag("diverse", "assembly of responses from candidates; empty: OpenRLHF's own dataset")


@dataclass(frozen=True)
class GarmSettings:
    """The stage ``garm``."""

    reward_model: str = flag("click_gaussian", "reward model head")
    objective: str = flag("", "what the reward model learns from an impression; empty: its own objective")
    dropout: float = flag(
        0.0, "share of each embedding and of the head's input that is dropped at a training step, below 1"
    )
    exact_match_enable: bool = flag(
        False,
        "tell each token in which turns it appeared before, which a small backbone cannot look up by itself; no "
        "packing",
    )


@dataclass(frozen=True)
class DPOSettings:
    """The stage ``dpo``, of which all flags are OpenRLHF's."""


@dataclass(frozen=True)
class GRPOSettings:
    """The stage ``grpo``."""

    reward: tuple[str, ...] = flag(
        ("garm", "ood", "rules", "relevance", "diversity"),
        "parts of the reward, separated by commas; empty: OpenRLHF's own scalar reward",
        type=words,
        metavar="NAMES",
    )
    reference: str = flag(
        "",
        "reference policy for the KL penalty and `ood`; empty: the initial actor, as in OpenRLHF",
        type=absolute,
    )
    weights: str = flag("", "weights file of the fusion stage; empty: weight 1, raw parts", type=absolute)
    normalisation: str = flag(
        "",
        "how parts are made comparable: by the SFT policy's statistics, within the group, or by running statistics; "
        "empty: the one that the weights were learned for",
        choices=["sft", "group", "running"],
    )
    on_failure: str = flag(
        "raise",
        "if a part of the reward raises or is nan: stop and say where, or give its group no advantage and count it",
        choices=["raise", "skip_group"],
    )
    credit: str = flag(
        "response",
        "the reward that each token gets: its response's or its suggestion's",
        choices=["response", "suggestion"],
    )
    gate_floor: float = flag(-3.0, "total reward of a response that a gate stops, unless its group's lowest is lower")
    monitor: str = flag(
        "warn",
        "on signs of reward hacking: warn, or stop and keep the last good checkpoint",
        choices=["warn", "stop", "off"],
    )
    monitor_threshold: tuple[str, ...] = flag(
        (),
        "when a monitor warns, as in sigma=0.5; may be repeated; docs/MONITORS.md has the defaults",
        type=str,
        action="append",
        metavar="NAME=NUMBER",
    )
    monitor_window: int = flag(5, "steps at the beginning and at the end that the monitors compare")
    samples_every: int = flag(
        10, "steps between samples of what the policy writes, kept in samples.jsonl beside it; 0: none"
    )
    monitor_judge: str = flag(
        "", "judge whose clicks on every rollout are written to statistics.jsonl as `gold`", metavar="NAME"
    )


StageSettings = SFTSettings | GarmSettings | DPOSettings | GRPOSettings
STAGES: dict[str, type[StageSettings]] = {
    "sft": SFTSettings,
    "garm": GarmSettings,
    "dpo": DPOSettings,
    "grpo": GRPOSettings,
}


def add_stage_arguments(parser: argparse.ArgumentParser, stage: str) -> None:
    """The flags of a stage, a field of its dataclass each."""
    for one in fields(STAGES[stage]):
        how = dict(one.metadata)
        default = ",".join(one.default) if isinstance(one.default, tuple) else one.default
        if one.name == "reward":
            how["help"] += f"; there are {', '.join(_rewards())}"
        how["help"] += f"; default: {default if default != '' else 'none'}"
        if "choices" not in how:
            how.setdefault("metavar", {int: "N", float: "X"}.get(how["type"], one.name.upper()))
        if isinstance(one.default, bool):
            parser.add_argument(f"--qs.{one.name}", action="store_true", help=one.metadata["help"])
        elif how.get("action") == "append":
            parser.add_argument(f"--qs.{one.name}", default=[], **how)
        else:
            parser.add_argument(f"--qs.{one.name}", default=one.default, **how)


def _rewards() -> list[str]:
    """The parts that are installed."""
    from openrlhf_qs.registry import REWARDS, load_plugins

    load_plugins()
    return list(REWARDS)


def stage_settings(stage: str, flags: Mapping[str, Any]) -> StageSettings:
    """What the flags say, as the parser gave them, by ``qs.`` and the field's name."""
    return _from_lists(STAGES[stage], {one.name: flags[f"qs.{one.name}"] for one in fields(STAGES[stage])})


@dataclass(frozen=True)
class Settings:
    """One run's choice of plugins and devices; without it no process is touched.

    Attributes:
        device: ``cpu`` also brings the patches that a host without a GPU needs.
        stage: what the stage was asked for; None for the patches of the device alone.
        plugin_files: absolute paths of Python files that register plugins.
        options: plugin name to its options.
        trust_remote_code: code in a model's folder may run.
    """

    device: Literal["cpu", "cuda"] = "cuda"
    stage: StageSettings | None = None
    plugin_files: tuple[str, ...] = ()
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    trust_remote_code: bool = False

    def options_of(self, plugin: str) -> dict[str, str]:
        return self.options.get(plugin, {})

    def to_environment(self) -> dict[str, str]:
        """The variable to set for a child process."""
        stage = next((name for name, kind in STAGES.items() if isinstance(self.stage, kind)), None)
        return {VARIABLE: json.dumps(asdict(self) | {"stage": stage and {"name": stage, **asdict(self.stage)}})}

    @classmethod
    def from_environment(cls) -> Settings | None:
        """The settings of this process' run, None where it belongs to none."""
        text = os.environ.get(VARIABLE)
        if not text:
            return None
        found = json.loads(text)
        if found["stage"] is not None:
            found["stage"] = _from_lists(STAGES[found["stage"].pop("name")], found["stage"])
        return _from_lists(cls, found)


def _from_lists(kind: type, values: Mapping[str, Any | Sequence[Any]]) -> Any:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
