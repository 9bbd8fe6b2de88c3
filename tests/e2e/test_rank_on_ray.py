"""A ranker trained by two workers of Ray Train, as a user starts it, against one that this process trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ALONE = {"RAY_ADDRESS": ""}  # no cluster, whatever the test is run on


def command(*words: str | Path) -> str:
    """What `openrlhf-qs WORDS` prints."""
    ended = subprocess.run(
        [sys.executable, "-m", "openrlhf_qs.cli", *map(str, words)],
        env=os.environ | ALONE,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> tuple[Path, Path]:
    """A zero-query log to learn from, and one of other visitors."""
    learned, others = tmp_path_factory.mktemp("learned"), tmp_path_factory.mktemp("others")
    command("world", "zero-query", "--out", learned, "--n_impressions", "6000")
    command("world", "zero-query", "--out", others, "--n_impressions", "1000", "--seed", "1")
    return learned, others


def test_two_workers_learn_what_one_process_learns(worlds, tmp_path):
    learned, others = worlds
    arms = {"here": (), "two_workers": ("--n_workers", "2")}
    log = ("--log", learned / "clicks.jsonl", "--intents", learned / "intents.jsonl", "--no_reward")
    for name, flags in arms.items():
        told = command("rank", *log, "--max_epochs", "10", "--out", tmp_path / name, *flags)
        assert f"{tmp_path / name}: 6,000 impressions" in told
    named = [word for name in arms for word in ("--arm", f"{name}={tmp_path / name}")]
    out = tmp_path / "metrics.json"
    held_out = ("--log", others / "clicks.jsonl", "--intents", others / "intents.jsonl")
    command("rank", "eval", *held_out, "--judge", "zero_query_world", *named, "--out", out)
    here, two_workers = (json.loads(out.read_text())["arms"][name] for name in arms)
    print({name: (here[name]["mean"], two_workers[name]["mean"]) for name in ("gauc", "ndcg")})
