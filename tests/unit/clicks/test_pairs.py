import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_qs.clicks.click_log import SCHEMA, read_click_log
from openrlhf_qs.clicks.pairs import POSITION_POLICIES, click_rate_pairs, disliked_probability, preference_pairs
from openrlhf_qs.clicks.pairs import SCHEMA as PAIRS
from openrlhf_qs.clicks.propensity import examination_propensities

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


def positions(pairs):
    return pairs.select("chosen_position", "rejected_position").rows()


def test_every_clicked_one_is_chosen_over_every_other_one():
    pairs = preference_pairs(click_log((["a", "b", "c"], [1, 0, 1])), "all")
    assert positions(pairs) == [(1, 2), (3, 2)]
    assert pairs["chosen"][0].to_list() == [*CONVERSATION, {"role": "user", "content": "a"}]
    assert pairs["rejected"][0].to_list() == [*CONVERSATION, {"role": "user", "content": "b"}]


def test_skip_above_keeps_what_was_passed_over():
    assert positions(preference_pairs(click_log((["a", "b", "c"], [0, 1, 0])), "skip_above")) == [(2, 1)]


def test_a_text_is_never_rejected_where_it_was_clicked_too():
    # "B " is "b" with other case and space: "b" is clicked, so only "c" is left to reject
    pairs = preference_pairs(click_log((["b", "c", "B "], [1, 0, 0])), "all")
    assert positions(pairs) == [(1, 2)]


def test_a_text_that_stands_there_twice_is_rejected_once():
    assert positions(preference_pairs(click_log((["b", "a", "B"], [0, 1, 0])), "all")) == [(2, 1)]


def test_the_pairs_of_an_impression_share_one_weight():
    pairs = preference_pairs(click_log((["a", "b", "c"], [1, 0, 0]), (["a", "b"], [1, 0])), "all")
    # shares 1/2, 1/2 and 1, whose mean is 2/3
    assert pairs["weight"].to_list() == pytest.approx([3 / 4, 3 / 4, 3 / 2])


def test_ipw_counts_a_click_by_how_rarely_and_its_lack_by_how_often_its_place_is_looked_at():
    log = click_log((["a", "b"], [1, 0]), (["a", "b"], [0, 1]), (["a", "b", "c"], [1, 1, 0]))
    pairs = preference_pairs(log, "ipw", propensities=[1.0, 0.5, 0.25])
    # at the top 2 of 3 are clicked: attraction (2 + 1) / (3 + 2) = 0.6; disliked, where not clicked, at the places:
    # 0.4 / 0.4 = 1, 0.4 / (1 - 0.5 * 0.6) = 4 / 7, 0.4 / (1 - 0.25 * 0.6) = 8 / 17
    # clicks count 1 / 1, 1 / 0.5 = 2; the third impression has two pairs, which share its weight
    weights = [1 * 4 / 7, 2 * 1, 0.5 * 1 * 8 / 17, 0.5 * 2 * 8 / 17]
    assert pairs["weight"].to_list() == pytest.approx([w / (sum(weights) / 4) for w in weights])


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
    pairs = preference_pairs(click_log((["a", "b"], [1, 0]), (["a", "b"], [0, 1])), "ipw", [1.0, 0.01], max_weight=3.0)
    # 1 and 3, each times what the lack of the other click counts: half attract, so 0.5 / (1 - 0.01 * 0.5), and 1
    first, second = 0.5 / 0.995, 3.0
    assert pairs["weight"].to_list() == pytest.approx([2 * w / (first + second) for w in (first, second)])


def test_ipw_measures_the_propensities_of_the_log_where_none_are_given(tiny_log):
    log = read_click_log(tiny_log)
    assert preference_pairs(log).equals(preference_pairs(log, "ipw", examination_propensities(log)))


@pytest.mark.parametrize("position_policy", POSITION_POLICIES)
def test_weights_are_positive_with_mean_1_and_two_policies_leave_pairs_out(tiny_log, position_policy):
    log = read_click_log(tiny_log)
    pairs = preference_pairs(log, position_policy)
    assert pairs["weight"].mean() == pytest.approx(1.0) and pairs["weight"].min() > 0
    every = preference_pairs(log, "all")
    assert (pairs.height < every.height) == (position_policy in ("skip_above", "adjacent"))
    assert set(positions(pairs)) <= set(positions(every))


def test_nothing_to_pair_and_bad_options_are_refused():
    nothing = click_log((["a", "b"], [1, 1]), (["a", "b"], [0, 0]), (["a", "A"], [1, 0]))
    with pytest.raises(ValueError, match="no pair .* in 3 impressions under position policy 'all'"):
        preference_pairs(nothing, "all")
    log = click_log((["a", "b"], [1, 0]))
    with pytest.raises(ValueError, match="no pair"):
        preference_pairs(log, "skip_above")
    with pytest.raises(ValueError, match="unknown position policy 'best'; known: all, skip_above, adjacent, ipw"):
        preference_pairs(log, "best")
    with pytest.raises(ValueError, match="1 propensities for 2 positions"):
        preference_pairs(log, "ipw", [1.0])


def test_adjacent_keeps_neighbours():
    pairs = preference_pairs(click_log((["a", "b", "c", "d"], [0, 1, 0, 0])), "adjacent")
    assert positions(pairs) == [(2, 1), (2, 3)]


def test_conversations_of_any_length_keep_their_messages():
    log = click_log((["a", "b"], [1, 0]), (["c", "d", "e"], [0, 0, 1]), (["f", "g"], [0, 1]))
    conversations = [[{"role": "system", "content": "S"}, *CONVERSATION] * n for n in (1, 3, 2)]
    log = log.with_columns(conversation=pl.Series(conversations, dtype=SCHEMA["conversation"]))
    pairs = preference_pairs(log, "all")
    assert dict(pairs.schema) == PAIRS
    found = pairs.select("impression_id", "chosen", "rejected").rows()
    for (impression, chosen, rejected), texts in zip(found, ("ab", "ec", "ed", "gf"), strict=True):
        conversation = conversations[int(impression[1])]
        assert chosen == [*conversation, {"role": "user", "content": texts[0]}]
        assert rejected == [*conversation, {"role": "user", "content": texts[1]}]


def test_click_rates_of_all_impressions_make_soft_labels():
    log = click_log((["a", "b"], [1, 0]), (["b", "a"], [1, 1]), (["A ", "c"], [0, 0]))
    pairs = click_rate_pairs(log, [1.0, 0.5], prior_shows=1.0)
    # looked at: a 1 + 0.5 + 1 = 2.5 with 2 clicks, b 0.5 + 1 = 1.5 with 1, c 0.5 with 0; average 3 / 4.5 = 2 / 3
    a, b, c = (2 + 2 / 3) / 3.5, (1 + 2 / 3) / 2.5, (2 / 3) / 1.5
    told = [[row[-1]["content"] for row in pairs[name].to_list()] for name in ("chosen", "rejected")]
    assert told == [["a", "a", "b"], ["b", "c", "c"]]
    assert pairs["label"].to_list() == pytest.approx([a / (a + b), a / (a + c), b / (b + c)])
    # clicks 2, 1 and 0, each half in either of its two pairs: 1.5, 1, 0.5, whose mean is 1
    assert pairs["weight"].to_list() == pytest.approx([1.5, 1.0, 0.5])
    assert pairs["impression_id"].n_unique() == 1 and pairs["chosen_position"].is_null().all()
    with pytest.raises(ValueError, match="no two suggestions of one conversation differ in clicks in 1 impressions"):
        click_rate_pairs(click_log((["a", "b"], [0, 0])))
