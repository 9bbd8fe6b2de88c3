"""The zero-query world: a known truth, things that matter together, and intents that come later."""

from __future__ import annotations

import json

import numpy as np
import pytest

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.registry import JUDGES, load_plugins
from openrlhf_qs.world.zero_query import (
    FEATURES,
    NEW_FROM,
    RULES,
    attraction,
    draw_log,
    features_of,
    intents,
    is_new,
    write_zero_query_log,
)

VISITOR = {name: next(iter(values), "studio kettle") for name, values in FEATURES.items()} | {
    "order status": "delivered",
    "days since delivery": "over 30",
    "seller": "overseas",
    "last page": "home",
}


def chance(visitor: dict, key: str) -> float:
    return float(attraction(features_of([visitor]))[0, [one[0] for one in intents()].index(key)])


def test_seller_and_payment_matter_only_together():
    by_card, in_cash = VISITOR | {"payment": "card"}, VISITOR | {"payment": "cash"}
    assert chance(by_card, "return-kettle") > 0.4 > 0.1 > chance(in_cash, "return-kettle")
    assert chance(in_cash, "refund-kettle") > 0.4 > 0.1 > chance(by_card, "refund-kettle")
    assert chance(by_card, "return-lamp") < 0.1


def test_every_rule_speaks_of_features_and_intents_that_are_there():
    actions = {one[2] for one in intents()}
    for action, _, values in RULES:
        assert action in actions
        for name, some in values.items():
            assert set(some) <= FEATURES[name].keys() | {"none"}, (action, name)


def test_noise_decides_nothing():
    for name in ("device", "app version", "weekday", "hour", "language", "age", "region", "notifications"):
        changed = VISITOR | {name: list(FEATURES[name])[-1]}
        np.testing.assert_array_equal(attraction(features_of([changed])), attraction(features_of([VISITOR])))


def test_new_things_are_neither_shown_nor_ordered_before_their_time():
    visitors, shown, _, others = draw_log(6000, 0)
    early = others["moment"] < NEW_FROM
    assert not is_new()[shown[early]].any() and is_new()[shown[~early]].any()
    drones = np.char.endswith(visitors["last order"], "drone")
    assert not drones[early].any() and drones[~early].any()


def test_the_log_is_a_click_log_whose_clicks_are_those_of_the_truth(tmp_path):
    clicks = write_zero_query_log(tmp_path, 8000, 1)
    log = read_click_log(tmp_path / "clicks.jsonl")
    assert log.height == 8000 and log["conversation"].list.len().max() == 0
    chances = attraction(features_of([json.loads(text) for text in log["features"]]))
    number = {text: n for n, (_, text, _, _) in enumerate(intents())}
    shown = np.array([[number[text] for text in row] for row in log["suggestions"]])
    expected = np.take_along_axis(chances, shown, axis=1) * [1.0, 0.75, 0.55]
    assert clicks.mean() == pytest.approx(expected.mean(), abs=4 * np.sqrt(expected.mean() / clicks.size))


def test_the_judge_reads_the_words_of_features_and_knows_no_other_text():
    load_plugins()
    words = "\n".join(f"{name}: {value}" for name, value in VISITOR.items())
    conversation = [{"role": "user", "content": words}]
    texts = [intents()[5][1], intents()[6][1], "What is love?"]
    expected = attraction(features_of([VISITOR]))[0, 5:7] * [1.0, 0.75]
    assert JUDGES.create("zero_query_world")([conversation], [texts])[0] == pytest.approx([*expected, 0.0])


def test_features_of_another_world_are_refused():
    with pytest.raises(ValueError, match="not a visitor of the zero-query world: without"):
        features_of([{"colour": "red"}])
