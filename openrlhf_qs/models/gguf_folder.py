"""A GGUF file as a Hugging Face folder: weights, configuration, tokenizer with its chat template, licence.

transformers reads GGUF, but its tokenizer ends an answer and pads with what begins one (``<|im_start|>``), splits
numbers in a list otherwise than the model was taught to, and each of its loaders parses the whole file again, 100,000
strings at a time: five times for a model and its tokenizer. Here it is parsed once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from openrlhf_qs.models.folder import make_usable
from openrlhf_qs.models.template import rendered

Dtype = Literal["bfloat16", "float32"]
SOURCE = "gguf.json"  # in the folder: what it was made from
# Tokenizers of llama.cpp (``tokenizer.ggml.pre``) that take each digit by itself, before GPT-2's own split:
# LLAMA_VOCAB_PRE_TYPE_SMOLLM and its like in llama.cpp's llama-vocab.cpp.
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")


def convert(file: str | Path, out: str | Path, dtype: Dtype = "bfloat16", licences: tuple[Path, ...] = ()) -> None:
    """Write the model in ``file`` to the folder ``out``, which must not be there.

    Args:
        licences: files to be kept beside the model.

    Raises:
        ValueError: the package ``gguf`` is missing, or the file is none that transformers can read.
    """
    try:
        import gguf
    except ImportError:
        raise ValueError(f"{file}: a GGUF file needs the package gguf: pip install gguf") from None
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    file, out = Path(file), Path(out)
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise ValueError(f"{file} is not a complete GGUF file ({error}); copy it again") from None
    fields = {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}
    with _parsed_once(gguf, reader):
        try:
            found = load_gguf_checkpoint(str(file))
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"{file} cannot be read by transformers: {error}; give another model") from None
        config = AutoConfig.for_model(**found["config"])
        tokenizer = _tokenizer(found, config, fields)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, config=config, dtype=getattr(torch, dtype)
        )
    if getattr(model, "hf_quantizer", None) is not None:  # transformers 5.17 refuses to save what it has dequantised
        model.hf_quantizer = None
        del model.config.quantization_config
    ends = [tokenizer.eos_token_id, fields.get("tokenizer.ggml.eos_token_id", tokenizer.eos_token_id)]
    for settings in (model.config, model.generation_config):
        settings.bos_token_id, settings.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    model.config._name_or_path = ""
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = sorted(set(ends)) if len(set(ends)) > 1 else ends[0]
    out.mkdir(parents=True)
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    make_usable(out)
    for licence in licences:
        shutil.copyfile(licence, out / licence.name)
    told = {name: fields.get(f"general.{name}") for name in ("name", "organization", "license", "basename")}
    (out / SOURCE).write_text(json.dumps({"file": file.name, **told}, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def _parsed_once(gguf: Any, reader: Any) -> Iterator[None]:
    """Within it transformers gets what was read already, and the names of the tensors, which it asks for once a
    layer, are made once."""
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = lambda path: reader, cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = before


def _tokenizer(found: dict[str, Any], config: Any, fields: dict[str, Any]) -> Any:
    """The tokenizer of the file, its end token the one that the chat template ends an answer with."""
    from tokenizers import decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.ggml import GGUF_TO_FAST_CONVERTERS, convert_gguf_tokenizer

    kind = found["config"]["model_type"]
    if kind not in GGUF_TO_FAST_CONVERTERS:
        raise ValueError(f"transformers cannot read a GGUF file's {kind} tokenizer; give a Hugging Face folder")
    tokens = found["tokenizer"]["tokens"]
    backend, _ = convert_gguf_tokenizer(kind, found["tokenizer"])
    if fields.get("tokenizer.ggml.model") == "gpt2":
        backend.decoder = decoders.ByteLevel()
        if fields.get("tokenizer.ggml.pre") in SINGLE_DIGITS:
            digits = pre_tokenizers.Digits(individual_digits=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ids = {name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown", "padding")}
    named = {name: None if number is None else tokens[number] for name, number in ids.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=named["bos"],
        eos_token=named["eos"],
        unk_token=named["unknown"],
        pad_token=named["padding"] or named["eos"],
        chat_template=fields.get("tokenizer.chat_template"),
        model_max_length=getattr(config, "max_position_embeddings", None),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.eos_token = _turn_end(tokenizer) or tokenizer.eos_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.eos_token is None:
        raise ValueError("the file names no token that ends an answer (tokenizer.ggml.eos_token_id)")
    return tokenizer


def _turn_end(tokenizer: Any) -> str | None:
    """The control token that the chat template writes after an answer, if it writes one."""
    if not tokenizer.chat_template:
        return None
    mark = "openrlhf"  # no template writes it
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
    after = rendered(tokenizer, turns).rpartition(mark)[2]
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    found = sorted((after.find(token), token) for token in special if token in after)
    return found[0][1] if found else None
