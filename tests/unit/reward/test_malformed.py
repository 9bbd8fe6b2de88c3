"""A well-formed answer that was cut at the token limit is malformed to everybody who reads it."""

import torch

from openrlhf_qs.evaluation.arms import read_responses
from openrlhf_qs.evaluation.quality import response_quality
from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import SUGGEST
from openrlhf_qs.registry import REWARDS
from openrlhf_qs.reward.monitors import batch_statistics
from openrlhf_qs.reward.offline import offline_batch
from openrlhf_qs.reward.remote import read_rollout

CONVERSATION = [{"role": "user", "content": "How do I bake bread?"}]
GOOD = "1. How long does it rise?\n2. Which flour is best?\n3. Can I freeze it?"


def test_offline_and_by_the_parts_and_in_the_statistics():
    batch = offline_batch([Request(CONVERSATION)] * 2, [GOOD, GOOD], finish_reasons=["length", "stop"])
    assert batch.malformed.tolist() == [True, False]
    assert REWARDS.create("rules")(batch).tolist() == [-1.0, 0.0]
    assert REWARDS.create("gate_malformed")(batch).tolist() == [0.0, 1.0]
    assert batch_statistics(batch, torch.ones(2), torch.ones(2), torch.zeros(2))["malformed"] == 0.5


def test_in_evaluate(tmp_path):
    file = tmp_path / "responses.sft.jsonl"
    write_json_lines(file, [{"conversation": CONVERSATION, "response": GOOD, "finish_reason": "length"}])
    assert response_quality(read_responses(file, SUGGEST), {})["malformed"] == 1.0


def test_to_openrlhf_as_a_reward_function():
    rollout = read_rollout(f"Prompt {GOOD}", "Prompt ", Request(CONVERSATION).label())
    assert rollout.finish_reason == "length"
