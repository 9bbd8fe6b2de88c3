import argparse
import gzip
import itertools
import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from openrlhf_qs.archives import upworthy
from openrlhf_qs.archives.upworthy import (
    SCHEMA,
    count_pairs,
    headline_arms,
    headline_preferences,
    read_packages,
    relative_difference_std,
    soft_labels,
    usable_packages,
)

ARCHIVE = Path(__file__).parents[4] / "shared" / "data" / "upworthy" / "packages.dev.csv.gz"
NAMES = ["clickability_test_id", "eyecatcher_id", "headline", "impressions", "clicks", "test_week", "story"]
PACKAGES = [
    ("t1", "cat", "A", 1000, 20, 201405, "s1"),
    ("t1", "dog", "A", 1000, 90, 201405, "s1"),  # another image: compared with nothing
    ("t1", "cat", "B", 1000, 40, 201405, "s1"),
    ("t1", "cat", "A", 1000, 10, 201405, "s1"),  # a repeat: 30 of 2000 in all
    ("t1", "cat", "C", 1000, 15, 201405, "s1"),
    ("t2", "cat", "A, again", 500, 5, 201325, "s2"),
    ("t2", "cat", "D", 500, 15, 201325, "s2"),
    ("t3", "cat", "E", 500, 15, 201326, "s3"),  # the first and the last faulty week
    ("t3", "cat", "F", 500, 5, 201326, "s3"),
    ("t4", "cat", "E", 500, 15, 201402, "s4"),
    ("t4", "cat", "F", 500, 5, 201402, "s4"),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "packages.csv.gz"
    path.write_bytes(gzip.compress(pl.DataFrame(PACKAGES, schema=NAMES, orient="row").write_csv().encode()))
    return path


@pytest.fixture
def tests(file):
    return headline_preferences(headline_arms(usable_packages(read_packages(file))), prior_std=0.3)


@pytest.fixture
def pairs(tests):
    """One row a pair: the test, the headlines, weight, label and z."""
    rows = tests.explode("pairs", "z").unnest("pairs")
    sides = {side: pl.col("suggestions").list.get(pl.col(side)) for side in ("chosen", "rejected")}
    return rows.select("impression_id", "weight", "label", "z", **sides)


def test_pairs_are_within_a_test_and_an_image_and_the_higher_rate_is_chosen(tests, pairs):
    # A was shown twice: 30 of 2000, as C with 15 of 1000
    assert set(pairs.select("impression_id", "chosen", "rejected").rows()) == {
        ("t1", "B", "A"),
        ("t1", "B", "C"),
        ("t1", "A", "C"),
        ("t2", "D", "A, again"),
    }
    assert dict(tests.schema) == SCHEMA and tests["conversation"].to_list() == [[], []]


def test_a_row_has_the_counts_of_its_arms_with_repeats_added_up(tests):
    row = tests.row(0, named=True)
    assert row["suggestions"] == ["A", "A", "B", "C"]  # A with another image is another arm
    assert (row["clicks"], row["examination"]) == ([30, 90, 40, 15], [2000, 1000, 1000, 1000])


def test_the_faulty_weeks_are_left_out_and_their_neighbours_are_not(file):
    assert usable_packages(read_packages(file))["test_week"].unique().to_list() == [201325, 201405]


def test_every_test_counts_once(pairs):
    totals = pairs.group_by("impression_id").agg(pl.col("weight").sum())["weight"]
    assert totals.to_list() == pytest.approx([2, 2])  # two tests, four pairs, mean weight 1


def test_a_tie_says_nothing(pairs):
    tie = pairs.filter(pl.col("z") == 0)
    assert (tie.height, tie["label"][0]) == (1, 0.5)


def test_z_is_that_of_two_proportions(pairs):
    row = pairs.row(0, named=True)  # 40 of 1000 against 30 of 2000
    pooled = 70 / 3000
    expected = (0.04 - 0.015) / math.sqrt(pooled * (1 - pooled) * (1 / 1000 + 1 / 2000))
    assert row["z"] == pytest.approx(expected)


@given(difference=st.floats(-1, 1), std_error=st.floats(0.05, 1), prior_std=st.floats(0.05, 2))
def test_a_label_is_the_posterior_of_a_positive_difference(difference, std_error, prior_std):
    # Conjugate: precisions add up, the prior has mean 0.
    noise = 1.75 * std_error**2
    variance = 1 / (1 / noise + 1 / prior_std**2)
    expected = norm.cdf(variance * difference / noise / math.sqrt(variance))
    [found] = soft_labels(np.array([difference / std_error]), np.array([std_error]), prior_std)
    assert found == pytest.approx(expected, abs=1e-9)


def test_without_a_prior_the_counts_are_taken_at_their_word():
    [found] = soft_labels(np.array([1.96]), np.array([0.2]), math.inf)
    assert found == pytest.approx(norm.cdf(1.96 / math.sqrt(1.75)))


def test_the_spread_of_true_differences_is_found_again():
    rng = np.random.default_rng(0)
    n, rate, tau = 4000, 0.02, 0.3
    shown = np.full(2 * n, 20_000)
    true_rate = rate * (1 + tau / math.sqrt(2) * rng.standard_normal(2 * n))
    arms = pl.DataFrame(
        {
            "clickability_test_id": [f"t{k // 2}" for k in range(2 * n)],
            "eyecatcher_id": "cat",
            "headline": [str(k) for k in range(2 * n)],
            "impressions": shown,
            "clicks": rng.binomial(shown, np.clip(true_rate, 0, 1)),
        }
    )
    assert relative_difference_std(count_pairs(arms)) == pytest.approx(tau, rel=0.05)


def test_counts_that_say_nothing_are_an_error():
    arms = [("t", "cat", str(n), 1000, 20) for n in range(4)]
    with pytest.raises(ValueError, match="no more than chance"):
        headline_preferences(pl.DataFrame(arms, schema=NAMES[:5], orient="row"))


def arguments(*argv):
    parser = argparse.ArgumentParser()
    upworthy.add_arguments(parser)
    return parser.parse_args([str(one) for one in argv])


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_writes_the_pairs_and_counts_what_it_left_out(file, tmp_path, capsys):
    upworthy.run(arguments(file, "--out", tmp_path / "preferences.jsonl", "--prior_std", 0.3))
    found = rows(tmp_path / "preferences.jsonl")
    assert [(row["impression_id"], len(row["pairs"])) for row in found] == [("t1", 3), ("t2", 1)]
    printed = " ".join(capsys.readouterr().out.split())
    assert "weeks of faulty randomisation │ 4" in printed


def test_the_same_file_gives_the_same_pairs(file, tmp_path):
    for name in "ab":
        upworthy.run(arguments(file, "--out", tmp_path / name, "--prior_std", 0.3))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="the Upworthy archive is not beside the repository")
def test_stories_are_kept_for_calibration_as_a_whole(tmp_path):
    upworthy.run(arguments(ARCHIVE, "--out", tmp_path / "train", "--calibration", tmp_path / "calibration"))
    tests = [{row["impression_id"] for row in rows(tmp_path / name)} for name in ("train", "calibration")]
    story = dict(read_packages(ARCHIVE).select("clickability_test_id", "story").iter_rows())
    stories = [{story[test] for test in some} for some in tests]
    assert not stories[0] & stories[1] and 0.05 < len(tests[1]) / len(tests[0] | tests[1]) < 0.3


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="the Upworthy archive is not beside the repository")
def test_the_archive_has_the_pairs_that_a_plain_count_finds():
    packages = pl.read_csv(ARCHIVE).filter(~pl.col("test_week").is_between(201326, 201402))
    found = headline_preferences(headline_arms(usable_packages(read_packages(ARCHIVE))))["pairs"].explode()
    groups = packages.group_by("clickability_test_id", "eyecatcher_id").agg(pl.col("headline").unique())
    n_pairs = sum(len(list(itertools.combinations(texts, 2))) for texts in groups["headline"])
    assert len(found) == n_pairs and found.struct.field("label").is_between(0.5, 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("headline", "title"), "no column headline; found"),
        (lambda text: text.replace(",40,", ",many,"), "row 3: clicks is 'many'; give a whole number"),
        (lambda text: text.replace(",40,", ",4000,"), "row 3: more clicks than impressions"),
    ],
)
def test_a_bad_file_is_one_clear_error(file, tmp_path, change, message):
    bad = tmp_path / "bad.csv"
    bad.write_text(change(gzip.decompress(file.read_bytes()).decode()))
    with pytest.raises(ValueError, match=message):
        read_packages(bad)
