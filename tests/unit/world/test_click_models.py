import json
import math
import random

import numpy as np
import pytest

from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.world.ceiling import best_suggestions, ceiling, fixed_suggestions
from openrlhf_qs.world.click_log import TOPICS, cold_start_suggestions, contexts, truth_path, write_click_log
from openrlhf_qs.world.click_models import CLICK_MODELS, chance_of_a_click, click_chances, draw_clicks, truth
from openrlhf_qs.world.expected_clicks import expected_clicks, of_meanings
from openrlhf_qs.world.language import INTENTS, UNSEEN_TOPICS
from openrlhf_qs.world.users import attraction, draw_users, meanings, read_scene

ATTRACTION = np.array([0.5, 0.2, 0.4])


def cold_start(conversations, seed=0):
    rng = random.Random(seed)
    return [cold_start_suggestions(conversation, rng) for conversation in conversations]


# click models


def test_click_chances_of_each_model():
    # pbm: examination 1, .75, .55 times the attraction
    assert click_chances("pbm", ATTRACTION) == pytest.approx([0.5, 0.15, 0.22])
    # cascade: place 2 is reached with .5 * .75, place 3 with that times .8 * .75
    assert click_chances("cascade", ATTRACTION) == pytest.approx([0.5, 0.375 * 0.2, 0.225 * 0.4])
    # trust: .10 + .88 * .5; .75 * (.04 + .91 * .2); .55 * (.01 + .89 * .4)
    assert click_chances("trust", ATTRACTION) == pytest.approx([0.54, 0.75 * 0.222, 0.55 * 0.366])
    assert chance_of_a_click("pbm", ATTRACTION) == pytest.approx(1 - 0.5 * 0.85 * 0.78)
    assert chance_of_a_click("cascade", ATTRACTION) == pytest.approx(0.5 + 0.075 + 0.09)
    with pytest.raises(ValueError, match="unknown click model 'dbn'; known: pbm, cascade, trust"):
        click_chances("dbn", ATTRACTION)


@pytest.mark.parametrize("model", CLICK_MODELS)
def test_drawn_clicks_have_their_chances(model):
    rng, n = np.random.default_rng(0), 20_000
    drawn = np.array([draw_clicks(model, ATTRACTION, rng) for _ in range(n)])
    assert drawn.mean(0) == pytest.approx(click_chances(model, ATTRACTION), abs=4 * 0.5 / math.sqrt(n))
    assert drawn.any(1).mean() == pytest.approx(
        float(chance_of_a_click(model, ATTRACTION)), abs=4 * 0.5 / math.sqrt(n)
    )
    if model == "cascade":
        assert drawn.sum(1).max() == 1


@pytest.mark.parametrize("model", CLICK_MODELS)
def test_what_is_below_the_eighth_place_is_not_clicked(model):
    assert click_chances(model, [0.5] * 10)[8:].tolist() == [0, 0]
    assert click_chances(model, []).shape == (0,) and chance_of_a_click(model, []) == 0


def test_a_cascade_looks_at_what_was_reached():
    # the second place is reached by those who did not click, .5, and look on, .75; the third by .8 * .75 of them
    assert truth("cascade", ATTRACTION[None])["examination"] == pytest.approx([1, 0.375, 0.225])


@pytest.mark.parametrize("model", CLICK_MODELS)
def test_the_truth_about_a_log_stands_beside_it_and_its_clicks_follow(tmp_path, model):
    path = tmp_path / "clicks.jsonl"
    clicks = write_click_log(path, n_impressions=4000, n_contexts=500, seed=1, clicks=model)
    known = json.loads(truth_path(path).read_text())
    assert known["clicks"] == model and known["ranker_noise"] is None and known["seed"] == 1
    # the order is random, so what differs between places is the click model
    by_place = clicks.mean(0) / clicks.mean(0)[0]
    if model == "pbm":
        assert by_place == pytest.approx(known["examination"], abs=0.12)
    elif model == "trust":  # the ratio of clicks is below the examination of .75 and .55
        assert by_place[1] < 0.68 and by_place[2] < 0.45
        assert known["trust_other"] == [0.10, 0.04, 0.01]
    else:
        assert clicks.sum(1).max() == 1 and known["examination"][0] == 1 and known["looks_on"] == 0.75


# averages over users


@pytest.mark.parametrize("model", CLICK_MODELS)
def test_expected_clicks_are_the_average_over_drawn_users(model):
    conversations = contexts(6, seed=0)
    shown = cold_start(conversations)
    scene = read_scene(conversations[0])
    same = sorted(scene.next)[0]  # two that share an intent, whose tastes go together
    shown[0] = [
        INTENTS[same].questions[0].format(it=scene.topic),
        INTENTS[same].questions[1].format(it=f"{scene.topic} grammar"),
        "Which myths about it are false?",
    ]
    users = draw_users(np.random.default_rng(0), 20_000)
    chances, any_click = expected_clicks(conversations, shown, model)
    for row, conversation in enumerate(conversations[:3]):
        drawn = np.array([attraction(conversation, shown[row], user) for user in users])
        assert chances[row] == pytest.approx(click_chances(model, drawn).mean(0), abs=0.01)
        assert any_click[row] == pytest.approx(float(chance_of_a_click(model, drawn).mean()), abs=0.01)


def test_expected_clicks_do_not_depend_on_the_number_of_nodes(monkeypatch):
    conversations = contexts(30, seed=4)
    meant = [tuple(meanings(c, three)) for c, three in zip(conversations, cold_start(conversations), strict=True)]
    few = [of_meanings.__wrapped__(row)[1] for row in meant]
    monkeypatch.setattr("openrlhf_qs.world.expected_clicks.N_NODES", 48)
    assert few == pytest.approx([of_meanings.__wrapped__(row)[1] for row in meant], abs=1e-5)


def test_nothing_that_attracts_is_never_clicked():
    assert of_meanings((None, None, None))[1] == 0 and of_meanings(())[1] == 0
    assert of_meanings((None,), "trust")[1] == pytest.approx(0.10)  # trust clicks what it has not read


# bounds


def test_the_best_suggestions_beat_whatever_else_is_suggested_and_a_fixed_choice_does_not():
    conversations = contexts(200, seed=8)
    best = ceiling(conversations)
    others = {"cold start": cold_start(conversations), "fixed": fixed_suggestions(conversations)}
    for suggestions in others.values():
        assert (expected_clicks(conversations, suggestions)[1] <= best + 1e-9).all()
    # no other three next steps do better, in whatever order
    for conversation, chance in zip(conversations[:20], best, strict=False):
        three = best_suggestions(conversation)
        assert expected_clicks([conversation], [three[::-1]])[1][0] <= chance + 1e-9
    cold, fixed = (expected_clicks(conversations, three)[1].mean() for three in others.values())
    # what to suggest hangs on what was asked: one choice for all is hardly better than the cold start
    assert cold < fixed < cold + 0.08
    assert 0.6 < best.mean() < 0.7


def test_the_bounds_want_a_conversation_of_this_world():
    with pytest.raises(ValueError, match="topic None is not from the built-in world"):
        best_suggestions([{"role": "user", "content": "Hello"}])


# topics that no log names


def test_unseen_topics_stand_in_no_log_of_seen_ones_and_the_other_way_round(tmp_path):
    for name in TOPICS:
        write_click_log(tmp_path / name, 600, 300, seed=0, topics=TOPICS[name])
    seen, unseen = (read_json_lines(tmp_path / name) for name in TOPICS)
    assert len(UNSEEN_TOPICS) == 20 and {row["meta"]["topic"] for row in unseen} == UNSEEN_TOPICS
    text = json.dumps(seen).lower()
    assert not [topic for topic in UNSEEN_TOPICS if f" {topic.lower()} " in text]
