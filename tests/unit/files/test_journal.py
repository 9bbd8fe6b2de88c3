import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_qs.files.journal import Journal, job_keys, model_print
from openrlhf_qs.files.whole import read_json_lines


@given(st.permutations(range(6)), st.integers(0, 6), st.integers(0, 40))
def test_rows_come_out_in_the_order_of_the_keys_wherever_a_run_was_cut(tmp_path_factory, order, n_before, n_torn):
    out = tmp_path_factory.mktemp("journal") / "out.jsonl"
    keys = job_keys({}, list(range(6)))
    journal = Journal(out, keys)
    for i in order[:n_before]:
        journal.add({keys[i]: {"n": i, "text": "é\n\U0001f35e"}})
    journal.file.close()
    whole = journal.part.read_bytes()
    journal.part.write_bytes(whole[: max(len(whole) - n_torn, 0)])

    journal = Journal(out, keys)
    n_lost = n_before - (6 - len(journal.missing()))
    assert n_lost <= 1  # a line is longer than what was torn off
    for key in journal.missing():
        journal.add({key: {"n": keys.index(key), "text": "é\n\U0001f35e"}})
    assert journal.finish() == 6
    assert [row["n"] for row in read_json_lines(out)] == list(range(6))
    assert not journal.part.exists()


def test_rows_that_were_never_added_are_left_out(tmp_path):
    journal = Journal(tmp_path / "deep" / "out.jsonl", ["a", "b", "c"])
    journal.add({"c": {"n": 3}})
    journal.add({"a": {"n": 1}})
    assert journal.missing() == ["b"]
    assert journal.finish() == 2
    assert read_json_lines(tmp_path / "deep" / "out.jsonl") == [{"n": 1}, {"n": 3}]


def test_the_part_of_another_job_is_refused_and_left_alone(tmp_path):
    first = Journal(tmp_path / "out.jsonl", job_keys({"temperature": 1}, ["x"]))
    first.add({first.keys[0]: {}})
    before = first.part.read_bytes()
    with pytest.raises(ValueError, match="out.jsonl.part was begun with other options"):
        Journal(tmp_path / "out.jsonl", job_keys({"temperature": 2}, ["x"]))
    assert first.part.read_bytes() == before


def test_equal_inputs_have_a_key_each_and_a_longer_list_keeps_them():
    keys = job_keys({"n": 1}, ["x", "y", "x"])
    assert len(set(keys)) == 3
    assert job_keys({"n": 1}, ["x", "y", "x", "x"])[:3] == keys
    assert not set(keys) & set(job_keys({"n": 2}, ["x", "y", "x"]))


def test_a_model_that_was_trained_again_is_another_one(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = model_print(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert model_print(str(tmp_path)) != before
    assert model_print("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"
