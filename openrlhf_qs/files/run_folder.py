"""The run folder: the names of all files and folders under ``$RUN``, defined in one place.

Needs only the standard library, like everything the recipes call before the environment is set up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# The stages of recipes/grpo_garm.sh and of recipes/rgalign.sh, in order. Neither reads what the other writes.
WAYS = (
    ("data", "distil", "sft", "garm", "fusion", "rft", "grpo", "evaluate"),
    ("intents", "rank", "reason", "align", "foresee"),
)
# Stage to its folder, which has the same name, except for the last one.
STAGE_FOLDERS = {stage: stage for way in WAYS for stage in way} | {"evaluate": "report"}


class DataFolder:
    """What the stage ``data`` writes into one folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.click_log = self.path / "clicks.jsonl"  # from the simulated users, if they wrote one
        self.sft = self.path / "sft.jsonl"
        self.preferences = self.path / "preferences.jsonl"
        self.preferences_calibration = self.path / "preferences.calibration.jsonl"
        self.preferences_heldout = self.path / "preferences.heldout.jsonl"
        self.prompts = self.path / "prompts.jsonl"
        self.fusion = self.path / "fusion.jsonl"
        self.heldout = self.path / "heldout.jsonl"
        self.log = self.path / "log.json"  # what was read, left out and written; the last file of the stage
        self.lengths = self.path / "lengths.json"  # what was cut to fit the policy
        self.max_new_tokens = self.path / "max_new_tokens"  # per response, determined from the log
        self.small_policy = self.path / "policy"


@dataclass(frozen=True)
class GrpoFolder:
    """What GRPO writes next to its policy. ``path`` is also the policy's folder."""

    path: Path

    @property
    def statistics(self) -> Path:
        return self.path / "statistics.jsonl"

    @property
    def alarms(self) -> Path:
        return self.path / "alarms.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"


class RunFolder:
    """Everything that a run of the recipes writes, by name."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record = self.path / "run.json"  # what each stage was made from, see openrlhf_qs.files.record
        self.variables = self.path / "variables.env"  # what the stages used, for CONFIG=
        self.data = DataFolder(self.stage("data"))
        self.teacher = self.stage("distil") / "teacher"
        self.candidates = self.stage("distil") / "candidates.jsonl"
        self.sft = self.stage("sft")  # the SFT policy's folder
        self.garm = self.stage("garm")  # the reward model's folder
        self.weights = self.stage("fusion") / "weights.json"
        self.fusion_responses = self.stage("fusion") / "responses.jsonl"
        self.grpo = GrpoFolder(self.stage("grpo"))
        self.metrics = self.stage("evaluate") / "metrics.json"
        self.report = self.stage("evaluate") / "report.html"

    def stage(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.path / STAGE_FOLDERS[stage]

    def log(self, stage: str) -> Path:
        """The output of a stage's processes."""
        return self.stage(stage) / "log.txt"

    def checkpoints(self, stage: str) -> Path:
        """What an interrupted training resumes from: optimiser and state, separate from the model."""
        return self.path / "ckpt" / STAGE_FOLDERS[stage]

    def tensorboard(self, stage: str) -> Path:
        """The event files of a training stage."""
        return self.stage(stage) / "tensorboard"

    def responses(self, policy: str) -> Path:
        """The responses of a policy (``sft``, ``grpo``) to the held-out conversations."""
        return self.stage("evaluate") / f"responses.{policy}.jsonl"

    def selection(self, policy: str) -> Path:
        """The responses of a policy to conversations of the fusion split, from which its temperature is chosen."""
        return self.stage("evaluate") / f"selection.{policy}.jsonl"

    def all_responses(self) -> dict[str, Path]:
        """The existing files of :meth:`responses`, by policy."""
        files = sorted(self.stage("evaluate").glob("responses.*.jsonl"))
        return {file.name.removeprefix("responses.").removesuffix(".jsonl"): file for file in files}
