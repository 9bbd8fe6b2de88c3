"""A model's folder is looked at before it is loaded: what is not whole names the file."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from openrlhf_qs.models.folder import check_model, make_usable, read_config


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(100)}, tmp_path / "model-1.safetensors")
    return tmp_path


def test_a_whole_model_and_a_hubs_name_pass(folder):
    check_model(folder)
    check_model("Qwen/Qwen3-4B")


def test_a_reward_model_is_no_policy(folder):
    from openrlhf_qs.models.engine import load_engine

    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"reward_model": {"name": "gaussian"}}))
    with pytest.raises(ValueError, match="is a reward model, which writes nothing; give a policy"):
        load_engine(str(folder), 0)


def test_a_name_below_a_folder_that_is_here_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="run/nope does not exist"):
        check_model("run/nope")


@pytest.mark.parametrize("name", ["./nowhere", "runs/defualt/sft", "~/nowhere"])
def test_what_can_be_no_name_of_a_hub_is_not_looked_for_there(name):
    with pytest.raises(ValueError, match=f"{name} does not exist"):
        check_model(name)


def test_a_path_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="--model ./nowhere does not exist; give a Hugging Face folder or name"):
        check_model("./nowhere", "--model")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", "cannot be read: Expecting value"),
        (b'{"a": ', "cannot be read: "),
        (b'{"a": "\xff"}', "cannot be read: 'utf-8'"),
        (b"[1]", "is a list, not an object"),
        (b"[" * 100_000, "cannot be read: "),
    ],
)
def test_a_config_that_is_none_names_the_file(folder, text, found):
    (folder / "config.json").write_bytes(text)
    for use in (check_model, read_config):
        with pytest.raises(ValueError, match=f"config.json {found}") as error:
            use(folder)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 5, 30, -1])
def test_weights_that_are_cut_name_the_file(folder, size):
    file = folder / "model-1.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(
        ValueError, match=r"model-1.safetensors (is not a safetensors file|has \d+ of \d+ bytes).*; copy the model"
    ):
        check_model(folder)


def test_a_model_without_weights_or_with_a_part_of_them_is_refused(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(ValueError, match="model-2.safetensors is missing, which its index names"):
        check_model(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="index.json cannot be read as an index of weights"):
        check_model(folder)
    index.unlink()
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        check_model(folder)


def test_a_policy_that_was_trained_is_left_as_others_use_it(folder):
    config = {"architectures": ["Qwen3ForCausalLM"], "use_cache": False, "name": "é"}
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model-1.safetensors"
    weights.chmod(0o600)  # as safetensors writes it
    before = os.umask(0o027)
    try:
        make_usable(folder)
    finally:
        os.umask(before)
    assert read_config(folder) == config | {"use_cache": True}
    assert weights.stat().st_mode & 0o777 == 0o640  # whoever may read any other new file


def test_the_config_of_a_reward_model_and_a_folder_that_is_not_there_are_let_be(folder):
    text = json.dumps({"architectures": ["SuggestionRewardModel"], "use_cache": False})
    (folder / "config.json").write_text(text)
    make_usable(folder)
    assert (folder / "config.json").read_text() == text
    make_usable(folder / "nowhere")
