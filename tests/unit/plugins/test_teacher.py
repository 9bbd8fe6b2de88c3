import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_qs.clicks.candidates import click_candidates
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.clicks.propensity import examination_propensities
from openrlhf_qs.plugins.sft_datasets.teacher import Single, systematic_counts
from openrlhf_qs.registry import SFT_DATASETS

CONVERSATION = [{"role": "user", "content": "Hi"}]


def row(*candidates):
    """A row of (text, n_shown, n_clicked, weight)."""
    fields = ("text", "n_shown", "n_clicked", "weight")
    return {"conversation": CONVERSATION, "candidates": [dict(zip(fields, c, strict=True)) for c in candidates]}


def test_a_conversation_has_as_many_instances_as_clicks_shared_by_debiased_clicks():
    # 10 * 0.4 = 4 and 20 * 0.05 = 1 debiased clicks: of 5 clicks 4 and 1
    single = SFT_DATASETS.create("single")
    rows = [row(("Which flour?", 10, 2, 0.4), ("Why salt?", 20, 3, 0.05), ("Never?", 30, 0, 0.01))]
    assert single(rows) == [["Which flour?"] * 4 + ["Why salt?"]]


def test_a_popular_conversation_counts_no_more_than_the_limit():
    assert Single(max_instances=4)([row(("A?", 90, 60, 0.6), ("B?", 90, 20, 0.2))]) == [["A?"] * 3 + ["B?"]]


def test_a_conversation_without_a_click_on_words_has_no_instance():
    assert Single()([row(("A?", 3, 0, 0.1)), row(), row(("123", 3, 2, 0.5))]) == [None, None, None]


def test_rows_that_have_no_clicks_are_refused():
    sampled = {"conversation": CONVERSATION, "candidates": [{"text": "A?", "log_prob": -1.0, "n_sampled": 3}]}
    with pytest.raises(ValueError, match="no n_clicked"):
        Single()([sampled])
    with pytest.raises(ValueError, match="max_instances"):
        Single(max_instances=0)


def test_the_same_seed_gives_the_same_instances_and_seeds_differ():
    rows = [
        row(*((f"What {n} {i}?", 5, 1, 0.1 * (i + 1)) for i in range(4)))
        | {"conversation": [{"role": "user", "content": str(n)}]}
        for n in range(30)
    ]
    assert Single(seed=1)(rows) == Single(seed=1)(rows)
    assert Single(seed=1)(rows) != Single(seed=2)(rows)


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9),
    st.integers(0, 50),
    st.floats(0, 1, exclude_max=True),
)
def test_counts_sum_to_n_and_each_is_its_share_rounded(weights, n, start):
    counts = systematic_counts(weights, n, start)
    assert sum(counts) == n
    shares = n * np.array(weights) / sum(weights)
    assert (np.abs(counts - shares) < 1 + 1e-6).all()


def test_the_mean_over_starts_is_the_share():
    weights = [0.5, 3.0, 0.2, 1.1]
    mean = np.mean([systematic_counts(weights, 3, start) for start in (np.arange(4800) + 0.5) / 4800], axis=0)
    np.testing.assert_allclose(mean, 3 * np.array(weights) / 4.8, atol=2e-3)


def test_of_a_click_log_every_click_is_one_instance(tiny_log):
    log = read_click_log(tiny_log)
    rows = click_candidates(log, examination_propensities(log))
    clicks = [sum(c["n_clicked"] for c in one["candidates"]) for one in rows]
    assert [len(texts) for texts in Single()(rows)] == clicks
