"""A real A/B test, read from a click log."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime, timedelta
from math import inf, nan

import numpy as np
import polars as pl
import pytest
from scipy.stats import chisquare

from openrlhf_qs import cli
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.evaluation import logged_ab as stage
from openrlhf_qs.evaluation.logged_ab import Rows, always, lift, logged_ab, sample_ratio
from openrlhf_qs.files.whole import write_json_lines


def rows_of(seed, n_users=200, n_roots=100, effect=0.0, n=1200, user_effect=0.2):
    """Impressions of users who come back; each user is in one arm, and some click more than others."""
    rng = np.random.default_rng(seed)
    user = rng.integers(n_users, size=n)
    arm = rng.integers(2, size=n_users)[user]
    chance = 0.4 + rng.normal(0, user_effect, n_users)[user] + effect * arm
    return Rows(["a", "b"], arm, (rng.random(n) < chance).astype(float), rng.integers(n_roots, size=n), user)


def write_log(path, n=2000, effect=0.2, seed=0, **columns):
    rng = np.random.default_rng(seed)
    start, rows = datetime(2025, 1, 1, tzinfo=UTC), []
    for number in range(n):
        user = int(rng.integers(300))
        policy = ["old", "new"][user % 2]
        chance = 0.3 + effect * (policy == "new")
        rows.append(
            {
                "impression_id": str(number),
                "timestamp": (start + timedelta(minutes=number)).isoformat(),
                "conversation": [{"role": "user", "content": f"Question {rng.integers(400)}?"}],
                "suggestions": ["a", "b"],
                "clicks": [int(rng.random() < chance), int(rng.random() < 0.1)],
                "user_id": f"u{user}",
                "policy": policy,
                "meta": {"language": ["en", "de"][number % 2], "arm": "x" if user % 3 else "y"},
            }
            | columns
        )
    write_json_lines(path, rows)
    return path


def test_the_error_of_a_lift_is_that_of_a_jackknife_over_users():
    rows = rows_of(0)
    found = lift(rows, 1)

    def value(kept):
        return rows.clicked[kept & (rows.arm == 1)].mean() / rows.clicked[kept & (rows.arm == 0)].mean() - 1

    assert found["value"] == pytest.approx(value(np.ones(1200, dtype=bool)))
    users = np.unique(rows.user)
    without = np.array([value(rows.user != user) for user in users])
    jackknife = np.sqrt((len(users) - 1) / len(users) * ((without - without.mean()) ** 2).sum())
    low, high = found["ci95"]["user"]
    assert (high - low) / 2 / 1.972 == pytest.approx(jackknife, rel=0.03)  # t of 199 degrees of freedom


def test_equal_arms_are_told_apart_as_often_as_they_should_be_by_user_and_too_often_by_conversation():
    called = {"user": 0, "both": 0, "conversation": 0}
    for seed in range(300):
        found = lift(rows_of(seed), 1)["ci95"]
        for kind in called:
            called[kind] += not found[kind][0] < 0 < found[kind][1]
    # 5 % of 300 are 15, with a standard deviation of 3.8
    assert called["user"] <= 26 and called["both"] <= 26 and called["conversation"] > 28


def test_the_interval_at_every_look_holds_at_every_look():
    """Twenty looks at tests of two equal arms."""
    ever = {"always": 0, "one look": 0}
    for seed in range(150):
        rows = rows_of(seed, n_users=600, n=900)
        looks = always(rows, 1, np.arange(900).astype("datetime64[m]"))["looks"]
        assert len(looks) >= 15
        ever["always"] += any(not one["ci95"][0] < 0 < one["ci95"][1] for one in looks)
        singles = (lift(rows[np.arange(int(900 * share))], 1)["ci95"]["user"] for share in (0.3, 0.5, 0.75, 1))
        ever["one look"] += any(not low < 0 < high for low, high in singles)
    # at most 5 % of 150: 7.5, with a standard deviation of 2.7
    assert ever["always"] <= 13 and ever["one look"] > 11


def test_a_sample_ratio_that_is_no_chance_is_named_and_shares_can_be_given():
    user = np.arange(3000)
    rows = Rows(["a", "b"], (user % 3 == 0).astype(int), np.ones(3000), user, user)
    found = sample_ratio(rows, {})
    assert (found["unit"], found["counts"]) == ("user", {"a": 2000, "b": 1000})
    assert found["p"] == pytest.approx(chisquare([2000, 1000]).pvalue)
    assert "2,000, 1,000 users instead of the expected 1,500, 1,500" in found["findings"][0]
    for shares in ({"a": 2, "b": 1}, {"a": 0.5, "b": 0.25}):  # what counts is their ratio
        assert sample_ratio(rows, shares)["p"] == pytest.approx(1.0)
    wrong = ({"a": 2}, {"a": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}, *({"a": 1, "b": b} for b in (0, -1, nan, inf)))
    for shares in wrong:
        with pytest.raises(ValueError, match=r"--shares a=[12].*: give a share above 0 for each of the arms a, b$"):
            sample_ratio(rows, shares)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["old=0.5", "new"], "--shares old=0.5 new: give ARM=SHARE for each arm"),
        (["old=50%", "new=50%"], "--shares old=50% new=50%: give ARM=SHARE for each arm"),
        (["old=0.9", "old=0.1"], "--shares old=0.9 old=0.1: an arm is there twice"),
        (["old=0.9", "knew=0.1"], "--shares old=0.9 knew=0.1: give a share above 0 for each of the arms new, old"),
    ],
)
def test_shares_that_do_not_fit_are_one_error(tmp_path, capsys, words, said):
    path = write_log(tmp_path / "log.jsonl", n=200)
    with pytest.raises(SystemExit) as stop:
        cli.main(["ab", str(path), "--shares", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith(f"openrlhf-qs ab: {said}")


def test_what_was_assigned_is_what_is_in_one_arm():
    rng = np.random.default_rng(0)
    root = rng.integers(300, size=2000)
    rows = Rows(["a", "b"], root % 2, np.ones(2000), root, rng.integers(50, size=2000))
    assert sample_ratio(rows, {})["unit"] == "conversation"
    alone = Rows(["a", "b"], rng.integers(2, size=2000), np.ones(2000), root, None)
    assert sample_ratio(alone, {})["unit"] == "impression"


def test_the_figures_of_a_log_whose_truth_is_known(tmp_path):
    log = read_click_log(write_log(tmp_path / "log.jsonl"))
    found = logged_ab(log, control="old")
    # a click on either: 1 - .7 * .9 = .37 and 1 - .5 * .9 = .55
    assert found["arms"]["old"]["ctr"] == pytest.approx(0.37, abs=0.04)
    assert found["arms"]["new"]["ctr"] == pytest.approx(0.55, abs=0.04)
    one = found["lifts"]["new"]
    assert one["ci95"]["both"][0] < 0.55 / 0.37 - 1 < one["ci95"]["both"][1] and one["p_holm"] < 1e-6
    assert one["always"][0] > 0 and one["always"][0] < one["ci95"]["both"][0]
    assert found["positions"]["1"]["new"]["value"] == pytest.approx(0.5 / 0.3 - 1, abs=0.2)
    low, high = found["positions"]["2"]["new"]["ci95"]["both"]
    assert low < 0 < high  # nothing was done there
    assert (
        set(found["segments"]) == {"language", "arm"} and found["segments"]["language"]["de"]["new"]["p_holm"] < 0.01
    )
    assert found["sample_ratio"]["unit"] == "user" and found["findings"] == []
    assert found["verdicts"][0].startswith("new beats old: CTR 5")
    # twice the lift needs a quarter of the sample; 300 users found one of .49 with an error of about .1
    needed = one["needed"]
    assert needed["0.05"] == pytest.approx(4 * needed["0.1"], rel=0.01)
    assert needed["0.1"] == pytest.approx(300 * ((1.96 + 0.8416) * one["error"] / 0.1) ** 2, rel=0.01)


def test_an_arm_can_be_named_by_meta_and_rows_without_one_are_left_out(tmp_path):
    log = read_click_log(write_log(tmp_path / "log.jsonl", n=600))
    found = logged_ab(log, by="meta.arm")
    assert set(found["arms"]) == {"x", "y"}
    nobody = log.with_columns(policy=log["policy"].replace("new", None))
    for by, what in (
        ("policy", "only old in 600 rows; a test needs at least two arms"),
        ("user", "give policy, or meta.KEY"),
    ):
        with pytest.raises(ValueError, match=what):
            logged_ab(nobody, by=by)
    with pytest.raises(ValueError, match="--control x: no such arm; there are new, old"):
        logged_ab(log, control="x")


def test_the_command_prints_tables_of_80_columns_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = argparse.ArgumentParser()
    stage.add_arguments(parser)
    path = write_log(tmp_path / "log.jsonl", n=800)
    stage.run(parser.parse_args([str(path), "--control", "old"]))
    out = capsys.readouterr().out
    assert "new beats old: CTR" in out and "sample ratio, by user" in out
    assert max(len(line) for line in out.splitlines() if line[:1] in "┃│") <= 80
    stage.run(parser.parse_args([str(path), "--json"]))
    assert json.loads(capsys.readouterr().out)["control"] == "new"


def test_a_log_without_users_has_intervals_by_conversation(tmp_path):
    log = read_click_log(write_log(tmp_path / "log.jsonl", n=800, user_id=None))
    found = logged_ab(log)
    assert list(found["arms"]["new"]["ci95"]) == ["conversation"] and found["arms"]["new"]["n_users"] is None


def test_the_turns_of_a_conversation_are_one_cluster(tmp_path):
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 4, "abcdefgh", strict=True)]
    log = read_click_log(write_log(tmp_path / "log.jsonl", n=800))
    conversations = [[{"role": "user", "content": f"Question {n // 4}?"}, *turns[: 2 * (n % 4)]] for n in range(800)]
    log = log.with_columns(conversation=pl.Series(conversations, dtype=log.schema["conversation"]))
    found = logged_ab(log)["arms"]
    assert sum(one["n_conversations"] for one in found.values()) <= 2 * 200
