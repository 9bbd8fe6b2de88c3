"""The card of each model of a run."""

import ast
import json
import re
import sys

import pytest

from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.form.task import Task, write_task
from openrlhf_qs.models.model_card import MODELS, card, main

ENTRY = {"state": "done", "seconds": 1.0, "commit": "0123456789abcdef", "versions": {"torch": "2.13.0"}}


@pytest.fixture
def run(tmp_path):
    """A finished run with something of every stage."""
    run = RunFolder(tmp_path / "mine")
    entries = {stage: ENTRY | {"given": {"SEED": "3"}, "variables": {"RFT": "1"}, "files": {}} for stage in MODELS}
    entries["data"] |= {"files": {"CLICK_LOG": {"/logs/clicks.jsonl": {"size": 1, "hash": "abc"}}}, "products": {}}
    entries["sft"] |= {"files": {"POLICY": {"Qwen/Qwen3-4B": None}}}
    for folder, _ in MODELS.values():
        (run.path / folder).mkdir(parents=True)
        (run.path / folder / "config.json").write_text("{}")
    run.record.write_text(json.dumps({"stages": entries}))
    run.data.max_new_tokens.write_text("40\n")
    write_task(run.grpo.path, Task(3, 'Nenne $n kurze "Fragen".'))
    run.checkpoints("grpo").mkdir(parents=True)
    return run


def measure(run):
    figures = {f"{key}_ci95": [0.1, 0.2] for key in ("accuracy", "nll", "brier", "ece")}
    garm = {"n_pairs": 3009, "accuracy": 0.704, "nll": 0.527, "brier": 0.177, "ece": 0.024} | figures
    metrics = {"seed": 3, "judge": "built_in_world", "garm": garm, "served": {"grpo": {"temperature": 0.3}}}
    metrics["ab"] = {"grpo": {"ctr": 0.555, "ci95": [0.549, 0.561]}}
    metrics["quality"] = {"grpo": {"n_responses": 1000, "malformed": 0.0, "near_duplicates": 0.036}}
    run.metrics.parent.mkdir()
    run.metrics.write_text(json.dumps(metrics))


def test_a_card_says_what_the_model_is_made_from_how_it_is_asked_and_what_came_out(run):
    measure(run)
    text = card(run, "grpo")
    assert text.startswith("---\nlicense: other\n") and "# mine/grpo" in text
    assert "starts from: rft, with sft as reference" in text and "data: clicks.jsonl (BLAKE2b abc)" in text
    assert "commit 0123456789" in text and "`SEED=3`" in text and "torch 2.13.0" in text
    assert "users who click: 55.5% (54.9% to 56.1%), users of the judge `built_in_world`" in text
    assert "responses with near-duplicates: 3.6%" in text and "at temperature 0.3, seed 3, one training" in text
    assert "`../ckpt/grpo`: optimiser" in text and "tensorboard" not in text  # which is not there
    garm = card(run, "garm")
    assert "accuracy: 0.704 (0.100 to 0.200)" in garm and "On 3,009 pairs" in garm and "SuggestionScorer" in garm


@pytest.mark.parametrize("stage", MODELS)
def test_the_code_of_a_card_is_python_and_asks_as_the_policy_was_trained(run, stage):
    for code in re.findall(r"```python\n(.*?)```", card(run, stage), re.DOTALL):
        nodes = list(ast.walk(ast.parse(code)))
        names = [node for node in nodes if isinstance(node, ast.Name)]
        read, made = ({node.id for node in names if isinstance(node.ctx, kind)} for kind in (ast.Load, ast.Store))
        imported = {
            alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
        }
        assert read <= made | imported  # each piece can be run by itself
    if stage == "grpo":
        assert r'"Nenne 3 kurze \"Fragen\"."' in card(run, stage) and "max_tokens=40" in card(run, stage)


def test_a_base_of_the_hub_is_named_where_the_hub_reads_it(run):
    assert "base_model: Qwen/Qwen3-4B" in card(run, "sft")
    assert "base_model" not in card(run, "garm") and "starts from: sft" in card(run, "garm")


def test_evaluate_writes_the_cards_again_and_a_link_to_another_run_is_let_be(run, tmp_path):
    main(["--run", str(run.path), "--stage", "sft"])
    assert "Not measured" in (run.sft / "README.md").read_text()
    assert not (run.grpo.path / "README.md").exists()
    measure(run)
    run.garm.rename(tmp_path / "elsewhere")
    run.garm.symlink_to(tmp_path / "elsewhere")
    main(["--run", str(run.path), "--stage", "evaluate"])
    assert "55.5%" in (run.grpo.path / "README.md").read_text()
    assert not (tmp_path / "elsewhere" / "README.md").exists()
    main(["--run", str(run.path), "--stage", "fusion"])  # which makes no model


def test_the_module_needs_the_standard_library_alone(run):
    import subprocess

    code = "import sys; sys.argv[1:] = ['--run', sys.argv[1], '--stage', 'sft']\n"
    code += "from openrlhf_qs.models.model_card import main; main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "transformers", "polars", "pydantic"} & set(done.stdout.split())
