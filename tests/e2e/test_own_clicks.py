"""A user's own click log and a reward from a package of hers, through all stages, killed on the way.

The log is Parquet and says nothing of who simulated it; nobody judges, so the held-out clicks speak. The tests stand
in the order of the stages, and each needs the one before it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from openrlhf_qs.files.record import durations
from openrlhf_qs.files.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
SMALL = {
    "SFT_EPOCHS": "3",
    "GARM_EPOCHS": "3",
    "SFT_BATCH": "16",
    "GARM_BATCH": "16",
    "STEPS": "8",
    "PROMPTS": "4",
    "N_SAMPLES": "4",
    "GRPO_MICRO_BATCH": "16",
    "TRAIN_BATCH": "16",
    **{f"{stage}_SAVE_STEPS": "2" for stage in ("SFT", "GARM", "GRPO")},
    "N_RFT": "80",
    "RFT_BATCH": "4",
    "RFT_EPOCHS": "1",
    "N_HELDOUT": "40",
    "N_SELECTION": "20",
    "TEMPERATURES": "1",
    "BEST_OF": "1",
}
PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "brevity"
version = "1.0"
[project.entry-points."openrlhf_qs.plugins"]
brevity = "brevity"
[tool.setuptools]
py-modules = ["brevity"]
""",
    "brevity.py": '''
import torch
from openrlhf_qs.registry import REWARDS

@REWARDS.register("brevity")
class Brevity:
    """Take reward away for long responses: ``-coef * words``."""

    def __init__(self, coef: float = 0.01) -> None:
        self.coef = coef

    def __call__(self, batch):
        return -self.coef * torch.tensor([float(len(response.split())) for response in batch.responses])
''',
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """A folder of packages on the path with ``brevity`` installed in it, a log in Parquet, and the variables."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in PACKAGE.items():
        (folder / "package").mkdir(exist_ok=True)
        (folder / "package" / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(folder / "package")], check=True)
    world = ["world", "--out", str(folder / "log.jsonl"), "--n_impressions", "1200", "--n_contexts", "300"]
    subprocess.run([sys.executable, "-m", "openrlhf_qs.cli", *world], check=True)
    columns = ["impression_id", "timestamp", "conversation", "suggestions", "clicks"]
    pl.read_ndjson(folder / "log.jsonl").select(columns).write_parquet(folder / "clicks.parquet")
    return (
        os.environ
        | SMALL
        | {
            "RUN": str(folder / "run"),
            "VIRTUAL_ENV": sys.prefix,
            "PYTHONPATH": str(folder / "site"),
            "CLICK_LOG": str(folder / "clicks.parquet"),
            "JUDGE": "none",
            "REWARD": "garm,ood,brevity",
            "OPTION": "brevity.coef=0.02",
        }
    )


def recipe(name: str, environment: dict[str, str]) -> str:
    """What the recipe prints; it must end well."""
    command = ["bash", str(ROOT / "recipes" / f"{name}.sh")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def kill_when(arrived: Callable[[], bool], name: str, environment: dict[str, str]) -> None:
    """Start the recipe, and kill everything it started as soon as ``arrived``."""
    process = subprocess.Popen(
        ["bash", str(ROOT / "recipes" / f"{name}.sh")],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 300
    while not arrived():
        assert process.poll() is None and time.monotonic() < deadline, f"{name} ended before it could be killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert name not in durations(RunFolder(environment["RUN"]))


def test_killed_in_data_it_begins_again_and_leaves_no_half_file(environment):
    data = Path(environment["RUN"]) / "data"
    kill_when(lambda: any(data.glob("*")), "data", environment)
    recipe("data", environment)
    for name in ("sft.jsonl", "preferences.jsonl", "prompts.jsonl", "fusion.jsonl", "heldout.jsonl"):
        assert all(json.loads(line) for line in (data / name).read_text().splitlines())


@pytest.mark.parametrize("stage", ["sft", "garm"])
def test_killed_in_training_it_goes_on_from_the_last_checkpoint(stage, environment):
    folder = Path(environment["RUN"]) / stage
    latest = folder.parent / "ckpt" / stage / "latest"
    kill_when(latest.is_file, stage, environment)
    saved = int(latest.read_text().removeprefix("global_step"))
    recipe(stage, environment)
    log = (folder / "log.txt").read_text(errors="replace")
    assert f"consumed_samples: {saved * int(environment['SFT_BATCH'])}" in log
    assert (folder / "model.safetensors").is_file()


def test_the_weights_are_those_of_the_rewards_asked_for(environment):
    recipe("fusion", environment)
    weights = json.loads((Path(environment["RUN"]) / "fusion" / "weights.json").read_text())["rewards"]
    assert set(weights) == {"garm", "ood", "brevity"}


def test_the_policy_is_taught_the_best_of_its_own_samples(environment):
    recipe("rft", environment)
    folder = Path(environment["RUN"]) / "rft"
    rows = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    assert len(rows) == 80 and all("garm_mean" in one for row in rows for one in row["candidates"])
    assert (folder / "model.safetensors").is_file()


def test_killed_in_grpo_it_goes_on_from_the_last_checkpoint_with_the_reward_of_the_installed_package(environment):
    folder = Path(environment["RUN"]) / "grpo"
    latest = folder.parent / "ckpt" / "grpo" / "_actor" / "latest"
    kill_when(latest.is_file, "grpo", environment)
    saved = int(latest.read_text().removeprefix("global_step"))
    before = (folder / "log.txt").read_text(errors="replace")
    kl = float(re.search(r"Global step 1: .*'kl': ([-\d.e]+)", before)[1])
    assert kl > 0.01, "the reference is the SFT policy, and what is trained begins with the one after RFT"
    (folder / "log.txt").unlink()
    recipe("grpo", environment)
    log = (folder / "log.txt").read_text(errors="replace")
    lines = [line for line in log.splitlines() if "Global step" in line]
    steps = [int(re.search(r"Global step (\d+)", line)[1]) for line in lines]
    assert saved <= steps[0] <= saved + 1 and steps[-1] == 8, "it goes on where the checkpoint is"
    assert all("'reward/brevity': -" in line for line in lines)
    assert (folder / "config.json").is_file()


def test_without_a_judge_the_held_out_clicks_speak(environment):
    recipe("evaluate", environment)
    metrics = json.loads((Path(environment["RUN"]) / "report" / "metrics.json").read_text())
    assert metrics["garm"]["n_pairs"] > 0 and 0 <= metrics["garm"]["ece"] <= 1
    for policy in ("sft", "rft", "grpo"):
        assert 0 <= metrics["quality"][policy]["malformed"] <= 1
    assert (Path(environment["RUN"]) / "report" / "report.html").is_file()
