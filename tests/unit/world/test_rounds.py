"""A later round of the built-in world: a policy's suggestions, the same conversations and users, other clicks."""

import argparse
import json
from types import SimpleNamespace

import pytest

from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.world import click_log
from openrlhf_qs.world.click_log import as_served, contexts, write_click_log


def written(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def says_the_same(conversations):
    """A policy that writes nothing in every fifth conversation."""
    return [None if n % 5 == 4 else ["What is it?", "Why is it so?", "How long?"] for n in range(len(conversations))]


def test_a_later_round_has_the_conversations_and_users_of_the_first_and_other_days_and_clicks(tmp_path):
    before, after = tmp_path / "0.jsonl", tmp_path / "1.jsonl"
    write_click_log(before, 300, 100, seed=3)
    clicks = write_click_log(after, 300, 100, 3, policy=says_the_same, policy_name="grpo_1", n_rounds_before=1)
    first, second = written(before), written(after)
    assert clicks.shape == (len(second), 3) and len(second) == 240, "nothing was shown in every fifth"
    assert {str(row["conversation"]) for row in second} <= {str(row["conversation"]) for row in first}
    assert {row["policy"] for row in second} == {"grpo_1"} and second[0]["suggestions"][0] == "What is it?"
    assert not {row["impression_id"] for row in first} & {row["impression_id"] for row in second}
    assert max(row["timestamp"] for row in first) < min(row["timestamp"] for row in second)
    assert [row["user_id"] for row in first[:50]] != [row["user_id"] for row in second[:50]]


def test_the_round_before_is_written_as_ever(tmp_path):
    write_click_log(tmp_path / "a.jsonl", 60, 20, seed=3)
    write_click_log(tmp_path / "b.jsonl", 60, 20, seed=3, n_rounds_before=0)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_what_is_served_is_what_the_policy_wrote_and_no_malformed_response(monkeypatch):
    good = "1. What is it?\n2. Why is it so?\n3. How long?"
    answers = [
        [SimpleNamespace(text=good, finish_reason="stop")],
        [SimpleNamespace(text="1. What", finish_reason="length")],
    ]
    monkeypatch.setattr(click_log, "load_engine", lambda folder, seed: None)
    monkeypatch.setattr(click_log, "sample", lambda *_, **__: [*answers, "the prompt is too long"])
    monkeypatch.setattr(click_log, "read_task", lambda folder: click_log.Task(3))
    shown = as_served("runs/default/grpo", 1.0, 0)([[{"role": "user", "content": "Hi"}]] * 3)
    assert shown == [["What is it?", "Why is it so?", "How long?"], None, None]


@pytest.mark.parametrize(
    ("flags", "said"), [(["--round", "0"], "--round 0"), (["--temperature", "-1"], "temperature")]
)
def test_a_round_that_is_none_is_refused(tmp_path, flags, said):
    parser = argparse.ArgumentParser()
    click_log.add_arguments(parser)
    with pytest.raises(ValueError, match=" ".join(flags)):
        click_log.run(parser.parse_args(["--out", str(tmp_path / "x.jsonl"), "--policy", "runs/default/grpo", *flags]))


def test_how_a_policy_is_asked_is_not_said_where_there_is_none(tmp_path):
    parser = argparse.ArgumentParser()
    click_log.add_arguments(parser)
    for flags in (["--round", "2"], ["--temperature", "0.5"]):
        with pytest.raises(ValueError, match=f"{flags[0]} is for sampling from a policy"):
            click_log.run(parser.parse_args(["--out", str(tmp_path / "x.jsonl"), *flags]))


def test_a_policy_that_writes_nothing_writes_no_log(tmp_path):
    with pytest.raises(ValueError, match="mute wrote no suggestions in any of 20"):
        write_click_log(tmp_path / "x.jsonl", 20, 20, 0, policy=lambda asked: [None] * len(asked), policy_name="mute")
    assert not (tmp_path / "x.jsonl").exists()


def test_users_are_shown_what_a_cold_start_wrote_and_its_rows_take_turns(tmp_path):
    log, out = tmp_path / "cold.jsonl", tmp_path / "clicks.jsonl"
    conversations = contexts(3, seed=5)
    texts = ["What is it?", "Why is it so?", "How long?"]
    rows = [(0, texts), (0, texts[::-1]), (1, texts)]  # nothing was written under the third
    write_json_lines(
        log,
        [
            {"conversation": conversations[n], "suggestions": some, "clicks": None, "policy": "smollm2+examples@1"}
            for n, some in rows
        ],
    )
    parser = argparse.ArgumentParser()
    click_log.add_arguments(parser)
    flags = ["--out", str(out), "--shown", str(log), "--n_impressions", "12", "--n_contexts", "3", "--seed", "5"]
    click_log.run(parser.parse_args(flags))
    found = written(out)
    assert len(found) == 8 and {row["policy"] for row in found} == {"smollm2+examples@1"}
    assert all(set(row["clicks"]) <= {0, 1} for row in found)
    of_first = [row["suggestions"] for row in found if row["conversation"] == conversations[0]]
    assert of_first == [texts, texts[::-1]] * 2


def test_a_log_to_be_shown_beside_a_policy_or_without_a_row_is_refused(tmp_path):
    parser = argparse.ArgumentParser()
    click_log.add_arguments(parser)
    flags = ["--out", str(tmp_path / "x.jsonl"), "--shown", str(tmp_path / "empty.jsonl")]
    with pytest.raises(ValueError, match="--policy and --shown"):
        click_log.run(parser.parse_args([*flags, "--policy", "runs/default/grpo"]))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="empty.jsonl"):
        click_log.run(parser.parse_args(flags))
