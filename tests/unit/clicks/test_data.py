import argparse
import json

import numpy as np
import polars as pl
import pytest
from datasets import load_dataset

from openrlhf_qs.benchmark.propensities import Kind, simulated
from openrlhf_qs.clicks import data
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.form.keys import conversation_keys
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import SUGGEST

FILES = {
    "sft.jsonl",
    "preferences.jsonl",
    "preferences.calibration.jsonl",
    "preferences.heldout.jsonl",
    "prompts.jsonl",
    "fusion.jsonl",
    "heldout.jsonl",
    "log.json",
}


def run(log, out, *flags):
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    data.run(parser.parse_args(["--log", str(log), "--out", str(out), *flags]))
    return {name: read_json_lines(out / name) for name in FILES}


def conversations(rows):
    return {json.dumps(row["conversation"]) for row in rows}


def test_every_file_is_written_and_log_json_counts_it(tiny_log, tmp_path, capsys):
    files = run(tiny_log, tmp_path / "data")
    assert {path.name for path in (tmp_path / "data").iterdir()} == FILES
    (log,) = files.pop("log.json")
    assert log["written"] == {name: len(rows) for name, rows in files.items()}
    assert log["log"]["n_impressions"] == 30 and len(log["propensities"]) == 3
    assert sum(split["n_impressions"] for split in log["splits"].values()) == 30
    assert log["splits"]["train"]["n_impressions"] == len(files["preferences.jsonl"])
    assert log["n_pairs"]["preferences.jsonl"] == sum(len(row["pairs"]) for row in files["preferences.jsonl"]) > 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in log["written"])


def test_no_conversation_of_training_is_in_the_fusion_or_heldout_files(tiny_log, tmp_path):
    files = run(tiny_log, tmp_path)
    train = {json.dumps(row["prompt"][:-1]) for row in files["prompts.jsonl"]}
    trained_on = conversations(files["preferences.jsonl"]) | conversations(files["sft.jsonl"])
    heldout, fusion = conversations(files["heldout.jsonl"]), conversations(files["fusion.jsonl"])
    assert trained_on <= train
    assert not train & heldout and not train & fusion and not heldout & fusion
    assert conversations(files["preferences.heldout.jsonl"]) == heldout
    assert train | heldout | fusion == conversations(read_json_lines(tiny_log))


def test_a_prompt_carries_its_conversation_and_is_there_once(tiny_log, tmp_path):
    rows = run(tiny_log, tmp_path)["prompts.jsonl"]
    assert len({row["label"] for row in rows}) == len(rows)
    for row in rows:
        assert row["prompt"] == SUGGEST.messages(Request.of_label(row["label"]).conversation)


def test_preferences_are_the_impressions_with_their_users_and_pairs_of_different_suggestions(tiny_log, tmp_path):
    logged = {row["impression_id"]: row for row in read_json_lines(tiny_log)}
    for row in run(tiny_log, tmp_path)["preferences.jsonl"]:
        for name in ("conversation", "user_id", "suggestions", "clicks"):
            assert row[name] == logged[row["impression_id"]][name]
        for chosen, rejected, *_ in row["pairs"]:
            assert row["clicks"][chosen] > row["clicks"][rejected]


def test_the_split_files_are_click_logs(tiny_log, tmp_path):
    files = run(tiny_log, tmp_path / "data")
    whole = read_click_log(tiny_log)
    for name in ("heldout.jsonl", "fusion.jsonl"):
        part = read_click_log(tmp_path / "data" / name)
        assert part.equals(whole.filter(whole["impression_id"].is_in(part["impression_id"].to_list())))
        assert part.height == len(files[name])


def test_the_files_load_as_openrlhf_loads_them(tiny_log, tmp_path):
    files = run(tiny_log, tmp_path / "data")
    for name in ("preferences.jsonl", "prompts.jsonl", "sft.jsonl"):
        path = str(tmp_path / "data" / name)
        loaded = load_dataset("json", data_files=path, cache_dir=str(tmp_path / "cache"))["train"]
        assert loaded.to_list() == files[name]


def test_the_same_seed_gives_the_same_files_and_another_seed_another_split(tiny_log, tmp_path):
    first = run(tiny_log, tmp_path / "1")
    assert run(tiny_log, tmp_path / "2") == first
    assert conversations(run(tiny_log, tmp_path / "3", "--seed", "2")["heldout.jsonl"]) != conversations(
        first["heldout.jsonl"]
    )


def test_the_position_policy_reaches_the_pairs(tiny_log, tmp_path):
    rows = run(tiny_log, tmp_path, "--position_policy", "skip_above")["preferences.jsonl"]
    assert all(rejected < chosen for row in rows for chosen, rejected, *_ in row["pairs"])


def test_a_split_without_a_click_is_refused_before_anything_is_written(tiny_log, tmp_path):
    with pytest.raises(ValueError, match="no click in the fusion split, 0 impressions; 12 conversations in all"):
        run(tiny_log, tmp_path / "data", "--fusion_share", "0")
    assert not (tmp_path / "data").exists()


def test_the_fixture_has_the_size_that_tests_rely_on(tiny_log):
    log = read_click_log(tiny_log)
    assert log.height == 30 and conversation_keys(log["conversation"]).n_unique() == 12


def test_several_files_and_bad_rows_are_taken_as_the_flags_say(tiny_log, tiny_log_rows, tmp_path):
    more = tmp_path / "more.jsonl"
    bad = {**tiny_log_rows[0], "impression_id": "bad", "clicks": [1]}
    more.write_text("".join(json.dumps(row) + "\n" for row in ({**tiny_log_rows[1], "impression_id": "new"}, bad)))
    with pytest.raises(ValueError, match=f"{more}:2: 1 clicks for 3 suggestions"):
        run(tiny_log, tmp_path / "data", "--log", str(tiny_log), str(more))
    assert not (tmp_path / "data").exists()
    flags = ("--log", str(tiny_log), str(more), "--on_error", "skip")
    (log,) = run(tiny_log, tmp_path / "data", *flags)["log.json"]
    assert log["log"]["n_impressions"] == 31 and log["skipped"] == {"wrong number of clicks": 1}


@pytest.mark.parametrize("split", ["user", "time"])
def test_other_splits_share_no_conversation(tiny_log, tmp_path, split):
    flags = ("--split", split, "--heldout_share", "0.3", "--fusion_share", "0.3", "--seed", "1")
    if split == "time":
        flags += ("--time_cuts", "2025-03-25T00:00:00Z", "2025-03-28")
    files = run(tiny_log, tmp_path / "data", *flags)
    heldout, fusion = conversations(files["heldout.jsonl"]), conversations(files["fusion.jsonl"])
    train = {json.dumps(row["prompt"][:-1]) for row in files["prompts.jsonl"]}
    assert not train & heldout and not train & fusion and not heldout & fusion
    assert files["log.json"][0]["conversations_over_two_splits"] > 0


def test_pairs_can_come_from_click_rates(tiny_log, tmp_path):
    files = run(tiny_log, tmp_path, "--pairs_from", "click_rates", "--heldout_share", "0.4")
    assert all(0.5 < label < 1 for row in files["preferences.jsonl"] for *_, label in row["pairs"])
    assert len(files["preferences.jsonl"]) == files["log.json"][0]["splits"]["train"]["n_conversations"]


def test_all_that_is_made_of_a_ranked_log_counts_by_how_much_places_are_looked_at(tmp_path):
    one = simulated(Kind("pbm", 1.0, 300, n_impressions=12_000), seed=0)
    file = tmp_path / "ranked.parquet"
    one.log().with_columns(timestamp=pl.lit("2025-01-01T00:00:00Z")).write_parquet(file)
    files = run(file, tmp_path / "data")
    (log,) = files["log.json"]
    assert log["propensity"] == "pbm" and log["propensities"] == pytest.approx([1, 0.75, 0.55], abs=0.08)
    assert all(row["examination"] == pytest.approx(log["propensities"]) for row in files["preferences.jsonl"])
    # of the candidates that SFT learns from, what is better counts more, and where it stood counts nothing
    appeal = dict(zip(one.shown.ravel().tolist(), one.appeal.ravel().tolist(), strict=True))
    stood = np.bincount(one.shown.ravel(), np.tile(np.arange(3), len(one.shown)))
    stood = stood / np.maximum(np.bincount(one.shown.ravel()), 1)
    numbers, weights = zip(
        *((int(c["text"].split()[1]), c["weight"]) for row in files["sft.jsonl"] for c in row["candidates"]),
        strict=True,
    )
    x = np.stack([np.ones(len(numbers)), [appeal[n] for n in numbers], stood[list(numbers)]], axis=1)
    _, of_appeal, of_place = np.linalg.lstsq(x, np.log(weights), rcond=None)[0]
    assert of_appeal > 0.3 and abs(of_place) < 0.15
