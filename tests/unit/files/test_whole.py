import json

import pytest

from openrlhf_qs.files.whole import read_json_lines, write_json_lines


def test_rows_come_back_in_order_with_every_letter(tmp_path):
    rows = [{"text": "Wo ist\u2028die Tür?\n🚪"}, {"n": [1, 2.5, None]}]
    path = tmp_path / "new" / "folder" / "rows.jsonl"
    write_json_lines(path, iter(rows))
    assert read_json_lines(path) == rows
    assert "Tür" in path.read_text(encoding="utf-8")


def test_no_rows_are_an_empty_file(tmp_path):
    write_json_lines(tmp_path / "rows.jsonl", [])
    assert read_json_lines(tmp_path / "rows.jsonl") == []


def test_what_fails_half_way_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_json_lines(path, [{"n": 1}])

    def rows():
        yield {"n": 2}
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError):
        write_json_lines(path, rows())
    assert read_json_lines(path) == [{"n": 1}]


def test_a_missing_file_says_which_stage_is_due(tmp_path):
    with pytest.raises(ValueError, match="rows.jsonl does not exist: run the stage that writes it first"):
        read_json_lines(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(("line", "message"), [("{", "no JSON: "), ("[1]", r"'\[1\]' is no JSON object")])
def test_a_bad_row_is_named_with_its_line(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"n": 1}) + f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"rows.jsonl:2: {message}"):
        read_json_lines(path)
