"""What the stage ``sft`` hands to OpenRLHF's SFTDataset, on a host of a few lines."""

import json
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from openrlhf_qs.form.task import SUGGEST, read_task
from openrlhf_qs.host.seams import sft_dataset
from openrlhf_qs.host.settings import Settings, SFTSettings

CONVERSATION = [{"role": "user", "content": "How do I bake bread?"}]
FROM_CLICKS = [
    {"text": t, "n_shown": 4, "n_clicked": 1, "weight": w} for t, w in (("Why?", 0.1), ("Salt?", 0.3), ("Oven?", 0.2))
]
FROM_A_TEACHER = [
    {"text": t, "log_prob": p, "n_sampled": 1} for t, p in (("Why?", -3.0), ("Salt?", -1.0), ("Oven?", -2.0))
]


class Tokenizer:
    """A token a character, and none that is special."""

    chat_template, added_tokens_decoder, all_special_tokens, eos_token, is_fast = "", {}, (), "<end>", False

    def __len__(self):
        return 0

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": list(text)}

    def apply_chat_template(self, messages, tokenize=True, **how):
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return list(text) if tokenize else text


@pytest.fixture
def make(tmp_path, monkeypatch):
    """``make(rows)``: the rows that the host's dataset gets, a folder for the report beside the checkpoint."""
    datasets = pytest.importorskip("datasets")

    class SFTDataset:
        def __init__(self, dataset, tokenizer, max_length, strategy, num_processors=1):
            self.rows = dataset.to_list()

    module = ModuleType("openrlhf.datasets")
    module.SFTDataset = SFTDataset
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "openrlhf_qs.host.sft_dataset", raising=False)  # its base is this host's
    sft_dataset(module, Settings(stage=SFTSettings()))
    data = SimpleNamespace(input_key="prompt", output_key="response")
    args = SimpleNamespace(data=data, ckpt=SimpleNamespace(output_dir=str(tmp_path / "sft")))
    strategy = SimpleNamespace(args=args, is_rank_0=lambda: True, print=print)
    yield lambda rows: module.SFTDataset(datasets.Dataset.from_list(rows), Tokenizer(), 512, strategy).rows
    del sys.modules["openrlhf_qs.host.sft_dataset"]


@pytest.mark.parametrize("candidates", [FROM_CLICKS, FROM_A_TEACHER])
def test_candidates_from_clicks_and_from_a_teacher_become_the_same_instance(make, candidates):
    (row,) = make([{"conversation": CONVERSATION, "candidates": candidates}])
    response = [{"role": "assistant", "content": "1. Salt?\n2. Oven?\n3. Why?"}]
    assert row == {"prompt": SUGGEST.messages(CONVERSATION), "response": response}


def test_the_report_lies_beside_the_checkpoint(make, tmp_path, capsys):
    row = {"conversation": CONVERSATION, "candidates": FROM_CLICKS}
    make([row, row | {"candidates": FROM_CLICKS[:2]}])
    make([row])
    report = json.loads((tmp_path / "sft" / "assembly.json").read_text())
    assert report["rows"] == {"assembled": 1, "fewer than 3 candidates": 1}
    assert report["samples"][0]["suggestions"] == ["Salt?", "Oven?", "Why?"]
    assert json.loads((tmp_path / "sft" / "assembly.eval.json").read_text())["n_rows"] == 1
    assert "fewer than 3 candidates" in capsys.readouterr().out


def test_a_set_that_gives_no_instance_is_refused(make):
    with pytest.raises(ValueError, match="'diverse' made no instances from 1 conversations"):
        make([{"conversation": CONVERSATION, "candidates": FROM_CLICKS[:2]}])


def test_the_policys_folder_says_what_it_was_taught(make, tmp_path):
    make([{"conversation": CONVERSATION, "candidates": FROM_CLICKS}])
    assert read_task(tmp_path / "sft") == replace(SUGGEST, max_len=512)  # as long as what it was taught with


def test_single_texts_are_taught_each_as_an_answer_of_its_own(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    module = ModuleType("openrlhf.datasets")
    module.SFTDataset = type("SFTDataset", (), {"__init__": lambda self, rows, *a, **k: setattr(self, "rows", rows)})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "openrlhf_qs.host.sft_dataset", raising=False)
    sft_dataset(module, Settings(stage=SFTSettings(sft_dataset="single")))
    data = SimpleNamespace(input_key="prompt", output_key="response")
    args = SimpleNamespace(data=data, ckpt=SimpleNamespace(output_dir=str(tmp_path / "sft")))
    strategy = SimpleNamespace(args=args, is_rank_0=lambda: True, print=print)
    rows = datasets.Dataset.from_list([{"conversation": CONVERSATION, "candidates": FROM_CLICKS}])
    made = module.SFTDataset(rows, Tokenizer(), 512, strategy).rows.to_list()
    del sys.modules["openrlhf_qs.host.sft_dataset"]
    assert {row["response"][0]["content"] for row in made} <= {"Why?", "Salt?", "Oven?"} and len(made) == 3
    assert read_task(tmp_path / "sft").form == "text"
