"""A ranker of three towers trained by two workers of Ray Train, as a user starts it, against one process's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.rank.impressions import conversation_of


def command(*words: str | Path) -> str:
    """What ``openrlhf-qs WORDS`` prints, in a process of its own: Ray reads its environment when it is imported."""
    ended = subprocess.run(
        [sys.executable, "-m", "openrlhf_qs.cli", *map(str, words)],
        env=os.environ | {"RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def world(folder: Path, n: int, seed: int) -> tuple[Path, Path, Path]:
    """A log of simulated visitors, their knowledge base, and a query for each: what they clicked, or saw first."""
    command("world", "zero-query", "--out", folder, "--n_impressions", n, "--seed", seed)
    log, intents, queries = folder / "clicks.jsonl", folder / "intents.jsonl", folder / "queries.jsonl"
    rows = [
        {
            "conversation": conversation_of(row["features"]),
            "candidates": [{"text": row["suggestions"][row["clicks"].index(1) if 1 in row["clicks"] else 0]}],
        }
        for row in read_json_lines(log)
    ]
    write_json_lines(queries, rows)
    return log, intents, queries


@pytest.fixture(scope="module")
def metrics(tmp_path_factory) -> dict[str, dict]:
    """Of both rankers, on other visitors than those that they learned from."""
    folder = tmp_path_factory.mktemp("ranker")
    log, intents, queries = world(folder / "learned", 6000, seed=0)
    for name, flags in {"here": (), "two_workers": ("--n_workers", "2")}.items():
        how = ("--queries", queries, "--no_reward", "--max_epochs", "10", "--out", folder / name, *flags)
        assert f"{folder / name}: 6,000 impressions" in command("rank", "--log", log, "--intents", intents, *how)
    log, intents, queries = world(folder / "others", 1000, seed=1)
    arms = [word for name in ("here", "two_workers") for word in ("--arm", f"{name}={folder / name}:{queries}")]
    arms += [word for name in ("here", "two_workers") for word in ("--arm", f"{name}_no_query={folder / name}")]
    out = folder / "metrics.json"
    command("rank", "eval", "--log", log, "--intents", intents, "--judge", "zero_query_world", *arms, "--out", out)
    return json.loads(out.read_text())["arms"]


@pytest.mark.parametrize("queries", ["", "_no_query"])
def test_two_workers_learn_what_one_process_learns(metrics, queries):
    here, two_workers = metrics[f"here{queries}"], metrics[f"two_workers{queries}"]
    mean = lambda metric: (here[metric]["mean"], two_workers[metric]["mean"])  # noqa: E731
    # Seeds differ by .01 and .04 in one process; half of the batches, or workers that go apart, cost more.
    assert mean("gauc")[1] == pytest.approx(mean("gauc")[0], abs=0.02) and mean("gauc")[1] > 0.78
    assert mean("ndcg")[1] == pytest.approx(mean("ndcg")[0], abs=0.06)
    assert two_workers["calibration"]["ece"] < 0.03
