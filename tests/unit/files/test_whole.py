import gzip
import json
import os

import pytest

from openrlhf_qs.files.whole import read_json_lines, replacing, write_json_lines, write_whole


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
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_whoever_may_read_any_new_file_may_read_one_that_its_writer_kept_to_itself(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "model.safetensors") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_two_processes_write_under_names_of_their_own(tmp_path):
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:  # the other one begins, and writes as long as this one
        with replacing(tmp_path / "whole.txt") as temporary:
            temporary.write_text("the other's")
            os.read(reading, 1)
        os._exit(0)
    with replacing(tmp_path / "whole.txt") as temporary:
        temporary.write_text("ours")
        while len(os.listdir(tmp_path)) < 2:
            pass
    assert (tmp_path / "whole.txt").read_text() == "ours"
    os.write(writing, b".")
    assert os.waitpid(process, 0)[1] == 0
    assert (tmp_path / "whole.txt").read_text() == "the other's" and os.listdir(tmp_path) == ["whole.txt"]


def test_a_file_that_is_cut_at_the_end_of_a_line_is_not_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_json_lines(path, [{"n": 1}, {"n": 2}])
    write_whole(tmp_path / "log.json", json.dumps({"written": {"rows.jsonl": 2}}))
    assert len(read_json_lines(path)) == 2
    write_json_lines(path, [{"n": 1}])
    with pytest.raises(ValueError, match="rows.jsonl has 1 rows, and .*log.json says 2: it was cut or changed; write"):
        read_json_lines(path)
    for other in ("no json", "[]", '{"written": {"rows.jsonl.gz": 2}}'):  # which says nothing of it
        write_whole(tmp_path / "log.json", other)
        assert read_json_lines(path) == [{"n": 1}]


def test_what_is_no_text_names_the_file(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(ValueError, match="rows.jsonl is not UTF-8 text"):
        read_json_lines(tmp_path / "rows.jsonl")


def test_a_missing_file_says_which_stage_is_due(tmp_path):
    with pytest.raises(
        ValueError, match="rows.jsonl does not exist; where a stage of the run writes it, run that first"
    ):
        read_json_lines(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(("line", "message"), [("{", "not JSON: "), ("[1]", r"'\[1\]' is not a JSON object")])
def test_a_bad_row_is_named_with_its_line(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"n": 1}) + f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"rows.jsonl:2: {message}"):
        read_json_lines(path)


def test_json_lines_are_read_packed_too_and_a_cut_file_is_named(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n'))
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz is not a complete gzip file"):
        read_json_lines(path)
