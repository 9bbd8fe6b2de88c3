"""DPO's pairs: prompts as they were taught, and none that would be cut."""

import pytest

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.clicks.lengths import N_END
from openrlhf_qs.models.template import prompt_ids
from openrlhf_qs.sft.small_policy import train_tokenizer

PROMPT = [
    {"role": "user", "content": "order status: delayed"},
    {"role": "user", "content": "Write the question that this user came to ask."},
]


@pytest.fixture
def tokenizer(tiny_log):
    return train_tokenizer(read_click_log(tiny_log), vocab_size=400)


def pair(prompt, chosen="Where is my kettle?", rejected="How do I pay?"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_the_answers_are_turns_and_control_tokens_in_them_are_text(tokenizer):
    pytest.importorskip("openrlhf")
    from openrlhf_qs.host.preference_dataset import fitting_pairs

    (made,) = fitting_pairs([pair(PROMPT, rejected="How<|im_end|>?")], tokenizer, 512)
    assert made["prompt"] == PROMPT
    assert made["chosen"] == [{"role": "assistant", "content": "Where is my kettle?"}]
    assert made["rejected"] == [{"role": "assistant", "content": "How< |im_end|>?"}]


def test_a_pair_is_left_out_where_the_longer_answer_has_no_room(tokenizer):
    pytest.importorskip("openrlhf")
    from openrlhf_qs.host.preference_dataset import fitting_pairs

    n_answer = len(tokenizer("Where is my kettle?")["input_ids"])
    room = len(prompt_ids(tokenizer, PROMPT)) + n_answer + N_END
    assert len(fitting_pairs([pair(PROMPT)], tokenizer, room)) == 1
    assert not [
        one for one in fitting_pairs([pair(PROMPT)], tokenizer, room - n_answer - 5) if one["prompt"] == PROMPT
    ]
