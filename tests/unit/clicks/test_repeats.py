import json
import random

import pytest

from openrlhf_qs.clicks.check import check_log
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.clicks.propensity import estimate, examination_propensities
from openrlhf_qs.clicks.repeats import without_repeats
from openrlhf_qs.clicks.shows import shown_counts
from openrlhf_qs.world.click_log import write_click_log


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / "clicks.jsonl"
    write_click_log(path, 2000, 100, seed=0)
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_log_of_people_raises_nothing_of_the_kind(rows, tmp_path):
    found = check_log([written(tmp_path / "log.jsonl", rows)])
    assert found["n_doubles"] == 0 and not any("too many for a person" in sentence for sentence in found["findings"])


def test_rows_that_are_there_twice_are_found_and_can_be_dropped(rows, tmp_path):
    twice = [*rows, *({**row, "impression_id": f"again-{n}"} for n, row in enumerate(rows))]
    path = written(tmp_path / "log.jsonl", twice)
    found = check_log([path])
    assert found["n_doubles"] == 2000
    what = "2,000 rows (50%) are the same as another one except for their id: data --drop_doubles"
    assert any(sentence.startswith(what) for sentence in found["findings"])
    log, dropped = without_repeats(read_click_log(path), drop_doubles=True)
    assert dropped == {"the same row under another id": 2000}
    assert log["impression_id"].to_list() == [row["impression_id"] for row in rows]


def test_rows_that_are_there_twice_look_like_a_chosen_order_and_without_them_it_is_random_again(rows, tmp_path):
    """Many shows that come again are at the place where the suggestion stood, for they are the same ones."""
    twice = [*rows, *({**row, "impression_id": f"again-{n}"} for n, row in enumerate(rows))]
    log = read_click_log(written(tmp_path / "log.jsonl", twice))
    once, _ = without_repeats(log, drop_doubles=True)
    clean, doubled, dropped = (
        estimate(shown_counts(some)) for some in (read_click_log(written(tmp_path / "once.jsonl", rows)), log, once)
    )
    assert clean.order == "random" and doubled.order == "chosen" and dropped.order == "random"
    for name in ("values", "low", "high"):  # sums of the same numbers in another order
        assert getattr(dropped, name) == pytest.approx(getattr(clean, name), rel=1e-9)
    assert dropped.findings == clean.findings


def test_one_user_with_a_fifth_of_the_rows_is_found_and_can_be_capped(rows, tmp_path):
    rng = random.Random(0)
    botted = [{**row, "user_id": "bot", "clicks": [1, 1, 1]} if rng.random() < 0.2 else row for row in rows]
    path = written(tmp_path / "log.jsonl", botted)
    n_bot = sum(row["user_id"] == "bot" for row in botted)
    [sentence] = [one for one in check_log([path])["findings"] if "too many for a person" in one]
    assert f"user 'bot' has {n_bot} rows or more" in sentence and "--max_per_user" in sentence
    log, dropped = without_repeats(read_click_log(path), max_per_user=5)
    assert dropped["beyond --max_per_user"] >= n_bot - 5
    kept = [row["impression_id"] for row in botted if row["user_id"] == "bot"][:5]
    assert log.filter(log["user_id"] == "bot")["impression_id"].to_list() == kept
    assert log["user_id"].value_counts()["count"].max() <= 5


def test_a_bot_moves_examination_and_a_cap_brings_it_back(rows, tmp_path):
    rng = random.Random(0)
    botted = [{**row, "user_id": "bot", "clicks": [1, 1, 1]} if rng.random() < 0.2 else row for row in rows]
    people, all_rows = (
        read_click_log(written(tmp_path / f"{name}.jsonl", some))
        for name, some in (("people", [row for row in botted if row["user_id"] != "bot"]), ("all", botted))
    )
    capped, _ = without_repeats(all_rows, max_per_user=5)
    true, moved, back = (examination_propensities(log, "ctr")[2] for log in (people, all_rows, capped))
    assert moved > true + 0.15 and abs(back - true) < 0.03


def test_rows_without_a_user_are_not_capped_and_a_cap_below_zero_is_refused(rows, tmp_path):
    nobody = [{name: value for name, value in row.items() if name != "user_id"} for row in rows[:50]]
    log = read_click_log(written(tmp_path / "log.jsonl", nobody))
    assert without_repeats(log, max_per_user=1)[0].height == 50
    with pytest.raises(ValueError, match="--max_per_user -1"):
        without_repeats(log, -1)
