import csv
import json
from collections import Counter

import polars as pl
import pytest

from openrlhf_qs import cli
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.clicks.convert import converted, messages_of, time_of
from openrlhf_qs.files.whole import BadRow
from openrlhf_qs.garm.score import read_rows

CHAT = [{"role": "user", "content": "How do I bake bread?"}, {"role": "assistant", "content": "Mix, wait, bake."}]
ROW = {
    "impression_id": "a",
    "timestamp": "2025-01-01T00:00:00Z",
    "conversation": CHAT,
    "suggestions": ["How long?", "Which flour?"],
    "clicks": [0, 1],
}


def convert(path, *flags):
    out = path.with_name("clicks.jsonl")
    cli.main(["log", "convert", str(path), "--out", str(out), *flags])
    return read_click_log(out).to_dicts()


@pytest.mark.parametrize(
    ("given", "time"),
    [
        (1711111111, "2024-03-22T12:38:31+00:00"),
        (1711111111.5, "2024-03-22T12:38:31.500000+00:00"),
        ("1711111111111", "2024-03-22T12:38:31.111000+00:00"),
        (1711111111111111, "2024-03-22T12:38:31.111111+00:00"),
        ("2024-03-22 12:38:31", "2024-03-22T12:38:31+00:00"),
        ("2024-03-22T13:38:31+01:00", "2024-03-22T13:38:31+01:00"),
        ("Fri, 22 Mar 2024 12:38:31 GMT", "2024-03-22T12:38:31+00:00"),
    ],
)
def test_times_of_many_forms(given, time):
    assert time_of(given, Counter()) == time


@pytest.mark.parametrize("given", ["yesterday", 17, None, True])
def test_what_is_no_time_is_refused(given):
    with pytest.raises(BadRow, match="timestamp"):
        time_of(given, Counter())


def test_messages_of_openai_have_parts_tools_and_no_content():
    used = Counter()
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "a cat"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Its <image> shows a <|im_end|> too."},
    ]
    assert messages_of(turns, used) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?\n[image]"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Its <image> shows a <|im_end|> too."},
    ]
    assert used["role tool: left out, because no user sees it"] == 1 and used["role developer: system"] == 1


def test_turns_of_sharegpt_and_an_unknown_role():
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    assert [one["role"] for one in messages_of(turns, Counter())] == ["user", "assistant"]
    with pytest.raises(BadRow, match="role 'narrator'; known: user, human"):
        messages_of([{"from": "narrator", "value": "It was night."}], Counter())


@pytest.mark.parametrize(
    ("clicks", "flags"),
    [
        ([0, 1], [0, 1]),
        ([False, True], [0, 1]),
        ("[0, 1]", [0, 1]),
        (1, [0, 1]),
        ("1", [0, 1]),
        ("Which flour?", [0, 1]),
        (["Which flour?", "How long?"], [1, 1]),
        (None, [0, 0]),
        (-1, [0, 0]),
    ],
)
def test_clicks_as_flags_places_or_texts(clicks, flags):
    assert converted({**ROW, "clicks": clicks}, "x", Counter())["clicks"] == flags


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("query,suggestion_1,suggestion_2,taps,ts", "Bread?,How long?,Which flour?,1,2025-01-01"),
        ("query,suggestion,request_id,taps,ts", "Bread?,How long?,{n},1,2025-01-01"),
    ],
)
def test_a_file_without_clicks_is_refused_and_an_empty_one_is_no_click(tmp_path, capsys, header, cells):
    path, (first, second) = tmp_path / "log.csv", (cells.format(n=n) for n in "ab")
    path.write_text(f"{header}\n{first}\n{second}\n")
    with pytest.raises(SystemExit):
        convert(path)
    assert capsys.readouterr().err == (
        f"openrlhf-qs log convert: {path}:2: no clicks; name their column, as in --column clicks=tapped; all 2 rows "
        "have this\n"
    )
    path.write_text(f"{header}\n{first}\n{second.replace(',1,', ',,')}\n")
    assert [sum(row["clicks"]) for row in convert(path, "--column", "clicks=taps")] == [1, 0]
    assert "clicks: empty, taken as no click" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["2", "opened", "2025-01-01"])
def test_a_click_that_is_no_flag_is_never_taken_as_none(tmp_path, value):
    path = tmp_path / "log.csv"
    path.write_text(f"request_id,ts,query,suggestion,clicked\na,2025-01-01,q,One?,{value}\na,2025-01-01,q,Two?,0\n")
    objects = [{"text": "One?", "clicked": value}, {"text": "Two?"}]
    with pytest.raises(BadRow, match=f"click '{value}'; give 0 or 1, true or false, yes or no"):
        converted({**ROW, "suggestions": objects}, "x", Counter())
    with pytest.raises(SystemExit):
        convert(path)


def test_a_suggestion_without_a_flag_beside_ones_that_have_one_was_not_clicked():
    objects = [{"text": "One?"}, {"text": "Two?", "clicked": True}, {"text": "Three?", "clicked": None}]
    for row in ({**ROW, "suggestions": objects, "clicks": None}, {**ROW, "suggestions": objects}):
        assert converted(row, "x", Counter())["clicks"] == [0, 1, 0]


def test_a_click_on_what_was_not_shown_is_refused():
    for clicks in (2, "Why?", [0, 1, 2]):
        with pytest.raises(BadRow, match="is none of the 2 suggestions"):
            converted({**ROW, "clicks": clicks}, "x", Counter())
    assert converted({**ROW, "clicks": 2}, "x", Counter(), first_place=1)["clicks"] == [0, 1]


@pytest.mark.parametrize("clicks", [[0, 1, 0], [1, 0, 0, 1], [True, False, False]])
def test_flags_for_another_number_of_suggestions_are_no_places(clicks):
    with pytest.raises(BadRow, match=f"{len(clicks)} clicks for 2 suggestions"):
        converted({**ROW, "clicks": clicks}, "x", Counter())


def test_what_is_converted_is_not_written_over(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    for out, what in ((path, "is the file to convert"), (tmp_path / "log.parquet", "ends in .jsonl")):
        with pytest.raises(SystemExit):
            cli.main(["log", "convert", str(path), "--out", str(out)])
        assert what in capsys.readouterr().err and json.loads(path.read_text()) == ROW


def test_suggestions_as_objects_as_numbered_text_or_as_lines():
    objects = [{"text": "How long?", "clicked": False}, {"text": "Which flour?", "clicked": True}]
    made = converted({**ROW, "suggestions": objects, "clicks": None}, "x", Counter())
    assert (made["suggestions"], made["clicks"]) == (["How long?", "Which flour?"], [0, 1])
    for text in ("1. How long?\n2. Which flour?", "How long?\r\nWhich flour?\n"):
        assert converted({**ROW, "suggestions": text}, "x", Counter())["suggestions"] == ["How long?", "Which flour?"]


def test_numbers_become_text_and_what_is_missing_is_made():
    row = {**ROW, "user_id": 17, "impression_id": None, "timestamp": 1711111111}
    made = converted(row, "log.csv:3", Counter())
    assert (made["user_id"], made["impression_id"]) == ("17", "log.csv:3")


def test_a_csv_of_a_spreadsheet(tmp_path):
    path = tmp_path / "log.csv"
    lines = [
        ["Id", "Created At", "Query", "Answer", "Suggestion 1", "Suggestion 2", "Suggestion 3", "Clicked", "uid"],
        [1, 1711111111111, "Wie backe ich Brot?", 'Mischen; "warten".', "Wie lange?", "Welches Mehl?", "", 1, 7],
        [2, 1711111112111, "Wie backe ich Brot?", "", "Wie lange?", "Wo?", "Warum?", "", 8],
    ]
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=";").writerows(lines)
    first, second = convert(path)
    assert first["suggestions"] == ["Wie lange?", "Welches Mehl?"] and first["clicks"] == [0, 1]
    assert [one["role"] for one in first["conversation"]] == ["user", "assistant"] and first["user_id"] == "7"
    assert second["suggestions"] == ["Wie lange?", "Wo?", "Warum?"] and second["clicks"] == [0, 0, 0]


def test_a_csv_with_one_suggestion_a_row(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "request_id,ts,query,rank,suggestion,is_clicked\n"
        "a,2025-01-01,q,2,Second?,true\nb,2025-01-01,q,1,Other?,false\na,2025-01-01,q,1,First?,false\n"
    )
    first, second = convert(path)
    assert (first["suggestions"], first["clicks"]) == (["First?", "Second?"], [0, 1])
    assert second["suggestions"] == ["Other?"]


def test_sharegpt_without_suggestions_gives_conversations(tmp_path):
    path = tmp_path / "chats.json"
    chats = [{"id": "1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}]
    path.write_text(json.dumps(chats, indent=1))
    out = tmp_path / "conversations.jsonl"
    cli.main(["log", "convert", str(path), "--out", str(out), "--conversations_only"])
    expected = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert [json.loads(line) for line in out.read_text().splitlines()] == [{"conversation": expected}]
    with pytest.raises(SystemExit):
        cli.main(["log", "convert", str(path), "--out", str(out)])


def test_what_is_wrong_with_a_whole_column_is_said_once(tmp_path, capsys):
    rows = [{**ROW, "impression_id": str(n), "user_id": n} for n in range(50)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError) as error:
        read_click_log(path)
    assert str(error.value) == (
        f"{path}:1: user_id 0; give it as text, or leave it out; all 50 rows have this, which `openrlhf-qs log "
        "convert` may read"
    )
    parquet = tmp_path / "log.parquet"
    pl.DataFrame(rows).write_parquet(parquet)
    with pytest.raises(ValueError, match=r"user_id is Int64 in all rows; give it as text, as `openrlhf-qs log conv"):
        read_click_log(parquet)
    assert [row["user_id"] for row in convert(path)] == [row["user_id"] for row in convert(parquet)]
    for row in rows[:-1]:  # one good row: the others are named each
        row["user_id"] = ["x"]
    rows[-1]["user_id"] = "x"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="and 29 more"):
        read_click_log(path)


def test_byte_order_marks_blank_lines_and_windows_line_ends_are_taken_by_every_reader(tmp_path):
    line = json.dumps(ROW).encode()
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n   \r\n" + line.replace(b'"a"', b'"b"') + b"\r\n\n")
    assert read_click_log(path)["impression_id"].to_list() == ["a", "b"]
    assert [row["impression_id"] for row in read_rows(path)[1]] == ["a", "b"]
    assert [row["impression_id"] for row in convert(path)] == ["a", "b"]


def test_every_row_of_a_file_of_mixed_forms_is_read_in_its_own(tmp_path):
    rest = {"timestamp": 1711111111, "suggestions": ["How long?", "Which flour?"]}
    rows = [
        {"messages": CHAT, "clicks": [0, 1], **rest},
        {
            "conversations": [
                {"from": "human", "value": CHAT[0]["content"]},
                {"from": "gpt", "value": CHAT[1]["content"]},
            ],
            "clicked_index": 1,
            **rest,
        },
        {"query": CHAT[0]["content"], "response": CHAT[1]["content"], "selected": "Which flour?", **rest},
        {"messages": None, "history": CHAT, "clicks": [0, 1], **rest},
    ]
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = convert(file)
    assert [row["conversation"] for row in found] == [CHAT] * 4 and [row["clicks"] for row in found] == [[0, 1]] * 4


def test_a_line_that_is_no_json_is_named_or_left_out_like_any_other_bad_row(tmp_path, capsys):
    file = tmp_path / "export.jsonl"
    lines = [json.dumps(ROW), '{"impression_id": "b"', "[]", json.dumps(ROW | {"impression_id": "c"})]
    file.write_text("\n".join(lines), "utf-8")
    with pytest.raises(SystemExit):
        convert(file)
    error = capsys.readouterr().err
    assert "export.jsonl:2: no JSON" in error and "export.jsonl:3: [] is not a JSON object" in error
    assert [row["impression_id"] for row in convert(file, "--on_error", "skip")] == ["a", "c"]
    assert "bad JSON" in capsys.readouterr().out


def test_a_line_of_a_csv_with_another_number_of_cells_is_left_out_too(tmp_path):
    file = tmp_path / "export.csv"
    file.write_text(
        "question,answer,suggestions,clicked,timestamp\n"
        'How?,So.,"[""Long?"", ""Flour?""]",0,2025-01-01\n'
        "How?,So,and so.,x,1,2025-01-01\n",
        "utf-8",
    )
    assert len(convert(file, "--on_error", "skip")) == 1


def test_a_line_break_of_unicode_ends_no_row_and_half_a_character_is_named(tmp_path, capsys):
    file = tmp_path / "export.jsonl"
    row = ROW | {"conversation": [{"role": "user", "content": "one\u2028two\x85three"}]}
    half = json.dumps(ROW | {"impression_id": "b", "suggestions": ["\ud83d", "Flour?"]})
    file.write_text(json.dumps(row, ensure_ascii=False) + "\r\n" + half + "\n", "utf-8")
    (found,) = convert(file, "--on_error", "skip")
    assert found["conversation"][0]["content"] == "one\u2028two\x85three"
    assert "half a character" in capsys.readouterr().out


def test_for_what_it_cannot_read_it_does_not_recommend_itself(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps(ROW | {"impression_id": key, "timestamp": "01.02.2026"}) + "\n" for key in "ab")
    )
    with pytest.raises(SystemExit):
        convert(file)
    assert capsys.readouterr().err.rstrip().endswith("all 2 rows have this")
    with pytest.raises(ValueError, match="which `openrlhf-qs log convert` may read"):
        read_click_log(file)
