import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_backbone import SIZES, small_reward_model
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3PreTrainedModel

from openrlhf_qs.garm.exact_match import exact_match
from openrlhf_qs.garm.reward_model import MATCH, pad_left, reward_model_class
from openrlhf_qs.models.shared_prefix import share_prefixes
from openrlhf_qs.registry import load_plugins

load_plugins()
END = 9
MARK = {"name": "click_gaussian", "options": {}, "turn_end_id": END}


def flags_of(ids, segments):
    return exact_match(torch.tensor([ids]), torch.tensor([segments]), END)[0].int().tolist()


def test_each_token_is_told_in_which_turn_back_it_stood():
    #      question    answer   suggestion
    ids = [1, 2, END, 3, 1, END, 2, 3, 4, 4, END]
    flags = flags_of(ids, [1] * len(ids))
    own, answer, question, nowhere = [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]
    assert flags[6:10] == [question, answer, nowhere, own]
    assert flags[4] == answer, "the answer's 1 stood in the turn before it"
    assert flags[10] == [0, 1, 1, 0, 0], "the end of a turn stood at the end of both turns before"


def test_what_is_further_back_than_the_question_is_one_thing():
    ids = [5, END, 6, END, 1, END, 2, END, 5, 6]
    assert [row[3] for row in flags_of(ids, [1] * len(ids))[8:]] == [1, 1]


def test_padding_is_no_match():
    assert flags_of([0, 0, 0, 7], [0, 0, 1, 1])[2:] == [[0, 0, 0, 0, 1]] * 2


token = st.integers(1, END)
texts_of = st.lists(st.lists(token, min_size=1, max_size=8), min_size=1, max_size=4)


@given(texts_of)
@settings(deadline=None)
def test_a_shared_prefix_changes_no_flag(texts):
    plain = [exact_match(torch.tensor([text]), torch.ones(1, len(text), dtype=torch.long), END)[0] for text in texts]
    ids, segments, place = share_prefixes(texts, [0] * len(texts), pad_token_id=0)
    shared = exact_match(ids, segments, END)[0]
    for n, text in zip(place.tolist(), texts, strict=True):
        own = shared[segments[0] == n + 2]
        torch.testing.assert_close(own, plain[texts.index(text)][len(text) - len(own) :])


def test_the_model_scores_a_shared_row_as_the_plain_ones_and_sees_the_matches():
    model = small_reward_model(MARK, initializer_range=0.3)
    texts = [[1, 2, END, 3, END, 2, 4, END], [1, 2, END, 3, END, 5, 6, END]]
    shared = share_prefixes(texts, [0, 0], pad_token_id=0)
    with torch.no_grad():
        plain = model(*pad_left(texts, 0))
        torch.testing.assert_close(model(shared.input_ids, shared.segments)[shared.place], plain, rtol=1e-4, atol=1e-5)
        getattr(model, MATCH).weight.zero_()
        assert (model(*pad_left(texts, 0)) - plain)[:, 0].abs().min() > 1e-4


def test_exact_matches_and_packing_are_refused_together():
    with pytest.raises(ValueError, match="leave out packing_samples"):
        reward_model_class(Qwen3PreTrainedModel, Qwen3Model, packing_samples=True, mark=MARK)(Qwen3Config(**SIZES))
