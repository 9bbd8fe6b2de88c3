import math

import numpy as np
import pytest

from openrlhf_qs.clicks.preferences import PRIOR_SHOWS
from openrlhf_qs.sft.candidates import Ledger, log_quality, read_candidates

ALL = {"clicks": 1.0, "log_prob": 1.0, "garm": 1.0}


def rows(*candidates_of_each):
    return [{"conversation": [], "candidates": list(candidates)} for candidates in candidates_of_each]


def test_rows_become_flat_arrays_with_nan_for_what_is_not_there():
    found = read_candidates(
        rows([{"text": "a", "log_prob": -1}, {"text": "b", "log_prob": None}], [], [{"text": "c"}])
    )
    assert found.n_rows == 3 and found.texts == ["a", "b", "c"] and found.row.tolist() == [0, 0, 2]
    np.testing.assert_array_equal(found.numbers["log_prob"], [-1, math.nan, math.nan])


@pytest.mark.parametrize(
    "row, message",
    [
        ({"conversation": []}, "row 2 has no list of candidates"),
        ({"candidates": [{"words": "a"}]}, "row 2: candidate .* has no text"),
        ({"candidates": [{"text": None}]}, "row 2: candidate .* has no text"),
        ({"candidates": [{"text": "a", "log_prob": "low"}]}, "row 2: log_prob 'low' is not a number"),
        ({"candidates": [{"text": "a", "log_prob": [1, 2]}]}, r"row 2: log_prob '\[1, 2\]' is not a number"),
        ({"candidates": [{"text": "a", "garm_mean": math.inf}]}, "row 2: garm_mean inf is not finite"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        read_candidates([*rows([{"text": "a"}]), row])


def test_the_weight_of_the_log_is_the_click_rate_and_else_it_is_smoothed():
    counted = read_candidates(
        rows([{"text": "a", "n_shown": 3, "n_clicked": 1}, {"text": "b", "n_shown": 1, "n_clicked": 1}])
    )
    # 2 clicks in 4 shows: five more shows at 1/2 for each
    expected = [(1 + PRIOR_SHOWS / 2) / (3 + PRIOR_SHOWS), (1 + PRIOR_SHOWS / 2) / (1 + PRIOR_SHOWS)]
    np.testing.assert_allclose(counted.click_rate, expected)
    weighed = read_candidates(rows([{"text": "a", "n_shown": 3, "n_clicked": 1, "weight": 0.2}]))
    assert weighed.click_rate.tolist() == [0.2]


def test_quality_adds_what_there_is_in_logarithms():
    found = read_candidates(
        rows([{"text": "a", "weight": 0.4, "log_prob": -1.0}, {"text": "b", "weight": 0.1, "log_prob": -2.0}])
    )
    a, b = log_quality(found, ALL)
    assert a - b == pytest.approx(math.log(4) + 1)
    a, b = log_quality(found, ALL | {"clicks": 0.5, "log_prob": 0.0})
    assert a - b == pytest.approx(math.log(2))


def test_what_one_candidate_lacks_is_the_mean_of_its_row_or_of_the_file():
    found = read_candidates(
        rows(
            [{"text": "a", "log_prob": -1.0}, {"text": "b", "log_prob": -3.0}, {"text": "c"}],
            [{"text": "d"}],
            [{"text": "e", "log_prob": -8.0}],
        )
    )
    assert log_quality(found, ALL).tolist() == [-1, -3, -2, -4, -8]


def test_a_file_in_which_nothing_speaks_for_any_candidate_is_refused():
    with pytest.raises(ValueError, match="nothing shows which suggestions are good"):
        log_quality(read_candidates(rows([{"text": "a"}])), ALL)
    assert log_quality(read_candidates(rows([], [])), ALL).tolist() == []


def test_the_ledger_counts_every_candidate_once_and_shows_examples():
    ledger = Ledger(read_candidates(rows([{"text": "a"}, {"text": "b" * 90}], [{"text": "half \ud83c"}])))
    ledger.mark([1], "duplicate", 0)
    ledger.mark([2], "broken character")
    ledger.rows[:] = ["assembled", "no click"]
    assert ledger.open().tolist() == [0]
    report = ledger.report()
    assert report["rows"] == {"assembled": 1, "no click": 1}
    assert report["candidates"] == {"not needed": 1, "duplicate": 1, "broken character": 1}
    assert report["examples"]["duplicate"] == [{"row": 1, "text": "b" * 79 + "…", "because_of": "a"}]
    assert report["examples"]["broken character"] == [{"row": 2, "text": "half ?"}]
