"""What is told of a reasoner's queries beside how well they rank."""

import io
import re

import numpy as np
import pytest
from rich.console import Console
from visits import INTENTS, visits

from openrlhf_qs.rank.eval import examples, gains_table, measured, rounds_picture, signs, tables
from openrlhf_qs.rank.metrics import summary


def test_a_query_that_all_get_and_that_names_several_intents_is_seen():
    log = visits(4)
    stuffed = f"{INTENTS.texts[0]} {INTENTS.texts[4].upper()}"  # five words each, "How do I return my"
    found = signs([[stuffed], [stuffed], [stuffed, "lamp"], ["kettle"]], np.zeros((4, 6)), log, INTENTS)
    assert found["distinct"] == 0.5 and found["commonest"] == 0.75
    assert found["n_intents"] == pytest.approx(3 * 2 / 4)
    assert found["n_words"] == pytest.approx((3 * 12 + 1) / 4)


def test_a_ranking_that_repeats_the_order_shown_is_seen():
    log = visits(50)
    as_shown, turned = np.zeros((50, 6)), np.zeros((50, 6))
    np.put_along_axis(as_shown, log.shown, np.array([[3.0, 2.0, 1.0]]).repeat(50, 0), 1)
    np.put_along_axis(turned, log.shown, np.array([[1.0, 2.0, 3.0]]).repeat(50, 0), 1)
    assert signs([["a"]] * 50, as_shown, log, INTENTS)["order_kept"] == 1
    assert signs([["a"]] * 50, turned, log, INTENTS)["order_kept"] == 0


def test_a_place_where_nothing_was_shown_is_no_pair():
    log = visits(2)
    log.shown[:, 1:] = -1
    assert signs([["a"], []], np.zeros((2, 6)), log, INTENTS)["order_kept"] is None


def test_what_new_intents_and_what_all_others_are_worth_is_told_apart():
    log, is_new = visits(30), np.arange(6) >= 4
    relevance = np.tile([0.9, 0.1, 0.1, 0.1, 0.95, 0.0], (30, 1))
    values = measured(np.tile([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], (30, 1)), relevance, is_new, log)
    found = summary(values, log.users)
    # of the new ones the better stands first, and neither among the first three of all
    assert found["gauc_new"]["mean"] == 1 and found["recall_new"]["mean"] == 0
    # of the others .9 stands first, and .1 thrice: 2.43 pairs right by .9 over the three, 0.03 the other way round,
    # and of the three's own 0.27 of 0.54
    assert found["gauc_known"]["mean"] == pytest.approx((2.43 + 0.27) / (2.43 + 0.03 + 0.54))
    assert found["gauc"]["mean"] < found["gauc_known"]["mean"]


def test_ten_visits_are_shown_with_each_arms_query_and_its_first_three():
    log = visits(100)
    scores = np.tile(np.arange(6.0), (100, 1))
    queries = {"asked": [[f"q{n}", "q", "q"] for n in range(100)]}
    rows = list(examples(log, INTENTS, {"two": scores, "asked": -scores}, queries))
    assert len(rows) == 10 and rows[0]["features"] == log.features[0] and rows[-1]["features"] == log.features[99]
    assert rows[-1]["arms"]["two"] == {"first": [INTENTS.texts[n] for n in (5, 4, 3)]}
    assert rows[-1]["arms"]["asked"] == {"queries": {"q99": 1, "q": 2}, "first": [INTENTS.texts[n] for n in (0, 1, 2)]}


def test_what_an_arm_adds_stands_in_one_line_of_80_columns():
    gained = {"gauc_error": {"mean": -0.10455, "half": 0.02111}, "ndcg": {"mean": 0.1, "half": 0.1}}
    table = gains_table("features_in_words", {"queries_without_words": gained | {"ctr": {"mean": None, "half": None}}})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    assert re.search(r"queries_without_words +-10.5% ±2.1% +\+0.100 ±0.100", console.export_text())


def test_the_tables_of_many_arms_fit_a_terminal_of_80_columns_whole():
    one = {"mean": 0.84512, "half": 0.00231}
    result = dict.fromkeys(("gauc", "recall", "ndcg", "ctr", "gauc_new", "recall_new"), one)
    results = {"queries_without_words": result | {"calibration": {"ece": 0.0091, "floor": 0.006}}, "oracle": result}
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    for shown in tables(results):
        console.print(shown)
    text = console.export_text()
    assert text.count("0.845 ±0.002") == 12 and "0.009 (0.006)" in text and "…" not in text
    assert text.count("queries_without_words") == 2


def test_the_picture_of_rounds_has_every_way_from_the_cold_start_on_and_the_baselines():
    one = {metric: {"mean": 0.5, "half": 0.01} for metric in ("gauc", "ndcg", "ctr")}
    arms = ["oracle", "two_towers", "features_in_words", "cold_start", "sft_1", "sft_2", "dpo_1", "shuffled_queries"]
    text = rounds_picture(dict.fromkeys(arms, one | {"gauc": {"mean": 0.5, "half": None}}))
    assert text.startswith("<?xml")
    assert all(f">{name}<" in text for name in ("sft", "dpo", "two_towers", "features_in_words", "NDCG@3"))
    assert ">oracle<" not in text
    with pytest.raises(ValueError, match="no arm of two_towers, cold_start is a round"):
        rounds_picture(dict.fromkeys(["two_towers", "cold_start"], one))
