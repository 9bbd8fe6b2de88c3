"""``benchmark frozen-backbone``: what is fitted on a layer's states, and on which pairs."""

import argparse

import numpy as np
import pytest

from openrlhf_qs.benchmark import frozen_backbone
from openrlhf_qs.benchmark.frozen_backbone import FORMS, evenly, fitted, mean_cosine, prepared
from openrlhf_qs.clicks.preferences import Pairs, all_pairs
from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.garm.baselines import differences


def rows_of(n: int, *pairs, **values) -> list[dict]:
    shown = [f"suggestion {k}" for k in range(3)]
    conversations = [[{"role": "user", "content": f"question {k}"}] for k in range(n)]
    return [
        {
            "impression_id": str(k),
            "conversation": one,
            "suggestions": shown,
            "pairs": [list(p) for p in pairs],
            **values,
        }
        for k, one in enumerate(conversations)
    ]


def test_the_mean_cosine_is_that_of_rows_that_differ():
    # (1, 0), (0, 1), (1, 0): 0, 1 and 0
    assert mean_cosine(np.array([[2.0, 0], [0, 5], [1, 0]])) == pytest.approx(1 / 3)


def test_layers_are_five_up_to_the_last_and_no_more_than_there_are():
    assert evenly(30) == [6, 12, 18, 24, 30] and evenly(2) == [1, 2] and evenly(6)[-1] == 6


def test_a_difference_is_the_chosen_less_the_rejected_of_its_row():
    rows = rows_of(2, (2, 0, 1.0, 1.0))
    found = differences(np.arange(6.0)[:, None] ** 2, rows, all_pairs(rows))
    assert found.tolist() == [[4.0], [16.0]]  # 4 - 0, 25 - 9


@pytest.mark.parametrize("form", FORMS)
def test_what_states_hold_is_found_beside_a_large_common_part_and_noise_is_not(form):
    rng = np.random.default_rng(0)
    rows = rows_of(200, (0, 1, 1.0, 1.0), (2, 1, 1.0, 1.0), (0, 2, 1.0, 1.0))
    liked = np.tile([2.0, 0.0, 1.0], 200)
    states = rng.normal(size=(600, 8))
    states[:, 0] += liked
    pairs, common = all_pairs(rows), 20 * np.ones(8)  # cosines of .99

    def probability(x: np.ndarray) -> np.ndarray:
        difference = differences(prepared(x + common, x[:300] + common, form), rows, pairs)
        half = Pairs(*(column[:300] for column in pairs))
        return fitted(difference[:300], rows, half, difference[300:])

    assert mean_cosine(states + common) > 0.97
    assert (probability(states) > 0.5).mean() > 0.7
    assert abs((probability(rng.normal(size=(600, 8))) > 0.5).mean() - 0.5) < 0.12


def test_nothing_of_the_test_is_in_what_is_taken_off():
    x = np.arange(12.0).reshape(4, 3) ** 2
    changed = x.copy()
    changed[3] = 99
    for form in FORMS:
        same = prepared(x, x[:3], form)[:3], prepared(changed, x[:3], form)[:3]
        np.testing.assert_array_equal(*same)


def test_it_reads_a_backbone_and_says_how_it_does(tmp_path, write_small_garm, capsys):
    files = [str(tmp_path / "train.jsonl"), str(tmp_path / "heldout.jsonl")]
    for file in files:
        write_json_lines(file, rows_of(30, (0, 1, 1.0, 1.0), (2, 1, 1.0, 0.8), z=[2.5, 1.0]))
    parser = argparse.ArgumentParser()
    frozen_backbone.add_arguments(parser)
    folder = str(write_small_garm("gaussian"))
    frozen_backbone.run(parser.parse_args([*files, "--model", folder]))
    said = capsys.readouterr().out
    assert "60 pairs, learned from 60" in " ".join(said.split()) and "to read 180 suggestions" in said
    frozen_backbone.run(parser.parse_args([*files, "--model", folder, "--significant"]))
    assert "30 pairs, learned from 60" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="--layers 99: .* has 0 to"):
        frozen_backbone.run(parser.parse_args([*files, "--model", folder, "--layers", "99"]))
