import argparse
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import ndtr

from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.garm import calibrate as garm_calibrate
from openrlhf_qs.garm.calibrate import (
    PRIOR_STD,
    drawn_to_one,
    fit_scale,
    rescale_means,
    scale_uncertainty,
    significant_outcomes,
)
from openrlhf_qs.garm.eval import Scored
from openrlhf_qs.garm.reward_model import SuggestionScorer
from openrlhf_qs.registry import REWARD_MODELS
from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import Z_95

TEXTS = ["Which flour?", "Why salt?", "How long does the dough rest?"]


def pairs_of(difference, label, z=np.nan):
    n = len(difference)
    ones, nothing = np.ones(n), np.full(n, np.nan)
    names = [str(k) for k in range(n)]
    return Scored(ones / 2, difference, ones, label, ones, nothing, np.broadcast_to(z, n), names, Clusters.of(names))


def test_the_factor_that_spoilt_the_means_is_found_again():
    truth = np.random.default_rng(0).normal(size=2000)
    scale = fit_scale(pairs_of(truth / 2.5, ndtr(truth)), "probit")
    assert scale == pytest.approx(2.5, rel=1e-3)


def test_the_interval_of_the_factor_covers_the_truth_and_pairs_told_again_do_not_narrow_it():
    inside, n_logs = 0, 100
    for seed in range(n_logs):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=300)
        data = pairs_of(truth / 2.5, (rng.random(300) < ndtr(truth)).astype(float))
        scale = fit_scale(data, "probit")
        factor = scale_uncertainty(data, "probit", scale)
        inside += scale / factor < 2.5 < scale * factor
        again = data._replace(**{name: np.repeat(getattr(data, name), 4) for name in data._fields[:-2]})
        again = again._replace(clusters=Clusters.of(np.repeat(range(300), 4)))
        assert scale_uncertainty(again, "probit", scale) == pytest.approx(factor, rel=1e-3)
    assert inside >= 88  # 95 % of 100, with a standard deviation of 2.2


@pytest.fixture
def calibrated(tmp_path, write_small_garm, capsys):
    """Calibrates a small model on ``n`` pairs, in ``n_right`` of which it is right; the model's folder, the weights it
    had, and what was printed."""

    def run(n, n_right):
        folder, texts = write_small_garm(), ["Which flour?", "Why salt?"]
        mean, *_ = SuggestionScorer(folder)([[]] * 2, texts)
        better = int(mean[1] > mean[0])  # of this model
        rows = [
            {"impression_id": str(k), "conversation": [], "suggestions": texts, "pairs": [[*order, 1.0, 1.0]]}
            for k, order in enumerate([(better, 1 - better)] * n_right + [(1 - better, better)] * (n - n_right))
        ]
        write_json_lines(tmp_path / "f.jsonl", rows)
        before = (folder / "model.safetensors").read_bytes()
        parser = argparse.ArgumentParser()
        garm_calibrate.add_arguments(parser)
        garm_calibrate.run(parser.parse_args([str(tmp_path / "f.jsonl"), "--model", str(folder)]))
        return folder, before, " ".join(capsys.readouterr().out.split())

    return run


def test_five_pairs_leave_the_temperature_at_1(calibrated):
    folder, before, said = calibrated(5, 3)
    assert "5 conversations or users are too few to fit a temperature: it is left at 1" in said
    assert "accuracy on 5 pairs that it was not trained on: 60.0%" in said and "60.0% (" not in said  # no interval
    assert (folder / "model.safetensors").read_bytes() == before


def test_thirty_pairs_move_the_temperature_part_of_the_way(calibrated):
    folder, _, said = calibrated(30, 18)
    [alone] = re.findall(r"do not determine the temperature: on them alone it is ([\d.]+),", said)
    taken = json.loads((folder / "config.json").read_text())["mean_scale"]
    assert min(1, float(alone)) < taken < max(1, float(alone))
    assert "accuracy on 30 pairs that it was not trained on: 60.0% (" in said


@pytest.mark.parametrize("n", [20, 40, 80, 10_000])
def test_under_the_prior_a_temperature_is_nearer_to_the_truth_on_average(n):
    """Truths as the prior has them, told by pairs whose standard error is 4 over the root of their number."""
    rng = np.random.default_rng(n)
    truth = rng.normal(scale=PRIOR_STD, size=2000)
    told = truth + rng.normal(scale=(std := 4 / np.sqrt(n)), size=2000)
    drawn = [drawn_to_one(np.exp(one), np.exp(Z_95 * std)) for one in told]
    error, factor = np.log([one for one, _ in drawn]) - truth, drawn[0][1]
    assert np.square(error).mean() < np.square(told - truth).mean() * (1 if n < 1000 else 1.01)
    assert np.mean(np.abs(error) < np.log(factor)) == pytest.approx(0.95, abs=0.015)
    if n == 10_000:
        np.testing.assert_allclose(np.log([one for one, _ in drawn]), told, rtol=0.01)


def test_a_model_that_is_no_better_than_a_coin_has_no_factor():
    difference = np.random.default_rng(0).normal(size=200)
    assert fit_scale(pairs_of(difference, (difference < 0).astype(float)), "probit") is None


def test_significant_pairs_are_taken_as_decided():
    kept = significant_outcomes(pairs_of(np.arange(3.0), np.full(3, 0.7), z=[1.9, 2.0, 5.0]))
    assert (kept.difference.tolist(), kept.label.tolist(), kept.impression) == ([1, 2], [1, 1], ["1", "2"])
    with pytest.raises(ValueError, match="no pair with"):
        significant_outcomes(pairs_of(np.arange(3.0), np.full(3, 0.7)))


@pytest.mark.parametrize(
    ("name", "options"), [("gaussian", {}), ("gaussian", {"n_members": 3}), ("bradley_terry", {}), ("dpl", {})]
)
def test_means_are_multiplied_and_deviations_are_not(write_small_garm, name, options):
    folder = write_small_garm(name, **options)
    before = SuggestionScorer(folder)([[]] * 3, TEXTS)
    for _ in range(2):
        rescale_means(folder, 1.5)
    after = SuggestionScorer(folder)([[]] * 3, TEXTS)
    np.testing.assert_allclose(after.mean, 2.25 * before.mean, rtol=1e-5)
    np.testing.assert_allclose(after.std, before.std, rtol=1e-6)
    np.testing.assert_allclose(after.epistemic_std, 2.25 * before.epistemic_std, rtol=1e-4, atol=1e-6)
    assert json.loads((folder / "config.json").read_text())["mean_scale"] == 2.25


def test_a_head_that_does_not_name_its_means_is_left_alone(write_small_garm, monkeypatch):
    folder = write_small_garm()
    monkeypatch.setattr(
        REWARD_MODELS, "create", lambda name, **options: SimpleNamespace(n_outputs=2, mean_outputs=None)
    )
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="give its class mean_outputs, a slice of them, or leave it .*CALIBRATE=no"):
        rescale_means(folder, 2.0)
    assert (folder / "model.safetensors").read_bytes() == before


def test_the_command_lowers_the_nll_of_its_pairs(tmp_path, write_small_garm, capsys):
    folder = write_small_garm()
    texts = [f"Which flour is number {n}?" for n in range(30)]
    mean, _, _ = SuggestionScorer(folder)([[]] * 30, texts)
    rng = np.random.default_rng(0)
    rows = []
    for n, (a, b) in enumerate(rng.integers(30, size=(300, 2))):
        better, worse = (a, b) if rng.random() < ndtr(3 * (mean[a] - mean[b])) else (b, a)
        if texts[better] != texts[worse]:
            shown = {"conversation": [], "suggestions": [texts[better], texts[worse]]}
            rows.append({"impression_id": str(n), **shown, "pairs": [[0, 1, 1.0, 1.0]]})
    write_json_lines(tmp_path / "preferences.jsonl", rows)
    parser = argparse.ArgumentParser()
    garm_calibrate.add_arguments(parser)
    garm_calibrate.run(parser.parse_args([str(tmp_path / "preferences.jsonl"), "--model", str(folder)]))
    [nll] = [line for line in capsys.readouterr().out.splitlines() if "NLL" in line]
    before, after = (float(cell) for cell in nll.split("│")[2:4])
    assert after < before
