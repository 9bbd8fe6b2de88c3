import argparse
import math
import random
import re
from collections import Counter
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.plugins.judges.built_in_world import BuiltInWorld
from openrlhf_qs.registry import JUDGES
from openrlhf_qs.world import click_log as world
from openrlhf_qs.world.click_log import (
    COLD_START,
    SEEN_TOPICS,
    TOPICS,
    cold_start_suggestions,
    contexts,
    n_contexts_of,
    suggestion_of_kind,
    write_click_log,
)
from openrlhf_qs.world.click_models import EXAMINATION
from openrlhf_qs.world.language import (
    DOMAIN_OF_TOPIC,
    DOMAINS,
    INTENTS,
    OPENERS,
    TAILS,
    VAGUE_QUESTIONS,
    facet,
)
from openrlhf_qs.world.reading import read
from openrlhf_qs.world.users import INTENT_TASTES, WORTHLESS, gold_utility, mean_utility, read_scene

# Topic sourdough; the user asked how to begin with mixing, the assistant added oven heat.
# Natural next steps after "begin": steps, tools, mistakes, time.
SOURDOUGH = [
    {"role": "user", "content": "I have a question about sourdough. How do I begin with mixing?"},
    {"role": "assistant", "content": "Start small. Also keep oven heat in mind."},
]
GOOD = "What are the steps of sourdough resting?"


def utility(suggestion):
    return gold_utility([SOURDOUGH], [suggestion])[0][0]


def clicked(*suggestions):
    return BuiltInWorld()([SOURDOUGH], [suggestions])[0]


def share_with_a_click(conversations, suggestions):
    return np.mean([1 - math.prod(1 - p for p in row) for row in BuiltInWorld()(conversations, suggestions)])


def three_next_steps(conversation, rng):
    scene = read_scene(conversation)
    fresh = [aspect for aspect in DOMAINS[scene.domain].aspects if aspect not in scene.aspects]
    chosen = zip(rng.sample(sorted(scene.next), 3), rng.sample(fresh, 3), strict=True)
    return [rng.choice(INTENTS[i].questions).format(it=facet(scene.topic, aspect)) for i, aspect in chosen]


# the language


def test_the_language_is_wide_in_topics_and_small_in_words():
    templates = [*VAGUE_QUESTIONS, *OPENERS, *TAILS]
    templates += [text for intent in INTENTS.values() for text in (*intent.questions, *intent.answers)]
    phrases = [phrase for domain in DOMAINS.values() for phrase in (*domain.topics, *domain.aspects)]
    of_templates = {word for text in templates for word in re.findall(r"[\w']+", re.sub(r"{\w+}", "", text).lower())}
    of_phrases = {word for phrase in phrases for word in phrase.lower().split()}

    assert len(DOMAIN_OF_TOPIC) >= 200 and len(INTENTS) == 20
    assert n_contexts_of(SEEN_TOPICS) >= 20_000
    assert len(of_templates | of_phrases) <= 1500
    assert len(phrases) == len(set(phrases))  # no phrase stands for two things
    assert not of_templates & {phrase.lower() for phrase in phrases}  # a template names nothing by chance


def test_each_next_step_exists_and_none_is_the_next_step_of_more_than_four():
    followed = Counter(following for intent in INTENTS.values() for following in intent.next)
    assert followed == dict.fromkeys(INTENTS, 4)  # so that no fixed choice of intents is next more often than another
    for name, intent in INTENTS.items():
        assert name not in intent.next
    assert set(INTENT_TASTES) == set(INTENTS)


def test_contexts_are_all_different_short_and_name_their_topic():
    drawn = contexts(20_000, seed=3)
    assert len({conversation[0]["content"] for conversation in drawn}) == 20_000
    for conversation in drawn[:1000]:
        assert [message["role"] for message in conversation] == ["user", "assistant"]
        assert 20 <= sum(len(message["content"].split()) for message in conversation) <= 45
        scene = read_scene(conversation)
        assert scene.topic and len(scene.aspects) == 2 and len(scene.asked_aspects) == len(scene.asked_intents) == 1


def test_contexts_follow_the_seed():
    assert contexts(50, seed=1) == contexts(50, seed=1) != contexts(50, seed=2)
    assert contexts(50, seed=1) != contexts(50, seed=1, topics=TOPICS["unseen"])
    with pytest.raises(ValueError, match="n_contexts must be from 1"):
        contexts(0, seed=1)


# what users think


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "???",
        "1.",
        "😀",
        "how begin the with sourdough do",  # salad
        "asdf qwer",
        "كيف أبدأ بالعجين؟",
        " ".join(["What are the steps of sourdough resting"] * 5),  # 35 words
    ],
)
def test_malformed_text_is_never_clicked(text):
    assert clicked(text, GOOD, text)[::2] == [0.0, 0.0]
    mean, std = gold_utility([SOURDOUGH], [text])
    assert (mean[0], std[0]) == (WORTHLESS, 0)


def test_the_mean_utility_is_the_sum_of_what_the_text_says():
    # base -3.0; next step 1.3; fresh aspect 1.1; users like steps by 0.2
    assert utility(GOOD) == pytest.approx(-3.0 + 1.3 + 1.1 + 0.2)
    # no aspect
    assert utility("What are the steps of sourdough?") == pytest.approx(-3.0 + 1.3 + 0.2)
    # an aspect that the assistant has named already
    assert utility("What are the steps of sourdough oven heat?") == pytest.approx(-3.0 + 1.3 + 0.2 + 0.2)
    # an aspect of another domain
    assert utility("What are the steps of sourdough grammar?") == pytest.approx(-3.0 + 1.3 - 1.5 + 0.2)
    # a neighbour, and another domain: its aspect is foreign too
    assert utility("What are the steps of brioche resting?") == pytest.approx(-3.0 + 1.3 + 1.1 + 0.2 - 2.3)
    assert utility("What are the steps of chess scoring?") == pytest.approx(-3.0 + 1.3 - 1.5 + 0.2 - 3.0)
    # the topic is not named
    assert utility("What are the steps of resting?") == pytest.approx(-3.0 + 1.3 + 1.1 + 0.2 - 0.7)
    # no next step (fix, liked by 0.1), no intent at all, the question that was asked (begin, 0.1)
    assert utility("What if sourdough resting goes wrong?") == pytest.approx(-3.0 - 1.2 + 1.1 + 0.1)
    assert utility("Do you have any advice about sourdough?") == pytest.approx(-3.0 - 0.3)
    assert utility("How do I begin with sourdough mixing?") == pytest.approx(-3.0 + 0.2 + 0.1 - 2.0)


@pytest.mark.parametrize(
    "text",
    [
        "What are the steps of sourdough resting and shaping?",
        "What are the steps of sourdough resting, shaping, browning and moisture?",
        "What are the steps of sourdough resting and which tools help with sourdough shaping?",
        "What are the steps steps of sourdough resting?",
        "What are the steps of sourdough sourdough resting?",
        "What are the steps of sourdough resting xqzt?",
        "What are the steps of sourdough resting and the",
    ],
)
def test_a_text_that_crams_repeats_or_stumbles_earns_less_than_the_plain_one(text):
    assert utility(text) <= utility(GOOD) - 1.5


def test_words_above_fourteen_cost():
    scene, plain = read_scene(SOURDOUGH), read(GOOD)
    for n_words, cost in [(7, 0.0), (14, 0.0), (15, 0.4), (17, 1.2)]:  # 0.4 a word
        long = replace(plain, words=("word",) * n_words)
        assert mean_utility(scene, long) == pytest.approx(mean_utility(scene, plain) - cost)


def test_a_second_suggestion_that_says_the_same_is_never_clicked():
    same = [GOOD, "Can you list the steps of sourdough resting?", "what are the steps of resting"]
    first, *others = clicked(*same)
    assert first > 0 and others == [0, 0]
    # another aspect, or another intent, is something else
    different = [GOOD, "What are the steps of sourdough shaping?", "How much does sourdough resting cost?"]
    assert all(p > 0 for p in clicked(*different))


def test_a_duplicate_of_a_malformed_suggestion_is_as_dead_and_kills_nothing():
    assert clicked("???", "???", GOOD)[:2] == [0, 0]
    assert clicked("???", "???", GOOD)[2] > 0


def test_examination_falls_with_position_and_nothing_is_seen_below_the_eighth():
    # the same user, the same suggestion, behind worthless ones
    alone = clicked(GOOD)[0]
    shown = [clicked(*["?"] * position, GOOD)[position] for position in range(9)]
    assert shown == pytest.approx([chance * alone for chance in (*EXAMINATION, 0.0)])
    assert EXAMINATION[:3] == (1.0, 0.75, 0.55) and list(EXAMINATION) == sorted(EXAMINATION, reverse=True)


def test_quality_orders_the_kinds_of_the_cold_start_policy():
    rng, conversations = random.Random(0), contexts(400, seed=5)
    kinds = [kind for kind in COLD_START if kind != "duplicate"]
    click = {
        kind: np.mean(
            [BuiltInWorld()([c], [[suggestion_of_kind(kind, read_scene(c), rng)]])[0] for c in conversations]
        )
        for kind in kinds
    }
    assert click["next_step"] > 2 * click["bland"] > 2 * click["other_step"] > 2 * click["repetition"]
    assert click["next_step"] > 2 * click["crammed"] and click["next_step"] > 3 * click["neighbour"]
    assert click["malformed"] < 0.03 and click["off_topic"] < 0.02
    assert sum(COLD_START.values()) == pytest.approx(1.0)


# tastes


@pytest.mark.parametrize(
    "text, std",
    [
        (GOOD, math.hypot(0.2, 0.5)),  # steps 0.2, specific 0.5
        ("Which myths about sourdough resting are false?", math.hypot(1.5, 0.5)),
        ("What is the biggest myth about sourdough?", 1.5),
        ("Do you have any advice about sourdough?", 0.0),
    ],
)
def test_the_gold_spread_is_the_spread_of_simulated_users(text, std):
    n = 4000
    probabilities = np.array(BuiltInWorld(seed=1)([SOURDOUGH] * n, [[text]] * n))[:, 0]
    log_odds = np.log(probabilities / (1 - probabilities))
    mean, gold_std = gold_utility([SOURDOUGH], [text])
    assert gold_std[0] == pytest.approx(std)
    assert log_odds.mean() == pytest.approx(mean[0], abs=4 * std / math.sqrt(n) + 1e-9)  # four standard errors
    assert log_odds.std() == pytest.approx(std, rel=0.05, abs=1e-9)


def test_a_user_depends_on_seed_and_conversation_and_not_on_the_order_of_rows():
    conversations = contexts(5, seed=0)
    shown = [["Which myths about it are false?", GOOD, "Can you explain it simply?"]] * 5
    there = BuiltInWorld(seed=3)(conversations, shown)
    assert there == BuiltInWorld(seed=3)(conversations[::-1], shown)[::-1]
    assert there != BuiltInWorld(seed=4)(conversations, shown)
    twice = BuiltInWorld()([SOURDOUGH, SOURDOUGH], [[GOOD], [GOOD]])
    assert twice[0] != twice[1]  # another user, the same conversation


def test_the_judge_is_registered_and_names_what_does_not_fit():
    assert isinstance(JUDGES.create("built_in_world", seed="7"), BuiltInWorld)
    with pytest.raises(ValueError, match="2 conversations but suggestions for 1"):
        BuiltInWorld()([SOURDOUGH, SOURDOUGH], [[GOOD]])
    with pytest.raises(ValueError, match="built_in_world.seed must be >= 0"):
        BuiltInWorld(seed=-1)


@settings(max_examples=150, deadline=None)
@given(question=st.text(), suggestions=st.lists(st.text(), max_size=5))
def test_any_text_has_a_probability(question, suggestions):
    conversation = [{"role": "user", "content": question}]
    for row in BuiltInWorld()([conversation, SOURDOUGH, []], [suggestions] * 3):
        assert len(row) == len(suggestions) and all(0 <= p <= 1 for p in row)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(sorted({*GOOD.split(), "tools", "in", "risk", "oven", "heat", "Japan"})), max_size=30))
def test_no_shuffling_of_known_words_beats_the_best_question(words):
    # the best of all: a next step that users like (0.2, as mistakes) with a fresh aspect
    assert utility(" ".join(words)) <= utility(GOOD) + 1e-9


@pytest.mark.parametrize("text", ["a" * 10_000, "steps " * 10_000, "😀" * 10_000, "\u202eabc", "\ud800", "\x00"])
def test_strange_text_is_worth_nothing(text):
    assert clicked(text) == [0.0]


# the log


def test_the_cold_start_policy_is_calibrated():
    rng, conversations = random.Random(0), contexts(3000, seed=2)
    cold = share_with_a_click(conversations, [cold_start_suggestions(c, rng) for c in conversations])
    good = share_with_a_click(conversations, [three_next_steps(c, rng) for c in conversations])
    assert 0.25 <= cold <= 0.30
    assert 0.6 <= good <= 0.67


def test_position_carries_no_quality_in_the_log():
    rng, conversations = random.Random(1), contexts(3000, seed=4)
    probabilities = BuiltInWorld()(conversations, [cold_start_suggestions(c, rng) for c in conversations])
    by_slot = np.mean(probabilities, axis=0) / EXAMINATION[:3]
    # a later duplicate is dead, which takes a little from the lower slots
    assert by_slot == pytest.approx([by_slot.mean()] * 3, rel=0.15)


def test_cold_start_wants_a_conversation_of_this_world():
    with pytest.raises(ValueError, match="not from the built-in world"):
        cold_start_suggestions([{"role": "user", "content": "Hello"}], random.Random(0))
    with pytest.raises(ValueError, match="unknown kind of suggestion 'nice'"):
        suggestion_of_kind("nice", read_scene(SOURDOUGH), random.Random(0))


def test_the_log_has_the_schema_and_shows_each_context_alike(tmp_path):
    path = tmp_path / "new" / "clicks.jsonl"
    clicks = write_click_log(path, n_impressions=600, n_contexts=200, seed=0)
    rows = read_json_lines(path)
    assert len(read_click_log(path)) == 600

    assert clicks.shape == (600, 3) and [row["clicks"] for row in rows] == clicks.tolist()
    assert len({row["impression_id"] for row in rows}) == 600
    assert {row["policy"] for row in rows} == {"cold_start_v1"}
    assert set(Counter(row["conversation"][0]["content"] for row in rows).values()) == {3}
    moments = [datetime.fromisoformat(row["timestamp"]) for row in rows]
    assert moments == sorted(moments) and 28 <= (moments[-1] - moments[0]).days < 30
    for row in rows:
        assert len(row["suggestions"]) == 3 and set(row["clicks"]) <= {0, 1}
        assert all(text.strip() and len(text.splitlines()) == 1 for text in row["suggestions"])
        assert row["meta"]["domain"] == DOMAIN_OF_TOPIC[row["meta"]["topic"]]
        assert isinstance(row["user_id"], str)
    assert sorted(file.name for file in path.parent.iterdir()) == ["clicks.jsonl", "clicks.truth.json"]


def test_the_log_follows_the_seed(tmp_path):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        write_click_log(tmp_path / name, n_impressions=30, n_contexts=10, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_ranker_shows_the_better_ones_first_as_far_as_its_noise_lets_it(tmp_path):
    def share_in_order(ranker_noise):
        write_click_log(tmp_path / "log", n_impressions=300, n_contexts=100, seed=0, ranker_noise=ranker_noise)
        steps = []
        for row in read_json_lines(tmp_path / "log"):
            utility, _ = gold_utility([row["conversation"]] * 3, row["suggestions"])
            steps += [utility[0] >= utility[1], utility[1] >= utility[2]]
        return np.mean(steps)

    assert share_in_order(0.0) == 1
    assert 0.5 < share_in_order(None) < share_in_order(3.0) < 0.95  # two that say the same are in order anyway


def test_more_contexts_than_impressions_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="n_contexts 10 is more than n_impressions 5"):
        write_click_log(tmp_path / "log", n_impressions=5, n_contexts=10, seed=0)


def test_the_subcommand_writes_the_log_and_prints_its_click_rates(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    world.add_arguments(parser)
    path = tmp_path / "clicks.jsonl"
    world.run(parser.parse_args(["--out", str(path), "--n_impressions", "40", "--n_contexts", "20"]))
    printed = capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 40
    assert "impressions with a click" in printed and "clicks in slot 3" in printed
