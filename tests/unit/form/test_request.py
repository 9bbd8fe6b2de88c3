import pytest

from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.form.request import Request, read_conversations

CONVERSATION = [{"role": "user", "content": "How do I start a garden?"}]


def test_conversations_are_read_once_each_from_prompts_too(tmp_path):
    write_json_lines(tmp_path / "rows.jsonl", [{"conversation": CONVERSATION, "candidates": []}] * 2)
    prompt = {
        "prompt": [*CONVERSATION, {"role": "user", "content": "Suggest"}],
        "label": Request(CONVERSATION).label(),
    }
    write_json_lines(tmp_path / "prompts.jsonl", [prompt])
    assert read_conversations(tmp_path / "rows.jsonl") == [CONVERSATION]
    assert read_conversations(tmp_path / "prompts.jsonl") == [CONVERSATION]


@pytest.mark.parametrize(
    ("row", "said"),
    [({"conversation": []}, "conversation"), ({"label": "gold"}, "label"), ({"candidates": []}, "conversation")],
)
def test_a_row_without_a_conversation_is_named(tmp_path, row, said):
    write_json_lines(tmp_path / "rows.jsonl", [{"conversation": CONVERSATION}, row])
    with pytest.raises(ValueError, match=f"rows.jsonl:2: .*{said}"):
        read_conversations(tmp_path / "rows.jsonl")
