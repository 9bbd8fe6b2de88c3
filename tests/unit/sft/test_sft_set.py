import json

import polars as pl
import pytest

from openrlhf_qs import cli
from openrlhf_qs.clicks.click_log import SCHEMA, read_click_log
from openrlhf_qs.clicks.propensity import examination_propensities
from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.sft.sft_set import assemble, sft_candidates


def click_log(*impressions):
    """A log of (question, suggestions, clicks)."""
    rows = {
        "conversation": [[{"role": "user", "content": question}] for question, _, _ in impressions],
        "suggestions": [suggestions for _, suggestions, _ in impressions],
        "clicks": [clicks for _, _, clicks in impressions],
    }
    return pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows})


def test_the_impressions_of_a_conversation_are_one_row_and_equal_texts_one_candidate():
    log = click_log(("q", ["How long?", "Why?"], [1, 0]), ("q", [" how  LONG?", "When?"], [1, 0]))
    (row,) = sft_candidates(log, [1.0, 1.0])
    assert row["conversation"] == [{"role": "user", "content": "q"}]
    counts = [(c["text"], c["n_shown"], c["n_clicked"]) for c in row["candidates"]]
    assert counts == [("How long?", 2, 2), ("Why?", 1, 0), ("When?", 1, 0)]


def test_weights_are_smoothed_clicks_per_show_counted_by_inverse_propensity():
    log = click_log(("q", ["a", "b"], [1, 0]), ("q", ["c", "b"], [0, 1]))
    (row,) = sft_candidates(log, [1.0, 0.5])
    # clicks count 1 and 1 / 0.5 = 2, on four shows: average 3 / 4, and five shows of it for each text
    weights = {c["text"]: c["weight"] for c in row["candidates"]}
    assert weights == pytest.approx({"a": (1 + 3.75) / 6, "b": (2 + 3.75) / 7, "c": (0 + 3.75) / 6})
    assert [c["text"] for c in row["candidates"]] == ["b", "a", "c"]  # the highest first


def test_one_lucky_click_is_less_than_many():
    often = [("q", ["often"], [n % 2]) for n in range(40)]  # 20 clicks on 40 shows
    rarely = [("q", ["never"], [0])] * 60
    (row,) = sft_candidates(click_log(*often, *rarely, ("q", ["once"], [1])), [1.0])
    assert [c["text"] for c in row["candidates"]] == ["often", "once", "never"]


def test_a_conversation_without_a_click_is_left_out():
    rows = sft_candidates(click_log(("q", ["a"], [0]), ("r", ["a"], [1])), [1.0])
    assert [row["conversation"][0]["content"] for row in rows] == ["r"]


def test_every_show_and_click_of_a_kept_conversation_is_counted(tiny_log):
    log = read_click_log(tiny_log)
    rows = sft_candidates(log, examination_propensities(log))
    candidates = [candidate for row in rows for candidate in row["candidates"]]
    assert len(rows) == 12
    assert sum(c["n_shown"] for c in candidates) == 3 * 30
    assert sum(c["n_clicked"] for c in candidates) == log["clicks"].list.sum().sum()


def test_texts_that_differ_in_punctuation_only_are_one_candidate():
    (row,) = sft_candidates(
        click_log(("q", ["How long?", "???"], [1, 0]), ("q", ["How long!", "!!!"], [0, 0])), [1, 1]
    )
    assert [(c["text"], c["n_shown"]) for c in row["candidates"]] == [("How long?", 2), ("???", 1), ("!!!", 1)]


# What an SFT dataset makes of it

CONVERSATION = [{"role": "user", "content": "How do I bake [bold] bread?"}]
ROWS = [
    {"conversation": CONVERSATION, "candidates": [{"text": text, "log_prob": -1.0} for text in texts]}
    for texts in (["Which flour?", "How hot?", "Who eats it?", "Which flour!"], ["Which flour?", "How hot?"])
]


def test_assembled_rows_say_what_they_were_chosen_from():
    assembled, report = assemble(lambda rows, n: [["Who eats it?", "How hot?", "Which flour?"], None], ROWS)
    texts = ["Which flour?", "How hot?", "Who eats it?", "Which flour!"]
    suggestions = ["Who eats it?", "How hot?", "Which flour?"]
    assert assembled == [{"conversation": CONVERSATION, "suggestions": suggestions, "chosen_from": texts}]
    assert report == {"n_rows": 2, "n_assembled": 1, "samples": assembled}


@pytest.mark.parametrize(
    "answers, message",
    [
        ([None], "gave 1 answers to 2 rows"),
        ([None, ["a", "b"]], "row 2: the SFT dataset's answer is no response: numbers"),
        ([None, ["a", "b", "?"]], "row 2: the SFT dataset's answer is no response: number 3 has no text"),
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
