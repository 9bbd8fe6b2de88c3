from itertools import combinations

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_qs.form.text import spread, unaccented
from openrlhf_qs.sft import assembly
from openrlhf_qs.sft.assembly import (
    MAX_ROWS,
    determinantal_map,
    maximal_marginal_relevance,
    nearly_equal,
    repeats,
    trigram_cosine,
    trigrams,
)


def trigram_set(text):
    return {f" {text} "[i : i + 3] for i in range(len(text))}


def in_one_row(texts):
    """The similarities of the texts of one row, ``[n, n]``."""
    return trigram_cosine(texts, np.zeros(len(texts), int), np.arange(len(texts)), (1, len(texts)))[0]


# Texts


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), max_size=6))
def test_trigrams_are_those_of_each_text_and_never_reach_into_the_next(texts):
    owner, gram = trigrams(texts)
    found = [set() for _ in texts]
    for index, number in zip(owner.tolist(), gram.tolist(), strict=True):
        found[index].add("".join(chr(number >> shift & (1 << 21) - 1) for shift in (42, 21, 0)))
    assert found == [trigram_set(spread(unaccented(text))) for text in texts]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abc ", min_size=1, max_size=9), min_size=1, max_size=6), st.integers(0, 5))
def test_similarity_is_the_cosine_of_trigram_sets(texts, empty_slots):
    n, row = len(texts), np.full(len(texts), MAX_ROWS - 1)
    similarity = trigram_cosine(texts, row, np.arange(n), (MAX_ROWS, n + empty_slots))[-1]
    sets = [trigram_set(spread(unaccented(text))) for text in texts]
    for a, b in combinations(range(n), 2):
        expected = len(sets[a] & sets[b]) / (len(sets[a]) * len(sets[b])) ** 0.5
        assert similarity[a, b] == similarity[b, a] == pytest.approx(expected, abs=1e-6)
    assert not similarity[n:].any()


def test_the_same_texts_in_other_rows_make_no_difference():
    texts = ["how long", "how much", "why"]
    apart = trigram_cosine(texts * 2, np.repeat([0, 1], 3), np.tile([0, 1, 2], 2), (2, 3))
    np.testing.assert_array_equal(apart[0], apart[1])
    np.testing.assert_allclose(apart[0], in_one_row(texts))


# Selection


def rows_of(rng, n_rows, n_slots, dim=4):
    """Random quality, similarity (of unit vectors) and valid slots from the left, the best first."""
    vectors = rng.standard_normal((n_rows, n_slots, dim))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    quality = -np.sort(-rng.uniform(0.05, 1, (n_rows, n_slots)), axis=1)
    valid = np.arange(n_slots) < rng.integers(0, n_slots + 1, (n_rows, 1))
    return quality, vectors @ vectors.transpose(0, 2, 1), valid


def greedy(gain, valid, similarity, n, max_similarity):
    """The plain loop for one row: ``gain(taken, candidate)`` decides; -1 where none is left."""
    taken = []
    for _ in range(n):
        left = [
            c
            for c in np.flatnonzero(valid)
            if c not in taken and all(similarity[c, t] <= max_similarity for t in taken)
        ]
        if not left:
            break
        taken.append(max(left, key=lambda c: gain(taken, c)))
    return taken + [-1] * (n - len(taken))


@pytest.mark.parametrize("max_similarity", [0.3, 1.0])
@pytest.mark.parametrize("diversity", [0.0, 0.4, 1.0])
def test_maximal_marginal_relevance_is_the_plain_loop(diversity, max_similarity):
    quality, similarity, valid = rows_of(np.random.default_rng(0), 60, 7)
    found = maximal_marginal_relevance(quality, similarity, valid, 3, diversity, max_similarity)
    for q, s, v, taken in zip(quality, similarity, valid, found.tolist(), strict=True):

        def gain(so_far, c, q=q, s=s):
            if not so_far:
                return q[c]
            return (1 - diversity) * q[c] - diversity * max(s[c, t] for t in so_far)

        assert taken == greedy(gain, v, s, 3, max_similarity)


@pytest.mark.parametrize("max_similarity", [0.3, 1.0])
@pytest.mark.parametrize("diversity", [0.1, 0.5, 0.8])
def test_the_determinantal_process_takes_what_raises_the_log_determinant_most(diversity, max_similarity):
    quality, similarity, valid = rows_of(np.random.default_rng(1), 60, 7)
    found = determinantal_map(quality, similarity, valid, 3, diversity, max_similarity)
    for q, s, v, taken in zip(quality, similarity, valid, found.tolist(), strict=True):

        def gain(so_far, c, q=q, s=s):
            subset = [*so_far, c]
            log_det = np.linalg.slogdet(s[np.ix_(subset, subset)])[1]
            return (1 - diversity) * 2 * np.log(q[subset]).sum() + diversity * log_det

        assert taken == greedy(gain, v, s, 3, max_similarity)


@pytest.mark.parametrize("select", [maximal_marginal_relevance, determinantal_map])
def test_without_diversity_the_best_are_taken(select):
    quality, similarity, _ = rows_of(np.random.default_rng(2), 20, 5)
    every = np.ones((20, 5), bool)
    assert (select(quality, similarity, every, 3, 0.0, 1.0) == [0, 1, 2]).all()


@pytest.mark.parametrize("select", [maximal_marginal_relevance, determinantal_map])
def test_a_text_twice_is_never_taken_twice_where_there_is_another(select):
    similarity = np.array([[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0.5, 1]]], float)
    quality = np.array([[1.0, 0.99, 0.9, 0.8]])
    assert select(quality, similarity, np.ones((1, 4), bool), 3, 0.5, 1.0).tolist() == [[0, 2, 3]]


def test_a_repetition_points_at_the_first_of_its_kind_that_stayed():
    # 1 is like 0; 2 is like 1 but not like 0, so it stays; 3 is like 2
    similarity = np.eye(4)[None] + 0.0
    for a, b in ((0, 1), (1, 2), (2, 3)):
        similarity[0, a, b] = similarity[0, b, a] = 0.9
    valid = np.ones((1, 4), bool)
    assert repeats(similarity, valid, 0.9).tolist() == [[-1, 0, -1, 2]]
    assert repeats(similarity, valid, 0.91).tolist() == [[-1] * 4]
    valid[0, 0] = False
    assert repeats(similarity, valid, 0.9).tolist() == [[-1, -1, 1, -1]]


# The corpus


def test_signatures_are_those_of_datasketch():
    texts = ["how long must it rise", "", "多久", "x"]
    for text, found in zip(texts, assembly._signatures(texts, seed=3, n_at_once=2), strict=True):
        one = MinHash(num_perm=assembly.N_BANDS * assembly.N_IN_BAND, seed=3, hashfunc=int, scheme="affine32")
        _, grams = assembly.trigrams([text])
        one.update_batch([gram * 0x9E3779B97F4A7C15 % 2**64 >> 32 for gram in grams.tolist()])
        np.testing.assert_array_equal(found, one.hashvalues)


def test_texts_that_are_nearly_equal_get_one_leader_and_others_stay_alone():
    bland = "can you tell me something more about this topic please"
    others = [f"{word} {n * 7919 % 1000}" for n, word in enumerate(["bread", "flights", "python", "cats", "chess"])]
    leaders = nearly_equal([bland, *others, f"{bland}s", f"{bland} x"], threshold=0.9, seed=0)
    assert leaders.tolist() == [0, 1, 2, 3, 4, 5, 0, 0]


def test_a_chain_of_small_steps_does_not_join_its_ends():
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))
    chain = [letters[n : n + 30] for n in range(0, 20, 2)]  # neighbours share 26 of 34 trigrams
    leader = nearly_equal(chain, threshold=0.6, seed=0)
    for text, of in zip(chain, leader, strict=True):
        a, b = trigram_set(text), trigram_set(chain[of])
        assert len(a & b) / len(a | b) > 0.4  # the estimate of 64 numbers is off by 0.06 in the mean
    assert leader[0] == 0 and leader[-1] != 0


def test_minhash_groups_are_the_same_for_a_seed():
    texts = [f"suggestion number {n} of many that are much alike" for n in range(200)]
    np.testing.assert_array_equal(nearly_equal(texts, 0.8, seed=3), nearly_equal(texts, 0.8, seed=3))
    assert nearly_equal([], 0.9, seed=0).tolist() == []
