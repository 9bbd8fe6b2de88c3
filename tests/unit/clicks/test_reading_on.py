"""Users who differ in how much they click, where reading ends at a click."""

import numpy as np
import polars as pl
import pytest

from openrlhf_qs.benchmark.propensities import Kind, simulated
from openrlhf_qs.clicks.check import check_log
from openrlhf_qs.clicks.click_log import SCHEMA
from openrlhf_qs.clicks.propensity import estimate, estimate_log
from openrlhf_qs.clicks.reading_on import VISITS, if_users_differ, reading_on, visits


def click_log(*rows):
    """A log of (user, messages, clicks); all suggestions differ within an impression."""
    table = {
        "impression_id": [f"i{n}" for n in range(len(rows))],
        "user_id": [user for user, _, _ in rows],
        "conversation": [
            [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(messages)]
            for _, messages, _ in rows
        ],
        "suggestions": [list("abcd"[: len(clicks)]) for *_, clicks in rows],
        "clicks": [clicks for *_, clicks in rows],
    }
    return pl.DataFrame(table, schema={name: SCHEMA[name] for name in table})


def test_a_visit_is_the_users_or_the_conversations_and_is_open_down_to_its_first_click():
    log = click_log(
        ("u", ["Q"], [0, 1, 0]),
        (None, ["Q"], [0, 0]),
        (None, ["Q", "A", "R"], [1, 0, 0]),
        (None, [], [1, 0]),
        ("u", [], [0, 0, 0]),
    )
    found = visits(log)
    assert dict(found.schema) == VISITS
    # the users' rows come first; before the first word of nobody there is no visit
    assert found.select("is_root", "top", "n_places", "n_open").rows() == [
        (False, 0, 3, 2),
        (False, 0, 3, 3),
        (True, 0, 2, 2),
        (True, 1, 3, 1),
    ]
    user = found["user"].to_list()
    assert user[0] == user[1] != user[2] == user[3]
    assert visits(log.drop("user_id")).height == 3  # those with a first message


def test_those_who_read_on_are_held_against_all_by_hand():
    # 60 users of three turns each: half click at the top in every turn, half in one of them
    rows = [
        (user, False, turn, int(user < 30 or (user + turn) % 3 == 0), 2) for user in range(60) for turn in range(3)
    ]
    table = pl.DataFrame([(*row, 1 if row[3] else 2) for row in rows], schema=VISITS, orient="row")
    found = reading_on(table, np.array([1.0, 0.5]), np.array([1.0, 1 / 3]), within_contexts=False)
    # who reads on has clicked at the top in one of the two other turns; of all users' other turns two in three have
    assert found.logs == pytest.approx([0, np.log(0.5 / (2 / 3))])
    assert reading_on(table.filter(pl.col("user") % 3 == 0), np.ones(2), np.ones(2), False) is None  # 20 users


def test_a_conversation_that_comes_twice_to_one_state_is_nobodys():
    few = [(None, [f"q{n}", "a", f"r{turn}"], [(n + turn) % 2, 0]) for n in range(40) for turn in range(2)]
    assert reading_on(visits(click_log(*few)), np.ones(2), np.array([1, 0.5]), within_contexts=False) is not None
    assert reading_on(visits(click_log(*few, *few)), np.ones(2), np.array([1, 0.5]), within_contexts=False) is None


@pytest.mark.parametrize("ranker_noise", [None, 1.0])
def test_a_cascade_over_turns_covers_the_truth_however_much_its_users_differ(ranker_noise):
    inside, before, off = [], [], []
    for seed in range(10):
        one = simulated(Kind("cascade", ranker_noise, 300, n_turns=4), seed)
        found = estimate(one.counts(), users=one.visits())
        assert found.method == "cascade" and "by their other turns" in " ".join(found.findings)
        inside += [low <= true <= high for low, high, true in zip(*found[1:3], one.examination, strict=True)][1:]
        off.append(np.subtract(found.values, one.examination))
        before.append(np.subtract(found.average, one.examination))
    assert sum(inside) >= 18 and np.abs(np.mean(off, axis=0)).max() < 0.02
    assert np.mean(before, axis=0)[1:].max() < -0.05  # as found without users


def test_where_no_user_comes_again_the_interval_allows_for_users_who_differ_and_that_is_said():
    for ranker_noise in (None, 1.0):
        for seed in range(4):
            one = simulated(Kind("cascade", ranker_noise, 300, n_turns=4), seed)
            found = estimate(one.counts())
            assert "too few users recur to tell how much they differ" in " ".join(found.findings)
            assert all(true <= high for high, true in zip(found.high, one.examination, strict=True))
            assert found.values[1] < one.examination[1] - 0.02


def test_users_who_are_alike_are_found_alike():
    rng, off = np.random.default_rng(0), []
    for _ in range(6):
        context, attraction = rng.integers(200, size=8000), rng.beta(2, 6, (200, 3))
        clicks = rng.random((8000, 3)) < attraction[context]
        top, n_open = clicks[:, 0].astype(int), np.where(clicks.any(1), clicks.argmax(1) + 1, 3)
        rows = {"user": np.arange(8000) // 4, "is_root": [False] * 8000, "context": context, "top": top}
        table = pl.DataFrame(rows | {"n_places": [3] * 8000, "n_open": n_open}, schema=VISITS)
        share = [(n_open >= place).mean() for place in (1, 2, 3)]
        found = reading_on(table, np.array(share), np.array(share), within_contexts=True)
        off += (found.logs[1:] / np.sqrt(found.variances[1:])).tolist()
    assert np.abs(np.mean(off)) < 0.9 and np.abs(off).max() < 3.5


def test_a_whole_log_is_corrected_by_the_users_it_names():
    one = simulated(Kind("cascade", None, 80, n_impressions=8000, n_turns=4), 1)
    log = one.log()
    named, nameless = estimate_log(log), estimate_log(log.drop("user_id"))
    assert named.values[1] > nameless.values[1] + 0.03
    assert named.average == pytest.approx(nameless.values)


def test_log_check_asks_the_users_of_a_log(tmp_path):
    one = simulated(Kind("cascade", None, 80, n_impressions=8000, n_turns=4), 1)
    rows = one.log().with_columns(timestamp=pl.lit("2026-01-01T00:00:00Z"))
    (tmp_path / "clicks.jsonl").write_bytes(rows.write_ndjson().encode())
    found = check_log([tmp_path / "clicks.jsonl"])
    assert [place["examination"] for place in found["positions"]] == pytest.approx(estimate_log(one.log()).values)
    assert "by their other turns, users who read on to lower positions click" in " ".join(found["findings"])


def test_what_users_who_differ_are_allowed_for_is_what_a_simulation_finds():
    rng = np.random.default_rng(0)
    user = rng.normal(size=400_000)
    chance = 1 / (1 + np.exp(-(np.array([-1.0, -1.5, -2.0]) + user[:, None])))
    passed = np.cumprod(np.column_stack([np.ones(len(user)), 1 - chance[:, :2]]), axis=1)
    true = np.log((chance * passed).mean(0) / chance.mean(0) / passed.mean(0))
    np.testing.assert_allclose(if_users_differ(chance.mean(0), 1.0), true, atol=0.02)
