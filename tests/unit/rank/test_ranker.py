"""The ranker: what it learns, what it cannot know, and that it is the same after a disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from visits import INTENTS, visits, wanted_intents

from openrlhf_qs.rank.encoder import Encoder
from openrlhf_qs.rank.fit import TEMPERATURE, Loss, Rows, train_ranker, with_queries
from openrlhf_qs.rank.impressions import Intents
from openrlhf_qs.rank.ranker import Ranker, Scores, numbered, queries_of


@pytest.fixture(scope="module")
def log():
    return visits(5000)


@pytest.fixture(scope="module")
def ranker(log):
    return train_ranker(log, INTENTS, max_epochs=40)


def first(scores: np.ndarray, log) -> float:
    return float((scores.argmax(1) == wanted_intents(log)).mean())


def test_two_towers_learn_what_two_features_mean_together(ranker):
    new = visits(400, seed=1)
    assert first(ranker.scores(new.features), new) > 0.9


def test_what_stands_lower_and_is_looked_at_less_is_not_taken_for_worse(ranker):
    new = visits(400, seed=1)
    chance = 1 / (1 + np.exp(-ranker.scores(new.features)))
    # 0.8 of those who look click; over the places only 0.8 * (1 + 0.6 + 0.3) / 3 = 0.51 of those shown it do
    assert abs(chance[np.arange(400), wanted_intents(new)].mean() - 0.8) < 0.12


def test_it_is_saved_and_loaded_and_scores_the_same(ranker, tmp_path):
    new = visits(20, seed=2)
    ranker.save(tmp_path)
    np.testing.assert_array_equal(Ranker.load(tmp_path).scores(new.features), ranker.scores(new.features))


def test_a_folder_without_a_ranker_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a ranker"):
        Ranker.load(tmp_path)


def test_candidates_in_another_order_have_the_same_scores(ranker):
    new, order = visits(20, seed=2), [3, 0, 5, 1, 4, 2]
    turned = Intents(tuple(INTENTS.ids[n] for n in order), tuple(INTENTS.texts[n] for n in order))
    np.testing.assert_allclose(
        ranker.scores(new.features, turned), ranker.scores(new.features)[:, order], rtol=1e-4, atol=1e-5
    )


def test_a_query_looks_itself_up_wherever_its_intent_stands_in_the_knowledge_base(log):
    queries = [[INTENTS.texts[intent]] for intent in wanted_intents(log)]
    ranker = with_queries(train_ranker(log, INTENTS, max_epochs=1), log, queries)
    new, order = visits(20, seed=2), [3, 0, 5, 1, 4, 2]
    asked = [[INTENTS.texts[intent]] for intent in wanted_intents(new)]
    turned = Intents(tuple(INTENTS.ids[n] for n in order), tuple(INTENTS.texts[n] for n in order))
    scores = ranker.scores(new.features, queries=asked)
    np.testing.assert_allclose(ranker.scores(new.features, turned, asked), scores[:, order], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        ranker.third[
            "intent"
        ].bias += 1  # log(1 + 6) log-odds more for what the query names of six, hardly any for the others
    more = (ranker.scores(new.features, queries=asked) - scores) / ranker.scale[0].item()
    assert (more[np.arange(20), wanted_intents(new)] > 1.9).all()
    assert (np.sort(more, axis=1)[:, :-1] < 0.1).all()


def test_an_article_and_an_intent_that_training_did_not_have_find_each_other_by_their_words(ranker):
    new = visits(60, seed=2)
    about_drones = [one | {"article": "drone"} for one in new.features]
    more = Intents((*INTENTS.ids, "new"), (*INTENTS.texts, "How do I return my drone?"))
    of_drone, of_others = ranker.scores(about_drones, more), ranker.scores(new.features, more)
    assert (of_drone[:, -1] > of_others[:, -1] + 1).all()  # log-odds
    np.testing.assert_allclose(
        ranker.scores([*about_drones, *new.features], more),
        np.concatenate([of_drone, of_others]),
        rtol=1e-4,
        atol=1e-4,
    )


def test_an_intent_that_training_never_showed_is_not_disliked_for_it(log):
    # Taken for one that is shown next to never, it would lose in every batch and never win: by then it stood last.
    more = Intents((*INTENTS.ids, "new"), (*INTENTS.texts, "How do I return my drone?"))
    scores = train_ranker(log, more, max_epochs=12).scores(visits(60, seed=2).features, more)
    assert (scores[:, 6] > scores[:, :6].min(1)).mean() > 0.8


def test_queries_that_say_nothing_of_the_visit_do_not_make_the_order_worse(ranker, log):
    some, rng = log[np.arange(3000)], np.random.default_rng(0)
    drawn = lambda n: [[INTENTS.texts[intent]] for intent in rng.integers(6, size=n)]  # noqa: E731
    asked, new = with_queries(ranker, some, drawn(3000)), visits(200, seed=2)
    assert first(asked.scores(new.features, queries=drawn(200)), new) > first(ranker.scores(new.features), new) - 0.02


def test_a_word_that_is_hidden_takes_its_pairs_along_and_leaves_the_rest_as_it_was():
    encoder, text = Encoder("words"), "How do I return my kettle?"
    hidden, starts = encoder.with_a_word_hidden([text, "Why?"])
    assert starts.tolist() == [0, 6, 7]
    (whole,), left = encoder([text]), hidden[np.arange(7)]
    lost = (left != whole) & (whole != 0)
    assert (left[5] != 0).sum() + 2 == (whole != 0).sum()  # without "kettle" and "my kettle"
    assert lost[:6].sum(1).tolist() == [2, 3, 0, 3, 3, 2]  # "I" is too short to be a word
    assert not left[6].any()


def test_two_towers_do_not_read_the_words_of_a_value_that_training_did_not_have(log):
    towers = train_ranker(log, INTENTS, words=False, max_epochs=1)
    about = [{"article": article, "seller": "near", "paid": "card"} for article in ("drone", "boat")]
    np.testing.assert_array_equal(*towers.scores(about))
    read = train_ranker(log, INTENTS, max_epochs=1).scores(about, Intents(("a", "b"), ("My drone?", "My boat?")))
    assert read[0, 0] - read[1, 0] > 0.1 and read[1, 1] - read[0, 1] > 0.1


def test_several_queries_count_by_how_often_each_was_written_and_not_by_their_order(log):
    queries = [[INTENTS.texts[intent]] * 3 + [INTENTS.texts[0]] for intent in wanted_intents(log)]
    ranker = with_queries(train_ranker(log, INTENTS, max_epochs=1), log, queries)
    one, other = INTENTS.texts[1], INTENTS.texts[5]
    asked = [[one, one, other], [other, one, one], [one, other, other], []]
    scores = ranker.scores([visits(1, seed=2).features[0]] * 4, queries=asked)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    assert scores[0, 1] > scores[2, 1] and scores[0, 5] < scores[2, 5]
    assert not np.allclose(scores[3], scores[0], atol=0.1)


def test_the_same_texts_in_a_batch_share_one_vector():
    distinct, numbers = numbered([["a", "b", "a"], [], ["b"]])
    assert distinct == ["", "a", "b"] and numbers.tolist() == [[1, 2, 1], [0, 0, 0], [2, 0, 0]]
    vectors, share = queries_of(numbers, Encoder("words").kept(distinct))
    assert vectors.shape == (3, Encoder("words").dim)
    np.testing.assert_allclose(share.numpy(), [[0, 2 / 3, 1 / 3], [0, 0, 0], [0, 0, 1]], rtol=1e-6)


def test_an_intent_with_a_new_text_counts_as_new_and_one_left_out_changes_no_other(ranker):
    new = visits(20, seed=2)
    changed = Intents(INTENTS.ids[:5], ("How do I polish my kettle?", *INTENTS.texts[1:5]))
    assert ranker.intent_ids(changed).tolist() == [0, 2, 3, 4, 5]
    scores = ranker.scores(new.features, changed)
    np.testing.assert_allclose(scores[:, 1:], ranker.scores(new.features)[:, 1:5], rtol=1e-4, atol=1e-5)
    assert np.isfinite(scores).all()


def test_a_query_that_says_what_is_wanted_is_used_and_one_may_be_missing(log):
    # The query is all that tells a kettle from a lamp: of the features only the user's number of visits is there.
    queries = [[INTENTS.texts[intent]] for intent in wanted_intents(log)]
    bare = [{"visits": one["visits"]} for one in log.features]
    knows_little = type(log)(bare, log.shown, log.clicks, log.users, log.times, log.examination)
    base = train_ranker(knows_little, INTENTS, max_epochs=3)
    ranker = with_queries(base, knows_little, queries)
    new = visits(300, seed=3)
    bare = [{"visits": one["visits"]} for one in new.features]
    with_query = first(ranker.scores(bare, queries=[[INTENTS.texts[n]] for n in wanted_intents(new)]), new)
    assert with_query > 0.9
    assert first(ranker.scores(bare), new) < 0.35
    np.testing.assert_array_equal(ranker.scores(bare), base.scores(bare))
    for no_query in ([], ["?"]):
        np.testing.assert_allclose(ranker.scores(bare, queries=[no_query] * 300), base.scores(bare), atol=1e-5)
    with pytest.raises(ValueError, match="no query for any of 5000 impressions"):
        with_queries(base, knows_little, [[]] * 5000)


def test_the_loss_of_one_row_is_that_of_the_formula():
    scores = Scores(torch.tensor([[0.0, 1.0, -1.0]]), TEMPERATURE * torch.tensor([[2.0, 0.0, 1.0]]))
    rows = Rows(None, torch.tensor([[1, 0, -1]]), torch.tensor([[0, 1, 0]]), None)
    loss = Loss(torch.tensor([1.0, 0.5, 0.25]), torch.zeros(3), listwise=1.0, over_all=1.0, info_nce=1.0)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    clicked = -np.log(1 - sigmoid(1)) - np.log(0.5 * sigmoid(0))  # the top passed over, the second looked at by half
    among_shown = -2 * np.log(1 / (1 + np.exp(1)))  # a click at the second place counts as two
    among_all = -2 * np.log(1 / (1 + np.exp(1) + np.exp(-1)))
    by_the_query_alone = -2 * np.log(np.exp(2) / (np.exp(2) + 1 + np.exp(1)))
    total = clicked + among_shown + among_all + by_the_query_alone
    assert loss(scores, rows).item() == pytest.approx(total, rel=1e-5)
    assert loss(scores, rows, in_training=False).item() == pytest.approx(clicked + among_all, rel=1e-5)


def test_a_log_without_a_click_is_refused():
    log = visits(50)
    log.clicks[:] = 0
    with pytest.raises(ValueError, match="no click in 50 impressions"):
        train_ranker(log, INTENTS)
