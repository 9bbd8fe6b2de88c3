import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_backbone import SIZES, small_reward_model
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3PreTrainedModel

from openrlhf_qs.garm.reward_model import can_share_prefix, pad_left
from openrlhf_qs.garm.shared_prefix import ends, positions, share_prefixes, tree_mask
from openrlhf_qs.registry import load_plugins

load_plugins()
MARK = {"name": "gaussian", "options": {}}
texts_of = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=7), min_size=1, max_size=5)


def rows_of(shared):
    """Each suggestion as (row, its tokens with the common beginning), read off the segment ids one by one."""
    found = []
    for row, (ids, segments) in enumerate(zip(shared.input_ids.tolist(), shared.segments.tolist(), strict=True)):
        common = [token for token, segment in zip(ids, segments, strict=True) if segment == 1]
        for k in sorted(set(segments) - {0, 1}):
            found.append((row, common + [t for t, segment in zip(ids, segments, strict=True) if segment == k]))
    return found


@given(st.lists(texts_of, min_size=1, max_size=4), st.integers(4, 12))
def test_every_text_can_be_read_off_the_rows_and_no_row_mixes_groups(groups, max_row):
    texts = [text for group in groups for text in group]
    group = [n for n, members in enumerate(groups) for _ in members]
    shared = share_prefixes(texts, group, pad_token_id=0, max_row=max_row)
    read = rows_of(shared)
    assert [read[place][1] for place in shared.place] == texts
    group_of_row = {}
    for place, number in zip(shared.place.tolist(), group, strict=True):
        assert group_of_row.setdefault(read[place][0], number) == number
    # equal texts of a group once
    assert len(read) == len({(number, *text) for number, text in zip(group, texts, strict=True)})


def test_a_row_is_closed_before_it_is_too_long():
    texts = [[1, 1, 1, 2], [1, 1, 1, 3], [1, 1, 1, 4]]
    assert share_prefixes(texts, [0, 0, 0], 0, max_row=5).input_ids.tolist() == [[1, 1, 1, 2, 3], [1, 1, 1, 4, 0]]


def test_masks_and_positions_of_a_row_worked_out_by_hand():
    segments = torch.tensor([[1, 1, 2, 2, 3, 0]])
    assert positions(segments)[0, :5].tolist() == [0, 1, 2, 3, 2]
    seen = tree_mask(segments, torch.float32)[0, 0] == 0
    assert seen[:5, :5].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert [one.tolist() for one in ends(segments)] == [[0, 0], [3, 4]]


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


def test_only_full_attention_without_packing_can_share():
    full = Qwen3Config(**SIZES)
    assert can_share_prefix(full, "sdpa")
    assert not can_share_prefix(full, "flash_attention_2") and not can_share_prefix(full, "sdpa", packing_samples=True)
    windows = Qwen3Config(**SIZES, layer_types=["full_attention", "sliding_attention"])
    assert not can_share_prefix(windows, "sdpa")
