import argparse
import gzip
from pathlib import Path

import polars as pl
import pytest

from openrlhf_qs.archives import mimics
from openrlhf_qs.archives.mimics import pane_preferences, read_panes
from openrlhf_qs.clicks.preferences import SCHEMA, read_preferences, write_preferences

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "mimics"
HEAD = ["query", "question", *(f"option_{n}" for n in range(1, 6)), "impression_level", "engagement_level"]
HEAD += [f"option_cctr_{n}" for n in range(1, 6)]
PANES = [
    ("cats", "Which?", "big cats", 'the "best" cats', "cats film", "", "", "high", "4", "0.6", "0.2", "0", "0", "0"),
    ("dogs", "Which?", "big dogs", "dogs film", "", "", "", "low", "0", "0", "0", "0", "0", "0"),
]


def write(folder, rows):
    text = "".join("\t".join(row) + "\n" for row in [HEAD, *rows])
    (folder / "duo_clicks.train.tsv.gz").write_bytes(gzip.compress(text.encode()))
    return folder / "duo_clicks.train.tsv.gz"


def pairs_of(panes):
    return panes.select("impression_id", "pairs").explode("pairs").drop_nulls().unnest("pairs")


def test_clicks_become_shares_of_two_options_and_empty_panes_say_nothing(tmp_path):
    panes = pane_preferences(read_panes(write(tmp_path, PANES)))
    assert dict(panes.schema) == SCHEMA and panes.height == 2
    row = panes.row(0, named=True)
    assert row["suggestions"] == ["big cats", 'the "best" cats', "cats film"] and row["clicks"] == [0.6, 0.2, 0]
    assert row["conversation"] == [{"role": "user", "content": "cats"}] and row["positions"] == [1, 2, 3]
    pairs = pairs_of(panes)
    # 0.6 / 0.8; 0.6 / 0.6; 0.2 / 0.2
    assert pairs["label"].to_list() == pytest.approx([0.75, 1, 1])
    assert pairs.select("chosen", "rejected").rows() == [(0, 1), (0, 2), (1, 2)]


def test_every_pane_counts_once(tmp_path):
    two = ("dogs", "", "big dogs", "dogs film", "", "", "", "low", "1", "0", "1", "0", "0", "0")
    panes = pane_preferences(read_panes(write(tmp_path, [PANES[0], two])))
    totals = pairs_of(panes).group_by("impression_id").agg(pl.col("weight").sum())["weight"]
    assert totals.to_list() == pytest.approx([2, 2])


def test_an_option_that_a_pane_has_twice_is_not_compared_with_itself(tmp_path):
    twice = ("cats", "", "big cats", "cats film", "big cats", "", "", "low", "1", "0.5", "0.2", "0.3", "0", "0")
    panes = pane_preferences(read_panes(write(tmp_path, [twice])))
    assert pairs_of(panes).select("chosen", "rejected").rows() == [(0, 1), (2, 1)]
    write_preferences(tmp_path / "preferences.jsonl", panes)
    assert len(read_preferences(tmp_path / "preferences.jsonl")) == 1  # what trains takes it


def test_queries_are_kept_for_calibration_as_a_whole(tmp_path):
    write(tmp_path, [(f"query {n // 3}", *PANES[0][1:]) for n in range(60)])
    parser = argparse.ArgumentParser()
    mimics.add_arguments(parser)
    files = [tmp_path / "train.jsonl", tmp_path / "kept.jsonl"]
    mimics.run(parser.parse_args([str(tmp_path), "--out", str(files[0]), "--calibration", str(files[1])]))
    train, kept = ([row["conversation"][0]["content"] for row in read_preferences(file)] for file in files)
    assert kept and sorted(train + kept) == sorted(f"query {n // 3}" for n in range(60))
    assert not set(train) & set(kept)


def test_a_share_that_is_no_number_is_named(tmp_path):
    bad = [*PANES[0][:9], "often", *PANES[0][10:]]
    with pytest.raises(ValueError, match="row 1: option_cctr_1 is 'often'; give a number"):
        read_panes(write(tmp_path, [bad]))


def test_a_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        read_panes(tmp_path / "duo_clicks.train.tsv.gz")


@pytest.mark.skipif(not FOLDER.is_dir(), reason="MIMICS is not beside the repository")
def test_the_panes_with_a_click_all_have_a_pair():
    file = FOLDER / "duo_clicks.dev.tsv.gz"
    table = pl.read_csv(file, separator="\t", quote_char=None)
    shares = table.select(pl.sum_horizontal(f"option_cctr_{n}" for n in range(1, 6)))
    panes = pane_preferences(read_panes(file))
    assert (panes["pairs"].list.len() > 0).sum() == (shares.to_series() > 0).sum()
