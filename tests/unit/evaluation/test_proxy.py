"""The proxy against the gold: whether users click more where the reward rose."""

import numpy as np
import pytest

from openrlhf_qs.evaluation.proxy import proxy_against_gold
from openrlhf_qs.statistics.clusters import Clusters


def test_where_users_click_more_as_the_reward_rises_the_changes_go_together():
    n = 80
    rose = np.linspace(-1.0, 1.0, n)
    clusters = Clusters.of(range(n))
    proxy = {"sft": np.zeros(n), "grpo": rose}
    found = proxy_against_gold(proxy, {"sft": np.full(n, 0.5), "grpo": 0.5 + rose / 4}, "sft", "grpo", clusters)
    assert found["correlation"] == pytest.approx(1.0)
    assert [one["n_contexts"] for one in found["bins"]] == [10] * 8
    for one in found["bins"]:
        assert one["gold"] == pytest.approx(one["proxy"] / 4) and one["ci95"][0] < one["gold"] < one["ci95"][1]
    assert found["arms"]["grpo"] == {"proxy": pytest.approx(0.0), "gold": pytest.approx(0.5)}
    hacked = proxy_against_gold(proxy, {"sft": np.full(n, 0.5), "grpo": 0.5 - rose / 4}, "sft", "grpo", clusters)
    assert hacked["correlation"] == pytest.approx(-1.0)


def test_a_conversation_whose_reward_failed_is_left_out_and_no_change_has_no_correlation():
    clusters = Clusters.of(range(30))
    failed = np.r_[np.nan, np.ones(29)]
    found = proxy_against_gold(
        {"sft": np.ones(30), "grpo": failed}, {"sft": np.ones(30), "grpo": np.ones(30)}, "sft", "grpo", clusters
    )
    assert found["n_contexts"] == 29 and found["correlation"] is None
    assert found["arms"]["grpo"]["proxy"] == 1.0
