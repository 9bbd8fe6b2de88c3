import polars as pl
import pytest

from openrlhf_qs.click_log import SCHEMA, read_click_log
from openrlhf_qs.pairs import POSITION_POLICIES, examination_propensities, inverse_propensity, preference_pairs

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


def test_the_pairs_of_an_impression_share_one_weight():
    pairs = preference_pairs(click_log((["a", "b", "c"], [1, 0, 0]), (["a", "b"], [1, 0])), "all")
    # shares 1/2, 1/2 and 1, whose mean is 2/3
    assert pairs["weight"].to_list() == pytest.approx([3 / 4, 3 / 4, 3 / 2])


def test_ipw_counts_a_click_by_how_rarely_its_place_is_looked_at():
    log = click_log((["a", "b"], [1, 0]), (["a", "b"], [0, 1]), (["a", "b", "c"], [1, 1, 0]))
    pairs = preference_pairs(log, "ipw", propensities=[1.0, 0.5, 0.25])
    # factors 1 / 1 and 1 / 0.5 = 2; the third impression has two pairs: [1, 2, 1 / 2, 2 / 2], whose mean is 4.5 / 4
    assert pairs["weight"].to_list() == pytest.approx([4 * w / 4.5 for w in (1, 2, 0.5, 1)])


def test_the_weight_of_a_click_is_clipped():
    pairs = preference_pairs(click_log((["a", "b"], [1, 0]), (["a", "b"], [0, 1])), "ipw", [1.0, 0.01], max_weight=3.0)
    assert pairs["weight"].to_list() == pytest.approx([1 / 2, 3 / 2])  # 1 and 3, whose mean is 2


def test_ipw_measures_the_propensities_of_the_log_where_none_are_given(tiny_log):
    log = read_click_log(tiny_log)
    assert preference_pairs(log).equals(preference_pairs(log, "ipw", examination_propensities(log)))


@pytest.mark.parametrize("position_policy", POSITION_POLICIES)
def test_weights_are_positive_with_mean_1_and_only_skip_above_leaves_pairs_out(tiny_log, position_policy):
    log = read_click_log(tiny_log)
    pairs = preference_pairs(log, position_policy)
    assert pairs["weight"].mean() == pytest.approx(1.0) and pairs["weight"].min() > 0
    every = preference_pairs(log, "all")
    assert (pairs.height < every.height) == (position_policy == "skip_above")
    assert set(positions(pairs)) <= set(positions(every))


def test_propensities_are_click_rates_relative_to_the_top():
    log = click_log(*[(["a", "b"], [1, 0])] * 5, *[(["a", "b"], [0, 1])] * 2, *[(["a", "b"], [0, 0])] * 3)
    # 10 shows with 5 and 2 clicks: (5 + 1) / 12 and (2 + 1) / 12
    assert examination_propensities(log) == pytest.approx([1.0, 0.5])


def test_a_position_without_a_click_still_has_a_propensity():
    log = click_log((["a", "b"], [1, 0]), (["a", "b"], [1, 0]))
    assert examination_propensities(log) == pytest.approx([1.0, 1 / 3])  # (2 + 1) / 4 and (0 + 1) / 4


def test_propensities_find_how_users_look_where_the_order_is_random():
    examined = [1.0, 0.6, 0.3]
    rng = pl.Series(range(6000)).shuffle(seed=0)
    rows = []
    for n in rng:  # of 100 looks, 30 click: 30, 18, 9 clicks at the three places in every hundred shows
        rows.append((["a", "b", "c"], [int(n % 100 < 30 * share) for share in examined]))
    assert examination_propensities(click_log(*rows)) == pytest.approx(examined, abs=0.01)


def test_nothing_to_pair_and_bad_options_are_refused():
    nothing = click_log((["a", "b"], [1, 1]), (["a", "b"], [0, 0]), (["a", "A"], [1, 0]))
    with pytest.raises(ValueError, match="no pair .* in 3 impressions under position policy 'all'"):
        preference_pairs(nothing, "all")
    log = click_log((["a", "b"], [1, 0]))
    with pytest.raises(ValueError, match="no pair"):
        preference_pairs(log, "skip_above")
    with pytest.raises(ValueError, match="unknown position policy 'best'; known: all, skip_above, ipw"):
        preference_pairs(log, "best")
    with pytest.raises(ValueError, match="1 propensities for 2 positions"):
        preference_pairs(log, "ipw", [1.0])
    for propensity, max_weight in [(0.0, 5.0), (-1.0, 5.0), (float("nan"), 5.0), (1.0, 0.0)]:
        with pytest.raises(ValueError, match="must both be > 0"):
            inverse_propensity(propensity, max_weight)
