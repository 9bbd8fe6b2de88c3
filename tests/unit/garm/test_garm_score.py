import argparse
import csv
import gzip
import io
import json

import numpy as np
import polars as pl
import pytest

from openrlhf_qs.garm import score as garm_score
from openrlhf_qs.garm.reward_model import SuggestionScorer

HEADLINES = [
    "Cats, and why they purr",
    'He said "no".\nThen this happened',
    "",
    "Cats, and why they purr",
    "Ünïcode ✓",
]
TABLE = (
    "id,headline,ctr,note\n"
    '001,"Cats, and why they purr",0.010,\n'
    '2,"He said ""no"".\nThen this happened",1e-3,NA\n'
    "3,,0.5, spaced \n"
    '4,"Cats, and why they purr",,x\n'
    "5,Ünïcode ✓,7,null\n"
)


@pytest.fixture
def score(tmp_path, write_small_garm):
    """``score(file, out, *flags)`` runs the command on a Gaussian head and returns the path of the result."""
    models = {}

    def score(file, out, *flags, **options):
        key = tuple(options.items())
        models[key] = models.get(key) or write_small_garm(**options)
        parser = argparse.ArgumentParser()
        garm_score.add_arguments(parser)
        argv = [file, "--model", models[key], "--out", tmp_path / out, *flags]
        garm_score.run(parser.parse_args([str(one) for one in argv]))
        score.model = models[key]
        return tmp_path / out

    return score


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def cells(text):
    return list(csv.reader(io.StringIO(text, newline="")))


def test_every_row_keeps_its_cells_and_its_place(score, table):
    before, after = cells(TABLE), cells(score(table, "out.csv").read_text(encoding="utf-8"))
    assert [row[:-2] for row in after] == before
    assert after[0][-2:] == ["mean", "std"]


def test_the_numbers_are_the_scorer_s_own(score, table):
    after = cells(score(table, "out.csv").read_text(encoding="utf-8"))[1:]
    texts = [text for text in HEADLINES if text]
    expected = SuggestionScorer(score.model)([[]] * len(texts), texts)
    found = np.array([row[-2:] for row in after if row[1]], dtype=float)
    np.testing.assert_allclose(found, np.stack(expected[:2], axis=1), rtol=1e-5)
    assert after[0][-2:] == after[3][-2:]  # the same headline


def test_a_row_without_text_has_empty_cells_and_is_counted(score, table, capsys):
    after = cells(score(table, "out.csv").read_text(encoding="utf-8"))[1:]
    assert [row[-2:] == ["", ""] for row in after] == [False, False, True, False, False]
    assert "empty, so without a score │ 1" in " ".join(capsys.readouterr().out.split())


def test_gzip_and_other_formats_say_the_same(score, table, tmp_path):
    plain = cells(score(table, "out.csv").read_text(encoding="utf-8"))[1:]
    packed = tmp_path / "table.csv.gz"
    packed.write_bytes(gzip.compress(TABLE.encode()))
    assert cells(gzip.decompress(score(packed, "out.csv.gz").read_bytes()).decode())[1:] == plain
    parquet = tmp_path / "table.parquet"
    pl.DataFrame({"headline": HEADLINES}).write_parquet(parquet)
    found = pl.read_parquet(score(parquet, "out.parquet"))
    assert found["headline"].to_list() == HEADLINES
    assert [None if value is None else repr(value) for value in found["mean"]] == [row[-2] or None for row in plain]


def test_a_click_log_gets_a_number_for_each_suggestion(score, tiny_log, tiny_log_rows):
    found = [json.loads(line) for line in score(tiny_log, "out.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k not in ("mean", "std")} for row in found] == tiny_log_rows
    row = tiny_log_rows[3]
    expected = SuggestionScorer(score.model)([row["conversation"]] * 3, row["suggestions"])
    np.testing.assert_allclose(found[3]["mean"], expected.mean, rtol=1e-5)


def test_a_conversation_column_may_be_plain_text(score, tmp_path):
    file = tmp_path / "queries.csv"
    file.write_text("query,option\ncats,big cats\n,big cats\n")
    (_, one, other) = cells(score(file, "out.csv", "--column", "option", "--conversation_column", "query").read_text())
    conversations = [[{"role": "user", "content": "cats"}], []]
    expected = SuggestionScorer(score.model)(conversations, ["big cats"] * 2).mean
    np.testing.assert_allclose([float(one[2]), float(other[2])], expected, rtol=1e-5)
    assert one[2] != other[2]


def test_an_ensemble_also_says_how_far_its_members_differ(score, table):
    head = cells(score(table, "out.csv", n_members=3).read_text(encoding="utf-8"))[0]
    assert head[-3:] == ["mean", "std", "epistemic_std"]


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("title\nx\n", [], "no column suggestion or suggestions or headline; found title"),
        ("headline\nx\n", ["--column", "title"], "no column title; found headline"),
        ("headline\nx\n", ["--conversation_column", "query"], "no column query"),
        ("headline,mean\nx,1\n", [], "it already has a column mean"),
        ("headline,n\nx,1,2\n", [], "line 2: 3 cells for 2 columns"),
        ("headline\n", [], "it has no rows"),
        ("headline,n\n,1\n", [], "no text in column headline of 1 rows"),
    ],
)
def test_a_bad_table_is_one_clear_error(score, tmp_path, text, flags, message):
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        score(file, "out.csv", *flags)


def test_an_unknown_format_is_refused_before_the_work(score, table):
    with pytest.raises(ValueError, match="unknown format; give .csv"):
        score(table, "out.txt")
