"""What is shown, and why the rest is not."""

import asyncio
import math

import pytest
from fakes import OTHERS, TURKISH, FakePolicy, filters, response, scorer

from openrlhf_qs.form.request import Request
from openrlhf_qs.serve.suggester import MALFORMED, NEAR, NOT_NEEDED, Suggester

CONVERSATION = [
    {"role": "user", "content": "How do I learn Turkish, and where should I begin?"},
    {"role": "assistant", "content": "Ten words a day, and a friend to talk to."},
]
REQUEST = Request(CONVERSATION)


def suggested(suggester, request=REQUEST, n=None):
    return asyncio.run(suggester(request, n))


def test_the_best_of_all_samples_by_the_reward_model_are_shown_the_best_first():
    means = {OTHERS[1]: 3.0, TURKISH[2]: 2.0, OTHERS[0]: 1.0}
    choice = suggested(Suggester(FakePolicy(), {}, scorer(means), n_samples=2))
    assert choice.texts == [OTHERS[1], TURKISH[2], OTHERS[0]]
    assert {one.text for one in choice.left_out} == {TURKISH[0], TURKISH[1], OTHERS[2]}
    assert {one.reason for one in choice.left_out} == {NOT_NEEDED}
    assert choice.log_prob is None  # no response says these three


def test_a_response_that_is_shown_as_it_was_written_has_the_log_probability_of_its_sampling():
    choice = suggested(Suggester(FakePolicy(response(log_prob=-4.5)), {}, n_samples=1))
    assert choice.texts == list(TURKISH) and choice.log_prob == -4.5


def test_the_best_response_is_shown_as_it_was_written():
    means = {OTHERS[1]: 3.0}
    choice = suggested(Suggester(FakePolicy(), {}, scorer(means), n_samples=2, take="responses"))
    assert choice.texts == list(OTHERS) and choice.log_prob == -6.0


def test_a_response_with_a_refused_suggestion_is_not_shown_as_it_was_written():
    policy = FakePolicy(
        response([*TURKISH[:2], "How do I learn Turkish and where should I begin"]), response(OTHERS, log_prob=-90.0)
    )
    choice = suggested(Suggester(policy, filters("asked_before"), n_samples=2, take="responses"))
    assert choice.texts == list(OTHERS)


def test_nearly_the_same_words_are_shown_once():
    long = "How long does it take until I can read a newspaper in Turkish"
    policy = FakePolicy(response([f"{long}?", f"{long}!", f"{long} now?"]))
    choice = suggested(Suggester(policy, {}, n_samples=1))
    assert len(choice.shown) == 1
    assert sorted(one.reason for one in choice.left_out) == ["duplicate", NEAR]


def test_malformed_responses_are_left_out_with_what_is_wrong_with_them():
    choice = suggested(Suggester(FakePolicy(response(problem="cut"), response(OTHERS)), {}, n_samples=2))
    assert choice.texts == list(OTHERS)
    assert [(one.reason, one.why) for one in choice.left_out] == [(MALFORMED, "cut")]
    choice = suggested(Suggester(FakePolicy(response(problem="cut")), {}, n_samples=2))
    assert choice.shown == [] and choice.reason == "all_malformed"


def test_each_filter_says_why(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("# not here\nDark Market\n")
    texts = [
        "How do I learn TURKISH, and where should I begin?!",
        "Wie lange dauert es, die Sprache zu lernen?",
        "What sells the dark   market?",
    ]
    chosen = filters("asked_before", "users_language", "block_list", block_list={"file": str(words)})
    choice = suggested(Suggester(FakePolicy(response(texts)), chosen, n_samples=1))
    assert choice.reason == "all_filtered"
    assert {one.text: one.reason for one in choice.left_out} == dict(
        zip(texts, ["asked_before", "users_language", "block_list"], strict=True)
    )


def test_the_language_that_is_asked_for_decides():
    german = "Wie lange dauert es, die Sprache zu lernen?"
    policy = FakePolicy(response([german, *TURKISH[1:]]))
    request = Request(CONVERSATION, features={"language": "de"})
    choice = suggested(Suggester(policy, filters("users_language"), n_samples=1), request)
    assert choice.texts == [german]


def test_a_block_list_that_is_empty_or_missing_is_refused(tmp_path):
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="has no words in it"):
        filters("block_list", block_list={"file": str(tmp_path / "none.txt")})
    with pytest.raises(ValueError, match="cannot be read"):
        filters("block_list", block_list={"file": str(tmp_path / "missing.txt")})


def test_nothing_is_shown_below_the_chance_of_a_click():
    # odds of a click of a user who looks at it: mean / sqrt(1 + pi / 8) = -2 / 1.180 = -1.695, chance .1551 each;
    # of one or more of three: 1 - .8449^3 = .3968
    means = dict.fromkeys([*TURKISH, *OTHERS], -2.0)
    choice = suggested(Suggester(FakePolicy(), {}, scorer(means), n_samples=1))
    assert choice.click_chance == pytest.approx(0.3968, abs=1e-3) and len(choice.shown) == 3
    silent = suggested(Suggester(FakePolicy(), {}, scorer(means), n_samples=1, min_click_chance=0.4))
    assert silent.shown == [] and silent.reason == "below_min_click_chance"
    assert silent.click_chance == pytest.approx(choice.click_chance)
    assert len(silent.left_out) == 3


def test_a_chance_of_a_click_needs_a_reward_model_of_clicks():
    with pytest.raises(ValueError, match="trained on clicks"):
        Suggester(FakePolicy(), {}, scorer(link="probit"), min_click_chance=0.1)
    with pytest.raises(ValueError, match="trained on clicks"):
        Suggester(FakePolicy(), {}, min_click_chance=0.1)


def test_an_order_that_is_left_to_chance_is_uniform_and_written_down():
    suggester = Suggester(FakePolicy(), {}, n_samples=1, explore=1.0, explore_by="order", seed=0)
    orders = {}
    for _ in range(600):
        choice = suggested(suggester)
        order = tuple(choice.explored["order"])
        best_first = [None] * 3
        for place, index in enumerate(order):
            best_first[index] = choice.texts[place]
        assert best_first == list(TURKISH)
        orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 6 and all(abs(n - 100) < 45 for n in orders.values())  # 4.5 sigma


def test_one_place_that_is_left_to_chance_is_written_down_with_what_it_was_drawn_from():
    suggester = Suggester(FakePolicy(), {}, scorer(dict.fromkeys(TURKISH, 5.0)), n_samples=2, explore=1.0, seed=1)
    choice = suggested(suggester)
    drawn = choice.explored
    assert choice.texts[drawn["place"]] in OTHERS and drawn["n_candidates"] == 3
    assert drawn["instead_of"] in TURKISH and drawn["instead_of"] in {one.text for one in choice.left_out}


def test_answers_that_leave_nothing_to_chance_say_so_too():
    never = suggested(Suggester(FakePolicy(), {}, n_samples=1))
    assert never.explored is None and never.shown[0].propensity is None
    seldom = suggested(Suggester(FakePolicy(), {}, n_samples=2, explore=1e-9))
    assert seldom.explored == {
        "by": "place",
        "share": 1e-9,
        "drawn": False,
        "propensity": 1 - 1e-9,
        "n_candidates": 3,
    }
    without_others = suggested(Suggester(FakePolicy(), {}, n_samples=1, explore=1.0))
    assert without_others.explored["propensity"] == 1.0  # nothing else could have stood there


@pytest.mark.parametrize("by", ["order", "place"])
def test_what_is_shown_is_as_frequent_as_its_propensity_says(by):
    suggester = Suggester(FakePolicy(), {}, n_samples=2, explore=0.6, explore_by=by, seed=3)
    n, slates, places, said = 4000, {}, {}, {}
    for _ in range(n):
        choice = suggested(suggester)
        slate = tuple(choice.texts)
        slates[slate] = slates.get(slate, 0) + 1
        said[slate] = choice.explored["propensity"]
        for place, one in enumerate(choice.shown):
            places[one.text, place] = places.get((one.text, place), 0) + 1
            assert said.setdefault((one.text, place), one.propensity) == one.propensity
    # order: .4 + .6/6 as they were, .6/6 each of five others; place: .4, and .6/9 each of 3 places with 3 others
    assert len(slates) == (6 if by == "order" else 10)
    assert sum(said[slate] for slate in slates) == pytest.approx(1.0)
    for what, count in [*slates.items(), *places.items()]:
        deviation = math.sqrt(n * said[what] * (1 - said[what]))
        assert abs(count - n * said[what]) < 4.5 * deviation, (what, count, said[what])


def test_another_choice_among_the_same_candidates_is_estimated_from_what_was_left_to_chance():
    """Users click the last of OTHERS wherever it stands, half of them the first of TURKISH; another reward model would
    show the former in the last place."""
    suggester = Suggester(FakePolicy(), {}, n_samples=2, explore=0.5, seed=5)
    clicked = {OTHERS[2]: 1.0, TURKISH[0]: 0.5}
    weighted, wanted = [], (TURKISH[0], TURKISH[1], OTHERS[2])
    for _ in range(4000):
        choice = suggested(suggester)
        clicks = sum(clicked.get(text, 0.0) for text in choice.texts)
        weighted.append(clicks * (tuple(choice.texts) == wanted) / choice.explored["propensity"])
    # 1.5 clicks an answer; propensity .5/9: the mean of 4000 has a deviation of 1.5 * sqrt((18 - 1) / 4000) = .098
    assert sum(weighted) / len(weighted) == pytest.approx(1.5, abs=0.4)


def test_a_response_that_is_left_to_chance_is_the_first_as_it_was_written_with_its_log_probability():
    means = dict.fromkeys(OTHERS, 5.0)  # which would else be shown
    suggester = Suggester(
        FakePolicy(response(log_prob=-7.5), response(OTHERS)),
        {},
        scorer(means),
        n_samples=2,
        explore=1.0,
        explore_by="response",
        min_click_chance=0.999,
    )
    choice = suggested(suggester)
    assert choice.texts == list(TURKISH) and choice.log_prob == -7.5
    assert choice.explored == {"by": "response", "share": 1.0, "drawn": True}
    suggester.policy.responses[0] = response(problem="cut")
    assert suggested(suggester).explored == {"by": "response", "share": 1.0, "drawn": False}


def test_that_another_response_says_the_same_is_no_reason_against_one_that_is_left_to_chance():
    policy = FakePolicy(response(log_prob=-9.0), response([TURKISH[0], *OTHERS[:2]], log_prob=-3.0))
    choice = suggested(Suggester(policy, {}, n_samples=2, explore=1.0, explore_by="response"))
    assert choice.texts == list(TURKISH) and choice.log_prob == -9.0


def test_fewer_are_shown_where_fewer_are_asked_for():
    choice = suggested(Suggester(FakePolicy(), {}, scorer({TURKISH[1]: 1.0}), n_samples=2), n=1)
    assert choice.texts == [TURKISH[1]]


def test_what_waits_is_scored_together_and_everyone_gets_his_own():
    calls = []
    one = scorer({TURKISH[0]: 1.5})
    score = one.scorer

    def counted(conversations, suggestions):
        calls.append(len(suggestions))
        return score(conversations, suggestions)

    one.scorer = counted

    async def ask():
        texts = [[TURKISH[0], OTHERS[0]], [OTHERS[1]], [TURKISH[0]]]
        return await asyncio.gather(*(one(CONVERSATION, some) for some in texts))

    assert asyncio.run(ask()) == [[(1.5, 1.0), (0.0, 1.0)], [(0.0, 1.0)], [(1.5, 1.0)]]
    assert calls == [4]


def test_an_error_of_the_reward_model_is_everyones_who_waits_and_nobody_elses():
    one = scorer()
    score, broken = one.scorer, [True]

    def sometimes(conversations, suggestions):
        if broken:
            broken.pop()
            raise RuntimeError("no memory")
        return score(conversations, suggestions)

    one.scorer = sometimes

    async def ask():
        failed = await asyncio.gather(*(one(CONVERSATION, ["a"]) for _ in range(2)), return_exceptions=True)
        return failed, await one(CONVERSATION, ["b"])

    failed, later = asyncio.run(ask())
    assert all(isinstance(error, RuntimeError) for error in failed) and later == [(0.0, 1.0)]


def test_what_was_left_out_has_the_chance_of_a_click_too():
    choice = suggested(Suggester(FakePolicy(), {}, scorer({OTHERS[0]: math.log(3)}), n_samples=2))
    # ln 3 / sqrt(1 + pi / 8) = .931, and the sigmoid of that is .717
    assert choice.shown[0].click_chance == pytest.approx(0.717, abs=1e-3)
