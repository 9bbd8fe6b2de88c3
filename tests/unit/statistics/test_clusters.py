"""Rows that hang together in two ways: by conversation and by user."""

from __future__ import annotations

import numpy as np
import pytest

from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import cluster_bootstrap, cluster_half_width


def test_squares_are_the_products_of_all_rows_that_share_a_cluster():
    rng = np.random.default_rng(0)
    conversation, user, values = rng.integers(6, size=40), rng.integers(5, size=40), rng.normal(size=(40, 2))
    share = (conversation[:, None] == conversation) | (user[:, None] == user)
    expected = np.einsum("ij,ik,jl->kl", share.astype(float), values, values)
    found = Clusters.of(conversation, user).squares(values)
    assert found[0, 1] == pytest.approx(expected[0, 1])
    alone = np.array([sum(values[conversation == c, k].sum() ** 2 for c in range(6)) for k in range(2)])
    np.testing.assert_allclose(np.diag(found), np.maximum(np.diag(expected), alone))


def test_a_user_whom_nobody_knows_and_one_with_a_single_conversation_add_nothing():
    conversation = ["a", "a", "b", "b", "c"]
    for users in ([None] * 5, ["u", None, "v", "w", None], ["the same"] * 5):
        assert len(Clusters.of(conversation, users).numbers) == 1
    # conversations of one user each: the user is all there is
    nested = Clusters.of(conversation, ["u", "u", "u", "u", "v"])
    assert len(nested.numbers) == 1 and nested.n_clusters == 2
    assert len(Clusters.of(conversation, ["u", "v", "u", "v", "v"]).numbers) == 2
    assert nested[np.array([True, True, False, False, True])].n_clusters == 2


def recurring(seed, n_users=60, n_conversations=100, n=300):
    """Values of mean 0 of users who come back, under conversations that do."""
    rng = np.random.default_rng(seed)
    user, conversation = rng.integers(n_users, size=n), rng.integers(n_conversations, size=n)
    values = rng.normal(size=n_users)[user] + rng.normal(size=n_conversations)[conversation] + rng.normal(size=n)
    return values, conversation, user


def test_where_users_come_back_a_mean_is_called_no_more_often_than_it_should_be():
    n_called = {"both": 0, "conversations": 0}
    for seed in range(400):
        values, conversation, user = recurring(seed)
        for name, clusters in (("both", Clusters.of(conversation, user)), ("conversations", conversation)):
            n_called[name] += abs(values.mean()) > cluster_half_width(values, clusters)
    # 5 % of 400 are 20, with a standard deviation of 4.4; by conversations alone it is about 20 %
    assert n_called["both"] <= 33 and n_called["conversations"] > 55


def test_the_bootstrap_of_both_kinds_is_as_wide_as_the_spread_over_logs():
    logs = [recurring(seed) for seed in range(300)]
    truth = np.std([values.mean() for values, *_ in logs])
    widths = {"both": [], "conversations": []}
    for values, conversation, user in logs[:15]:
        for name, clusters in (("both", Clusters.of(conversation, user)), ("conversations", conversation)):
            [(low, high)] = cluster_bootstrap(
                lambda weight, values=values: [np.average(values, weights=weight)], np.ones(300), clusters, 100
            )
            widths[name].append((high - low) / (2 * 1.96))
    assert np.mean(widths["both"]) == pytest.approx(truth, rel=0.12)
    assert np.mean(widths["conversations"]) < 0.8 * truth
