import argparse
import json

import pytest
from transformers import AutoTokenizer

from openrlhf_qs.clicks import data, lengths
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.files.run_folder import DataFolder
from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import SUGGEST, Task
from openrlhf_qs.models.template import prepared, prompt_ids, shortened
from openrlhf_qs.sft.small_policy import train_tokenizer

STRICT = (
    "{%- for m in messages -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('Conversation roles must alternate') -}}{%- endif -%}"
    "{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' -}}{%- endfor -%}"
)


def called(module, *flags):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(flag) for flag in flags]))


@pytest.fixture
def policy(tiny_log, tmp_path):
    folder = tmp_path / "policy"
    train_tokenizer(read_click_log(tiny_log), vocab_size=600).save_pretrained(folder)
    return folder


@pytest.fixture
def written(tiny_log_rows, tmp_path):
    """Data folder of the tiny log with every third conversation made long."""

    def write(turn):
        rows = json.loads(json.dumps(tiny_log_rows))
        system = {"role": "system", "content": "You bake."}
        for row in rows[::3]:
            earlier = [{"role": role, "content": turn} for role in ("user", "assistant") * 6]
            row["conversation"] = [system, *earlier, *row["conversation"]]
        log = tmp_path / "clicks.jsonl"
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        called(data, "--log", log, "--out", tmp_path / "data")
        return DataFolder(tmp_path / "data")

    return write


def conversations(out):
    rows = [row for file in (out.preferences, out.sft, out.fusion, out.heldout) for row in read_json_lines(file)]
    return [row["conversation"] for row in rows]


def test_long_conversations_are_cut_once_for_all_stages(written, policy, capsys):
    out = written("How long must the dough rise before I bake it? " * 4)
    before = conversations(out)
    called(lengths, "--data", out.path, "--policy", policy, "--max_len", 200)
    found = json.loads(out.lengths.read_text())
    n_most = 200 - found["max_new_tokens"] - lengths.N_END
    tokenizer, after = AutoTokenizer.from_pretrained(policy), conversations(out)
    assert len(after) == len(before) and found["n_left_out"] == 0
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed and found["n_cut"] >= len({json.dumps(old) for old, _ in changed})  # prompts have more
    for old, new in changed:
        # whole turns from the beginning: the system's message, then the last ones as they were, a user's first
        assert new[0] == old[0] and new[1:] == old[len(old) - len(new) + 1 :] and new[1]["role"] == "user"
        assert len(prompt_ids(tokenizer, SUGGEST.messages(new))) <= n_most
    for row in read_json_lines(out.prompts):
        conversation = Request.of_label(row["label"]).conversation
        assert row["prompt"] == SUGGEST.messages(conversation)
        assert len(prompt_ids(tokenizer, row["prompt"])) <= n_most
    assert int(out.max_new_tokens.read_text()) == found["max_new_tokens"]
    assert "were cut by whole turns from the beginning" in capsys.readouterr().out
    again = out.preferences.read_bytes()
    called(lengths, "--data", out.path, "--policy", policy, "--max_len", 200)
    assert out.preferences.read_bytes() == again


def test_a_question_that_is_too_long_alone_leaves_out_its_impressions(written, policy, capsys):
    out = written("short")
    rows = read_json_lines(out.heldout)
    rows[0]["conversation"] = [{"role": "user", "content": "dough " * 900}]
    out.heldout.write_text("".join(json.dumps(row) + "\n" for row in rows))
    called(lengths, "--data", out.path, "--policy", policy, "--max_len", 300)
    assert len(read_json_lines(out.heldout)) == len(rows) - 1  # which the count in log.json says too
    assert json.loads(out.log.read_text())["written"]["heldout.jsonl"] == len(rows) - 1
    assert json.loads(out.lengths.read_text())["n_left_out"] == 1
    assert "are left out: their last question alone is too long" in capsys.readouterr().out


def test_roles_that_a_template_refuses_are_named_with_a_row_and_what_becomes_of_them(
    written, policy, tmp_path, capsys
):
    strict = AutoTokenizer.from_pretrained(policy)
    strict.chat_template = STRICT
    strict.save_pretrained(tmp_path / "strict")
    out = written("short")
    called(lengths, "--data", out.path, "--policy", tmp_path / "strict", "--max_len", 512)
    refused = json.loads(out.lengths.read_text())["refused_roles"]
    assert any(one["roles"][0] == "system" and one["impression_id"] for one in refused)
    said = capsys.readouterr().out
    assert "which the chat template refuses (Conversation roles must alternate)" in said
    assert "the system message goes into the user's turn" in said
    before = out.preferences.read_bytes()
    with pytest.raises(ValueError, match="refuses .*: use --refused_roles fold or drop, or fix the log"):
        called(lengths, "--data", out.path, "--policy", tmp_path / "strict", "--refused_roles", "stop")
    assert out.preferences.read_bytes() == before


def test_conversations_in_refused_roles_are_dropped_from_every_file_and_counted(written, policy, tmp_path, capsys):
    strict = AutoTokenizer.from_pretrained(policy)
    strict.chat_template = STRICT
    strict.save_pretrained(tmp_path / "strict")
    out = written("short")
    before = conversations(out)
    fine = [one for one in before if one[0]["role"] != "system"]
    called(lengths, "--data", out.path, "--policy", tmp_path / "strict", "--refused_roles", "drop")
    assert conversations(out) == fine and len(fine) < len(before)
    found = json.loads(out.lengths.read_text())
    assert found["n_dropped"] > 0 and found["n_left_out"] == 0
    assert f"{found['n_dropped']} conversations are left out" in capsys.readouterr().out


def test_a_policy_without_a_template_and_a_window_without_room_are_refused(written, policy, tmp_path):
    out = written("short")
    bare = AutoTokenizer.from_pretrained(policy)
    bare.chat_template = None
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="has no chat template"):
        called(lengths, "--data", out.path, "--policy", tmp_path / "bare")
    with pytest.raises(ValueError, match="more than half of MAX_LEN=40"):
        called(lengths, "--data", out.path, "--policy", policy, "--max_len", 40)


def test_responses_get_the_room_that_those_of_the_log_need(policy):
    tokenizer = AutoTokenizer.from_pretrained(policy)
    shown = [["How long?", "Why?", "Where?"]] * 50
    n = len(tokenizer(SUGGEST.write(shown[0]), add_special_tokens=False)["input_ids"])
    room = lengths.response_tokens(tokenizer, shown, SUGGEST, 512)
    assert n < room <= max(1.1 * n + 12, lengths.LEAST) and room % 8 == 0
    more = lengths.response_tokens(tokenizer, shown, Task(6), 512)
    assert more > room  # rows of three, a policy of six


def test_what_is_cut_is_what_every_stage_would_cut(policy):
    tokenizer = AutoTokenizer.from_pretrained(policy)
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": "How long must it rise?"} for n in range(40)]
    cut = lengths.Cut(tokenizer, SUGGEST, 120)
    kept = cut.of(turns)
    assert shortened(tokenizer, SUGGEST.messages(turns), 120) == SUGGEST.messages(kept)
    assert prepared(tokenizer, SUGGEST.messages(kept)) == SUGGEST.messages(kept)
