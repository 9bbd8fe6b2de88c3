import json

import polars as pl
import pytest

from openrlhf_qs import cli
from openrlhf_qs.benchmark import log
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.world.click_log import write_click_log


def test_it_prints_rates_exponents_and_a_curve_for_each_format_as_json(capsys, monkeypatch):
    monkeypatch.setattr(log, "N_BASE", 200)
    monkeypatch.setattr(log, "N_CONTEXTS", 60)
    cli.main(["benchmark", "log", "--n_min", "300", "--n_max", "900"])
    result = json.loads(capsys.readouterr().out)
    assert set(result["formats"]) == {"jsonl", "parquet"}
    counts = []
    for found in result["formats"].values():
        assert [point["n_impressions"] for point in found["curve"]] == [300, 900]
        for point in found["curve"]:
            assert point["impressions_per_second"] == pytest.approx(point["n_impressions"] / point["seconds"])
            assert point["peak_memory_mib"] > 0
        assert found["impressions_per_second"] >= result["impressions_per_second"]
        assert found["exponent"] <= result["exponent"]
        counts.append([point["n_pairs"] for point in found["curve"]])
    assert counts[0] == counts[1] and 0 < counts[0][0] < counts[0][1]  # the same log in both


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_repeated_log_is_a_log_of_new_impressions_users_and_conversations(tmp_path, kind):
    write_click_log(tmp_path / "base.jsonl", 50, 20, seed=0)
    base = read_click_log(tmp_path / "base.jsonl")
    log.write_repeated(tmp_path / "base.jsonl", tmp_path / f"log.{kind}", 120)
    repeated = read_click_log(tmp_path / f"log.{kind}")
    assert repeated.height == 120 and repeated["impression_id"].n_unique() == 120
    n_last = base.head(20)["conversation"].n_unique()
    assert repeated["conversation"].n_unique() == 2 * base["conversation"].n_unique() + n_last
    assert repeated["user_id"].n_unique() == 2 * base["user_id"].n_unique() + base.head(20)["user_id"].n_unique()
    assert repeated.head(50)["clicks"].equals(base["clicks"])
    assert repeated.select(pl.col("suggestions").slice(50, 50)).equals(base.select("suggestions"))


def test_sizes_that_cannot_be_are_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "log", "--n_min", "10", "--n_max", "5"])
    assert "give 0 < n_min <= n_max" in capsys.readouterr().err
