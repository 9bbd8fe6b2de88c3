import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_qs import cli
from openrlhf_qs.clicks import batches as log_batches
from openrlhf_qs.clicks import check as log_check
from openrlhf_qs.clicks.check import SpilledHashes, check_log
from openrlhf_qs.clicks.click_log import describe, read_click_log
from openrlhf_qs.clicks.preferences import preferences
from openrlhf_qs.clicks.propensity import estimate
from openrlhf_qs.clicks.shows import shown_counts


def test_the_description_is_that_of_the_log_read_whole(tiny_log, monkeypatch):
    monkeypatch.setattr(log_batches, "BATCH_BYTES", 2000)  # several batches
    found, log = check_log([tiny_log]), read_click_log(tiny_log)
    whole = describe(log)
    for name in ("n_impressions", "n_conversations", "n_clicks", "clicked_share", "ctr", "first", "last"):
        assert found[name] == pytest.approx(whole[name]) if name == "ctr" else found[name] == whole[name], name
    assert {name: one["n_impressions"] for name, one in found["policies"].items()} == whole["policies"]
    assert [place["ctr"] for place in found["positions"]] == whole["ctr_by_position"]
    assert found["n_pairs"] == preferences(log, "all")["pairs"].list.len().sum()
    assert sum(found["n_suggestions"].values()) == sum(found["n_turns"].values()) == log.height
    assert [place["examination"] for place in found["positions"]] == estimate(shown_counts(log)).values
    assert found["n_users"] == 7 and found["n_repeating"] == 0 and found["skipped"] == {}
    clicked = np.array([place["n_clicked"] for place in found["positions"]])
    share = clicked / clicked.sum()
    assert found["click_entropy"] == pytest.approx(-(share * np.log2(share)).sum())


@pytest.mark.parametrize("n_rows", [1, 30])
def test_a_log_whose_rows_show_one_text_three_times_is_described(tiny_log_rows, tmp_path, n_rows):
    path = tmp_path / "same.jsonl"
    rows = [row | {"suggestions": row["suggestions"][:1] * 3} for row in tiny_log_rows[:n_rows]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = check_log([path])
    assert [place["examination"] for place in found["positions"]] == [1.0, 1.0, 1.0]
    assert any("position 2, 3 is empty or only repeats what is shown above" in one for one in found["findings"])


def test_a_log_without_rows_is_refused_in_words(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="empty.jsonl: it has no rows; give a click log, one impression per row"):
        check_log([tmp_path / "empty.jsonl"])


def test_a_glob_that_matches_a_folder_names_it(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match="folder.jsonl: is a folder; give a click log"):
        check_log([tmp_path / "f*.jsonl"])


def test_bad_rows_of_any_batch_are_named_or_counted(tiny_log, tiny_log_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(log_batches, "BATCH_BYTES", 2000)
    bad = [*tiny_log_rows, {**tiny_log_rows[0], "impression_id": "new", "clicks": []}, tiny_log_rows[4]]
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in bad))
    with pytest.raises(ValueError) as error:
        check_log([path])
    assert str(error.value).splitlines() == [
        f"{path}:31: 0 clicks for 3 suggestions; give one 0/1 per suggestion",
        f"{path}:32: impression_id already used in line 5; give each impression its own",
    ]
    assert check_log([path], "skip")["skipped"] == {"wrong number of clicks": 1, "impression_id seen before": 1}
    with pytest.raises(ValueError) as again:
        read_click_log(path)
    assert str(again.value) == str(error.value)


def test_ids_are_compared_between_files_and_gzip_may_be_damaged(tiny_log, tmp_path):
    zipped = tmp_path / "again.jsonl.gz"
    zipped.write_bytes(gzip.compress(tiny_log.read_bytes())[:-4])
    with pytest.raises(ValueError) as error:
        check_log([tiny_log, zipped])
    first, second, *_ = str(error.value).splitlines()
    assert first.startswith(f"{zipped}: damaged gzip (") and first.endswith("copy it again")
    assert second == f"{zipped}:1: impression_id already used in line 1 of {tiny_log}; give each impression its own"
    assert check_log([tiny_log, zipped], "skip")["skipped"] == {"damaged gzip": 1, "impression_id seen before": 30}


def test_the_sample_of_the_conversations_stays_small(tiny_log, monkeypatch):
    whole = check_log([tiny_log])
    monkeypatch.setattr(log_check, "MAX_COUNTS", 40)
    part = check_log([tiny_log])
    assert part["positions"][1]["examination"] != whole["positions"][1]["examination"]
    assert part["positions"][1]["ctr"] == whole["positions"][1]["ctr"]


def test_a_propensity_that_cannot_be_had_is_said_not_raised(tiny_log_rows, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny_log_rows[:1]))
    found = check_log([path], propensity="harvest")
    assert found["propensity"].startswith("harvest: no clicks on suggestions that were shown both at the top and")
    assert found["positions"][0]["examination"] is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 20))
def test_spilled_numbers_are_compared_as_in_memory(numbers, at_once):
    hashes = SpilledHashes()
    for start in range(0, len(numbers), 7):
        hashes.add(np.array(numbers[start : start + 7], dtype=np.uint64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_check, "MAX_HASHES", at_once)
        assert hashes.n_distinct() == len(set(numbers))
        first = {number: numbers.index(number) for number in numbers}
        assert hashes.repeated() == [(row, first[n]) for row, n in enumerate(numbers) if first[n] != row]
    assert [hashes[row] for row in range(len(numbers))] == numbers


def test_the_command_prints_a_table_or_json(tiny_log, capsys):
    cli.main(["log", "check", str(tiny_log)])
    shown = capsys.readouterr().out
    assert "impressions" in shown and "position 3" in shown and "before" in shown
    cli.main(["log", "check", str(tiny_log), "--json"])
    assert json.loads(capsys.readouterr().out)["n_impressions"] == 30
