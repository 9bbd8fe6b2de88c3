"""GAUC, Recall@3, NDCG@3, CTR@3 and ECE, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from openrlhf_qs.rank.metrics import at_top, calibration_error, gains, group_auc, summary


def test_the_auc_of_clicks_counts_pairs_and_half_of_ties():
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [1.0, 2.0, 3.0]])
    relevance = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # 2 beats 1 and not 3; a tie and a win; nothing was clicked
    np.testing.assert_allclose(group_auc(scores, relevance), [0.5, 0.75, np.nan])


def test_the_auc_of_chances_weighs_a_pair_by_the_chance_that_it_is_one():
    # .9 * (1 - .2) right, .2 * (1 - .9) wrong: .72 / .74
    assert group_auc(np.array([[2.0, 1.0]]), np.array([[0.9, 0.2]]))[0] == pytest.approx(0.72 / 0.74)


def test_candidates_that_do_not_count_are_left_out():
    there = np.array([[True, True, False]])
    assert group_auc(np.array([[1.0, 2.0, 9.0]]), np.array([[0.0, 1.0, 0.0]]), there)[0] == 1


def test_what_is_among_the_first_three():
    found = at_top(np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([[0.0, 1.0, 0.0, 1.0]]), [1.0, 0.75, 0.55])
    assert found["recall"][0] == 0.5
    assert found["ctr"][0] == 0.75
    # a gain in the second place; ideal are the first two
    assert found["ndcg"][0] == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))


def test_intervals_are_by_user_and_rows_without_a_value_are_counted_out():
    values = np.array([1.0, 0.0, 1.0, 0.0, np.nan])
    by_row = summary({"x": values}, np.array(list("abcde")))["x"]
    by_user = summary({"x": values}, np.array(list("abab") + ["c"]))["x"]
    assert by_row["n"] == by_user["n"] == 4 and by_row["mean"] == by_user["mean"] == 0.5
    assert by_user["half"] > by_row["half"]


def test_gains_are_of_the_same_visits_and_of_what_the_oracle_leaves():
    rng, users = np.random.default_rng(0), np.arange(400)
    ease = rng.uniform(0.2, 0.6, 400)  # of a visit: the same for every arm
    best = {"gauc": np.full(400, 0.9)}
    over = {"gauc": 0.5 + ease / 2, "ndcg": ease, "ctr": ease}
    arm = {"gauc": over["gauc"] + 0.1 * (0.9 - over["gauc"]), "ndcg": ease + 0.05, "ctr": 1.2 * ease}
    arm["ndcg"][0] = np.nan  # a visit that says nothing
    found = gains(arm, over, best, users)
    assert found["gauc_error"]["mean"] == pytest.approx(0.1) and found["gauc_error"]["half"] < 1e-9
    assert found["ndcg"]["mean"] == pytest.approx(0.05) and found["ndcg"]["half"] < 1e-9
    assert found["ctr"]["mean"] == pytest.approx(0.2) and found["ctr"]["half"] < 1e-9
    # without an oracle all that is missing to 1 counts
    assert gains(arm, over, None, users)["gauc_error"]["mean"] < 0.1
    assert gains(over, arm, None, np.zeros(400))["ctr"] == {"mean": None, "half": None}  # one user: no interval


def test_the_calibration_error_of_true_chances_is_at_its_floor_and_that_of_doubled_ones_is_not():
    rng = np.random.default_rng(0)
    chance = rng.random(2000) * 0.5
    clicked = rng.random(2000) < chance
    true, doubled = calibration_error(chance, clicked), calibration_error(2 * chance, clicked)
    assert true["ece"] < 2 * true["floor"]
    assert doubled["ece"] == pytest.approx(0.25, abs=0.03)
