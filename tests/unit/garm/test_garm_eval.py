import argparse
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.garm import eval as garm_eval
from openrlhf_qs.garm.calibration import accuracy_by, calibration_metrics
from openrlhf_qs.garm.eval import (
    Scored,
    against_baselines,
    by_log_ppl,
    evaluate_pairs,
    load_on_device,
    position_preference,
    read_pairs,
    score_pairs,
    stress_test,
    verdict,
)
from openrlhf_qs.garm.preference_likelihood import Link
from openrlhf_qs.garm.reward_model import SuggestionScorer
from openrlhf_qs.statistics.clusters import Clusters

TURN = {"role": "user", "content": "How do I bake bread?"}


def scored(probability, label=1.0, weight=1.0, position=np.nan, z=np.nan, difference=None, impression=None):
    n = len(probability)
    columns = [np.broadcast_to(np.asarray(one, dtype=float), n) for one in (label, weight, position, z)]
    return Scored(
        np.asarray(probability, dtype=float),
        np.zeros(n) if difference is None else np.asarray(difference, dtype=float),
        np.ones(n),
        *columns,
        impression or [str(k) for k in range(n)],
        Clusters.of(impression or range(n)),
    )


def row(chosen="Which flour?", rejected="Is it?", weight=1.0, label=1.0, **columns):
    shown = {"conversation": [TURN], "suggestions": [chosen, rejected], "positions": [1, 2]}
    return {"impression_id": "i", **shown, "pairs": [[0, 1, weight, label]]} | columns


def write(folder, *rows):
    write_json_lines(folder / "preferences.jsonl", rows)
    return folder / "preferences.jsonl"


# Against outcomes and against soft labels


def test_outcomes_count_where_they_are_decided_and_significant_ones_apart():
    metrics = evaluate_pairs(scored([0.9, 0.2, 0.7, 0.6], label=[0.9, 0.8, 0.5, 0.6], z=[3, 2.5, 0, 0.3]))
    assert metrics["n_ties"] == 1
    # 0.9 right, 0.2 wrong, 0.6 right; of the two significant ones, one
    assert metrics["observed"]["accuracy"] == pytest.approx(2 / 3) and metrics["observed"]["n_pairs"] == 3
    assert metrics["significant"]["accuracy"] == 0.5 and metrics["significant"]["n_pairs"] == 2


def test_baselines_are_compared_on_the_pairs_that_the_verdict_is_of():
    others = {"linear": np.array([0.9, 0.2, 0.9, 0.9])}
    pairs = {"probability": [0.9, 0.9, 0.2, 0.2], "label": [0.9, 0.8, 0.5, 0.6]}
    assert against_baselines(scored(**pairs), others)["linear"]["accuracy"] == pytest.approx(2 / 3)  # no tie
    significant = against_baselines(scored(**pairs, z=[3, 2.5, 0, 0.3]), others)["linear"]
    assert significant["accuracy"] == 0.5 and significant["accuracy_gain"] == 0.5


def test_against_soft_labels_the_labels_themselves_are_calibrated_and_hard_outcomes_are_not():
    label = np.random.default_rng(0).uniform(0.5, 1, 2000)
    metrics = evaluate_pairs(scored(label, label=label))
    assert metrics["soft"]["ece"] < 1e-9
    assert metrics["soft"]["nll"] == pytest.approx(-np.mean(label * np.log(label) + (1 - label) * np.log(1 - label)))
    assert metrics["observed"]["ece"] > 0.2  # always right, at 75 %


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0, 1)), min_size=1, max_size=20))
def test_turning_pairs_round_changes_no_figure(rows):
    probability, label = np.array(rows).T
    one, other = (
        calibration_metrics(p, np.ones(len(rows)), [str(n) for n in range(len(rows))], n_resamples=2, label=y)
        for p, y in ((probability, label), (1 - probability, 1 - label))
    )
    for name in ("accuracy", "nll", "brier", "ece"):
        assert one[name] == pytest.approx(other[name], abs=1e-9)


def test_an_ece_above_the_limit_is_said_in_words():
    bad = evaluate_pairs(scored(np.full(400, 0.99), label=np.tile([1.0, 1.0], 200)))
    assert "can be used" in verdict(bad)
    assert "a coin's" in verdict(evaluate_pairs(scored(np.tile([0.99, 0.01], 200))))
    timid = evaluate_pairs(scored(np.full(400, 0.6)))  # always right, at .6: an ECE of .4, and better than a coin
    assert "cannot be trusted" in verdict(timid)


def test_some_of_the_pairs_keep_all_that_is_known_of_each():
    clusters = Clusters.of(["x", "x", "y"], ["u", "v", "w"])
    scored = garm_eval.Scored(*np.arange(21.0).reshape(7, 3), ["a", "b", "c"], clusters)
    some = scored.take(np.array([2, 0]))
    assert some.impression == ["c", "a"] and len(some.clusters) == 2
    assert [column.tolist() for column in some[:7]] == [[3 * n + 2, 3 * n] for n in range(7)]


def test_pairs_that_are_all_alike_are_an_error():
    with pytest.raises(ValueError, match="every pair has the label 0.5"):
        evaluate_pairs(scored([0.5, 0.6], label=0.5))


# Accuracy by something


def test_groups_are_of_equal_size_and_rise():
    value = np.array([3.0, 1.0, 2.0, 4.0])
    groups = accuracy_by(value, np.array([0.9, 0.1, 0.9, 0.9]), np.ones(4), n_groups=2)
    assert [(g["lower"], g["upper"], g["accuracy"], g["n_pairs"]) for g in groups] == [(1, 2, 0.5, 2), (3, 4, 1, 2)]


def test_accuracy_that_falls_with_perplexity_is_seen_and_one_that_does_not_is_not():
    rng = np.random.default_rng(0)
    log_ppl = rng.uniform(1, 5, 3000)
    falling = np.where(rng.random(3000) < 1 - 0.1 * log_ppl, 0.9, 0.1)
    found = by_log_ppl(scored(falling), log_ppl)
    assert found["falls"] and found["slope"] == pytest.approx(-0.1, abs=0.03)
    assert len(found["bins"]) == 10
    assert not by_log_ppl(scored(np.where(rng.random(3000) < 0.7, 0.9, 0.1)), log_ppl)["falls"]


# Position


def log_of(n, position_effect, seed=0):
    """Suggestions in random order with utilities u; what stands higher is chosen more, the model adds its own bias."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, n))
    gap = rng.integers(1, 3, n)
    chosen_first = rng.random(n) < ndtr(first - second + 0.5 * gap)
    sign = np.where(chosen_first, 1, -1)
    difference = (first - second + position_effect * gap) * sign
    return scored(ndtr(difference), position=-gap * sign, difference=difference)


def test_a_model_that_prefers_the_first_is_found_out():
    fair, biased = (position_preference(log_of(20_000, effect)) for effect in (0.0, 0.4))
    assert biased["slope"] - fair["slope"] == pytest.approx(0.4, abs=1e-9)  # least squares is linear in what is added
    assert biased["slope_ci95"][0] > fair["slope_ci95"][1]
    assert biased["win_rate_first"] > fair["win_rate_first"]


def test_without_any_influence_of_the_place_nothing_is_found():
    rng = np.random.default_rng(0)
    difference = rng.standard_normal(20_000) + 1
    sign = rng.choice([-1, 1], 20_000)
    found = position_preference(scored(ndtr(difference), position=sign, difference=difference))
    assert found["slope_ci95"][0] < 0 < found["slope_ci95"][1]
    assert found["win_rate_first"] == pytest.approx(0.5, abs=0.01)


def test_where_only_first_ones_were_chosen_nothing_can_be_said():
    found = position_preference(scored([0.9, 0.8], position=[-1, -2], difference=[1, 1]))
    assert found["slope"] is None and found["chosen_first"] == 1


def test_without_positions_there_is_no_diagnosis():
    assert "position" not in evaluate_pairs(scored([0.9, 0.8]))


# Stress


@pytest.mark.parametrize("link", [link for link in Link.__args__ if link != "dpl"])
def test_the_closed_form_agrees_with_draws_and_stays_finite(link):
    found = stress_test(link, n_draws=20_000)
    approximation = {"mackay": 0.017, "probit_logistic": 0.0096}.get(link, 0)
    assert found["max_error"] < found["sampling_error"] + approximation
    assert found["finite"] and found["n_points"] == 11 * 5 * 5


def test_the_logistic_stand_in_of_dpl_is_found_to_be_off():
    found = stress_test("dpl", n_draws=20_000)
    assert 0.05 < found["max_error"] < 0.11


# The command


def test_a_pair_whose_label_is_below_one_half_is_turned(tmp_path):
    rows, pairs = read_pairs(write(tmp_path, row("a", "b", label=0.3), row("c", "d")))
    assert (pairs.chosen.tolist(), pairs.rejected.tolist(), pairs.label.tolist()) == ([1, 0], [0, 1], [0.7, 1.0])
    assert pairs.row.tolist() == [0, 1] and len(rows) == 2


def test_a_file_without_a_pair_and_a_bad_row_are_named(tmp_path):
    with pytest.raises(ValueError, match="preferences.jsonl: no pair in its 1 rows"):
        read_pairs(write(tmp_path, row(pairs=[])))
    with pytest.raises(ValueError, match="preferences.jsonl:2: pair 1: label 1.5"):
        read_pairs(write(tmp_path, row(), row(label=1.5)))


def test_a_pair_is_scored_as_its_two_suggestions_are(tmp_path, write_small_garm):
    model = write_small_garm()
    rows, pairs = read_pairs(write(tmp_path, row(), row("Why salt?", "Which flour?", z=[-2.5])))
    scorer = load_on_device(model)
    found, link = score_pairs(rows, pairs, scorer), scorer.link
    texts = ["Which flour?", "Why salt?", "Is it?", "Which flour?"]
    mean, std, _ = SuggestionScorer(model)([[TURN]] * 4, texts)
    np.testing.assert_allclose(found.difference, mean[:2] - mean[2:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.probability, ndtr((mean[:2] - mean[2:]) / np.hypot(std[:2], std[2:])), atol=1e-5)
    assert link == "probit" and found.position.tolist() == [-1, -1]
    np.testing.assert_array_equal(found.z, [np.nan, 2.5])


def test_pairs_hang_together_by_conversation_and_without_one_by_impression(tmp_path):
    later = [TURN, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And then?"}]
    rows, pairs = read_pairs(
        write(
            tmp_path,
            row(impression_id="a"),
            row(impression_id="b", conversation=later),
            row(impression_id="c", conversation=[]),
            row(impression_id="d", conversation=[], user_id="u"),
        )
    )

    def scorer(conversations, suggestions):
        return np.array([[float(len(text)), 1.0, 0.0] for text in suggestions]).T

    scorer.link = "probit"
    found = score_pairs(rows, pairs, scorer)
    assert found.impression == ["a", "b", "c", "d"]
    assert [number.tolist() for number in found.clusters.numbers] == [[0, 0, 1, 2]]
    rows[2]["user_id"] = rows[0]["user_id"] = "u"
    one, other = score_pairs(rows, pairs, scorer).clusters.numbers
    assert (one.tolist(), other.tolist()) == ([0, 0, 1, 2], [0, 1, 0, 0])


def test_the_same_suggestion_is_scored_once_under_each_conversation(tmp_path):
    asked = []

    def scorer(conversations, suggestions):
        asked.extend(
            (conversation[0]["content"], text) for conversation, text in zip(conversations, suggestions, strict=True)
        )
        return np.array([[float(len(text)), 1.0, 0.0] for text in suggestions]).T

    other = [{"role": "user", "content": "And cake?"}]
    scorer.link = "probit"
    rows, pairs = read_pairs(write(tmp_path, row("a", "bb"), row("bb", "a"), row("a", "bb", conversation=other)))
    found = score_pairs(rows, pairs, scorer)
    assert found.difference.tolist() == [-1, 1, -1] and len(asked) == len(set(asked)) == 4


def test_the_command_writes_figures_and_plots_and_shows_a_table(tmp_path, write_small_garm, capsys):
    texts = [f"Which flour is number {n}?" for n in range(12)]
    rows = [
        row(a, b, label=0.8, z=[2.5], impression_id=str(n), positions=[1 + n % 2, 2 - n % 2])
        for n, (a, b) in enumerate(zip(texts, texts[1:], strict=False))
    ]
    parser = argparse.ArgumentParser()
    garm_eval.add_arguments(parser)
    argv = [write(tmp_path, *rows), "--model", write_small_garm(), "--out", tmp_path / "m.json", "--plots", tmp_path]
    garm_eval.run(parser.parse_args([str(one) for one in argv]))
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert {"observed", "significant", "soft", "position", "stress", "std", "verdict"} <= metrics.keys()
    assert metrics["significant"]["n_pairs"] == 11
    assert {"reliability.svg", "confidence.svg"} <= {file.name for file in tmp_path.iterdir()}
    assert "Stress test" in capsys.readouterr().out


def test_an_odd_number_of_bins_is_refused(tmp_path):
    args = argparse.Namespace(n_bins=15, plugin=[], preferences="", model="")
    with pytest.raises(ValueError, match="give an even number"):
        garm_eval.run(args)
