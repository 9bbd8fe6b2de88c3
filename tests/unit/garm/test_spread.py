import numpy as np
import pytest
from scipy import sparse

from openrlhf_qs.garm.spread import Showings, fit, linear, pairs_of, showings_of, token_variances


def row(user, suggestions, clicks, **values):
    return {"user_id": user, "suggestions": suggestions, "clicks": clicks, "conversation": [], **values}


def test_what_was_expected_is_the_probability_times_the_examination():
    showings = showings_of(
        [row("u", ["a", "b"], [1, 0], examination=[1.0, 0.5])], np.array([0.0, np.log(4.0)]), sparse.eye(2).tocsr()
    )
    # 1 - .5; 0 - .5 * .8
    np.testing.assert_allclose(showings.residual, [0.5, -0.4])
    # .5 * .5; .5 * .8 * .2
    np.testing.assert_allclose(showings.slope, [0.25, 0.08])


def test_pairs_are_of_one_user_in_different_impressions():
    rows = [row("u", ["a", "b"], [1, 0]), row("v", ["c"], [0]), row("u", ["d"], [1])]
    first, second = pairs_of(showings_of(rows, np.zeros(4), sparse.eye(4).tocsr()))
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 3), (1, 3)]


def clicks_of_users(n_users, n_shown, deviations, seed=0):
    """Users who see a suggestion of one random word a time, and the tastes that they have for the words."""
    rng = np.random.default_rng(seed)
    word = rng.integers(len(deviations), size=(n_users, n_shown))
    tastes = rng.standard_normal((n_users, len(deviations))) * deviations
    reward = -1.0 + np.take_along_axis(tastes, word, axis=1)
    clicks = rng.random(word.shape) < 1 / (1 + np.exp(-reward))
    rate = np.array([clicks[word == one].mean() for one in range(len(deviations))])
    p = rate[word].ravel()
    shape = (word.size, len(deviations))
    return Showings(
        user=np.repeat(np.arange(n_users), n_shown),
        impression=np.arange(word.size),
        residual=clicks.ravel() - p,
        slope=p * (1 - p),
        variance=p * (1 - p),
        tokens=sparse.csr_matrix((np.ones(word.size), (np.arange(word.size), word.ravel())), shape=shape),
    )


def test_the_words_that_users_differ_about_are_found_and_those_they_agree_on_are_not():
    deviations = np.array([0.0, 0.5, 1.0, 1.5])
    showings = clicks_of_users(3000, 12, deviations)
    found = token_variances(showings, *pairs_of(showings))
    assert (np.diff(found) > 0).all()
    # to first order only, so large ones come out too small; one of 0 is not below it
    np.testing.assert_allclose(found[:3], deviations[:3] ** 2, atol=0.3)


def test_a_large_vocabulary_takes_no_more_memory_than_what_was_shown_of_it():
    deviations = np.array([0.0, 1.0])
    showings = clicks_of_users(300, 6, deviations)
    shape = (showings.tokens.shape[0], 150_000)  # Qwen3's: its square would be 180 GB
    last = sparse.csr_matrix((showings.tokens.data, showings.tokens.indices + 149_998, showings.tokens.indptr), shape)
    found = token_variances(showings._replace(tokens=last), *pairs_of(showings))
    np.testing.assert_allclose(found[-2:], token_variances(showings, *pairs_of(showings)), atol=1e-6)
    assert not found[:-2].any()


def test_a_user_who_is_shown_more_than_all_others_fills_no_memory():
    rows = [row("bot", ["a"], [1]) for _ in range(30_000)]  # 450 million pairs
    first, second = pairs_of(showings_of(rows, np.zeros(30_000), sparse.eye(30_000).tocsr()))
    assert len(first) == 2000 * 1999 / 2 and min(first.min(), second.min()) == 28_000


def test_clicks_in_other_hands_show_no_deviation():
    showings = clicks_of_users(3000, 12, np.array([1.5, 1.5]))
    shuffled = showings._replace(user=np.random.default_rng(1).permutation(showings.user))
    found = token_variances(shuffled, *pairs_of(shuffled))
    assert (found < 0.1).all()


def test_the_linear_layer_finds_a_linear_target():
    hidden = np.random.default_rng(0).standard_normal((500, 4))
    target = hidden @ np.array([1.0, -2.0, 0.0, 0.5]) + 3
    weight, bias = linear(hidden, target, penalty=1e-9)
    np.testing.assert_allclose(weight, [1.0, -2.0, 0.0, 0.5], atol=1e-6)
    assert bias == pytest.approx(3)


def test_users_who_are_seen_once_are_refused_with_the_way_out():
    rows = [row("u", ["a"], [1]), row("v", ["b"], [0]), row(None, ["c"], [1])]
    with pytest.raises(ValueError, match="cannot be had from single clicks; give a log with user_id"):
        fit(rows, "nowhere")
