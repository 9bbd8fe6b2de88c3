"""The whole way through the real OpenRLHF, small: a tiny simulated log, then what a user does next."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openrlhf_qs.files.record import durations
from openrlhf_qs.files.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
SMALL = {
    "N_IMPRESSIONS": "1200",
    "N_CONTEXTS": "300",
    "SFT_EPOCHS": "1",
    "GARM_EPOCHS": "1",
    "RFT": "0",  # what it needs is a policy that writes suggestions; see test_own_clicks.py
    "STEPS": "4",
    "PROMPTS": "4",
    "N_SAMPLES": "4",
    "GRPO_MICRO_BATCH": "16",
    "TRAIN_BATCH": "16",
    **{f"{stage}_SAVE_STEPS": "2" for stage in ("SFT", "GARM", "GRPO")},
    "MAX_NEW_TOKENS": "32",
    "N_HELDOUT": "50",
}


def recipe(name: str, run: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A recipe as a user runs it, in this environment."""
    environment = os.environ | SMALL | {"RUN": str(run), "VIRTUAL_ENV": sys.prefix} | variables
    return subprocess.run(
        ["bash", str(ROOT / "recipes" / name), *flags], env=environment, capture_output=True, text=True, cwd=ROOT
    )


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """A run of all six stages."""
    run = tmp_path_factory.mktemp("runs") / "small"
    result = recipe("grpo_garm.sh", run)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return run


def finished(run: Path) -> set[str]:
    """The stages of the run that are done."""
    return set(durations(RunFolder(run)))


def before_grpo(finished_run: Path, run: Path) -> Path:
    """``run``, a copy of the finished run without its GRPO."""
    shutil.copytree(finished_run, run, symlinks=True)
    shutil.rmtree(run / "grpo")
    return run


def grpo_steps(run: Path) -> dict[int, dict[str, float]]:
    """What OpenRLHF logged for each GRPO step."""
    log = (run / "grpo" / "log.txt").read_text(errors="replace")
    return {
        int(step): {key: float(value) for key, value in re.findall(r"'([\w/]+)': ([-\d.e]+)", values)}
        for step, values in re.findall(r"Global step (\d+): \{(.*)\}", log)
    }


def test_the_six_stages_end_with_the_table_and_the_report(finished_run):
    metrics = json.loads((finished_run / "report" / "metrics.json").read_text())
    for arm in ("cold_start", "sft", "grpo"):
        measured = metrics["ab"][arm]
        assert measured["n_users"] >= 20_000
        low, high = measured["ci95"]
        assert 0 <= low <= measured["ctr"] <= high <= 1
    assert set(metrics["lift"]) >= {"sft_over_cold_start", "grpo_over_sft", "grpo_over_cold_start"}
    report = (finished_run / "report" / "report.html").read_text()
    assert "<html" in report and "cold_start" in report


def test_every_part_of_the_reward_is_logged_under_its_name(finished_run):
    steps = grpo_steps(finished_run)
    assert sorted(steps) == [1, 2, 3, 4]
    for values in steps.values():
        assert {f"reward/{name}" for name in ("garm", "ood", "rules", "relevance", "diversity")} <= set(values)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    event_file = next((finished_run / "grpo" / "tensorboard").rglob("events*"))
    tags = EventAccumulator(str(event_file)).Reload().Tags()["scalars"]
    assert {"train/reward/garm", "train/reward/ood", "train/malformed", "train/rollout/reward_mean"} <= set(tags)


def test_a_second_call_skips_every_stage(finished_run):
    started = time.monotonic()
    result = recipe("grpo_garm.sh", finished_run)
    assert result.returncode == 0
    assert result.stdout.count("done before") == 6
    assert time.monotonic() - started < 20


def test_killed_in_grpo_it_goes_on_from_the_last_checkpoint(finished_run, tmp_path):
    run = before_grpo(finished_run, tmp_path / "killed")
    environment = os.environ | SMALL | {"RUN": str(run), "VIRTUAL_ENV": sys.prefix, "STEPS": "16"}
    # A session of its own, so that everything the recipe started can be killed at once.
    process = subprocess.Popen(
        ["bash", str(ROOT / "recipes" / "grpo.sh")],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    latest = run / "grpo" / "ckpt" / "_actor" / "latest"
    deadline = time.monotonic() + 300
    while not latest.is_file():
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "grpo" not in finished(run)
    saved = int(latest.read_text().removeprefix("global_step"))
    (run / "grpo" / "log.txt").rename(run / "grpo" / "log.before.txt")

    result = recipe("grpo.sh", run, STEPS="16")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    steps = sorted(grpo_steps(run))
    assert saved <= steps[0] <= saved + 1 and steps[-1] == 16, "it goes on where the checkpoint is"
    assert (run / "grpo" / "config.json").is_file()


def test_a_monitor_stops_the_run_and_it_goes_on_from_the_last_good_checkpoint(finished_run, tmp_path):
    run = before_grpo(finished_run, tmp_path / "stopped")
    # Every change of the mean length is an alarm and nothing else is, so the second step stops the run.
    thresholds = ["length=1e-9", "malformed=1", "hacking=1", "diversity=9", "log_ppl=99", "sigma=99"]
    flags = ["--qs.monitor_window", "1", *(word for one in thresholds for word in ("--qs.monitor_threshold", one))]
    result = recipe("grpo.sh", run, *flags, MONITOR="stop", GRPO_SAVE_STEPS="1")
    assert result.returncode != 0 and "grpo" not in finished(run)
    (alarm,) = [json.loads(line) for line in (run / "grpo" / "alarms.jsonl").read_text().splitlines()]
    good = run / "grpo" / "ckpt" / "last_good"
    assert alarm["monitor"] == "length" and alarm["step"] >= 2
    assert f"the last good checkpoint is {good}" in re.sub(r"\s+", " ", result.stdout + result.stderr)
    assert (good / "_actor" / "latest").read_text() == f"global_step{alarm['step'] - 1}"
    (run / "grpo" / "log.txt").unlink()

    result = recipe("grpo.sh", run, "--ckpt.path", str(good))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert sorted(grpo_steps(run)) == list(range(alarm["step"], 5))


def test_the_asynchronous_trainer_with_two_engines_has_the_rewards_in_every_step(finished_run, tmp_path):
    run = before_grpo(finished_run, tmp_path / "asynchronous")
    flags = ["--train.async_enable", "--train.partial_rollout_enable", "--vllm.num_engines", "2"]
    result = recipe("grpo.sh", run, *flags)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "PPOTrainerAsync" in (run / "grpo" / "log.txt").read_text(errors="replace"), "it was not asynchronous"
    steps = grpo_steps(run)
    assert sorted(steps) == [1, 2, 3, 4]
    assert all({"reward/garm", "share/garm", "reward/ood", "gate_closed"} <= set(values) for values in steps.values())
    statistics = (run / "grpo" / "statistics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in statistics] == [1, 2, 3, 4]
    assert (run / "grpo" / "config.json").is_file()


def test_the_rollout_policy_is_the_trained_policy_after_every_weight_sync(finished_run, tmp_path):
    run = before_grpo(finished_run, tmp_path / "sync")
    # A rate at which every step moves the policy far, and OpenRLHF's own measure of vLLM against the trainer. One of
    # the rewards comes from a file of the user's.
    plugin = tmp_path / "brevity.py"
    plugin.write_text(
        "import torch\n"
        "from openrlhf_qs.registry import REWARDS\n"
        '@REWARDS.register("brevity")\n'
        "class Brevity:\n"
        '    """Fewer words are better."""\n'
        "    def __call__(self, batch):\n"
        "        return -torch.tensor([float(len(r.split())) for r in batch.responses])\n"
    )
    flags = ["--actor.adam.lr", "1e-2", "--algo.advantage.is_correction_level", "token", "--algo.kl.use_loss"]
    flags += ["--algo.kl.estimator", "k2", "--qs.reward", "ood,brevity", "--qs.weights", ""]
    result = recipe("grpo.sh", run, *flags, PLUGIN=str(plugin))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    steps = grpo_steps(run)
    # Before its head was packed again, vLLM's log-probs drifted by 0.4 nats in eight such steps.
    assert all(abs(values["vllm_kl"]) < 5e-3 for values in steps.values()), steps
    assert steps[4]["reward/ood"] < 0 and steps[4]["reward/brevity"] < 0, "under use_loss too, ood reads the reference"
