import json

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openrlhf_qs.clicks import batches as log_batches
from openrlhf_qs.clicks.batches import check_batch, file_parts, log_files, map_log, read_part
from openrlhf_qs.clicks.rows import SCHEMA, checked_row
from openrlhf_qs.files.whole import BadRow

GOOD = {
    "impression_id": "i",
    "timestamp": "2025-03-01T12:00:00+00:00",
    "conversation": [{"role": "user", "content": "Hi"}],
    "suggestions": ["a", "b"],
    "clicks": [0, 1],
}
ODD_VALUES = {
    "impression_id": ["", 5, None, "\u0000", "é"],
    "timestamp": ["2025-03-01", "2025-03-01 12:00", "2025-03-01T12:00:60Z", "2025-3-1T1:1:1", "20250301T120000Z"]
    + ["2025-03-01T12:00:00.5+02:00", "2025-03-01T12:00:00.123456Z", "0001-01-01T00:00:00+01:00", 7, None]
    + ["2025-02-30T12:00:00Z", "2025-03-01T12:00:00+02:30", "2025-03-01 12:00:00", "2025-03-01T12:00:00-00:00"],
    "conversation": [[], "Hi", None, [None], ["Hi"], [{"role": "bot", "content": "x"}], [{"role": "user"}]]
    + [[{"role": "user", "content": ""}], [{"role": "user", "content": "x", "name": {"first": "y"}}]],
    "suggestions": [[], None, ["a"], ["a", "b\n"], ["a", "b\nc"], ["a", "\u2028"], ["a", "\x1f"], ["a", " "], ["a", 3]]
    + [["a", None], ["a", "b\x1cc"], ["a", "\u3000"], ["a", "x" * 1000], ["a", "🍞" * 1001], ["أ", "ב"]],
    "clicks": [[], [1], [0, 2], [0, True], [0, 1.0], [0, "1"], [0, None], [0, -1], [0, 300], None, 1, [[0], 1]],
    "user_id": ["u", None, 5, ""],
    "policy": ["p", None, {"name": "p"}],
    "log_prob": [-3, -3.25, 0, 0.0, 1, None, "x", True, float("-inf"), float("nan")],
    "features": [{"a": 1}, {"meta": 1}, None, "x", "{}", '{"a": 1}', 5, {}],
    "meta": [{"a": 1}, {"features": {"b": 2}}, {"a": [None, {"b": "é"}]}, None, "x", "{}", "[1]", 5, [1], {}, True],
    "other": [1, "x", {"y": []}, None],
}
odd_rows = st.lists(
    st.sampled_from([(name, value) for name, values in ODD_VALUES.items() for value in values]), max_size=2
).map(lambda changes: {**GOOD, **dict(changes)})
odd_lines = st.one_of(
    odd_rows.map(json.dumps),
    odd_rows.map(lambda row: json.dumps(row, ensure_ascii=False)),
    odd_rows.map(lambda row: json.dumps(row, separators=(",", ":"))),
    st.sampled_from(
        [
            "",
            "  ",
            "null",
            "[]",
            "5",
            "{",
            "}",
            "{}",
            '{"a": 1} {',
            '{"a": 1} null',
            '{"a": 1} {"b": 2}',
            '{"a": "\\ud83c"}',
        ]
    ),
    st.sampled_from(
        ['{"a": 1} null', '{"a": NaN}', '{"a": 1, "a": 2}', '{"impression_id": "x"} 5', "\ufeff{}", '{"a": "\x01"}']
    ),
)


def one_by_one(lines):
    """Rows and problems as plain Python finds them."""
    rows, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                rows.append(checked_row(line) | {"line": number})
        except BadRow as error:
            problems.append((number, error.reason, str(error)))
    return pl.DataFrame(rows, schema=SCHEMA | {"line": pl.Int64}), problems


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def numbered(n):
    return [{**GOOD, "impression_id": f"i{number}"} for number in range(n)]


@settings(max_examples=200, deadline=None)
@example(["", '{"a": 1} {"b": 2}'])
@example(['{"a": 1} {', "}"])
@given(st.lists(odd_lines, max_size=8))
def test_a_batch_is_judged_as_its_rows_are_one_by_one(lines):
    encoded = [line.encode() for line in lines]
    batch = check_batch(b"".join(line + b"\n" for line in encoded))
    rows, problems = one_by_one(encoded)
    assert batch.rows.equals(rows) and batch.problems == problems and batch.n_lines == len(lines)


@pytest.mark.parametrize("name", ODD_VALUES)
def test_each_odd_value_among_good_rows_is_judged_as_alone(name):
    for value in ODD_VALUES[name]:
        lines = [json.dumps(row).encode() for row in (GOOD, {**GOOD, name: value}, GOOD)]
        batch = check_batch(b"\n".join(lines))
        rows, problems = one_by_one(lines)
        assert batch.rows.equals(rows) and batch.problems == problems, value


@settings(max_examples=200, deadline=None)
@given(
    metas=st.lists(
        st.sampled_from([*ODD_VALUES["meta"], {"meta": {"a": 1}}, '"meta": {}}', ...]), min_size=1, max_size=5
    ),
    place=st.integers(0, len(GOOD)),
    text=st.sampled_from(["Hi", '"meta": {"a": 1}}', "meta", "é"]),
    nested=st.booleans(),
    separators=st.sampled_from([(", ", ": "), (",", ":"), (" , ", " : ")]),
)
def test_meta_is_found_wherever_it_stands(metas, place, text, nested, separators):
    lines = []
    for meta in metas:
        message = {"role": "user", "content": text} | ({"meta": {}} if nested else {})
        fields = list((GOOD | {"conversation": [message], "policy": text}).items())
        fields[place:place] = [] if meta is ... else [("meta", meta)]
        lines.append(json.dumps(dict(fields), separators=separators, ensure_ascii=False).encode())
    batch = check_batch(b"".join(line + b"\n" for line in lines))
    rows, problems = one_by_one(lines)
    assert batch.rows.equals(rows) and batch.problems == problems


def test_bytes_that_are_no_utf8_and_half_surrogates_are_found_among_good_rows():
    good = json.dumps(GOOD).encode()
    bad = [
        good.replace(b'"a"', b'"caf\xe9"'),
        good.replace(b'"a"', b'"\\ud83c"'),
        good.replace(b"{", b'{"x": "\xff", ', 1),
    ]
    batch = check_batch(b"\n".join([good, *bad, good]))
    assert batch.rows["line"].to_list() == [1, 5]
    assert [problem.reason for problem in batch.problems] == ["bad JSON", "half a character", "bad JSON"]


@pytest.mark.parametrize(
    "change",
    [
        {"timestamp": pl.col("timestamp").dt.replace_time_zone(None)},
        {"timestamp": pl.col("timestamp").dt.convert_time_zone("Asia/Tokyo").dt.cast_time_unit("ns")},
        {"timestamp": pl.col("timestamp").dt.to_string("iso:strict")},
        {"clicks": pl.col("clicks").cast(pl.List(pl.Boolean))},
        {"clicks": pl.col("clicks").cast(pl.List(pl.Float64))},
        {"user_id": pl.lit(None)},
        {"policy": pl.col("policy").cast(pl.Categorical)},
        {"meta": pl.struct(a=pl.lit(1))},
    ],
    ids=["no zone", "Tokyo, nanoseconds", "text", "booleans", "floats", "null", "categories", "struct"],
)
def test_parquet_of_other_types_gives_the_same_rows(change, tmp_path):
    lines = [json.dumps({**row, "policy": "p", "meta": {"a": 1}}).encode() for row in numbered(3)]
    expected, _ = one_by_one(lines)
    expected.drop("line").with_columns(**change).write_parquet(tmp_path / "log.parquet")
    (result,) = map_log([str(tmp_path / "log.parquet")], lambda batch: batch)
    assert not result.value.problems
    assert result.value.rows.equals(expected)


def test_a_file_falls_into_parts_at_the_ends_of_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(log_batches, "BATCH_BYTES", 500)
    path = write(tmp_path / "log.jsonl", numbered(20))
    parts = file_parts(path)
    assert len(parts) > 3
    assert b"".join(raw for part in parts for raw in read_part(part)) == (tmp_path / "log.jsonl").read_bytes()
    results = list(map_log([path], lambda batch: batch.rows["line"].to_list()))
    assert [result.line + line for result in results for line in result.value] == list(range(1, 21))


def test_globs_name_files_once_and_an_empty_one_is_an_error(tmp_path):
    paths = [write(tmp_path / name, numbered(1)) for name in ("a.jsonl", "b.jsonl")]
    assert log_files([tmp_path / "*.jsonl", paths[0]]) == paths
    with pytest.raises(ValueError, match="there is no such file"):
        log_files([tmp_path / "*.parquet"])
    with pytest.raises(ValueError, match="unknown engine 'spark'; known: polars, ray"):
        next(map_log(paths, len, "spark"))
