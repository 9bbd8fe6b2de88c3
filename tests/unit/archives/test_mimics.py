import gzip
from pathlib import Path

import polars as pl
import pytest

from openrlhf_qs.archives.mimics import pane_pairs, read_panes
from openrlhf_qs.clicks.pairs import SCHEMA

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


def test_clicks_become_shares_of_two_options_and_empty_panes_say_nothing(tmp_path):
    pairs = pane_pairs(read_panes(write(tmp_path, PANES)))
    assert dict(pairs.schema) == SCHEMA
    # 0.6 / 0.8; 0.6 / 0.6; 0.2 / 0.2
    assert pairs["label"].to_list() == pytest.approx([0.75, 1, 1])
    assert [messages[-1]["content"] for messages in pairs["chosen"]] == ["big cats", "big cats", 'the "best" cats']
    assert pairs.select("chosen_position", "rejected_position").rows() == [(1, 2), (1, 3), (2, 3)]
    assert pairs["chosen"][0].to_list()[:-1] == [{"role": "user", "content": "cats"}]


def test_every_pane_counts_once(tmp_path):
    two = ("dogs", "", "big dogs", "dogs film", "", "", "", "low", "1", "0", "1", "0", "0", "0")
    pairs = pane_pairs(read_panes(write(tmp_path, [PANES[0], two])))
    totals = pairs.group_by("impression_id").agg(pl.col("weight").sum())["weight"]
    assert totals.to_list() == pytest.approx([2, 2])


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
    assert pane_pairs(read_panes(file))["impression_id"].n_unique() == (shares.to_series() > 0).sum()
