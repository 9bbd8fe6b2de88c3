import argparse
import json
import re
import warnings
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import polars as pl
import pytest
import torch
from scipy.optimize import minimize

from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import format_response, parse_response
from openrlhf_qs.plugins.fusions.learned import (
    OBJECTIVES,
    EqualFusion,
    LogisticRegressionFusion,
    ParetoFusion,
    means_and_errors,
    objectives,
    split,
    standard_errors,
    variance_inflation,
)
from openrlhf_qs.reward import fusion as stage
from openrlhf_qs.reward.composite import CompositeReward, Part, Weights, read_weights
from openrlhf_qs.reward.fusion_data import FusionData, impression_pairs, suggestion_pairs, topics
from openrlhf_qs.reward.hacked import HACKS, N_ELSEWHERE, hacked_responses
from openrlhf_qs.reward.offline import offline_batch
from openrlhf_qs.reward.pareto import knee
from openrlhf_qs.statistics import pair_regression


def synthetic(coefs, n=4000, seed=0, **fields):
    """Pairs whose difference of unit deviation has the log-odds ``coefs`` that it is this way round."""
    random = np.random.default_rng(seed)
    difference = random.normal(size=(n, len(coefs)))
    first = random.random(n) < 1 / (1 + np.exp(-difference @ np.array(coefs)))
    difference = np.where(first[:, None], difference, -difference)
    conversation = np.arange(n)
    return FusionData(list("abcdef"[: len(coefs)]), difference, np.ones(n), conversation, conversation % 8, **fields)


def fit(data, c):
    return pair_regression.fit(data.difference, data.weight, c)


# Stage one


def test_logistic_regression_finds_the_weights_clicks_were_made_with():
    weights = LogisticRegressionFusion(floor=0.0)(synthetic([2.0, 1.0, 0.5]))
    # 2 : 1 : 0.5, of 3.5 in all
    np.testing.assert_allclose(weights, [2 / 3.5, 1 / 3.5, 0.5 / 3.5], atol=0.03)
    assert sum(weights) == pytest.approx(1)


def test_the_fit_is_the_minimum_of_the_weighted_penalised_loss():
    data = synthetic([1.0, -0.5], n=200)
    weight = np.random.default_rng(1).uniform(0.1, 3, 200)
    data = FusionData(data.names, data.difference, weight, data.conversation, data.topic)

    def loss(w):
        return (weight * np.logaddexp(0, -data.difference @ w)).sum() + (w @ w) / (2 * 0.3)

    np.testing.assert_allclose(fit(data, 0.3), minimize(loss, np.zeros(2), tol=1e-10).x, atol=1e-4)


def test_standard_errors_are_the_spread_over_logs():
    logs = [synthetic([1.0, 0.3], n=400, seed=seed) for seed in range(200)]
    spread = np.std([fit(log, 1e3) for log in logs], axis=0)
    errors = np.mean([standard_errors(log, fit(log, 1e3), 1e3) for log in logs[:20]], axis=0)
    np.testing.assert_allclose(errors, spread, rtol=0.15)


def test_pairs_of_one_conversation_that_repeat_each_other_tell_nothing_new():
    data = synthetic([1.0, 0.3], n=300)
    fourfold = data.pairs(np.repeat(np.arange(300), 4))
    once, again = (standard_errors(one, fit(one, 1e6), 1e6) for one in (data, fourfold))
    np.testing.assert_allclose(once, again, rtol=1e-3)


def test_variance_inflation_is_that_of_a_regression_on_the_others():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 5000))
    x = np.stack([a, b, a + 0.1 * b + 0.3 * random.normal(size=5000), np.zeros(5000)], axis=1)
    expected = []
    for k in range(3):
        others = np.delete(x[:, :3], k, axis=1)
        rest = x[:, k] - others @ np.linalg.lstsq(others, x[:, k], rcond=None)[0]
        expected.append((x[:, k] ** 2).sum() / (rest**2).sum())
    np.testing.assert_allclose(variance_inflation(x), [*expected, 1.0], rtol=1e-6)


def test_collinear_parts_are_warned_of():
    data = synthetic([1.0, 1.0])
    twice = FusionData(["a", "b", "c"], data.difference[:, [0, 1, 1]], data.weight, data.conversation, data.topic)
    with pytest.warns(UserWarning, match="reward 'c' can hardly be distinguished from the others"):
        LogisticRegressionFusion()(twice)


def test_a_part_that_clicks_fall_with_is_set_to_the_floor_with_a_warning():
    with pytest.warns(
        UserWarning, match=r"reward 'b' has the weight -[\d.]+ \(standard error [\d.]+\): clicks fall as"
    ):
        weights = LogisticRegressionFusion(floor=0.25)(synthetic([2.0, -1.0]))
    # 1 and the floor of 0.25, of 1.25 in all
    np.testing.assert_allclose(weights, [0.8, 0.2])


def test_a_useful_part_keeps_at_least_the_floor_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = LogisticRegressionFusion(floor=0.25)(synthetic([2.0, 0.1]))
    np.testing.assert_allclose(weights, [0.8, 0.2])


def test_where_no_part_rises_with_clicks_beyond_its_noise_all_get_the_same_share_and_that_is_said():
    for data in (synthetic([-1.0, -2.0]), synthetic([0.05, 0.05], n=100)):
        fusion = LogisticRegressionFusion()
        with pytest.warns(UserWarning) as said:
            assert fusion(data) == [0.5, 0.5]
        (warning,) = said
        assert "this log does not determine the weights, because no part rises" in str(warning.message)
        assert not fusion.report["first_stage"]["told"]


def across_conversations(seed, n=600):
    """Impressions of as many conversations: clicks come from how clickable a conversation is and from part ``a``;
    part ``b`` goes with the former alone, and ``c`` is noise."""
    random = np.random.default_rng(seed)
    clickable, a, c = random.normal(size=(3, n))
    b = 0.7 * clickable + 0.7 * random.normal(size=n)
    clicks = random.random(n) < 1 / (1 + np.exp(1.5 - a - clickable))
    parts, topic = np.stack([a, b, c], axis=1), random.integers(4, size=n)
    chosen, rejected, weight, across = impression_pairs(range(n), clicks.astype(float), topic)
    assert across and (topic[chosen] == topic[rejected]).all()
    return FusionData(["a", "b", "c"], parts[chosen] - parts[rejected], weight, chosen, topic[chosen], other=rejected)


def test_weights_across_conversations_are_not_taken_for_told():
    with pytest.warns(UserWarning, match="its conversations hardly recur"):
        assert LogisticRegressionFusion()(across_conversations(0)) == [1 / 3] * 3


def test_standard_errors_across_conversations_are_the_spread_over_logs():
    logs = [across_conversations(seed) for seed in range(120)]
    fits = np.array([fit(log, 1.0) for log in logs])
    errors = np.array([standard_errors(log, one, 1.0) for log, one in zip(logs, fits, strict=True)])
    np.testing.assert_allclose(errors.mean(0), fits.std(0), rtol=0.2)
    alone = np.array(
        [standard_errors(replace(log, other=None), one, 1.0) for log, one in zip(logs, fits, strict=True)]
    )
    assert (alone.mean(0) < 0.9 * errors.mean(0)).all()  # the unclicked side is drawn by many pairs
    # the noise is called a weight in 5 % of 120 logs: 6, with a standard deviation of 2.4
    assert (np.abs(fits[:, 2]) > 1.96 * errors[:, 2]).sum() <= 14


def by_users(seed, n=1200, n_users=40):
    """Pairs within conversations whose part ``b`` is worth nothing, but of some users' favourite style."""
    random = np.random.default_rng(seed)
    user, conversation = random.integers(n_users, size=n), np.arange(n) // 2
    style, difference = random.normal(size=n_users), random.normal(size=(n, 2))
    difference[:, 1] = 0.6 * difference[:, 1] + 0.8 * random.normal(size=n_users)[user]
    odds = difference[:, 0] + 0.7 * style[user]  # style is a choice of this user's, whatever is compared
    first = random.random(n) < 1 / (1 + np.exp(-odds))
    difference = np.where(first[:, None], difference, -difference)
    users = [f"u{one}" for one in user]
    return FusionData(["a", "b"], difference, np.ones(n), conversation, conversation % 8, users=(users, users))


def test_a_part_that_goes_with_users_who_come_back_is_called_no_more_often_than_it_should_be():
    logs = [by_users(seed) for seed in range(150)]
    fits = np.array([fit(log, 1e3) for log in logs])
    errors = np.array([standard_errors(log, one, 1e3) for log, one in zip(logs, fits, strict=True)])
    np.testing.assert_allclose(errors[:, 1].mean(), fits[:, 1].std(), rtol=0.2)
    alone = [standard_errors(replace(log, users=None), one, 1e3)[1] for log, one in zip(logs, fits, strict=True)]
    called = {"users": errors[:, 1], "conversations": np.array(alone)}
    called = {name: int((np.abs(fits[:, 1]) > 1.96 * error).sum()) for name, error in called.items()}
    # 5 % of 150 are 7.5, with a standard deviation of 2.7
    assert called["users"] <= 16 and called["conversations"] > 22


def test_shares_are_those_that_grpo_logs_of_the_same_samples():
    group, random = np.repeat(np.arange(30), 4), np.random.default_rng(0)
    raw = {name: torch.from_numpy(random.normal(size=120)).float() for name in "ab"}
    parts = {"a": Part(0.7, 0.1, 0.5), "b": Part(0.3, -1.0, 2.0)}
    found = stage.shares(parts, raw, group)
    total = sum(one.weight * raw[name].numpy() / one.std for name, one in parts.items()).reshape(30, 4)
    for name, one in parts.items():
        column = (one.weight * raw[name].numpy() / one.std).reshape(30, 4)
        by_group = [np.cov(c, t)[0, 1] / np.var(t, ddof=1) for c, t in zip(column, total, strict=True)]
        assert found[name] == pytest.approx(np.mean(by_group), rel=1e-4)
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize("floor", [-0.1, 1.1])
def test_a_floor_that_is_no_share_is_refused(floor):
    with pytest.raises(ValueError, match=f"floor must be in .0, 1., got {floor}"):
        LogisticRegressionFusion(floor=floor)


def test_equal_weights_add_up_to_one():
    assert EqualFusion()(synthetic([1.0] * 4, n=10)) == [0.25] * 4


def test_equal_weights_are_equal_shares_of_what_training_sees():
    """The log-perplexity of logged impressions is ten times as wide as that of samples to one prompt."""
    random, group = np.random.default_rng(0), np.repeat(np.arange(500), 4)
    sampled = np.stack(
        [random.normal(0, 0.1, 2000), random.normal(0, 0.07, 2000) + 0.3 * random.normal(size=500)[group]], 1
    )
    logged = np.stack([random.normal(0, 0.1, 3000), random.normal(0, 1.0, 3000)], 1)
    scale = stage.part_scale(["garm", "ood"], sampled, logged, group, "sft")
    weights = EqualFusion()(synthetic([1.0] * 2, n=10))
    parts = {
        name: Part(w, m, s) for name, w, m, s in zip(["garm", "ood"], weights, scale.mean, scale.std, strict=True)
    }
    found = stage.shares(parts, dict(zip(parts, torch.from_numpy(sampled).T, strict=True)), group)
    # measured by the log as well, the deviation of ood is .8, and its share 1 %; of 500 groups a share is known to .02
    np.testing.assert_allclose([*found.values()], 0.5, atol=0.06)


# The pairs


def test_a_clicked_impression_is_paired_with_the_others_of_its_conversation():
    conversation, clicks = [0, 0, 0, 1, 1] * 30, [2.0, 0, 0, 1.0, 0] * 30
    conversation = [c + 2 * (n // 5) for n, c in enumerate(conversation)]
    chosen, rejected, weight, across = impression_pairs(conversation, clicks, [0] * len(clicks))
    assert not across
    assert list(zip(chosen, rejected, strict=True))[:3] == [(0, 1), (0, 2), (3, 4)]
    # the click of 2 is shared by two pairs: all weigh the same
    np.testing.assert_allclose(weight, 1.0)


def test_where_conversations_do_not_come_again_those_of_one_topic_are_compared():
    topic = [n // 2 % 2 for n in range(40)]
    chosen, rejected, weight, across = impression_pairs(range(40), [1.0, 0.0] * 20, topic)
    assert across and len(chosen) == 20 * 8 and set(chosen % 2) == {0} and set(rejected % 2) == {1}
    assert all(topic[one] == topic[other] for one, other in zip(chosen, rejected, strict=True))
    assert weight.mean() == pytest.approx(1)


def test_suggestions_of_one_impression_tell_the_weights_where_no_conversation_comes_again():
    random = np.random.default_rng(0)
    n, places = 6000, {"propensities": [1.0, 0.7, 0.5], "trust": []}
    clickable = random.normal(size=n)  # what a conversation does to clicks, and a part that goes with it
    parts = random.normal(size=(n, 3, 3))
    parts[:, :, 2] = clickable[:, None]
    log_odds = -1.5 + clickable[:, None] + parts @ [1.0, 0.5, 0.0]
    clicks = random.random((n, 3)) < np.array(places["propensities"]) / (1 + np.exp(-log_odds))
    log = pl.DataFrame(
        {
            "impression_id": [f"{row}" for row in range(n)],
            "conversation": [[{"role": "user", "content": f"{row}?"}] for row in range(n)],
            "suggestions": [[f"{row} {place}" for place in range(3)] for row in range(n)],
            "clicks": clicks.astype(np.int8).tolist(),
        }
    )
    pairs = suggestion_pairs(log, places, np.ones(n, dtype=bool))
    assert len(pairs.row) > 2000 and pairs.weight.mean() == pytest.approx(1)
    difference = parts[pairs.row, pairs.chosen] - parts[pairs.row, pairs.rejected]
    fusion = LogisticRegressionFusion(floor=0.0)
    weights = fusion(FusionData(["a", "b", "c"], difference, pairs.weight, pairs.row, pairs.row % 8))
    np.testing.assert_allclose(weights, [2 / 3, 1 / 3, 0], atol=0.04)
    assert fusion.report["first_stage"]["told"]


def test_what_cannot_be_read_as_it_was_shown_makes_no_pair():
    log = pl.DataFrame(
        {
            "impression_id": ["a", "b", "c"],
            "conversation": [[{"role": "user", "content": "?"}]] * 3,
            "suggestions": [["x", "y"], ["x", "y"], [f"{n}" for n in range(9)]],
            "clicks": [[1, 0], [1, 0], [1] + [0] * 8],
        }
    )
    pairs = suggestion_pairs(log, {"propensities": [1.0] * 9, "trust": []}, np.array([False, True, True]))
    assert list(pairs.row) == [1], "the first cannot be read, the last showed more than a policy can be asked for"


class ByLength:
    """A reward that says what each suggestion brought: its length, over the number of suggestions."""

    needs, gate = (), False

    def __call__(self, batch):
        return self.credit(batch).sum(1)

    def credit(self, batch):
        return torch.tensor([[len(text) / batch.task.n for text in parsed.suggestions] for parsed in batch.parsed])


def test_a_suggestion_counts_what_a_response_of_its_like_would_have_however_many_were_shown():
    shown = [["Why a?", "Why bb?", "Why ccc?"], ["Why d?", "Why ee?"]]
    requests = [Request([{"role": "user", "content": "?"}])] * 2
    batch = offline_batch(requests, [format_response(some) for some in shown], n_shown=[3, 2])
    batch = replace(batch, ref_log_ppl_share=torch.zeros(2, 3))
    composite = CompositeReward(["rules"])
    composite.rewards["rules"] = ByLength()
    values = stage.suggestion_values(composite, batch, {"rules": torch.zeros(2)}, np.array([0, 1]), ["rules"])
    assert {row: value[:, 0].round(4).tolist() for row, value in values.items()} == {0: [6, 7, 8], 1: [6, 7]}


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_kind_of_impression_alone_makes_no_pair(value):
    chosen, rejected, weight, _ = impression_pairs([0, 0, 0], [value] * 3, [0, 0, 0])
    assert len(chosen) == len(rejected) == len(weight) == 0


def test_conversations_about_the_same_thing_have_one_topic():
    texts = ["bread flour oven", "flour bread yeast", "engine car wheel", "wheel engine brake"] * 3
    found = topics(texts, 2)
    assert found[0] == found[1] != found[2] == found[3]
    assert topics(["?", "!"], 4).tolist() == [0, 0]


# Hacked responses

TOPICS = [0, 0, 1]
CONVERSATIONS = [[{"role": "user", "content": text}] for text in ("How do I bake bread?", "Is rye good?", "Why me?")]
SUGGESTIONS = [[f"Question {n} of {row}?" for n in "abc"] for row in range(3)]


def test_two_short_texts_are_spliced_too_where_one_is_a_part_of_the_other():
    for one, other in (("A", "B"), ("AB", "B"), ("你好", "好"), ("B", "AB")):
        made = hacked_responses(CONVERSATIONS[:2], [[one, other, "C"]] * 2, [0, 1])["spliced"]
        assert all(parse_response(text).suggestions[0] not in (one, other) for text in made[0][:1])


def test_every_hack_is_made_of_every_response_and_is_what_it_says():
    made = hacked_responses(CONVERSATIONS, SUGGESTIONS, TOPICS)
    first = {kind: [parse_response(text).suggestions for text in rows[0]] for kind, rows in made.items()}
    assert first["repeated"] == [(f"Question {n} of 0?",) * 3 for n in "abc"]
    assert first["stuffed"][0][0] == "bake bread bake bread bake bread bake bread bake bread?"
    # with another of its own, then with those of the only conversation about something else; never one of the two
    ends = ["b of 0", "c of 0"] + ["a of 2"] * N_ELSEWHERE
    assert [texts[0] for texts in first["spliced"]] == [f"QuestionQuestion {end}?" for end in ends]
    # the next conversation about something else; after the last one the first
    assert [[parse_response(text).suggestions[0][-2] for text in rows] for rows in made["shuffled"]] == [
        ["2"] * N_ELSEWHERE, ["2"] * N_ELSEWHERE, ["0", "1"] * (N_ELSEWHERE // 2)
    ]  # fmt: skip
    for rows in made.values():
        assert len(rows) == 3 and len({len(variants) for variants in rows}) == 1
    well_formed = {kind for kind, rows in made.items() if all(parse_response(t).well_formed for t in chain(*rows))}
    assert well_formed == set(HACKS)


def test_the_beginning_of_one_suggestion_meets_the_end_of_the_next():
    suggestions = ["How long does bread take?", "Which flour is best?", "Why?"]
    first = hacked_responses(CONVERSATIONS[:1], [suggestions], [0])["spliced"][0][0]
    assert parse_response(first).suggestions == ("How long is best?", "Which flour Why?", "does bread take?")


def test_one_conversation_alone_can_be_hacked_too():
    made = hacked_responses(CONVERSATIONS[:1], SUGGESTIONS[:1], [0])
    assert {kind: len(rows[0]) for kind, rows in made.items()} == {
        "repeated": 3, "bland": 1, "stuffed": 1, "shuffled": N_ELSEWHERE, "spliced": 2 + N_ELSEWHERE,
        "empty": 1, "numbers": 1,
    }  # fmt: skip


# Stage two


def test_the_knee_is_farthest_from_the_line_through_the_extremes():
    front = np.array([[0.0, 10.0], [1.0, 9.5], [3.0, 8.0], [4.0, 0.0]])
    # scaled: (0, 1), (0.25, 0.95), (0.75, 0.8), (1, 0); from the line x + y = 1: 0, 0.2, 0.55, 0 over the root of 2
    assert knee(front) == 2
    assert knee(np.array([[0.0, 1.0], [0.5, 1.0]])) == 1  # an objective that never changes
    assert knee(np.array([[3.0, 3.0]])) == 0
    # noise of 0.01 in the first is not worth 0.4 in the second, but for the scaling
    noise = np.array([[0.50, 1.0], [0.51, 0.6], [0.5, 0.0]])
    assert knee(noise) == 1 and knee(noise, min_span=0.05) == 0


def hackable(n=1200):
    """Clicks rise with ``a`` alone; ``b`` alone tells the hacked from the clean."""
    random = np.random.default_rng(5)
    hacked = np.stack([random.normal(-1, 0.5, (50, 2)), random.normal(1, 0.5, (50, 2))], axis=-1)
    shape = (50, 4)
    return synthetic(
        [1.5, 0.2],
        n=n,
        clean_minus_hacked={"one": hacked, "stopped": hacked},
        stopped={"one": np.zeros((50, 2), dtype=bool), "stopped": np.ones((50, 2), dtype=bool)},
        samples=random.normal(size=(*shape, 2)),
        valid=random.random(shape) < 0.8,
        diversity=random.random(shape),
        passed=np.ones(shape, dtype=bool),
    )


def test_the_search_begins_with_the_first_stage_and_its_front_is_what_brute_force_says():
    fitted, inside, outside = split(hackable(300), 0)
    first = np.array(LogisticRegressionFusion()(fitted))
    tried, values, on_front = ParetoFusion(n_trials=60).search(first, inside, outside)
    assert tried[0].tolist() == first.tolist() and len(tried) == 61

    def dominated(row):
        return any((other >= row).all() and (other > row).any() for other in values)

    assert on_front.tolist() == [number for number, row in enumerate(values) if not dominated(row)]
    np.testing.assert_allclose(tried.sum(axis=1), 1)
    factor = tried / first
    assert (factor.max(axis=1) / factor.min(axis=1)).max() <= 4 + 1e-9  # 2 either way, then made to add up


def test_pareto_gives_up_a_little_accuracy_for_much_resistance():
    data, fusion = hackable(), ParetoFusion("resistance", reach=4, n_trials=150)
    weights = fusion(data)
    report = fusion.report
    start, chosen = report["start"]["objectives"], report["chosen"]["objectives"]
    assert tuple(chosen) == OBJECTIVES and sum(weights) == pytest.approx(1)
    assert chosen["resistance"] > start["resistance"] + 0.1 and chosen["accuracy"] > 0.5
    assert report["first_stage"]["standard_error"]["a"] > 0
    assert ParetoFusion("resistance", reach=4, n_trials=150)(data) == weights  # the seed is fixed


def test_the_knee_gives_up_nothing_for_more_than_its_noise():
    data = hackable()
    # `b` alone makes samples diverse and valid, and lets the hack `other` pass
    other = 2 * data.clean_minus_hacked["one"][..., ::-1]
    data = replace(
        data,
        clean_minus_hacked={**data.clean_minus_hacked, "other": other},
        stopped={**data.stopped, "other": data.stopped["one"]},
        diversity=1 / (1 + np.exp(-data.samples[..., 1])),
        valid=data.samples[..., 1] > 0,
    )
    _, inside, outside = split(data, 0)

    def lost(slack):
        """Of each mean, by how many standard errors it is below that of the first stage."""
        fusion = ParetoFusion(slack=slack, reach=20, n_trials=300)
        chosen = fusion(data)
        start, errors = means_and_errors(ParetoFusion("first_stage", n_trials=1)(data), inside, outside)
        return (start - means_and_errors(np.array(chosen), inside, outside)[0]) / np.maximum(errors, 1e-12)

    accuracy, _, resistance_to_one, _, resistance_to_other, *_ = lost(slack=1e9)
    assert accuracy > 2 and resistance_to_other > 2 and resistance_to_one < -2
    for slack in (0.0, 1.0):
        assert lost(slack).max() <= slack + 1e-9


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_choice_can_be_the_best_in_one_objective_or_the_first_stage(name):
    data = hackable()
    best = ParetoFusion(choose=name, n_trials=60)
    best(data)
    assert best.report["chosen"]["objectives"][name] == max(p["objectives"][name] for p in best.report["front"])
    first = ParetoFusion(choose="first_stage", n_trials=1)
    assert first(data) == pytest.approx(LogisticRegressionFusion()(split(data, 0)[0]))


def test_objectives_are_those_that_the_data_tell():
    data = synthetic([1.0, 0.5], n=400)
    _, inside, outside = split(data, 0)
    assert list(objectives(np.array([1.0, 0.0]), inside, outside)) == ["accuracy", "accuracy_out"]
    with pytest.raises(ValueError, match="these data allow only accuracy, accuracy_out"):
        ParetoFusion(choose="validity", n_trials=1)(data)


def test_no_conversation_and_no_held_out_topic_is_on_two_sides():
    data = synthetic([1.0], n=1000)
    data = FusionData(data.names, data.difference, data.weight, data.conversation // 5, data.conversation // 5 % 8)
    sides = split(data, 3)
    assert sum(len(side.difference) for side in sides) == 1000
    for one, other in combinations(sides, 2):
        assert not set(one.conversation) & set(other.conversation)
    assert not set(sides[2].topic) & (set(sides[0].topic) | set(sides[1].topic))


def test_accuracy_and_resistance_count_what_is_above():
    data = FusionData(
        ["a"], np.array([[1.0], [-1.0], [0.0]]), np.array([3.0, 1.0, 2.0]), np.arange(3), np.arange(3),
        {"x": np.array([[[1.0], [2.0]], [[1.0], [-2.0]], [[3.0], [-1.0]], [[1.0], [0.0]]])},
        {"x": np.array([[False, False], [False, False], [False, True], [True, False]])},
    )  # fmt: skip
    # (3 + 2 / 2) / 6;  the first is above both that were made of it, the third above the one that no gate stopped
    nobody = data.pairs(np.array([], dtype=int))
    assert objectives(np.array([1.0]), data, nobody) == pytest.approx({"accuracy": 4 / 6, "resistance": 0.5})
    means, errors = means_and_errors(np.array([1.0]), data, nobody)
    assert means.tolist() == pytest.approx([4 / 6, 0.5])
    # (3 * (1/3)^2 + (2/3)^2 + 2 * (1/6)^2) / 6 over the root of what 6^2 / (9 + 1 + 4) pairs are worth; 0.25 of 4
    assert errors.tolist() == pytest.approx([((30 / 36) / 6 * 14 / 36) ** 0.5, 0.25])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"choose": "best"}, "'best' is unknown"), ({"reach": 1.0}, "reach > 1"), ({"n_trials": 0}, "n_trials >= 1")],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ParetoFusion(**options)


# The stage


@pytest.mark.parametrize("normalisation", ["sft", "group", "running"])
def test_parts_are_weighed_by_how_far_samples_to_one_prompt_differ(normalisation):
    sampled, logged = np.array([[0.0], [2.0], [10.0], [14.0]]), np.array([[-100.0], [100.0]])
    mean, seen, std = stage.part_scale(["a"], sampled, logged, np.array([0, 0, 1, 1]), normalisation)
    # (1 + 1 + 4 + 4) / (4 responses - 2 prompts); among all of them (6.5^2 + 4.5^2 + 3.5^2 + 7.5^2) / 4
    np.testing.assert_allclose([*mean, *seen], [6.5, 5**0.5])
    np.testing.assert_allclose(std, 32.75**0.5 if normalisation == "running" else 5**0.5)


def test_one_response_a_conversation_tells_no_group():
    sampled = np.array([[0.0], [2.0]])
    with pytest.warns(UserWarning, match="one response a conversation .* --n_samples 4"):
        scale = stage.part_scale(["a"], sampled, sampled, np.arange(2), "sft")
    assert scale.seen.tolist() == [1.0]
    with pytest.raises(ValueError, match="several responses per conversation: .* --n_samples 4"):
        stage.part_scale(["a"], sampled, sampled, np.arange(2), "group")


def test_a_part_that_only_the_log_knows_is_measured_there():
    sampled, logged = np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 5.0]])
    # of 1, 1, 1, 5: sqrt((3 * 1 + 9) / 4)
    np.testing.assert_allclose(stage.part_scale(["a", "b"], sampled, logged, np.zeros(2), "sft").std, [2**0.5, 3**0.5])


def test_a_part_that_never_changes_is_named_and_divides_nothing_by_zero():
    sampled, logged = np.array([[0.0, 7.0], [1.0, 7.0]]), np.array([[2.0, 7.0]])
    with pytest.warns(UserWarning, match="reward 'b' is the same for every response: .*its weight is 0"):
        mean, seen, std = stage.part_scale(["a", "b"], sampled, logged, np.zeros(2), "sft")
    assert mean.tolist() == [0.5, 7.0] and seen[1] == 0 and std[1] == 1


def test_what_is_written_is_what_the_composite_reward_reads(tmp_path):
    parts = {"garm": Part(0.7, -0.25, 1.5), "ood": Part(0.3, 0.1, 2.0, {"threshold": 1.5})}
    file = tmp_path / "fusion" / "weights.json"
    stage.write(str(file), Weights(parts, "group", 0.6), "equal", {"n_impressions": 10})
    assert read_weights(file) == Weights(parts, "group", 0.6)
    assert json.loads(file.read_text())["n_impressions"] == 10
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("fusion", ["logistic_regression", "pareto"])
def test_a_log_whose_impressions_are_all_clicked_gives_every_part_its_share(tmp_path, monkeypatch, fusion):
    monkeypatch.setattr(stage, "reference_log_ppl", lambda reference, c, r, temperature: [float(len(t)) for t in r])
    monkeypatch.setattr(stage, "reference_tokens", lambda reference, c, r, temperature: [[(t, 1.0)] for t in r])
    asked = [[{"role": "user", "content": f"How do I bake bread number {n}?"}] for n in range(6)]
    texts = ["How long must it rise?", "Which flour is best?", "Can I freeze it?"]
    impressions = [
        {"impression_id": f"i{n}", "timestamp": "2025-03-01T12:00:00Z", "conversation": one, "suggestions": texts}
        for n, one in enumerate(asked)
    ]
    write_json_lines(tmp_path / "log.jsonl", [row | {"clicks": [1, 1, 1]} for row in impressions])
    said = ["1. How long?\n2. Why?\n3. Where?", "1. How long must the bread rise?\n2. Why?\n3. Why?", "no"]
    responses = [
        {"conversation": c, "response": r, "finish_reason": "stop", "log_ppl": 1.0} for c in asked for r in said
    ]
    write_json_lines(tmp_path / "responses.jsonl", responses)
    parser = argparse.ArgumentParser()
    stage.add_arguments(parser)
    files = [
        "--impressions",
        tmp_path / "log.jsonl",
        "--responses",
        tmp_path / "responses.jsonl",
        "--reference",
        "none",
    ]
    flags = ["--reward", "rules,diversity", "--fusion", fusion, "--out", tmp_path / "weights.json"]
    with pytest.warns(
        UserWarning, match=r"log.jsonl has a click, so nothing tells the weights: all parts get the same"
    ):
        stage.run(parser.parse_args(list(map(str, files + flags))))
    assert sum(part.weight for part in read_weights(tmp_path / "weights.json").parts.values()) == pytest.approx(1)


def test_a_front_is_drawn_beside_the_weights_and_the_table_says_what_resists_which_hack(tmp_path, capsys):
    fusion = ParetoFusion(n_trials=20)
    parts = {name: Part(weight) for name, weight in zip("ab", fusion(hackable()), strict=True)}
    stage.write(str(tmp_path / "weights.json"), Weights(parts), "pareto", fusion.report)
    assert "first stage" in (tmp_path / "front.svg").read_text()
    stage.show(parts, fusion.report)
    share = fusion.report["resistance"]["chosen"]["one"]
    assert re.search(rf"to one .* {share:.3f} ", capsys.readouterr().out)
    # a gate stops the other hack
    assert fusion.report["chosen"]["objectives"]["resistance"] == pytest.approx((share + 1) / 2)
