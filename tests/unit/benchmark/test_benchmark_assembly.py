import json

import pytest

from openrlhf_qs import cli
from openrlhf_qs.benchmark.assembly import candidate_rows, judged
from openrlhf_qs.world.click_log import contexts


def test_it_prints_the_curve_and_its_exponent_as_json(capsys):
    cli.main(["benchmark", "assembly", "--n_contexts", "20,60", "--n_candidates", "5"])
    result = json.loads(capsys.readouterr().out)
    assert [point["n_contexts"] for point in result["curve"]] == [20, 60]
    for point in result["curve"]:
        assert 0 < point["n_assembled"] <= point["n_contexts"]
        assert point["contexts_per_second"] == pytest.approx(point["n_contexts"] / point["seconds"], rel=0.5)
        assert point["peak_memory_gib"] >= point["peak_memory_before_gib"] > 0
    assert isinstance(result["exponent"], float)


def test_candidates_are_the_same_for_a_seed():
    rows = list(candidate_rows(5, 16, seed=0))
    assert rows == list(candidate_rows(5, 16, seed=0)) != list(candidate_rows(5, 16, seed=1))
    assert [len(row["candidates"]) for row in rows] == [16] * 5


def test_two_that_say_the_same_are_counted_and_the_second_is_not_clicked():
    (conversation,) = contexts(1, seed=3)
    rows = [{"conversation": conversation}] * 3
    once = ["How do I learn more?", "Is chess expensive?", "What are the risks of sailing?"]
    found = judged(rows, [once, [once[1], once[2], "Is chess expensive?"], None], seed=0)
    assert found["kept"] == pytest.approx(2 / 3, abs=1e-3) and found["same_meaning"] == 0.5
    twice = judged(rows[:1], [["Is chess expensive?"] * 3], seed=0)
    assert twice["same_meaning"] == 1 and 0 < twice["clicks"] <= judged(rows[:1], [once], seed=0)["clicks"] * 3
