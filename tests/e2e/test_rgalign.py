"""recipes/rgalign.sh through the real OpenRLHF and vLLM, small: every stage, a second call, and another's log."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from openrlhf_qs.files.record import durations
from openrlhf_qs.files.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
SMALL = {"N_VISITS": "3000", "N_ASKED": "200", "ROUNDS": "1", "REASON_EPOCHS": "3"}
SMALL |= {"ALIGN_SAMPLES": "3", "QUERY_SAMPLES": "3"}
SMALL |= {"ALIGN": "sft dpo", "ALIGN_BATCH": "8"}  # a preference optimiser wants a batch of pairs at least
STAGES = ["intents", "rank", "reason", "align", "foresee"]


def recipe(run: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", ROOT / "recipes" / "rgalign.sh", *words],
        env=os.environ | {"RUN": str(run)} | variables,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rgalign")
    done = recipe(folder, **SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_stage_is_done_and_the_arms_are_measured(run):
    assert list(durations(RunFolder(run))) == STAGES
    arms = json.loads((run / "foresee/metrics.json").read_text())["arms"]
    named = ["oracle", "popularity", "two_towers", "features_in_words", "cold_start", "sft_1", "dpo_1"]
    named += ["queries_without_words", "shuffled_queries"]
    assert list(arms) == named
    assert all(
        arms["oracle"][metric]["mean"] >= arms[arm][metric]["mean"] for arm in named for metric in ("gauc", "ctr")
    )
    assert arms["two_towers"]["gauc"]["mean"] > 0.5


def test_a_second_call_does_nothing(run):
    again = recipe(run)
    assert again.returncode == 0
    assert [line.split(":")[0] for line in again.stdout.splitlines() if "already done" in line] == STAGES


def test_another_number_of_rounds_is_told_and_not_made(run):
    other = recipe(run, "align", ROUNDS="2")
    assert other.returncode == 1 and "ROUNDS=2, made with ROUNDS=1" in other.stderr
