import importlib.util
import json
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest

from openrlhf_qs.benchmark.garm_training import (
    conversation_lengths,
    host_pairs,
    make_conversation,
    make_preferences,
    median_ratio,
    write_backbone,
)

SMALL = ["--n_tokens", "128", "--hidden_size", "128", "--n_layers", "1", "--n_repeats", "1"]


def printed(*argv):
    """The JSON that a command prints, and nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "openrlhf_qs.cli", "benchmark", *argv], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(importlib.util.find_spec("openrlhf") is None, reason="OpenRLHF is not installed")
def test_both_sides_train_and_ours_reads_less(tmp_path):
    out = tmp_path / "speed.json"
    result = printed("garm-training", *SMALL, "--n_impressions", "4", "--n_steps", "1", "--out", str(out))
    assert json.loads(out.read_text()) == result
    assert [point["n_tokens"] for point in result["curve"]] == [128]
    assert result["ratio"] == result["curve"][0]["ratio"] > 0
    assert set(result["curve"][0]["impressions_per_second"]) == set(result["peak_memory_mib"]) == {"openrlhf", "ours"}


def test_a_group_scored_at_once_gets_the_scores_of_its_responses_one_by_one():
    result = printed("scoring", *SMALL)
    assert result["ratio"] > 1
    assert result["curve"][0]["max_difference"] < 1e-4


def test_conversations_have_the_length_that_was_asked_for(tmp_path):
    args = SimpleNamespace(hidden_size=128, n_layers=1, seed=0, n_impressions=2, n_steps=2)
    tokenizer = write_backbone(tmp_path, args)
    for n_tokens in (32, 200):
        conversation = make_conversation(tokenizer, n_tokens, random.Random(0))
        n_found = len(tokenizer.apply_chat_template(conversation, tokenize=True)["input_ids"])
        assert abs(n_found - n_tokens) <= 0.05 * n_tokens
    rows = make_preferences(tokenizer, 32, args)
    assert [row["impression_id"] for row in rows] == [*"0123"]
    pairs = host_pairs(rows)
    assert len(pairs) == 8
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert one["chosen"] == other["chosen"] and one["rejected"] != other["rejected"]


def test_the_length_that_the_ratio_is_of_is_always_there():
    assert conversation_lengths("32,512") == [32, 128, 512]
    with pytest.raises(ValueError, match="give lengths from 16 to 768"):
        conversation_lengths("2000")


def test_the_ratio_is_the_median_of_neighbours():
    # 4 / 2, 9 / 3, 8 / 1
    assert median_ratio([4, 9, 8], [2, 3, 1]) == 3
