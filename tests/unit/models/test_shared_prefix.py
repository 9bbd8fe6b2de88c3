import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3Config

from openrlhf_qs.models.shared_prefix import can_share_prefix, ends, positions, share_prefixes, token_places, tree_mask

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


@given(st.lists(texts_of, min_size=1, max_size=4), st.integers(4, 12))
def test_every_token_is_found_where_its_row_has_it(groups, max_row):
    texts = [text for group in groups for text in group]
    group = [n for n, members in enumerate(groups) for _ in members]
    shared = share_prefixes(texts, group, pad_token_id=0, max_row=max_row)
    n_tokens = torch.tensor([len(text) for text in texts])
    row, column = token_places(shared, n_tokens)
    for text, one_row, columns in zip(texts, row, column, strict=True):
        assert shared.input_ids[one_row, columns[: len(text)]].tolist() == text
        places = positions(shared.segments)[one_row, columns[: len(text)]]
        assert places.tolist() == list(range(len(text)))


def test_only_full_attention_without_packing_can_share():
    full = Qwen3Config()
    assert can_share_prefix(full, "sdpa")
    assert not can_share_prefix(full, "flash_attention_2") and not can_share_prefix(full, "sdpa", packing_samples=True)
    windows = Qwen3Config(num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"])
    assert not can_share_prefix(windows, "sdpa")
