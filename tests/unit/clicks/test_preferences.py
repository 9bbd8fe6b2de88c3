import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_qs.clicks.click_log import SCHEMA, read_click_log
from openrlhf_qs.clicks.preferences import (
    POSITION_POLICIES,
    all_pairs,
    click_rate_preferences,
    disliked_probability,
    preference_rows,
    preferences,
    read_preferences,
    write_preferences,
)
from openrlhf_qs.clicks.preferences import SCHEMA as PREFERENCES
from openrlhf_qs.clicks.propensity import estimate, examination_propensities
from openrlhf_qs.clicks.shows import COUNTS
from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.world.click_models import EXAMINATION

CONVERSATION = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def click_log(*impressions):
    """A log of (suggestions, clicks), all under one conversation."""
    rows = {
        "impression_id": [f"i{n}" for n in range(len(impressions))],
        "conversation": [CONVERSATION] * len(impressions),
        "suggestions": [suggestions for suggestions, _ in impressions],
        "clicks": [clicks for _, clicks in impressions],
    }
    return pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows})


def pairs_of(table):
    return table["pairs"].explode(empty_as_null=False).struct.unnest()


def places(table):
    """Chosen and rejected of every pair, from 0."""
    return pairs_of(table).select("chosen", "rejected").rows()


def weights(table):
    return pairs_of(table)["weight"].to_list()


def all_propensities(log):
    return [1.0] * log["clicks"].list.len().max()


def paired(log, position_policy):
    return preferences(log, position_policy, all_propensities(log))


def test_every_clicked_one_is_chosen_over_every_other_one():
    table = paired(click_log((["a", "b", "c"], [1, 0, 1])), "all")
    assert places(table) == [(0, 1), (2, 1)]
    assert dict(table.schema) == PREFERENCES
    row = table.row(0, named=True)
    assert (row["conversation"], row["suggestions"]) == (CONVERSATION, ["a", "b", "c"])
    assert (row["clicks"], row["positions"], row["examination"]) == ([1, 0, 1], [1, 2, 3], [1, 1, 1])


def test_an_impression_without_a_pair_is_a_row_with_its_clicks_and_no_pairs():
    log = click_log((["a", "b"], [0, 0]), (["c", "d"], [0, 1]), (["e", "f"], [1, 1]), (["g", "h"], [1, 0]))
    table = preferences(log, "all", [1.0, 0.5])
    assert table["pairs"].list.len().to_list() == [0, 1, 0, 1]
    assert table["clicks"].to_list() == [[0, 0], [0, 1], [1, 1], [1, 0]]
    assert table["suggestions"].to_list()[1] == ["c", "d"] and places(table) == [(1, 0), (0, 1)]


def test_users_and_examination_are_kept_where_they_are_known():
    log = click_log((["a", "b"], [1, 0]), (["a"], [0])).with_columns(user_id=pl.Series(["u", None]))
    table = preferences(log, "all", [1.0, 0.5, 0.25])
    assert table["user_id"].to_list() == ["u", None]
    assert table["examination"].to_list() == [[1.0, 0.5], [1.0]]
    assert preferences(log.drop("user_id"), "all", [1.0, 0.5])["user_id"].null_count() == 2


def test_skip_above_keeps_what_was_passed_over():
    assert places(paired(click_log((["a", "b", "c"], [0, 1, 0])), "skip_above")) == [(1, 0)]


def test_a_text_is_never_rejected_where_it_was_clicked_too():
    # "B? " is "b" with other case, space and punctuation: "b" is clicked, so only "c" is left to reject
    assert places(paired(click_log((["b", "c", "B? "], [1, 0, 0])), "all")) == [(0, 1)]


def test_a_text_that_stands_there_twice_is_rejected_once():
    assert places(paired(click_log((["b", "a", "B"], [0, 1, 0])), "all")) == [(1, 0)]


def test_the_pairs_of_an_impression_share_one_weight():
    table = paired(click_log((["a", "b", "c"], [1, 0, 0]), (["a", "b"], [1, 0])), "all")
    # shares 1/2, 1/2 and 1, whose mean is 2/3
    assert weights(table) == pytest.approx([3 / 4, 3 / 4, 3 / 2])


def test_ipw_counts_a_click_by_how_rarely_and_its_lack_by_how_often_its_place_is_looked_at():
    log = click_log((["a", "b"], [1, 0]), (["a", "b"], [0, 1]), (["a", "b", "c"], [1, 1, 0]))
    table = preferences(log, "ipw", propensities=[1.0, 0.5, 0.25])
    # at the top 2 of 3 are clicked: attraction (2 + 1) / (3 + 2) = 0.6; disliked, where not clicked, at the places:
    # 0.4 / 0.4 = 1, 0.4 / (1 - 0.5 * 0.6) = 4 / 7, 0.4 / (1 - 0.25 * 0.6) = 8 / 17
    # clicks count 1 / 1, 1 / 0.5 = 2; the third impression has two pairs, which share its weight
    expected = [1 * 4 / 7, 2 * 1, 0.5 * 1 * 8 / 17, 0.5 * 2 * 8 / 17]
    assert weights(table) == pytest.approx([w / (sum(expected) / 4) for w in expected])


@settings(max_examples=30, deadline=None)
@given(*[st.floats(0.05, 0.95)] * 3)
def test_under_ipw_the_expected_weight_of_a_pair_is_the_same_at_all_places(theta, attraction, other):
    # by the position-based model, both ways round; the factor knows the attraction of the rejected one
    def expected(chosen, rejected, theta_c, theta_r):
        p_pair = theta_c * chosen * (1 - theta_r * rejected)
        return p_pair / theta_c * disliked_probability(theta_r, rejected)

    assert expected(attraction, other, 1.0, theta) == pytest.approx(attraction * (1 - other))
    assert expected(attraction, other, theta, 1.0) == pytest.approx(attraction * (1 - other))
    assert 1 - other <= disliked_probability(theta, other) <= disliked_probability(1.0, other) == 1.0


def test_the_weight_of_a_click_is_clipped():
    table = preferences(click_log((["a", "b"], [1, 0]), (["a", "b"], [0, 1])), "ipw", [1.0, 0.01], max_weight=3.0)
    # 1 and 3, each times what the lack of the other click counts: half attract, so 0.5 / (1 - 0.01 * 0.5), and 1
    first, second = 0.5 / 0.995, 3.0
    assert weights(table) == pytest.approx([2 * w / (first + second) for w in (first, second)])


def test_ipw_measures_the_propensities_of_the_log_where_none_are_given(tiny_log):
    log = read_click_log(tiny_log)
    assert preferences(log).equals(preferences(log, "ipw", examination_propensities(log)))


@pytest.mark.parametrize("position_policy", POSITION_POLICIES)
def test_weights_are_positive_with_mean_1_and_two_policies_leave_pairs_out(tiny_log, position_policy):
    log = read_click_log(tiny_log)
    table, every = preferences(log, position_policy), preferences(log, "all")
    assert pairs_of(table)["weight"].mean() == pytest.approx(1.0) and min(weights(table)) > 0
    assert table.height == every.height == log.height
    assert (len(places(table)) < len(places(every))) == (position_policy in ("skip_above", "adjacent"))
    for some, of_all in zip(table["pairs"].to_list(), every["pairs"].to_list(), strict=True):
        assert {(p["chosen"], p["rejected"]) for p in some} <= {(p["chosen"], p["rejected"]) for p in of_all}


def test_nothing_to_pair_and_bad_options_are_refused():
    nothing = click_log((["a", "b"], [1, 1]), (["a", "b"], [0, 0]), (["a", "A"], [1, 0]))
    said = "no impression out of 3 gives a pair of a clicked and an unclicked suggestion under position policy 'all'"
    with pytest.raises(ValueError, match=said):
        preferences(nothing, "all")
    log = click_log((["a", "b"], [1, 0]))
    with pytest.raises(ValueError, match="no impression out of 1 gives a pair"):
        preferences(log, "skip_above")
    with pytest.raises(ValueError, match="unknown position policy 'best'; known: all, skip_above, adjacent, ipw"):
        preferences(log, "best")
    with pytest.raises(ValueError, match="1 propensities for 2 positions"):
        preferences(log, "ipw", [1.0])


def test_adjacent_keeps_neighbours():
    assert places(paired(click_log((["a", "b", "c", "d"], [0, 1, 0, 0])), "adjacent")) == [(1, 0), (1, 2)]


def test_click_rates_of_all_impressions_make_soft_labels():
    log = click_log((["a", "b"], [1, 0]), (["b", "a"], [1, 1]), (["A ", "c"], [0, 0]))
    table = click_rate_preferences(log, [1.0, 0.5], prior_shows=1.0)
    assert dict(table.schema) == PREFERENCES and table.height == 1
    row = table.row(0, named=True)
    # looked at: a 1 + 0.5 + 1 = 2.5 with 2 clicks, b 0.5 + 1 = 1.5 with 1, c 0.5 with 0; average 3 / 4.5 = 2 / 3
    assert (row["suggestions"], row["clicks"], row["examination"]) == (["a", "b", "c"], [2, 1, 0], [2.5, 1.5, 0.5])
    assert row["conversation"] == CONVERSATION and row["positions"] is row["user_id"] is None
    a, b, c = (2 + 2 / 3) / 3.5, (1 + 2 / 3) / 2.5, (2 / 3) / 1.5
    assert places(table) == [(0, 1), (0, 2), (1, 2)]
    assert pairs_of(table)["label"].to_list() == pytest.approx([a / (a + b), a / (a + c), b / (b + c)])
    # clicks 2, 1 and 0, each half in either of its two pairs: 1.5, 1, 0.5, whose mean is 1
    assert weights(table) == pytest.approx([1.5, 1.0, 0.5])
    with pytest.raises(ValueError, match="no two suggestions of one conversation differ in clicks in 1 impressions"):
        click_rate_preferences(click_log((["a", "b"], [0, 0])))


def test_what_the_cap_of_weights_leaves_of_the_bias_is_what_is_said():
    rng, seen, n = np.random.default_rng(0), np.array(EXAMINATION), 40_000
    clicks = rng.random((n, 8)) < 0.2 * seen  # eight suggestions that attract alike
    log = click_log(*[(list("abcdefgh"), row.tolist()) for row in clicks.astype(int)])
    pairs = pairs_of(preferences(log, "ipw", seen.tolist()))

    def share_of_the_top(place):
        won = [
            pairs.filter(pl.col("chosen") == chosen, pl.col("rejected") == rejected)["weight"].sum()
            for chosen, rejected in ((0, place), (place, 0))
        ]
        return won[0] / sum(won)

    said = " ".join(estimate(counts_of(8, seen), "ctr").findings)
    # the last place is looked at .17 times as often as the top: 1 / (1 + 5 * .17); of the sixth (.26) 5 is enough
    assert "position 8 (5 instead of 5.9)" in said and "has 54.1% of the weight" in said
    assert share_of_the_top(7) == pytest.approx(0.541, abs=0.015)
    assert share_of_the_top(5) == pytest.approx(0.5, abs=0.015)


def counts_of(n_positions, seen, n_shown=1_000_000):
    rows = [(0, place, place + 1, n_shown, int(n_shown * 0.2 * seen[place]), 0, 0) for place in range(n_positions)]
    return pl.DataFrame(rows, schema=COUNTS, orient="row")


def test_clicks_that_places_bring_by_themselves_are_no_attraction():
    # both attract with .3, of which a trusted top makes .39 and the third place .55 * .3 = .165: 200 shows each
    clicked = [(["a", "x", "b"], [n < 78, 0, n < 33]) for n in range(200)]
    log, lines = click_log(*clicked), {"propensities": [1.0, 0.78, 0.55], "trust": [0.09, 0.02, 0.0]}
    (row,) = click_rate_preferences(log, **lines).to_dicts()
    assert row["trust"] == pytest.approx([18, 4, 0])
    # (78 - 18) / 200 looks and 33 / 110: the smoothing, by five looks at the average, moves the second a bit more
    (pair,) = [pair for pair in row["pairs"] if {pair["chosen"], pair["rejected"]} == {0, 2}]
    assert pair["label"] == pytest.approx(0.5, abs=0.01)
    (row,) = click_rate_preferences(log, lines["propensities"]).to_dicts()
    assert row["pairs"][0]["label"] > 0.55 and "trust" not in row


def test_where_reading_ends_at_a_click_two_that_attract_alike_win_alike():
    # both attract with .2; what was not clicked at the top is followed by a look below with .75: .8 * .75 * .2
    shown = [([1, 0], 200), ([0, 1], 120), ([0, 0], 680)]
    log = click_log(*[(["a", "b"], clicks) for clicks, n in shown for _ in range(n)])
    table = preferences(log, "ipw", [1.0, 0.6], unless_clicked=[1.0, 0.75])
    won = pairs_of(table).group_by("chosen").agg(pl.col("weight").sum()).sort("chosen")["weight"].to_list()
    assert won[0] / sum(won) == pytest.approx(0.5, abs=0.005)
    # what stands below a click was not read, what stands above was
    assert table["examination"].unique().sort().to_list() == [[1.0, 1e-6], [1.0, 0.75]]


def test_under_trust_rows_have_the_lines_and_pairs_the_number_that_is_right_on_average():
    log = click_log((["a", "b"], [1, 0]), (["a", "b"], [0, 1]), (["a", "b"], [0, 0]))
    table = preferences(log, "ipw", [1.0, 0.5], trust=[0.1, 0.0], average=[1.0, 0.4])
    assert table["examination"].to_list() == [[1.0, 0.5]] * 3 and table["trust"].to_list() == [[0.1, 0.0]] * 3
    assert weights(table) == weights(preferences(log, "ipw", [1.0, 0.4]))


def test_each_conversation_keeps_its_own_click_rates(tiny_log):
    log = read_click_log(tiny_log)
    table = click_rate_preferences(log, [1.0] * 3)
    assert table.height == log["conversation"].n_unique()
    for row in preference_rows(table):
        shown = log.filter(log["conversation"] == pl.Series([row["conversation"]], dtype=SCHEMA["conversation"]))
        counts = shown.select(text="suggestions", click="clicks").explode("text", "click")
        for text, clicks, seen in zip(row["suggestions"], row["clicks"], row["examination"], strict=True):
            of_text = counts.filter(pl.col("text") == text)
            assert (clicks, seen) == (of_text["click"].sum(), of_text.height)


# Files


def test_a_file_is_read_as_it_was_written_and_holds_a_conversation_once(tmp_path, tiny_log):
    table = preferences(read_click_log(tiny_log))
    write_preferences(tmp_path / "preferences.jsonl", table)
    rows = read_preferences(tmp_path / "preferences.jsonl")
    assert sorted(rows, key=lambda row: row["impression_id"]) == list(preference_rows(table))
    assert rows[0].keys() == PREFERENCES.keys() and isinstance(rows[0]["clicks"][0], int)
    text = (tmp_path / "preferences.jsonl").read_text()
    assert all(text.count(row["conversation"][1]["content"]) < 4 for row in rows)  # of at most 3 impressions each


def test_the_first_row_of_a_file_shows_the_type_of_every_field(tmp_path):
    log = click_log((["a", "b"], [0, 0]), (["a", "b"], [1, 0]), (["c", "b"], [1, 0]))
    table = preferences(log.with_columns(user_id=pl.Series([None, None, "u"])), "all", [1.0, 1.0])
    write_preferences(tmp_path / "preferences.jsonl", table)
    assert [row["impression_id"] for row in read_json_lines(tmp_path / "preferences.jsonl")] == ["i2", "i0", "i1"]


def row(**change):
    shown = {"suggestions": ["a", "b"], "clicks": [1, 0], "positions": [1, 2], "examination": [1.0, 0.5]}
    return {"impression_id": "i", "conversation": CONVERSATION, **shown, "pairs": [[0, 1, 1.0, 1.0]], **change}


@pytest.mark.parametrize(
    ("suggestions", "clicks", "policy", "message"),
    [
        (["a?", "b?"], [1, 1], "ipw", "in 3 everything shown was clicked, in 0 nothing, and 0 show one text"),
        (["a?", "a?"], [1, 0], "ipw", "in 0 everything shown was clicked, in 0 nothing, and 3 show one text sever"),
        (["a?"], [1], "all", "each shows only one suggestion; compare .*: --pairs_from click_rates"),
        (["a?", "b?"], [1, 0], "skip_above", "'all' allows some: --position_policy all"),
    ],
)
def test_a_log_without_a_pair_is_told_why_and_what_to_do(suggestions, clicks, policy, message):
    rows = {"impression_id": list("abc"), "conversation": [[{"role": "user", "content": "q"}]] * 3}
    log = pl.DataFrame(
        rows | {"suggestions": [suggestions] * 3, "clicks": [clicks] * 3},
        schema_overrides={"clicks": SCHEMA["clicks"]},
    )
    said = f"no impression out of 3 gives a pair .* under position policy '{policy}': .*{message}"
    with pytest.raises(ValueError, match=said):
        preferences(log, policy, [1.0, 1.0])


def test_the_better_side_of_a_pair_is_the_chosen_one_whatever_its_label(tmp_path):
    pairs = all_pairs([row(pairs=[[0, 1, 2.0, 0.25], [1, 0, 1.0, 1.0]]), row(pairs=[]), row()])
    assert pairs.row.tolist() == [0, 0, 2]
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([1, 1, 0], [0, 0, 1])
    assert (pairs.weight.tolist(), pairs.label.tolist()) == ([2, 1, 1], [0.75, 1, 1])
    assert len(all_pairs([row(pairs=[])]).row) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": [[0, 1, 1.0, 1.5]]}, "f.jsonl:2: pair 1: label 1.5; give the probability"),
        ({"pairs": [[0, 1, 1.0, float("nan")]]}, "pair 1: label nan"),
        ({"pairs": [[0, 1, 1.0, 1.0], [0, 1, 0, 1.0]]}, "pair 2: weight 0; give a number greater than 0"),
        ({"pairs": [[0, 1, float("inf"), 1.0]]}, "pair 1: weight inf"),
        ({"pairs": [[0, 2, 1.0, 1.0]]}, "pair 1: indices 0 and 2 with 2 suggestions; they count from 0"),
        ({"pairs": [[0, 1]]}, r"pair 1: \[0, 1\]; give \[chosen, rejected, weight, label\]"),
        ({"pairs": [[0, 0, 1.0, 1.0]]}, "pair 1: chosen and rejected are the same"),
        ({"pairs": None}, "f.jsonl:2: pairs None; give a list"),
        ({"suggestions": ["a", " "]}, "f.jsonl:2: suggestion ' ' has no text"),
        ({"suggestions": []}, "suggestions .*; give a list of texts"),
        ({"clicks": [1]}, r"clicks \[1\] for 2 suggestions; give a number for each"),
        ({"examination": [1, float("nan")]}, "examination .* for 2 suggestions"),
        ({"conversation": "text"}, "conversation 'text'; give a list of messages"),
        ({"impression_id": None}, "no impression_id"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, change, message):
    write_json_lines(tmp_path / "f.jsonl", [row(), row(**change)])
    with pytest.raises(ValueError, match=message):
        read_preferences(tmp_path / "f.jsonl")
