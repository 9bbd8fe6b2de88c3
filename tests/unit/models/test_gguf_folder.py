"""A tiny Llama in a GGUF file, written here, and what the conversion makes of it."""

from __future__ import annotations

import json
import threading

import pytest

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

from openrlhf_qs import cli  # noqa: E402
from openrlhf_qs.models.gguf_folder import SOURCE  # noqa: E402
from openrlhf_qs.models.resolve import resolve_model  # noqa: E402

WIDTH, HEADS, LAYERS = 16, 2, 2
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_gguf(path, eos=2, template=CHATML, licence="mit"):
    """A Llama of two layers with a byte-level tokenizer that knows ``\\n\\n`` as one token, as SmolLM2's does."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ĊĊ", "he"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license(licence)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ċ Ċ", "h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(0)
    if template:
        writer.add_chat_template(template)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for n in range(LAYERS):
        shapes |= {f"blk.{n}.{name}": (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{n}.{name}": (2 * WIDTH, WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{n}.ffn_down": (WIDTH, 2 * WIDTH)}
        shapes |= {f"blk.{n}.{name}": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    file = write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    (file.parent / "LICENSE.txt").write_text("do as you like")
    return resolve_model(str(file), "float32", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_the_folder_is_a_model_with_its_own_end_and_padding_and_its_licence(folder, tokenizer):
    from pathlib import Path

    config = json.loads((Path(folder) / "config.json").read_text())
    assert config["model_type"] == "llama" and config["tie_word_embeddings"] and config["dtype"] == "float32"
    assert (config["eos_token_id"], config["pad_token_id"], config["bos_token_id"]) == (2, 2, 1)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
        "<|im_end|>",
        "<|im_end|>",
        "<|im_start|>",
    )
    assert tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer.chat_template == CHATML
    assert json.loads((Path(folder) / SOURCE).read_text())["license"] == "mit"
    assert (Path(folder) / "LICENSE.txt").read_text() == "do as you like"


def test_the_weights_are_those_of_the_file(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    file = write_gguf(tmp_path / "tiny.gguf")
    written = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    model = AutoModelForCausalLM.from_pretrained(folder)
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach().numpy(), written["token_embd.weight"])
    down = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    np.testing.assert_array_equal(down, written["blk.1.ffn_down.weight"])
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("text", ["1. Why?\n\n2. How?", "naïve ▁ 日本語 👍🏽", "  two  blanks ", "<0x41> 12,345.6"])
def test_a_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_blank_line_before_a_number_is_one_token_as_the_model_was_taught(tokenizer):
    # GPT-2's own split leaves the second line break to the number: "\n", "\n1"
    assert tokenizer.tokenize("a\n\n1") == ["a", "ĊĊ", "1"]


def test_the_end_is_the_one_that_the_template_writes_where_the_file_names_another(tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    folder = resolve_model(str(write_gguf(tmp_path / "base.gguf", eos=0)), cache=tmp_path / "models")
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [0, 2]  # vLLM stops at either


def test_a_file_is_converted_once_also_where_two_ask_at_a_time(tmp_path, capfd):
    file = str(write_gguf(tmp_path / "tiny.gguf"))
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(resolve_model(file, cache=tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2 and len(set(folders)) == 1
    assert capfd.readouterr().err.count(", once\n") == 1
    # by what is in it, not by its name: a second file of that name is another model
    assert resolve_model(str(write_gguf(tmp_path / "tiny.gguf", licence="other")), cache=tmp_path) != folders[0]


def test_a_folder_with_one_gguf_file_is_that_model_and_other_names_are_left_alone(tmp_path, folder):
    (tmp_path / "one").mkdir()
    write_gguf(tmp_path / "one" / "tiny.gguf")
    assert resolve_model(str(tmp_path / "one"), "float32", tmp_path).endswith("-float32")
    assert resolve_model(folder) == folder
    assert resolve_model("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"


def test_the_command_writes_the_folder_and_prints_its_name_alone(tmp_path, capfd):
    file = write_gguf(tmp_path / "tiny.gguf")
    cli.main(["model", str(file), "--out", str(tmp_path / "here"), "--dtype", "float32"])
    assert capfd.readouterr().out == f"{tmp_path / 'here'}\n"
    assert not list(tmp_path.glob(".*.writing"))
    with pytest.raises(SystemExit):
        cli.main(["model", str(file), "--out", str(tmp_path / "here")])
    assert "here exists" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"no model", "not a complete GGUF file"), (b"", "not a complete GGUF file"), (None, "does not exist")],
)
def test_a_file_that_is_no_gguf_is_said_in_one_line(tmp_path, content, said):
    file = tmp_path / "bad.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        resolve_model(str(file), cache=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_cut_file_is_no_model(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="not a complete GGUF file"):
        resolve_model(str(file), cache=tmp_path)
