from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_qs.clicks.click_log import SCHEMA, read_click_log
from openrlhf_qs.clicks.splits import SPLITS, split_log
from openrlhf_qs.form.keys import conversation_keys, root_keys

DAY = datetime(2025, 1, 1, tzinfo=UTC)


def click_log(*impressions):
    """A log of (question, user, day)."""
    rows = {
        "impression_id": [f"i{n}" for n in range(len(impressions))],
        "conversation": [[{"role": "user", "content": question}] for question, _, _ in impressions],
        "user_id": [user for _, user, _ in impressions],
        "timestamp": [DAY + timedelta(days=day) for _, _, day in impressions],
    }
    return pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows})


def ids(part):
    return part["impression_id"].to_list()


def test_a_split_has_every_impression_once_and_no_conversation_twice(tiny_log):
    log = read_click_log(tiny_log)
    splits = split_log(log, "conversation", heldout=0.3, fusion=0.3, seed=1)[0]
    assert sorted(pl.concat(splits)["impression_id"]) == sorted(log["impression_id"])
    keys = [set(conversation_keys(split["conversation"])) for split in splits]
    assert all(keys) and not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])


def test_order_and_growth_of_the_log_move_no_conversation(tiny_log):
    log = read_click_log(tiny_log)
    shuffled = log.sample(fraction=1.0, shuffle=True, seed=3)
    for whole, part in zip(split_log(log)[0], split_log(shuffled.head(15))[0], strict=True):
        assert set(part["impression_id"]) <= set(whole["impression_id"])


def test_shares_are_met_on_average_and_the_seed_matters():
    contents = [[{"role": "user", "content": f"question {n}"}] for n in range(2000)]
    log = pl.DataFrame({"conversation": contents}, schema={"conversation": SCHEMA["conversation"]})
    splits, _ = split_log(log, heldout=0.2, fusion=0.1)
    # binomial with n = 2000: standard deviations 18 and 13
    assert abs(splits.heldout.height - 400) < 60 and abs(splits.fusion.height - 200) < 45
    assert not split_log(log, seed=1)[0].heldout.equals(splits.heldout)
    assert split_log(log, "conversation", 0.0, 0.0)[0].train.height == 2000


@pytest.mark.parametrize(("heldout", "fusion"), [(-0.1, 0.1), (0.1, -0.1), (0.7, 0.3)])
def test_shares_that_leave_nothing_to_train_on_are_refused(tiny_log, heldout, fusion):
    with pytest.raises(ValueError, match="sum below 1"):
        split_log(read_click_log(tiny_log), "conversation", heldout, fusion)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 30)), min_size=1, max_size=60),
    st.sampled_from(list(SPLITS)),
)
def test_no_split_shares_a_conversation_and_by_user_no_user(impressions, by):
    log = click_log(*((f"q{question}", f"u{user}", day) for question, user, day in impressions))
    parts, counts = split_log(log, by, heldout=0.3, fusion=0.3)
    assert sum(part.height for part in parts) == log.height - counts["n_left_out"]
    roots = [set(root_keys(part["conversation"])) for part in parts]
    users = [set(part["user_id"]) for part in parts]
    for kept in (roots, users) if by == "user" else (roots,):
        assert sum(map(len, kept)) == len(set().union(*kept))


def test_by_time_training_ends_before_the_cut_and_a_conversation_that_goes_on_goes_with_its_end():
    log = click_log(("a", "u", 0), ("b", "u", 1), ("c", "u", 5), ("a", "u", 9), ("d", "u", 9))
    parts, counts = split_log(log, "time", cuts=[DAY + timedelta(days=4), DAY + timedelta(days=8)])
    assert (ids(parts.train), ids(parts.fusion), ids(parts.heldout)) == (["i1"], ["i2"], ["i0", "i3", "i4"])
    assert counts == {"n_spanning": 1, "n_left_out": 0}


def test_by_time_the_shares_place_the_cuts():
    parts, _ = split_log(click_log(*((f"q{n}", "u", n) for n in range(100))), "time", heldout=0.2, fusion=0.1)
    assert [part.height for part in parts] == [70, 20, 10]
    assert parts.train["timestamp"].max() < parts.fusion["timestamp"].min() < parts.heldout["timestamp"].min()


def test_by_user_a_shared_conversation_stays_with_who_had_it_first():
    log = click_log(*((f"q{n}", f"u{n}", 0) for n in range(40)), *((f"q{n}", f"u{n + 1}", 1) for n in range(39)))
    parts, counts = split_log(log, "user", heldout=0.3, fusion=0.2)
    assert set(ids(log)[:40]) <= {one for part in parts for one in ids(part)}  # the first of each conversation
    assert counts["n_left_out"] == counts["n_spanning"] > 0


def test_what_cannot_be_split_is_refused():
    log = click_log(("a", None, 0), ("b", "u", 1))
    with pytest.raises(ValueError, match="1 of 2 impressions have no user_id; split by conversation"):
        split_log(log, "user")
    with pytest.raises(ValueError, match="unknown split 'topic'; known: conversation, user, time"):
        split_log(log, "topic")
    with pytest.raises(ValueError, match="give two times, where fusion begins and where heldout does"):
        split_log(log, "time", cuts=[DAY + timedelta(days=4), DAY])
    with pytest.raises(ValueError, match="cuts are for a split by time"):
        split_log(log, "user", cuts=[DAY, DAY])
