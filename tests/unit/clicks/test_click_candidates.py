import polars as pl
import pytest

from openrlhf_qs.clicks.candidates import click_candidates
from openrlhf_qs.clicks.click_log import SCHEMA, read_click_log
from openrlhf_qs.clicks.propensity import examination_propensities


def click_log(*impressions):
    """A log of (question, suggestions, clicks)."""
    rows = {
        "conversation": [[{"role": "user", "content": question}] for question, _, _ in impressions],
        "suggestions": [suggestions for _, suggestions, _ in impressions],
        "clicks": [clicks for _, _, clicks in impressions],
    }
    return pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows})


def test_the_impressions_of_a_conversation_are_one_row_and_equal_texts_one_candidate():
    log = click_log(("q", ["How long?", "Why?"], [1, 0]), ("q", [" how  LONG?", "When?"], [1, 0]))
    (row,) = click_candidates(log, [1.0, 1.0])
    assert row["conversation"] == [{"role": "user", "content": "q"}]
    counts = [(c["text"], c["n_shown"], c["n_clicked"]) for c in row["candidates"]]
    assert counts == [("How long?", 2, 2), ("Why?", 1, 0), ("When?", 1, 0)]


def test_weights_are_smoothed_clicks_per_show_counted_by_inverse_propensity():
    log = click_log(("q", ["a", "b"], [1, 0]), ("q", ["c", "b"], [0, 1]))
    (row,) = click_candidates(log, [1.0, 0.5])
    # clicks count 1 and 1 / 0.5 = 2, on four shows: average 3 / 4, and five shows of it for each text
    weights = {c["text"]: c["weight"] for c in row["candidates"]}
    assert weights == pytest.approx({"a": (1 + 3.75) / 6, "b": (2 + 3.75) / 7, "c": (0 + 3.75) / 6})
    assert [c["text"] for c in row["candidates"]] == ["b", "a", "c"]  # the highest first


def test_what_stood_at_a_trusted_place_is_not_better_for_it():
    # .39 of 100 shows at the top, .165 at the third place: the same attraction of .3
    shown = [("q", ["a", "b"], [n < 39, n * 10 < 165]) for n in range(100)]
    (row,) = click_candidates(click_log(*shown), [1.0, 0.55], [0.09, 0.0])
    a, b = (candidate["weight"] for candidate in row["candidates"])
    assert a == pytest.approx(b, abs=0.01)


def test_one_lucky_click_is_less_than_many():
    often = [("q", ["often"], [n % 2]) for n in range(40)]  # 20 clicks on 40 shows
    rarely = [("q", ["never"], [0])] * 60
    (row,) = click_candidates(click_log(*often, *rarely, ("q", ["once"], [1])), [1.0])
    assert [c["text"] for c in row["candidates"]] == ["often", "once", "never"]


def test_a_conversation_without_a_click_is_left_out():
    rows = click_candidates(click_log(("q", ["a"], [0]), ("r", ["a"], [1])), [1.0])
    assert [row["conversation"][0]["content"] for row in rows] == ["r"]


def test_every_show_and_click_of_a_kept_conversation_is_counted(tiny_log):
    log = read_click_log(tiny_log)
    rows = click_candidates(log, examination_propensities(log))
    candidates = [candidate for row in rows for candidate in row["candidates"]]
    assert len(rows) == 12
    assert sum(c["n_shown"] for c in candidates) == 3 * 30
    assert sum(c["n_clicked"] for c in candidates) == log["clicks"].list.sum().sum()


def test_texts_that_differ_in_punctuation_only_are_one_candidate():
    (row,) = click_candidates(
        click_log(("q", ["How long?", "???"], [1, 0]), ("q", ["How long!", "!!!"], [0, 0])), [1, 1]
    )
    assert [(c["text"], c["n_shown"]) for c in row["candidates"]] == [("How long?", 2), ("???", 1), ("!!!", 1)]
