import json

import pytest

from openrlhf_qs import cli
from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.sft.sft_set import assemble

CONVERSATION = [{"role": "user", "content": "How do I bake [bold] bread?"}]
ROWS = [
    {"conversation": CONVERSATION, "candidates": [{"text": text, "log_prob": -1.0} for text in texts]}
    for texts in (["Which flour?", "How hot?", "Who eats it?", "Which flour!"], ["Which flour?", "How hot?"])
]


def test_assembled_rows_say_what_they_were_chosen_from():
    def choose(rows, n):
        return [["Who eats it?", "How hot?", "Which flour?"], None]

    choose.report = {"n_near_duplicates": 1}
    assembled, report = assemble(choose, ROWS)
    texts = ["Which flour?", "How hot?", "Who eats it?", "Which flour!"]
    suggestions = ["Who eats it?", "How hot?", "Which flour?"]
    assert assembled == [{"conversation": CONVERSATION, "suggestions": suggestions, "chosen_from": texts}]
    assert report == {"n_rows": 2, "n_assembled": 1, "n_near_duplicates": 1, "samples": assembled}


@pytest.mark.parametrize(
    "answers, message",
    [
        ([None], "gave 1 answers to 2 rows"),
        ([None, ["a", "b"]], "row 2: the SFT dataset's answer is not a response: numbers"),
        ([None, ["a", "b", "?"]], "row 2: the SFT dataset's answer is not a response: no letter in number 3"),
        ([["a", "b", "c\nd"], None], "is empty or has a line break"),
    ],
)
def test_an_answer_that_is_no_response_is_refused(answers, message):
    with pytest.raises(ValueError, match=message):
        assemble(lambda rows, n: answers, ROWS)


def test_a_row_without_a_conversation_is_refused():
    with pytest.raises(ValueError, match="row 2 has no conversation"):
        assemble(lambda rows, n: [None, None], [ROWS[0], {"conversation": [], "candidates": []}])


def test_the_command_writes_triples_and_report_and_prints_both(tmp_path, capsys):
    source, out = tmp_path / "candidates.jsonl", tmp_path / "triples.jsonl"
    write_json_lines(source, ROWS)
    cli.main(["assemble", str(source), "--out", str(out), "--option", "diverse.method=dpp"])
    (triple,) = read_json_lines(out)
    assert sorted(triple["suggestions"]) == ["How hot?", "Which flour?", "Who eats it?"]
    report = json.loads((tmp_path / "triples.report.json").read_text())
    assert report["sft_dataset"] == "diverse" and report["options"] == {"diverse": {"method": "dpp"}}
    assert report["rows"] == {"assembled": 1, "fewer than 3 candidates": 1}
    assert report["candidates"] == {"not needed": 2, "chosen": 3, "duplicate": 1}
    printed = " ".join(capsys.readouterr().out.split())
    assert "How do I bake [bold] bread?" in printed and "(there is:" in printed


def test_a_refused_file_leaves_nothing_under_the_final_name(tmp_path, capsys):
    source, out = tmp_path / "candidates.jsonl", tmp_path / "triples.jsonl"
    write_json_lines(source, [*ROWS, {"conversation": CONVERSATION, "candidates": [{"text": 7}]}])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["assemble", str(source), "--out", str(out)])
    assert "row 3: candidate" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]
