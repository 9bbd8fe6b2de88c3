import gzip
import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_qs.click_log import (
    SCHEMA,
    clicks_by_position,
    conversation_keys,
    describe,
    read_click_log,
    split_by_conversation,
    text_key,
    write_click_log,
)


@pytest.fixture
def write_lines(tmp_path):
    """``write_lines([row or text, ...])``: the path of a log with these lines."""

    def write(lines):
        path = tmp_path / "log.jsonl"
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def row(tiny_log_rows):
    return tiny_log_rows[0]


def test_a_log_is_read_in_the_order_of_its_file(tiny_log, tiny_log_rows):
    log = read_click_log(tiny_log)
    assert dict(log.schema) == SCHEMA
    for name in ("impression_id", "conversation", "suggestions", "clicks", "user_id", "policy"):
        assert log[name].to_list() == [row[name] for row in tiny_log_rows]
    assert log["timestamp"][0].isoformat() == tiny_log_rows[0]["timestamp"]


def test_gzip_and_parquet_give_the_same_log(tiny_log, tmp_path):
    log = read_click_log(tiny_log)
    zipped, parquet = tmp_path / "again.json.gz", tmp_path / "again.parquet"
    zipped.write_bytes(gzip.compress(tiny_log.read_bytes()))
    log.write_parquet(parquet)
    assert read_click_log(zipped).equals(log)
    assert read_click_log(parquet).equals(log)


def test_what_is_written_reads_back_the_same_with_any_text_and_meta(write_lines, row, tmp_path):
    odd = {
        **row,
        "suggestions": ["Пекти хліб? 🍞", "كيف أخبز؟", 'a "quoted" \\ text'],
        "meta": {"a": [1, {"b": None}]},
    }
    bare = {name: row[name] for name in ("timestamp", "conversation", "suggestions", "clicks")} | {
        "impression_id": "x"
    }
    log = read_click_log(write_lines([odd, bare]))
    write_click_log(log, tmp_path / "again.jsonl")
    assert read_click_log(tmp_path / "again.jsonl").equals(log)
    first, second = map(json.loads, (tmp_path / "again.jsonl").read_text(encoding="utf-8").splitlines())
    assert first["suggestions"] == odd["suggestions"] and first["meta"] == odd["meta"]
    assert second.keys() == bare.keys()


def test_a_time_without_a_zone_is_utc_and_one_with_a_zone_is_turned_into_it(write_lines, row):
    times = ["2025-03-01T12:00:00", "2025-03-01T13:00:00+01:00", "2025-03-01T12:00:00Z"]
    log = read_click_log(write_lines([{**row, "impression_id": t, "timestamp": t} for t in times]))
    assert log["timestamp"].n_unique() == 1


def test_unknown_fields_blank_lines_and_names_of_messages_are_left_out(write_lines, row):
    message = {"role": "user", "content": "Hi", "name": "Ada"}
    log = read_click_log(write_lines(["", {**row, "conversation": [message], "extra": 1}, "  "]))
    assert log.columns == list(SCHEMA)
    assert log["conversation"].to_list() == [[{"role": "user", "content": "Hi"}]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"clicks": [1, 0]}, "2 clicks for 3 suggestions; give one 0/1 per suggestion"),
        ({"clicks": 1}, "clicks 1 for 3 suggestions; give one 0/1 per suggestion"),
        ({"clicks": [1, 0, 2]}, "click 2; give 0 or 1"),
        ({"clicks": [1, 0, "1"]}, "click '1'; give 0 or 1"),
        ({"clicks": [1, 0, None]}, "click None; give 0 or 1"),
        ({"clicks": None}, "no clicks; an impression has impression_id, timestamp, conversation, suggestions, clicks"),
        ({"conversation": []}, "conversation []; give a list of messages, at least one"),
        ({"conversation": "Hi"}, "conversation 'Hi'; give a list of messages, at least one"),
        ({"conversation": [{"role": "bot", "content": "Hi"}]}, "role 'bot'; give one of system, user, assistant"),
        ({"conversation": [{"role": "user"}]}, "message {'role': 'user'}; give"),
        ({"conversation": ["Hi"]}, "message 'Hi'; give"),
        ({"suggestions": []}, "suggestions []; give a list of texts, at least one"),
        ({"suggestions": ["a", " ", "c"]}, "suggestion ' '; give a text that is not empty"),
        ({"suggestions": ["a", 7, "c"]}, "suggestion 7; give a text that is not empty"),
        ({"suggestions": ["a", "b\nc", "d"]}, r"line break in suggestion 'b\nc'; give one line of text"),
        ({"suggestions": ["a", "b\u2028c", "d"]}, r"line break in suggestion 'b\u2028c'; give one line of text"),
        ({"impression_id": 17}, "impression_id 17; give it as text"),
        ({"timestamp": "yesterday"}, "timestamp 'yesterday'; give ISO 8601, as in 2025-01-31T12:00:00Z"),
        ({"timestamp": 1735689600}, "timestamp 1735689600; give ISO 8601"),
        ({"user_id": 5}, "user_id 5; give it as text, or leave it out"),
        ({"meta": "not json"}, "meta 'not json'; give an object, or leave it out"),
        ({"policy": "half \ud83c of a pair"}, "bad JSON ("),
    ],
)
def test_a_bad_row_says_where_what_and_what_to_do(write_lines, row, change, problem):
    path = write_lines([row, {**row, "impression_id": "second"} | change])
    with pytest.raises(ValueError) as error:
        read_click_log(path)
    assert str(error.value).startswith(f"{path}:2: {problem}")
    assert "\n" not in str(error.value)


def test_lines_that_are_no_objects_and_ids_seen_before_are_named(write_lines, row):
    path = write_lines(['{"impression_id": ', "[]", row, row])
    with pytest.raises(ValueError) as error:
        read_click_log(path)
    first, second, third = str(error.value).splitlines()
    assert first.startswith(f"{path}:1: bad JSON (") and first.endswith("give one object a line, in UTF-8")
    assert second == f"{path}:2: a list in place of an object; give one object a line"
    assert third == f"{path}:4: impression_id 'i00' is that of line 3; give each its own"


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"impression_id": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"log.jsonl:1: bad JSON \(.*in UTF-8"):
        read_click_log(path)


def test_the_first_20_bad_rows_are_shown_and_the_others_counted(write_lines, row):
    with pytest.raises(ValueError) as error:
        read_click_log(write_lines([{**row, "impression_id": str(n), "clicks": []} for n in range(27)]))
    lines = str(error.value).splitlines()
    assert len(lines) == 21 and ":20: " in lines[19] and lines[20] == "and 7 more"


def test_a_log_without_a_click_teaches_nothing(write_lines, row):
    with pytest.raises(ValueError, match="1 impressions without one click"):
        read_click_log(write_lines([{**row, "clicks": [0, 0, 0]}]))
    with pytest.raises(ValueError, match="0 impressions without one click"):
        read_click_log(write_lines([]))


def test_files_that_cannot_be_read_are_named(tmp_path, tiny_log):
    damaged, table, notes = (tmp_path / name for name in ("log.jsonl.gz", "log.parquet", "log.txt"))
    damaged.write_bytes(gzip.compress(tiny_log.read_bytes())[:-20])
    table.write_bytes(b"no table")
    notes.write_text("notes")
    for path, problem in [
        (damaged, "damaged gzip"),
        (table, "not a Parquet file"),
        (notes, "unknown kind of file"),
        (tmp_path / "none.jsonl", "there is no such file"),
    ]:
        with pytest.raises(ValueError) as error:
            read_click_log(path)
        assert str(error.value).startswith(f"{path}: {problem}")


def test_click_through_by_position_counts_rows_of_different_lengths(write_lines, row):
    two = {**row, "impression_id": "two", "suggestions": ["a", "b"], "clicks": [0, 1]}
    three = {**row, "clicks": [1, 0, 0]}
    log = read_click_log(write_lines([two, three]))
    assert clicks_by_position(log).rows() == [(2, 1), (2, 1), (1, 0)]
    numbers = describe(log)
    assert numbers["ctr_by_position"] == [1 / 2, 1 / 2, 0.0]
    assert numbers["ctr"] == 2 / 5  # two clicks on five suggestions


def test_a_description_counts_impressions_conversations_and_policies(tiny_log, tiny_log_rows):
    log = read_click_log(tiny_log).with_columns(policy=pl.when(pl.int_range(30) < 10).then(pl.col("policy")))
    numbers = describe(log)
    assert (numbers["n_impressions"], numbers["n_conversations"]) == (30, 12)
    assert numbers["n_clicks"] == sum(sum(row["clicks"]) for row in tiny_log_rows)
    assert numbers["clicked_share"] == 24 / 30  # every fifth one has no click
    assert numbers["policies"] == {"before": 10, "unknown": 20}
    assert numbers["first"] < numbers["last"]
    json.dumps(numbers)


def test_a_split_has_every_impression_once_and_no_conversation_twice(tiny_log):
    log = read_click_log(tiny_log)
    splits = split_by_conversation(log, heldout=0.3, fusion=0.3, seed=1)
    assert sorted(pl.concat(splits)["impression_id"]) == sorted(log["impression_id"])
    keys = [set(conversation_keys(split)) for split in splits]
    assert all(keys) and not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])


def test_order_and_growth_of_the_log_move_no_conversation(tiny_log):
    log = read_click_log(tiny_log)
    shuffled = log.sample(fraction=1.0, shuffle=True, seed=3)
    for whole, part in zip(split_by_conversation(log), split_by_conversation(shuffled.head(15)), strict=True):
        assert set(part["impression_id"]) <= set(whole["impression_id"])


def test_shares_are_met_on_average_and_the_seed_matters(row):
    contents = [[{"role": "user", "content": f"question {n}"}] for n in range(2000)]
    log = pl.DataFrame({"conversation": contents}, schema={"conversation": SCHEMA["conversation"]})
    splits = split_by_conversation(log, heldout=0.2, fusion=0.1)
    # binomial with n = 2000: standard deviations 18 and 13
    assert abs(splits.heldout.height - 400) < 60 and abs(splits.fusion.height - 200) < 45
    assert not split_by_conversation(log, 0.2, 0.1, seed=1).heldout.equals(splits.heldout)
    assert split_by_conversation(log, 0.0, 0.0).train.height == 2000


@pytest.mark.parametrize(("heldout", "fusion"), [(-0.1, 0.1), (0.1, -0.1), (0.7, 0.3)])
def test_shares_that_leave_nothing_to_train_on_are_refused(tiny_log, heldout, fusion):
    with pytest.raises(ValueError, match="sum below 1"):
        split_by_conversation(read_click_log(tiny_log), heldout, fusion)


def test_conversations_are_equal_only_where_roles_and_contents_are():
    said = [("user", "a"), ("user", "b")]
    conversations = [
        [{"role": role, "content": content} for role, content in said],
        [{"role": role, "content": content} for role, content in said],
        [{"role": "user", "content": "a\nb"}],
        [{"role": "user", "content": 'a"}\n{"role":"user","content":"b'}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    ]
    keys = conversation_keys(pl.DataFrame({"conversation": conversations}))
    assert keys[0] == keys[1] and keys.n_unique() == 4


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_case_and_white_space_do_not_change_the_key_of_a_text(text):
    assert text_key(f" {text}\t") == text_key(text)
    assert text_key(text_key(text)) == text_key(text.casefold())
    assert text_key("How  LONG?") == text_key("how long?") != text_key("how wide?")
