import gzip
import json
from collections import Counter

import polars as pl
import pytest

from openrlhf_qs.clicks.check import check_log
from openrlhf_qs.clicks.click_log import (
    REQUIRED,
    SCHEMA,
    clicks_by_position,
    describe,
    read_click_log,
    write_click_log,
)
from openrlhf_qs.clicks.rows import contexts


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
        ({"suggestions": ["a", "b" * 1001, "d"]}, "suggestion of 1001 characters, 'bbb"),
        ({"suggestions": ["a", "b\u2028c", "d"]}, r"line break in suggestion 'b\u2028c'; give one line of text"),
        ({"impression_id": 17}, "impression_id 17; give it as text"),
        ({"timestamp": "yesterday"}, "timestamp 'yesterday'; give ISO 8601, as in 2025-01-31T12:00:00Z"),
        ({"timestamp": 1735689600}, "timestamp 1735689600; give ISO 8601"),
        ({"user_id": 5}, "user_id 5; give it as text, or leave it out"),
        ({"meta": "not json"}, "meta 'not json'; give an object, or leave it out"),
        ({"policy": "half \ud83c of a pair"}, "policy has half of a character"),
        ({"conversation": [{"role": "user", "content": " \u3000"}]}, "user's message"),
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
    assert first.startswith(f"{path}:1: bad JSON (") and first.endswith("give one object per line, in UTF-8")
    assert second == f"{path}:2: a list in place of an object; give one object per line"
    assert third == f"{path}:4: impression_id already used in line 3; give each impression its own"


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
    with pytest.raises(ValueError, match="1 impressions without a click"):
        read_click_log(write_lines([{**row, "clicks": [0, 0, 0]}]))
    with pytest.raises(ValueError, match="it has no rows; give a log to learn from"):
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


def test_bad_rows_can_be_left_out_and_are_counted_by_reason(write_lines, row, tmp_path):
    bad = [
        {**row, "impression_id": "a", "clicks": []},
        "{",
        {**row, "impression_id": "b", "suggestions": ["a", "", "b"]},
    ]
    skipped = Counter()
    log = read_click_log(write_lines([row, *bad, row, {**row, "impression_id": "c"}]), "skip", skipped=skipped)
    assert log["impression_id"].to_list() == ["i00", "c"]
    assert skipped == {
        "wrong number of clicks": 1,
        "bad JSON": 1,
        "empty suggestion": 1,
        "impression_id seen before": 1,
    }


def test_what_a_damaged_gzip_still_holds_can_be_read(tiny_log, tmp_path):
    damaged, skipped = tmp_path / "log.jsonl.gz", Counter()
    damaged.write_bytes(gzip.compress(tiny_log.read_bytes() + b" " * 100)[:-4])
    log = read_click_log(damaged, "skip", skipped=skipped)
    assert 0 < log.height <= 30 and skipped["damaged gzip"] == 1


def test_several_files_are_one_log_in_their_order(tiny_log_rows, tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(json.dumps(row) + "\n" for row in tiny_log_rows[:20]))
    second.write_text("".join(json.dumps(row) + "\n" for row in tiny_log_rows[20:]))
    ids = [row["impression_id"] for row in tiny_log_rows]
    assert read_click_log([first, second])["impression_id"].to_list() == ids
    assert read_click_log(tmp_path / "*.jsonl")["impression_id"].to_list() == ids
    assert read_click_log([second, first, second])["impression_id"].to_list() == ids[20:] + ids[:20]
    second.write_text(json.dumps(tiny_log_rows[3]))
    with pytest.raises(ValueError) as error:
        read_click_log([first, second])
    assert (
        str(error.value)
        == f"{second}:1: impression_id already used in line 4 of {first}; give each impression its own"
    )


OPTIONAL = {"user_id": "u", "policy": "p", "log_prob": -12.5, "features": {"country": "pt"}, "meta": {"round": 1}}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_logs_of_two_rounds_are_read_together_where_only_one_has_an_optional_field(tiny_log_rows, tmp_path, suffix):
    rounds = []
    for number, optional in enumerate(({}, OPTIONAL)):
        names = ("timestamp", "conversation", "suggestions", "clicks")
        rows = [{name: row[name] for name in names} | optional for row in tiny_log_rows]
        lines = tmp_path / f"round{number}.jsonl"
        lines.write_text(
            "".join(json.dumps({"impression_id": f"{number}-{n}", **r}) + "\n" for n, r in enumerate(rows))
        )
        rounds.append(tmp_path / f"round{number}.{suffix}")
        if suffix == "parquet":
            written = read_click_log(lines)
            written.select(name for name in SCHEMA if name in optional or name in REQUIRED).write_parquet(rounds[-1])
    for on_error in ("raise", "skip"):
        log = read_click_log(rounds, on_error)
        assert log.height == 60 and dict(log.schema) == SCHEMA
        assert check_log([str(path) for path in rounds], on_error)["n_impressions"] == 60
    for name, value in OPTIONAL.items():
        assert log[name].null_count() == 30
        assert (json.loads(log[name][-1]) if isinstance(value, dict) else log[name][-1]) == value
    write_click_log(log, tmp_path / "both.jsonl")
    assert read_click_log(tmp_path / "both.jsonl").equals(log)


def test_parquet_files_of_different_column_types_are_refused(tiny_log, tmp_path):
    one, two = tmp_path / "1.parquet", tmp_path / "2.parquet"
    log = read_click_log(tiny_log)
    log.write_parquet(one)
    log.with_columns(pl.col("timestamp").cast(pl.String)).write_parquet(two)
    with pytest.raises(ValueError, match="2.parquet: timestamp is String, but Datetime.* in .*1.parquet; give files"):
        read_click_log([one, two])


def test_before_the_first_word_there_are_features(write_lines, row):
    bare = {**row, "conversation": []}
    known = [{**bare, "impression_id": f"i{n}", "features": {"country": "pt" if n else "fr"}} for n in range(3)]
    log = read_click_log(write_lines(known))
    assert contexts(log).n_unique() == 2 and log["conversation"].list.len().to_list() == [0] * 3
    for features in ({}, None):
        with pytest.raises(ValueError, match=r"conversation \[\]; give a list of messages, at least one"):
            read_click_log(write_lines([{**bare, "features": features}]))
    with pytest.raises(ValueError, match="1: features 'pt'; give an object, or leave it out"):
        read_click_log(write_lines([{**row, "features": "pt"}]))


@pytest.mark.parametrize("log_prob", [0.5, "-3", True, -1e400])
def test_a_log_prob_that_is_none_is_named(write_lines, row, log_prob):
    with pytest.raises(ValueError, match="1: log_prob .*; give nats, at most 0, or leave it out"):
        read_click_log(write_lines([{**row, "log_prob": log_prob}]))
    assert read_click_log(write_lines([{**row, "log_prob": -3}]))["log_prob"].to_list() == [-3.0]


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
