import json
import os

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3PreTrainedModel

from openrlhf_qs.click_log import read_click_log
from openrlhf_qs.plugins.gaussian_reward_model import LOGISTIC_STD
from openrlhf_qs.reward_model import (
    Float32Linear,
    SuggestionScorer,
    check_checkpoint,
    encode_suggestions,
    read_mark,
    reward_model_class,
)
from openrlhf_qs.small_policy import train_tokenizer

GAUSSIAN = {"name": "gaussian", "options": {"std_floor": "0.2"}}
CONVERSATIONS = [
    [{"role": "user", "content": "How do I bake bread?"}, {"role": "assistant", "content": "Mix, wait, bake."}],
    [{"role": "user", "content": "Why do cats purr?"}],
    [{"role": "user", "content": "How does a heat pump work? " * 5}],
]
SUGGESTIONS = ["How long should the dough rise?", "Do big cats purr as well?", "What does it cost to run?"]


def numbers(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


def test_the_head_computes_in_float32_whatever_its_weights_are():
    torch.manual_seed(0)
    head = Float32Linear(8, 2).to(torch.bfloat16)
    hidden = torch.randn(4, 8, dtype=torch.bfloat16)
    expected = hidden.double() @ head.weight.double().T + head.bias.double()
    assert head(hidden).dtype == torch.float32
    torch.testing.assert_close(head(hidden).double(), expected, rtol=1e-5, atol=1e-5)


# A checkpoint


@pytest.fixture
def tokenizer(tiny_log):
    return train_tokenizer(read_click_log(tiny_log), vocab_size=400)


def small_reward_model(tokenizer, mark, prefix="score"):
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,  # random rewards that differ
    )
    torch.manual_seed(0)
    return reward_model_class(Qwen3PreTrainedModel, Qwen3Model, prefix, mark=mark)(config).eval()


@pytest.fixture
def model(tokenizer):
    return small_reward_model(tokenizer, GAUSSIAN)


@pytest.fixture
def checkpoint(tmp_path, model, tokenizer):
    """The folder of a Gaussian reward model with random weights."""
    folder = tmp_path / "garm"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_config(folder, **entries):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_a_saved_model_scores_as_the_one_in_memory(checkpoint, model, tokenizer):
    assert read_mark(checkpoint) == check_checkpoint(checkpoint) == GAUSSIAN
    input_ids, mask = encode_suggestions(tokenizer, CONVERSATIONS, SUGGESTIONS, max_len=1024)
    with torch.no_grad():
        expected = model(input_ids, mask).double().numpy()
    mean, std = SuggestionScorer(checkpoint)(CONVERSATIONS, SUGGESTIONS)
    np.testing.assert_allclose(mean, expected[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, expected[:, 1], rtol=1e-5, atol=1e-6)
    assert mean.dtype == std.dtype == np.float64 and mean.std() > 1e-3 and (std > 0.2).all()


def test_a_suggestion_scores_the_same_whatever_stands_beside_it(checkpoint):
    scorer = SuggestionScorer(checkpoint)
    together = scorer(CONVERSATIONS, SUGGESTIONS)
    alone = [scorer([c], [s]) for c, s in zip(CONVERSATIONS, SUGGESTIONS, strict=True)]
    in_twos = scorer(CONVERSATIONS, SUGGESTIONS, batch_size=2)
    turned = scorer(CONVERSATIONS[::-1], SUGGESTIONS[::-1])
    for n in range(2):  # mean, then standard deviation
        np.testing.assert_allclose(np.concatenate([one[n] for one in alone]), together[n], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(in_twos[n], together[n], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(turned[n][::-1], together[n], rtol=1e-4, atol=1e-5)


def test_nothing_to_score_is_no_error(checkpoint):
    mean, std = SuggestionScorer(checkpoint)([], [])
    assert mean.shape == std.shape == (0,)


def test_padding_on_either_side_changes_nothing(model):
    ids, pad = torch.tensor([[5, 6, 7, 8]]), torch.zeros(1, 3, dtype=torch.long)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(pad)
    with torch.no_grad():
        plain = model(ids, ones)
        left = model(torch.cat((pad, ids), 1), torch.cat((zeros, ones), 1))
        right = model(torch.cat((ids, pad), 1), torch.cat((ones, zeros), 1))
        with_outputs, _ = model(ids, ones, return_output=True)
    assert plain.shape == (1, 2) and plain.dtype == torch.float32
    assert with_outputs.tolist() == plain.tolist()
    for padded in (left, right):
        torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-5)


def test_normalisation_moves_the_means_and_scales_both_outside_training_only(model):
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long)
    with torch.no_grad():
        plain = model(ids, mask)
        model.normalize_reward, model.mean, model.std = True, 2.0, 4.0
        # (mean - 2) / 4 and std / 4
        torch.testing.assert_close(model(ids, mask), (plain - numbers(2.0, 0.0)) / 4)
        torch.testing.assert_close(model.train()(ids, mask), plain)


def test_a_long_text_loses_its_beginning_and_ends_in_one_end_of_sequence(tokenizer):
    whole, _ = encode_suggestions(tokenizer, CONVERSATIONS[2:], SUGGESTIONS[2:], max_len=1024)
    cut, mask = encode_suggestions(tokenizer, CONVERSATIONS[2:], SUGGESTIONS[2:], max_len=10)
    assert cut.shape == mask.shape == (1, 10) and whole.shape[1] > 10
    assert cut[0].tolist() == whole[0, -10:].tolist()
    assert cut[0, -1] == tokenizer.eos_token_id and cut[0, -2] != tokenizer.eos_token_id


def test_shorter_texts_are_padded_on_the_left(tokenizer):
    input_ids, mask = encode_suggestions(tokenizer, CONVERSATIONS, SUGGESTIONS, max_len=1024)
    assert (input_ids[:, -1] == tokenizer.eos_token_id).all() and mask[:, -1].all()
    assert mask[1, 0] == 0 and input_ids[1, 0] == tokenizer.pad_token_id
    alone, _ = encode_suggestions(tokenizer, CONVERSATIONS[1:2], SUGGESTIONS[1:2], max_len=1024)
    assert input_ids[1][mask[1].bool()].tolist() == alone[0].tolist()


def test_the_folder_of_a_checkpoint_has_its_tokenizer(checkpoint, tokenizer):
    text = "How long should the dough rise?"
    assert AutoTokenizer.from_pretrained(checkpoint)(text).input_ids == tokenizer(text).input_ids


def test_another_name_of_the_head_is_remembered(tmp_path, tokenizer):
    model = small_reward_model(tokenizer, {"name": "bradley_terry", "options": {}}, prefix="value_head")
    model.save_pretrained(tmp_path / "bt")
    tokenizer.save_pretrained(tmp_path / "bt")
    _, std = SuggestionScorer(tmp_path / "bt")(CONVERSATIONS, SUGGESTIONS)
    np.testing.assert_allclose(std, LOGISTIC_STD)


@pytest.mark.parametrize("use", [check_checkpoint, SuggestionScorer])
def test_a_checkpoint_without_the_mark_is_refused(checkpoint, use):
    edit_config(checkpoint, reward_model=None)
    assert read_mark(checkpoint) is None
    with pytest.raises(ValueError, match="has no entry `reward_model`: this is no reward model of ours"):
        use(checkpoint)


@pytest.mark.parametrize("use", [check_checkpoint, SuggestionScorer])
def test_a_wrong_value_head_prefix_is_refused(checkpoint, use):
    edit_config(checkpoint, value_head_prefix="value_head")
    with pytest.raises(ValueError, match="head value_head.weight should have 2 rows for 'gaussian', found none"):
        use(checkpoint)


def test_a_head_of_one_output_that_is_marked_as_gaussian_is_refused(tmp_path, tokenizer):
    model = small_reward_model(tokenizer, {"name": "bradley_terry", "options": {}})
    model.save_pretrained(tmp_path / "bt")
    edit_config(tmp_path / "bt", reward_model=GAUSSIAN)
    with pytest.raises(ValueError, match="head score.weight should have 2 rows for 'gaussian', found 1"):
        check_checkpoint(tmp_path / "bt")


def test_a_checkpoint_without_weights_is_refused(checkpoint):
    os.remove(checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match="found none; the checkpoint is damaged"):
        check_checkpoint(checkpoint)


def test_a_head_that_is_not_registered_lists_those_that_are(checkpoint):
    edit_config(checkpoint, reward_model={"name": "cauchy", "options": {}})
    with pytest.raises(ValueError, match="unknown reward model 'cauchy'; known: bradley_terry, gaussian"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("use", [check_checkpoint, SuggestionScorer])
def test_a_missing_folder_is_named(tmp_path, use):
    with pytest.raises(ValueError, match=r"nowhere/config.json does not exist: give the folder of a reward model"):
        use(tmp_path / "nowhere")
