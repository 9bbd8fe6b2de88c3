"""``benchmark frozen-backbone``: what is fitted on a layer's states, and on which pairs."""

import numpy as np
import pytest

from openrlhf_qs.benchmark.frozen_backbone import (
    RIDGE,
    fitted,
    mean_cosine,
    preferred,
    prepared_for,
)
from openrlhf_qs.garm.shared_prefix import common_length


def test_what_rows_begin_with_together_is_the_conversation():
    assert common_length([[1, 2, 3, 4], [1, 2, 5]]) == 2
    assert common_length([[1, 2], [1, 2]]) == 1  # a suggestion keeps a token
    assert common_length([[1, 2, 3]]) == 2


def test_the_mean_cosine_is_that_of_rows_that_differ():
    # (1, 0), (0, 1), (1, 0): 0, 1 and 0
    assert mean_cosine(np.array([[2.0, 0], [0, 5], [1, 0]])) == pytest.approx(1 / 3)


def test_pairs_are_of_one_conversation_and_the_better_one_is_chosen_where_users_agree():
    context, gold = np.array([0, 0, 0, 1, 1]), np.array([3.0, 1, 2, 0, 5])
    chosen, rejected = preferred(np.arange(5), context, gold, np.zeros(5), seed=0)
    assert sorted(zip(chosen.tolist(), rejected.tolist(), strict=True)) == [(0, 1), (0, 2), (2, 1), (4, 3)]


@pytest.mark.parametrize("how", RIDGE)
def test_what_states_hold_is_found_beside_a_large_common_part_and_noise_is_not(how):
    rng = np.random.default_rng(0)
    context = np.repeat(np.arange(60), 5)
    gold = rng.normal(size=300)
    states = rng.normal(size=(300, 8))
    states[:, 0] = gold
    common = 20 * np.ones(8)  # cosines of .99
    assert mean_cosine(states + common) > 0.97
    right, nll = fitted(states + common, how, context, gold, np.zeros(300))
    noise, _ = fitted(rng.normal(size=(300, 8)) + common, how, context, gold, np.zeros(300))
    assert np.mean(right) > 0.8 and np.mean(nll) < 0.69 and abs(np.mean(noise) - 0.5) < 0.1


def test_nothing_of_the_test_is_in_what_is_taken_off():
    x = np.arange(12.0).reshape(4, 3) ** 2
    changed = x.copy()
    changed[3] = 99
    for how in RIDGE:
        same = prepared_for(x, x[:3], how)[:3], prepared_for(changed, x[:3], how)[:3]
        np.testing.assert_array_equal(*same)
