import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_backbone import small_reward_model
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3PreTrainedModel

from openrlhf_qs.garm.reward_model import pad_left
from openrlhf_qs.models.shared_prefix import share_prefixes
from openrlhf_qs.registry import load_plugins

load_plugins()
MARK = {"name": "gaussian", "options": {}}
texts_of = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=7), min_size=1, max_size=5)


@pytest.fixture(
    scope="module",
    params=[
        (Qwen3Config, Qwen3PreTrainedModel, Qwen3Model, "sdpa"),
        (Qwen3Config, Qwen3PreTrainedModel, Qwen3Model, "eager"),
        (LlamaConfig, LlamaPreTrainedModel, LlamaModel, "sdpa"),
    ],
    ids=["qwen3", "qwen3-eager", "llama"],
)
def model(request):
    *classes, attention = request.param
    return small_reward_model(MARK, *classes, attn_implementation=attention)


@settings(max_examples=30, deadline=None)
@given(groups=st.lists(texts_of, min_size=1, max_size=3))
def test_shared_rows_give_what_each_text_alone_gives(model, groups):
    texts = [text for group in groups for text in group]
    group = [n for n, members in enumerate(groups) for _ in members]
    with torch.no_grad():
        alone = model(*pad_left(texts, 0))
        input_ids, segments, place = share_prefixes(texts, group, 0, max_row=10)
        shared = model(input_ids, segments)[place]
    torch.testing.assert_close(shared, alone, atol=1e-4, rtol=0)


def test_gradients_of_shared_rows_are_those_of_the_texts_alone(model):
    texts = [[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 3, 4, 5], [1, 2, 7]]
    gradients = []
    for ids, mask, place in ((*pad_left(texts, 0), torch.arange(4)), share_prefixes(texts, [0] * 4, 0)):
        model.zero_grad()
        raw, _ = model(ids, mask, return_output=True)
        (raw[place] * torch.arange(1.0, 5.0)[:, None]).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
