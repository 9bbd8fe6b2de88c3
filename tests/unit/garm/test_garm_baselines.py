"""The baselines of a reward model: linear models on the same pairs, the Bayes rule, and who loses to whom."""

from __future__ import annotations

import numpy as np
import pytest

from openrlhf_qs.clicks.preferences import all_pairs
from openrlhf_qs.garm.baselines import OVERLAP, _overlap, bayes_rule, bradley_terry, compare, fitted, linear
from openrlhf_qs.statistics.clusters import Clusters


def row(n, chosen, rejected, question="How do I bake rye bread?", answer="Let the dough rest."):
    """One impression whose second suggestion was clicked."""
    conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    pairs = [[1, 0, 1.0, 1.0]]
    return {"impression_id": f"i{n}", "conversation": conversation, "suggestions": [rejected, chosen], "pairs": pairs}


TOPICS = ("rye", "wheat", "oat", "barley", "corn", "rice")


def on_topic(n, topic, other):
    """Whoever asks about a topic clicks what names it."""
    return row(n, f"Where does {topic} grow?", f"Where does {other} grow?", f"Tell me about {topic}", "It is a grain.")


def test_the_linear_model_learns_that_what_overlaps_with_the_question_is_clicked():
    train = [on_topic(n, TOPICS[n % 5], TOPICS[(n + 1 + n % 3) % 5]) for n in range(120)]
    test = [on_topic(n, "rice", "wheat") for n in range(3)]  # no training question names rice
    probability = linear(train, all_pairs(train), test, all_pairs(test))
    assert (probability > 0.8).all()


def test_in_a_script_without_blanks_it_knows_words_too():
    words = ("黑麦", "小麦", "燕麦", "大麦", "玉米")
    train = [
        row(
            n,
            f"{words[n % 5]}怎么种植？",
            f"{words[(n + 1 + n % 3) % 5]}怎么种植？",
            f"请介绍{words[n % 5]}。",
            "它是谷物。",
        )
        for n in range(120)
    ]
    probability = linear(train, all_pairs(train), train[:5], all_pairs(train[:5]))
    assert (probability > 0.8).all()


def test_the_strength_of_a_text_is_what_bradley_terry_knows_and_a_new_text_has_none():
    train = [row(n, "Popular?", "Dull?") for n in range(40)]
    test = [row(0, "popular", "Dull?"), row(1, "New?", "Another?"), row(2, "Dull?", "Popular?")]
    popular, new, dull = bradley_terry(train, all_pairs(train), test, all_pairs(test))
    assert popular > 0.9 and new == 0.5 and dull == pytest.approx(1 - popular)


def test_headlines_which_have_no_conversation_are_each_of_their_own_when_the_penalty_is_chosen():
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(60)]
    rows = [row(n, *(" ".join(rng.choice(words, 6)) for _ in range(2))) | {"conversation": []} for n in range(90)]
    learnt, test = rows[:60], rows[60:]  # noise: nothing is to be known
    probability = linear(learnt, all_pairs(learnt), test, all_pairs(test))
    assert np.abs(probability - 0.5).mean() < 0.1


def test_a_pair_with_a_soft_label_pulls_both_ways():
    train = [row(n, "A?", "B?") for n in range(40)]
    for one in train:
        one["pairs"] = [[1, 0, 1.0, 0.7]]
    [probability] = bradley_terry(train, all_pairs(train), train[:1], all_pairs(train[:1]))
    # the ridge holds it a little below
    assert 0.6 < probability < 0.7


def test_the_bayes_rule_is_who_is_clicked_alone():
    chances = {"A?": 0.6, "B?": 0.2, "nobody": 0.0}
    test = [row(0, "A?", "B?"), row(1, "nobody", "nobody"), row(2, "nobody", "B?")]
    found = bayes_rule(lambda conversations, shown: [chances[text] for [text] in shown], test, all_pairs(test))
    # .6 * .8 = .48 against .2 * .4 = .08; nobody clicks either; a click on nobody is impossible
    assert found == pytest.approx([0.48 / 0.56, 0.5, 0.0])


def test_the_overlap_of_a_suggestion_by_hand():
    conversation = [
        {"role": "user", "content": "earlier words"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "bake rye bread"},
        {"role": "assistant", "content": "rest the dough"},
    ]
    rarity = {"rye": 2.0, "dough": 1.0, "earlier": 3.0}
    found = dict(zip(OVERLAP, _overlap(conversation, "rye dough earlier new?", rarity, 5.0), strict=True))
    assert found["words in the question"] == found["words in the answer"] == found["words in earlier turns"] == 0.25
    assert found["rare words in the question"] == 0.5 and found["rare words in the answer alone"] == 0.25
    assert found["rare words nowhere in the conversation"] == 5 / 4
    assert found["question's words in it"] == pytest.approx(1 / 3) and found["rarest word in the question"] == 2.0
    assert (found["words"], found["words above eight"], found["repeated words"]) == (4, 0, 0)
    assert found["ends in a question mark"] == 1.0
    assert len(_overlap([], "", {}, 1.0)) == len(OVERLAP)


def test_a_reward_model_that_is_surely_worse_in_one_figure_loses():
    n = 400
    right = np.where(np.arange(n) % 4 > 0, 0.8, 0.2)  # right in 3 of 4
    coin, better = np.full(n, 0.5), np.where(np.arange(n) % 8 > 0, 0.9, 0.1)  # right in 7 of 8
    found = compare(right, np.ones(n), Clusters.of(range(n)), {"coin": coin, "better": better})
    assert not found["coin"]["loses"] and found["coin"]["accuracy_gain"] == pytest.approx(0.25)
    assert found["better"]["loses"] and found["better"]["accuracy_gain"] == pytest.approx(-0.125)
    # -.75 log .8 - .25 log .2 = .5697; log 2 - .5697 = .1234
    assert found["coin"]["nll_gain"] == pytest.approx(0.1234, abs=1e-4)
    assert found["coin"]["sentence"].startswith("accuracy 25.0 points higher (")
    assert ", NLL 0.123 lower (" in found["coin"]["sentence"]
    assert found["better"]["sentence"].startswith("accuracy 12.5 points lower (")
    assert ", NLL 0.1" in found["better"]["sentence"] and " higher (" in found["better"]["sentence"]


def test_without_training_pairs_the_coin_is_the_only_baseline():
    test = [row(0, "A?", "B?")]
    assert list(fitted([], test, all_pairs(test))) == ["coin"]
    assert list(fitted(test, test, all_pairs(test), lambda c, s: [0.5] * len(s))) == [
        *("coin", "bradley_terry", "linear", "bayes_rule")
    ]
