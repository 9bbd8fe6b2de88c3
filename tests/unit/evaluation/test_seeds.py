"""The README's table out of several runs."""

from __future__ import annotations

import argparse
import json

import pytest
from scipy import stats

from openrlhf_qs.evaluation import seeds


def metrics(seed, sft, grpo, **others):
    ctr = {"cold_start": 0.25, **others, "sft": sft, "sft@1": 0.1, "grpo": grpo}
    return {
        "seed": seed,
        "ab": {name: {"ctr": value} for name, value in ctr.items()},
        "quality": {
            name: {
                "malformed": 0.01 * seed,
                "near_duplicates": 0.05 + 0.01 * seed,
                "distinct_2": 0.2 - 0.01 * seed,
            }
            for name in ctr
        },
        "lift": {f"grpo_over_{name}": grpo / value - 1 for name, value in ctr.items() if name != "grpo"},
        "lift_ci95": {f"grpo_over_{name}": [grpo / value - 1.02, 9] for name, value in ctr.items() if name != "grpo"},
    }


def test_means_have_the_interval_over_seeds_and_the_worst_seed_beside_them():
    text = seeds.tables([metrics(0, 0.4, 0.5), metrics(1, 0.5, 0.5), metrics(2, 0.45, 0.45)])
    # of .5, .5, .45: mean .4833, deviation .02887, / sqrt(3) times t(.975, 2) = 4.3027: .0717
    half = stats.t.ppf(0.975, 2) * 0.028868 / 3**0.5
    # malformed 0, .01, .02 and near-duplicates .05, .06, .07: the largest is worst; distinct-2 .2, .19, .18: the least
    assert f"| `grpo` | 48.3% ± {half:.1%} | 45.0% | 1.0% (2.0%) | 6.0% (7.0%) | 0.190 (0.180) |" in text
    assert "sft@1" not in text and "Means over seeds 0, 1, 2 ± half the 95 % t interval." in text
    # over sft: .25, 0, 0, each with the lower end .02 below
    assert "| `sft` | +8.3% ± 35.9% | +0.0% | 1 of 3 seeds |" in text


def test_the_strongest_baseline_may_be_another_one_in_each_seed():
    runs = [metrics(0, 0.5, 0.5, most_clicked=0.4), metrics(1, 0.3, 0.5, most_clicked=0.4)]
    text = seeds.tables(runs)
    # .5 / .5 - 1 = 0 in seed 0, .5 / .4 - 1 = .25 in seed 1
    assert f"| {seeds.STRONGEST} | +12.5% | +0.0% | 1 of 2 seeds |" in text


def test_the_best_of_several_samples_is_compared_with_the_best_of_as_many():
    run = metrics(0, 0.4, 0.5, sft_best_of_8=0.48, grpo_best_of_8=0.6)
    run["lift"]["grpo_best_of_8_over_sft_best_of_8"] = 0.25
    run["lift_ci95"]["grpo_best_of_8_over_sft_best_of_8"] = [0.2, 0.3]
    text = seeds.tables([run])
    assert "| `sft_best_of_8`, by `grpo_best_of_8` | +25.0% | +25.0% | 1 of 1 seed |" in text
    assert (
        "| `sft_best_of_8` | +4.2% |" in text and "| `grpo_best_of_8` | +" not in text
    )  # it is no baseline of grpo's
    assert f"| {seeds.STRONGEST} | +4.2% |" in text


def test_one_run_has_no_interval_and_arms_that_a_run_lacks_are_left_out():
    alone = seeds.tables([metrics(0, 0.4, 0.5)])
    assert "| `grpo` | 50.0% | 50.0% |" in alone and "\nFrom one training, seed 0.\n" in alone
    assert "most_clicked" not in seeds.tables([metrics(0, 0.4, 0.5, most_clicked=0.3), metrics(1, 0.4, 0.5)])


def test_a_lift_that_stands_the_other_way_round_is_turned():
    run = metrics(0, 0.4, 0.5)
    del run["lift"]["grpo_over_sft"], run["lift_ci95"]["grpo_over_sft"]
    run["lift"]["sft_over_grpo"], run["lift_ci95"]["sft_over_grpo"] = -0.2, [-0.25, 0.25]
    # 1 / .8 - 1 = .25, whose lower end is 1 / 1.25 - 1: below 0
    assert "| `sft` | +25.0% | +25.0% | 0 of 1 seed |" in seeds.tables([run])


def test_a_run_in_which_an_arm_has_no_click_is_left_out_of_the_lifts_over_it():
    runs = [metrics(0, 0.4, 0.5), metrics(1, 0.4, 0.5)]
    runs[0]["lift"]["grpo_over_sft"] = runs[0]["lift_ci95"]["grpo_over_sft"] = None
    assert "| `sft` | +25.0% | +25.0% | 1 of 1 seed |" in seeds.tables(runs)
    assert "| `sft` | +" not in seeds.tables(runs[:1])


def test_the_reward_model_stands_beside_what_it_is_measured_against_with_its_worst_seed():
    runs = [metrics(0, 0.4, 0.5), metrics(1, 0.4, 0.5)]
    for n, run in enumerate(runs):
        figures = {"accuracy": 0.75 + 0.01 * n, "nll": 0.46 - 0.02 * n, "ece": 0.02 + 0.01 * n}
        run["garm"] = figures | {"baselines": {"bayes_rule": figures | {"accuracy": 0.83}}}
        bound = {"bayes_rule": figures | {"accuracy": 0.57}}
        run["garm_on_policy"] = {"grpo": figures | {"accuracy": 0.54, "nll": 0.7 + 0.02 * n, "baselines": bound}}
    text = seeds.tables(runs)
    # accuracy .75 and .76, NLL .46 and .44, ECE .02 and .03: the least, the largest and the largest are the worst
    assert "| the reward model | 75.5% (75.0%) | 0.450 (0.460) | 0.025 (0.030) |" in text
    assert "| `bayes_rule`, the bound | 83.0% (83.0%) |" in text
    assert "| the reward model, on what `grpo` suggests | 54.0% (54.0%) | 0.710 (0.720) |" in text
    assert "| `bayes_rule`, the bound, there | 57.0% (57.0%) |" in text
    del runs[1]["garm_on_policy"]
    assert "on what `grpo` suggests" not in seeds.tables(runs)


def test_the_tables_go_between_the_marks_of_a_file_with_the_command_and_the_commits(tmp_path):
    for seed in (0, 1):
        report = tmp_path / f"s{seed}" / "report"
        report.mkdir(parents=True)
        (report / "metrics.json").write_text(json.dumps(metrics(seed, 0.4, 0.5)))
        entry = {"state": "done", "seconds": 1, "commit": f"{seed}" * 40}
        (report.parent / "run.json").write_text(json.dumps({"stages": {"sft": entry}}))
    page = tmp_path / "README.md"
    page.write_text(f"before\n{seeds.BEGIN}\nstale\n{seeds.END}\nafter\n")
    parser = argparse.ArgumentParser()
    seeds.add_arguments(parser)
    args = parser.parse_args([str(tmp_path / "s0"), str(tmp_path / "s1"), "--into", str(page)])
    for _ in range(2):  # a second call finds the marks again
        seeds.run(args)
    text = page.read_text()
    assert text.startswith(f"before\n{seeds.BEGIN}\n| arm |") and text.endswith(f"{seeds.END}\nafter\n")
    assert "stale" not in text and "`openrlhf-qs seeds runs/s0 runs/s1 --into README.md`" in text
    assert "stages at 0000000000, 1111111111." in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="README.md has no <!-- seeds -->"):
        seeds.run(args)


def test_two_runs_of_one_seed_and_a_run_without_users_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the seeds 3, 3; give one run per seed"):
        seeds.tables([metrics(3, 0.4, 0.5), metrics(3, 0.4, 0.5)])
    with pytest.raises(ValueError, match="run the stage evaluate"):
        seeds.read(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").write_text('{"seed": 0, "quality": {}}')
    with pytest.raises(ValueError, match="no A/B test"):
        seeds.read(tmp_path)


def test_the_command_prints_the_tables_and_writes_them(tmp_path, capsys):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").write_text(json.dumps(metrics(0, 0.4, 0.5)))
    parser = argparse.ArgumentParser()
    seeds.add_arguments(parser)
    seeds.run(parser.parse_args([str(tmp_path), "--out", str(tmp_path / "table.md")]))
    assert (tmp_path / "table.md").read_text() == capsys.readouterr().out
