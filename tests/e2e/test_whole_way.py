"""The whole way through the real OpenRLHF, small: a tiny simulated log, then what a user does next."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from openrlhf_qs.files.record import durations, read_record
from openrlhf_qs.files.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")
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
    "N_SELECTION": "20",
    "TEMPERATURES": "1 .5",
    "BEST_OF": "2",
}


def recipe(name: str, run: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A recipe as a user runs it, in this environment."""
    environment = os.environ | SMALL | {"RUN": str(run), "VIRTUAL_ENV": sys.prefix} | variables
    return subprocess.run(
        ["bash", str(ROOT / "recipes" / name), *flags], env=environment, capture_output=True, text=True, cwd=ROOT
    )


class Listening(threading.Thread):
    """What the processes of a run have, looked at every second, beside those of other tests: ``found``, by stage, the
    programs and addresses that listen; ``processes``, their numbers; ``memory``, the files of shared memory."""

    def __init__(self, run: Path) -> None:
        super().__init__(daemon=True)
        self.run_folder, self.ended = run, threading.Event()
        self.found: dict[str, set[tuple[str, str]]] = {}
        self.processes: set[int] = set()
        self.memory: set[Path] = set()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self.ended.wait(1.0):
                with contextlib.suppress(psutil.Error, OSError):  # of a process that ended meanwhile
                    self.look()
        except Exception as error:  # which would else end the thread, and nothing more were found
            self.error = error

    def look(self) -> None:
        begun = [name for name, one in read_record(RunFolder(self.run_folder)).items() if one["state"] == "begun"]
        ours = {process.pid: name_of(process) for process in psutil.Process().children(recursive=True)}
        self.processes |= ours.keys()
        self.memory |= {path for process in ours for path in shared_memory(process)}
        for one in psutil.net_connections("inet") if begun else ():
            if one.status == psutil.CONN_LISTEN and one.pid in ours:
                self.found.setdefault(begun[0], set()).add((ours[one.pid], one.laddr.ip.removeprefix("::ffff:")))

    def memory_left(self) -> set[Path]:
        """Files in shared memory that outlived the run."""
        return {path for path in self.memory if path.exists()}


def shared_memory(process: int) -> set[Path]:
    """The files of shared memory that a process has open."""
    try:
        maps = Path(f"/proc/{process}/maps").read_text()
    except OSError:  # it ended meanwhile
        return set()
    return {SHARED_MEMORY / name for name in re.findall(r"/(psm_\w+)", maps)}  # wherever it is mounted


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:  # it ended meanwhile
        return ""


@pytest.fixture(scope="module")
def run_and_sockets(tmp_path_factory) -> tuple[Path, Listening]:
    """A run of all six stages, and what listened meanwhile."""
    run = tmp_path_factory.mktemp("runs") / "small"
    listening = Listening(run)
    listening.start()
    result = recipe("grpo_garm.sh", run)
    listening.ended.set()
    listening.join()
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return run, listening


@pytest.fixture(scope="module")
def finished_run(run_and_sockets) -> Path:
    """A run of all six stages."""
    return run_and_sockets[0]


def finished(run: Path) -> set[str]:
    """The stages of the run that are done."""
    return set(durations(RunFolder(run)))


def before_grpo(finished_run: Path, run: Path) -> Path:
    """``run``, a copy of the finished run without its GRPO."""
    shutil.copytree(finished_run, run, symlinks=True)
    shutil.rmtree(run / "grpo")
    return run


def grpo_steps(run: Path, name: str = "log.txt") -> dict[int, dict[str, float]]:
    """What OpenRLHF logged for each GRPO step."""
    log = (run / "grpo" / name).read_text(errors="replace")
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


def test_what_a_run_listens_on_nobody_else_reaches(run_and_sockets):
    _, listening = run_and_sockets
    assert {"sft", "garm", "grpo"} <= listening.found.keys(), "they have stores, or nothing was looked at"
    assert "gcs_server" in {program for program, _ in listening.found["grpo"]}
    for stage, sockets in listening.found.items():
        assert {address for _, address in sockets} <= {"127.0.0.1", "::1"}, (stage, sockets)


def test_what_a_run_leaves_is_in_its_folder(run_and_sockets):
    run, listening = run_and_sockets
    assert not listening.error and not listening.memory_left()
    assert not [path for path in run.rglob(".datasets")] and not [path for path in run.rglob("*.writing")]
    assert len(listening.processes) > 20  # and what these had open was looked at, at every second
    assert not [path for path in Path("/tmp").glob("qs-ray-*") if int(path.name.split("-")[2]) in listening.processes]
    log = (run / "grpo" / "log.txt").read_text(errors="replace")
    assert "Global step 1" in log and "Sample: " not in log


def test_every_part_of_the_reward_is_logged_under_its_name(finished_run):
    steps = grpo_steps(finished_run)
    assert sorted(steps) == [1, 2, 3, 4]
    for values in steps.values():
        assert {f"reward/{name}" for name in ("garm", "ood", "rules", "relevance", "diversity")} <= set(values)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    event_file = next((finished_run / "grpo" / "tensorboard").rglob("events*"))
    tags = EventAccumulator(str(event_file)).Reload().Tags()["scalars"]
    assert {"train/reward/garm", "train/reward/ood", "train/malformed", "train/rollout/reward_mean"} <= set(tags)


def test_what_the_policy_wrote_while_it_was_trained_is_kept_with_its_reward(finished_run):
    rows = [json.loads(line) for line in (finished_run / "grpo" / "samples.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["same"] * 8 + ["highest"] * 2 + ["lowest"] * 2
    for row in rows:
        assert row["step"] == 1 and set(row["parts"]) == {"garm", "ood", "rules", "relevance", "diversity"}
        assert len(row["garm"]) == len(row["suggestions"])
    assert sum(rows[8]["weighted"].values()) > sum(rows[10]["weighted"].values())


def test_a_second_call_skips_every_stage(finished_run):
    started = time.monotonic()
    result = recipe("grpo_garm.sh", finished_run)
    assert result.returncode == 0
    assert result.stdout.count("already done") == 6
    assert time.monotonic() - started < 60  # another file of tests runs beside


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def run_beside_another_ray(finished_run, tmp_path_factory) -> tuple[Path, bool]:
    """Asynchronous GRPO with two engines beside a Ray that somebody started; and whether that one is still there."""
    folder = tempfile.mkdtemp(prefix="qs-", dir="/tmp")  # a path to a socket has room for 107 letters
    ports = ["--port", free_port(), "--ray-client-server-port", free_port(), "--node-ip-address", "127.0.0.1"]
    other = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "1", *ports],
        env=os.environ | {"RAY_TMPDIR": folder},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(Path(folder).rglob("ray_current_cluster")):  # which ray.init joins, where it is not told
            assert other.poll() is None and time.monotonic() < deadline, "ray start did not start"
            time.sleep(0.2)
        run = before_grpo(finished_run, tmp_path_factory.mktemp("beside") / "run")
        flags = ["--train.async_enable", "--train.partial_rollout_enable", "--vllm.num_engines", "2"]
        result = recipe("grpo.sh", run, *flags, RAY_TMPDIR=folder, CUDA_VISIBLE_DEVICES="")
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return run, other.poll() is None
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_grpo_goes_on_beside_a_ray_that_somebody_started(run_beside_another_ray):
    run, other_is_there = run_beside_another_ray
    assert sorted(grpo_steps(run)) == [1, 2, 3, 4] and other_is_there


def test_the_asynchronous_trainer_with_two_engines_has_the_rewards_in_every_step(run_beside_another_ray):
    run, _ = run_beside_another_ray
    assert "PPOTrainerAsync" in (run / "grpo" / "log.txt").read_text(errors="replace"), "it was not asynchronous"
    steps = grpo_steps(run)
    assert sorted(steps) == [1, 2, 3, 4]
    assert all({"reward/garm", "share/garm", "reward/ood", "gate_closed"} <= set(values) for values in steps.values())
    statistics = (run / "grpo" / "statistics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in statistics] == [1, 2, 3, 4]
    assert (run / "grpo" / "config.json").is_file()


@pytest.fixture(scope="module")
def stopped_run(finished_run, tmp_path_factory) -> Path:
    """GRPO that a monitor stops and that goes on: at a rate at which every step moves the policy far, with OpenRLHF's
    own measure of vLLM against the trainer, and with a reward from a file of the user's."""
    folder = tmp_path_factory.mktemp("stopped")
    run = before_grpo(finished_run, folder / "run")
    plugin = folder / "brevity.py"
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
    flags += ["--rollout.max_new_tokens", "64"]  # so that few responses are cut, and their mean length changes
    variables = {"PLUGIN": str(plugin), "STEPS": "5", "GRPO_SAVE_STEPS": "1"}
    # Every change of the mean length is an alarm and nothing else is, so the second step stops the run.
    thresholds = ["length=1e-9", "malformed=1", "hacking=1", "diversity=9", "log_ppl=99"]
    monitor = ["--qs.monitor_window", "1", *(word for one in thresholds for word in ("--qs.monitor_threshold", one))]
    stopped = recipe("grpo.sh", run, *flags, *monitor, MONITOR="stop", **variables)
    assert stopped.returncode != 0 and "grpo" not in finished(run)
    good = run / "ckpt" / "grpo" / "last_good"
    assert f"the last good checkpoint is {good}" in re.sub(r"\s+", " ", stopped.stdout + stopped.stderr)
    for name in ("log.txt", "alarms.jsonl"):  # a resumed run forgets what came after its checkpoint
        shutil.copy(run / "grpo" / name, run / "grpo" / f"stopped.{name}")
    (run / "grpo" / "log.txt").unlink()
    assert (good / "_actor" / "latest").read_text() == f"global_step{stopped_by(run)['step'] - 1}"

    # At this rate every response is malformed soon: without its thresholds the monitor would stop it again.
    resumed = recipe("grpo.sh", run, *flags, "--ckpt.path", str(good), MONITOR="warn", **variables)
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
    return run


def stopped_by(run: Path) -> dict:
    """The one alarm of the run before it went on."""
    (alarm,) = [json.loads(line) for line in (run / "grpo" / "stopped.alarms.jsonl").read_text().splitlines()]
    return alarm


def test_a_monitor_stops_the_run_and_it_goes_on_from_the_last_good_checkpoint(stopped_run):
    alarm = stopped_by(stopped_run)
    assert alarm["monitor"] == "length" and alarm["step"] >= 2
    assert sorted(grpo_steps(stopped_run, "stopped.log.txt")) == list(range(1, alarm["step"]))
    assert sorted(grpo_steps(stopped_run)) == list(range(alarm["step"], 6))


def test_the_rollout_policy_is_the_trained_policy_after_every_weight_sync(stopped_run):
    steps = grpo_steps(stopped_run, "stopped.log.txt") | grpo_steps(stopped_run)
    # Before its head was packed again, vLLM's log-probs drifted by 0.4 nats in eight such steps.
    assert len(steps) == 5 and all(abs(values["vllm_kl"]) < 5e-3 for values in steps.values()), steps
    assert steps[4]["reward/ood"] < 0 and steps[4]["reward/brevity"] < 0, "under use_loss too, ood reads the reference"
