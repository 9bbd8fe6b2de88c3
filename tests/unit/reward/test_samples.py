"""What a policy writes while it is trained, as rows of a file."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.form.request import Request
from openrlhf_qs.registry import load_plugins
from openrlhf_qs.reward.composite import CompositeReward, Part, Weights
from openrlhf_qs.reward.offline import offline_batch
from openrlhf_qs.reward.samples import CARRIED, SampleLog, taken_off

CONVERSATION = [{"role": "user", "content": "How do I bake bread?"}]
RESPONSES = ["1. Why salt?\n2. How long?\n3. Which flour?", "1. Why salt?", "Sorry.", "1. A?\n2. B?\n3. C?"]


def scorer(conversations, suggestions):
    n = len(suggestions)
    return np.arange(n, dtype=float), np.full(n, 0.5), np.zeros(n)


@pytest.fixture
def composite():
    load_plugins()
    parts = {"rules": Part(weight=2.0, mean=1.0, std=0.5), "ood": Part(weight=1.0, mean=0.0, std=1.0)}
    return CompositeReward(["rules", "ood"], weights=Weights(parts, "group"))


def log(folder, composite, resumed=0):
    if resumed:
        (folder / "ckpt" / "_actor").mkdir(parents=True, exist_ok=True)
        (folder / "ckpt" / "_actor" / "latest").write_text(f"global_step{resumed}")
    ckpt = SimpleNamespace(output_dir=str(folder), path=str(folder / "ckpt"), load_enable=bool(resumed))
    return SampleLog(ckpt, composite)


def test_a_row_has_all_parts_in_one_unit_whatever_training_normalises_by(tmp_path, composite):
    batch = offline_batch([Request(CONVERSATION)] * 4, RESPONSES, [1.0] * 4, scorer)
    samples = log(tmp_path, composite)
    samples.step = 7
    raw = {"rules": torch.tensor([1.0, 0.0, math.nan, 0.5]), "ood": torch.zeros(4)}
    samples.write("same", batch, raw)
    rows = read_json_lines(tmp_path / "samples.jsonl")
    assert [row["step"] for row in rows] == [7] * 4 and {row["kind"] for row in rows} == {"same"}
    assert [row["malformed"] for row in rows] == [False, True, True, False]
    # (raw - 1) / .5 * 2
    assert [row["weighted"]["rules"] for row in rows] == [0.0, -4.0, None, -2.0]
    assert rows[2]["parts"]["rules"] is None and rows[2]["suggestions"] == []
    assert rows[0]["garm"] == [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]] and rows[1]["garm"] == [[3.0, 0.5]]


def test_the_extremes_are_those_of_the_totals(tmp_path, composite):
    batch = offline_batch([Request(CONVERSATION)] * 4, RESPONSES, [1.0] * 4)
    samples = log(tmp_path, composite)
    raw = {"rules": torch.zeros(4), "ood": torch.zeros(4)}
    samples.write_extremes(batch, raw, torch.tensor([0.1, 0.4, 0.2, -0.3]))
    rows = read_json_lines(tmp_path / "samples.jsonl")
    assert [row["kind"] for row in rows] == ["highest", "highest", "lowest", "lowest"]
    # totals .4, .2 and -.3, .1
    assert [len(row["suggestions"]) for row in rows] == [1, 0, 3, 3]
    assert all("garm" not in row for row in rows)  # there is no reward model


def test_a_resumed_run_forgets_the_steps_that_it_does_again(tmp_path, composite):
    text = "".join(json.dumps({"step": step}) + "\n" for step in (1, 11, 21))
    (tmp_path / "samples.jsonl").write_text(text)
    assert log(tmp_path, composite, resumed=11).step == 11
    assert [row["step"] for row in read_json_lines(tmp_path / "samples.jsonl")] == [1, 11]
    assert log(tmp_path, composite).step == 0 and not read_json_lines(tmp_path / "samples.jsonl")  # a new run


def test_a_resumed_run_passes_over_a_line_that_was_cut_off(tmp_path, composite):
    (tmp_path / "samples.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "conversation": "wh\xc3')
    log(tmp_path, composite, resumed=11)
    assert [row["step"] for row in read_json_lines(tmp_path / "samples.jsonl")] == [1]


def test_what_travels_on_a_rollout_is_taken_off_once():
    rollout = [SimpleNamespace(), SimpleNamespace(**{CARRIED: ["a", "b"]})]
    assert taken_off(rollout) == ["a", "b"] and taken_off(rollout) == []
