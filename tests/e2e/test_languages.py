"""A log in German, Chinese and English mixed, of users who are known, through all stages: nothing stops, the parts of
the reward have something to say, and GRPO stays in its users' languages.

The tests stand in the order of the stages, and each needs the one before it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.form.language import in_users_language
from openrlhf_qs.form.response import parse_response

ROOT = Path(__file__).parents[2]
WORLDS = ROOT / "tests" / "worlds.py"
REWARD = "garm,ood,rules,relevance,diversity,language"
SMALL = {
    "SFT_BATCH": "16",
    "SFT_EPOCHS": "20",
    "GARM_EPOCHS": "2",
    "N_RFT": "60",
    "RFT_BATCH": "8",
    "RFT_EPOCHS": "1",
    "STEPS": "3",
    "PROMPTS": "8",
    "N_SAMPLES": "4",
    "TRAIN_BATCH": "32",
    "GRPO_MICRO_BATCH": "32",
    "N_HELDOUT": "60",
    "N_SELECTION": "20",
    "TEMPERATURES": ".6",
    "BEST_OF": "1",
    "SPREAD": "0",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """The whole way over a log of 2,000 impressions."""
    folder = tmp_path_factory.mktemp("mixed")
    log = folder / "clicks.jsonl"
    subprocess.run([sys.executable, str(WORLDS), "mixed", str(log), "2000", "400"], check=True)
    environment = os.environ | SMALL
    environment |= {"RUN": str(folder / "run"), "CLICK_LOG": str(log), "JUDGE": str(WORLDS), "REWARD": REWARD}
    environment |= {"VIRTUAL_ENV": sys.prefix}
    command = ["bash", str(ROOT / "recipes" / "grpo_garm.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return RunFolder(folder / "run")


def in_language(run: RunFolder, policy: str) -> list[bool]:
    """Of each suggestion that the policy shows under a held-out conversation."""
    return [
        in_users_language(row["conversation"], text)
        for row in read_json_lines(run.responses(policy))
        for text in parse_response(row["response"]).suggestions
    ]


def test_what_is_in_another_language_is_not_taught(run):
    report = json.loads((run.sft / "assembly.json").read_text())
    assert report["candidates"]["another language"] > 0 and report["n_assembled"] > 50


def test_the_room_of_a_response_is_that_of_the_log(run):
    assert 16 <= int(run.data.max_new_tokens.read_text()) <= 200
    assert json.loads(run.data.lengths.read_text())["n_left_out"] == 0


def test_every_part_of_the_reward_has_something_to_say(run):
    weights = json.loads(run.weights.read_text())["rewards"]
    assert set(weights) == set(REWARD.split(","))
    for name in ("garm", "ood", "relevance", "diversity"):
        assert weights[name]["std"] > 0, name
    frequent = weights["relevance"]["options"]["frequent"].split()
    assert {one.partition("/")[0] for one in frequent} <= {"de", "en", "zh"}


def test_the_policies_stay_in_their_users_languages(run):
    shares = {policy: in_language(run, policy) for policy in ("sft", "grpo")}
    for policy, found in shares.items():
        assert len(found) >= 60 and sum(found) >= 0.8 * len(found), policy
    assert json.loads(run.metrics.read_text())["ab"]["grpo"]["ctr"] > 0
