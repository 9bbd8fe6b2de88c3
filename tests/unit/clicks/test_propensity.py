import numpy as np
import polars as pl
import pytest

from openrlhf_qs.clicks.click_log import SCHEMA
from openrlhf_qs.clicks.propensity import (
    COUNTS,
    METHODS,
    estimate,
    examination_propensities,
    inverse_propensity,
    shown_counts,
)

EXAMINED = [1.0, 0.6, 0.3]


def click_log(*impressions):
    """A log of (suggestions, clicks), all under one conversation."""
    rows = {
        "impression_id": [f"i{n}" for n in range(len(impressions))],
        "conversation": [[{"role": "user", "content": "Q"}]] * len(impressions),
        "suggestions": [suggestions for suggestions, _ in impressions],
        "clicks": [clicks for _, clicks in impressions],
    }
    return pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows})


def simulated_counts(n_contexts, n_impressions, ranked, seed=0):
    """Counts of users who look as ``EXAMINED`` says; where ``ranked``, better suggestions stand higher, with noise."""
    rng = np.random.default_rng(seed)
    attraction = rng.beta(1, 3, (n_contexts, 3))
    context = rng.integers(n_contexts, size=n_impressions)
    score = attraction[context] * ranked + 0.2 * rng.standard_normal((n_impressions, 3))
    shown = np.argsort(-score, axis=1)
    clicks = rng.random((n_impressions, 3)) < np.take_along_axis(attraction[context], shown, axis=1) * EXAMINED
    rows = pl.DataFrame(
        {
            "context": np.repeat(context, 3),
            "suggestion": np.repeat(context * 3, 3) + shown.ravel(),
            "position": np.tile([1, 2, 3], n_impressions),
            "n_shown": 1,
            "n_clicked": clicks.ravel().astype(int),
        }
    )
    counts = rows.group_by("context", "suggestion", "position").agg(pl.col("n_shown", "n_clicked").sum())
    return counts.cast(COUNTS)


def test_counts_add_up_and_leave_out_a_text_that_stands_there_already():
    counts = shown_counts(click_log((["a", "b", "a"], [1, 0, 0]), (["a", "b"], [0, 1]), (["b", "a"], [1, 1])))
    assert dict(counts.schema) == COUNTS
    # a at the top twice with one click, at 2 once; b at 2 twice with one click, at the top once
    found = counts.sort("position", "n_shown").select("position", "n_shown", "n_clicked").rows()
    assert found == [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1)]
    assert counts["context"].n_unique() == 1 and counts["suggestion"].n_unique() == 2


def test_click_rates_are_relative_to_the_top_with_katz_interval():
    log = click_log(*[(["a", "b"], [1, 0])] * 5, *[(["a", "b"], [0, 1])] * 2, *[(["a", "b"], [0, 0])] * 3)
    values, low, high = estimate(shown_counts(log), "ctr")
    # 10 shows with 5 and 2 clicks: (5 + 1) / 12 and (2 + 1) / 12
    assert values == pytest.approx([1.0, 0.5])
    half = 1.959964 * (1 / 3 - 1 / 12 + 1 / 6 - 1 / 12) ** 0.5
    assert (low[1], high[1]) == pytest.approx((0.5 * np.exp(-half), 0.5 * np.exp(half)))
    assert examination_propensities(log, "ctr") == values


def test_a_position_without_a_click_still_has_a_click_rate():
    log = click_log((["a", "b"], [1, 0]), (["a", "b"], [1, 0]))
    assert examination_propensities(log, "ctr") == pytest.approx([1.0, 1 / 3])  # (2 + 1) / 4 and (0 + 1) / 4


def test_moved_suggestions_give_the_ratio_of_mantel_and_haenszel():
    # (shown, clicked) at the top and at 2, of two suggestions
    strata = [((10, 6), (5, 1)), ((4, 1), (8, 2))]
    rows = [
        (0, suggestion, position, *pair)
        for suggestion, pairs in enumerate(strata)
        for position, pair in enumerate(pairs, start=1)
    ]
    values, low, high = estimate(pl.DataFrame(rows, schema=COUNTS, orient="row"), "harvest")
    ratio = (1 * 10 / 15 + 2 * 4 / 12) / (6 * 5 / 15 + 1 * 8 / 12)
    assert values == pytest.approx([1.0, ratio])
    variance = sum((n * m * (c + d) - c * d * (n + m)) / (n + m) ** 2 for (n, c), (m, d) in strata)
    variance /= (1 * 10 / 15 + 2 * 4 / 12) * (6 * 5 / 15 + 1 * 8 / 12)
    assert high[1] / values[1] == pytest.approx(np.exp(1.959964 * variance**0.5)) == values[1] / low[1]


@pytest.mark.parametrize(
    ("method", "ranked"), [("ctr", False), ("harvest", False), ("harvest", True), ("pbm", False), ("pbm", True)]
)
def test_the_truth_is_within_the_interval(method, ranked):
    values, low, high = estimate(simulated_counts(400, 60_000, ranked), method)
    assert values == pytest.approx(EXAMINED, abs=0.03)
    for truth, least, most in list(zip(EXAMINED, low, high, strict=True))[1:]:
        assert least - 0.01 < truth < most + 0.01 and most - least < 0.12


def test_click_rates_take_the_quality_of_a_ranked_log_for_attention():
    assert estimate(simulated_counts(400, 60_000, True), "ctr").values[2] < 0.2 < EXAMINED[2]


def test_the_model_needs_few_shows_of_each_suggestion():
    values = estimate(simulated_counts(20_000, 60_000, True, seed=3), "pbm").values  # each is shown three times
    assert values == pytest.approx(EXAMINED, abs=0.05)


@pytest.mark.parametrize("method", ["harvest", "pbm"])
def test_a_log_in_which_nothing_moved_is_refused(method):
    counts = shown_counts(click_log((["a", "b"], [1, 0]), (["a", "b"], [0, 1])))
    with pytest.raises(ValueError, match="give a larger log, or take the propensities by click rates"):
        estimate(counts, method)


def test_unknown_methods_and_bad_weights_are_refused():
    with pytest.raises(ValueError, match=f"unknown method of propensities 'best'; known: {', '.join(METHODS)}"):
        estimate(pl.DataFrame(schema=COUNTS), "best")
    assert inverse_propensity(0.25) == 4.0 and inverse_propensity(0.01) == 5.0
    for propensity, max_weight in [(0.0, 5.0), (-1.0, 5.0), (float("nan"), 5.0), (1.0, 0.0)]:
        with pytest.raises(ValueError, match="must both be > 0"):
            inverse_propensity(propensity, max_weight)
