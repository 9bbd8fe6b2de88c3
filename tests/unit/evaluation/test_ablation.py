import argparse
import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from openrlhf_qs.evaluation import ablation
from openrlhf_qs.evaluation.ablation import (
    Interval,
    finished_runs,
    gold_figures,
    over_seeds,
    overoptimisation_curve,
    t_interval,
)

ROOT = Path(__file__).parents[3]
CONVERSATIONS = [[{"role": "user", "content": f"Question {n}?"}] for n in range(4)]


def by_first_letter(conversations, suggestions):
    """Users who surely click what begins with an A, and half the time what begins with a B."""
    return [[{"A": 1.0, "B": 0.5}.get(text[0], 0.0) for text in texts] for texts in suggestions]


def write_run(folder, ctr=0.5, grpo="AAAA", sft="AAAA", gold=None):
    """A finished run; of each policy the first letters of its responses."""
    report = folder / "report"
    report.mkdir(parents=True)
    quality = {"malformed": 0.01, "distinct_2": 0.3, "near_duplicates": 0.0, "log_ppl": None}
    metrics = {"quality": {"grpo": quality, "sft": quality}}
    metrics["ab"] = {"grpo": {"ctr": ctr}, "sft": {"ctr": 0.4}}
    metrics["lift"] = {"grpo_over_sft": ctr / 0.4 - 1, "grpo_over_cold_start": None}
    (report / "metrics.json").write_text(json.dumps(metrics))
    for policy, letters in (("grpo", grpo), ("sft", sft)):
        rows = [
            {"conversation": c, "response": f"1. {x}\n2. C\n3. D"} for c, x in zip(CONVERSATIONS, letters, strict=True)
        ]
        (report / f"responses.{policy}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if gold:
        (folder / "grpo").mkdir()
        (folder / "grpo" / "statistics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    return folder


def test_gsb_is_good_less_bad_over_all_and_worthless_what_nobody_clicks(tmp_path):
    # good, good, same, bad: (2 - 1) / 4; nobody clicks the last one
    figures = gold_figures(write_run(tmp_path, grpo="AABC", sft="BCBA"), by_first_letter)
    assert figures == {"gsb": 0.25, "worthless": 0.25, "worthless_sft": 0.25}


def test_gsb_of_a_policy_against_itself_is_zero(tmp_path):
    assert gold_figures(write_run(tmp_path, grpo="ABCA", sft="ABCA"), by_first_letter)["gsb"] == 0


def test_a_figure_that_a_seed_lacks_is_left_out():
    table = over_seeds([{"ctr": 0.5, "gsb": 0.1}, {"ctr": 0.6}])
    assert set(table) == {"ctr"} and table["ctr"].mean == pytest.approx(0.55)


def test_the_curve_counts_the_proxy_from_its_start_in_its_deviations(tmp_path):
    steps = [{"step": n, "kl": n**2, "proxy": 1 + n, "proxy_std": 2.0, "gold": 0.4 - n / 100} for n in range(6)]
    curve = overoptimisation_curve([write_run(tmp_path, gold=steps)])
    assert curve["sqrt_kl"] == [0, 1, 2, 3, 4, 5]
    assert curve["proxy"] == pytest.approx([-0.5, 0, 0.5, 1, 1.5, 2])  # the first three have mean 2
    assert curve["gold"] == pytest.approx([0.4, 0.39, 0.38, 0.37, 0.36, 0.35])
    assert overoptimisation_curve([write_run(tmp_path / "without")]) is None


def test_the_command_writes_table_and_pictures_of_all_finished_arms(tmp_path, capsys):
    gold = [{"step": n, "kl": float(n), "proxy": n / 10, "proxy_std": 1.0, "gold": 0.4} for n in range(9)]
    for seed, ctr in ((0, 0.50), (1, 0.54)):
        write_run(tmp_path / f"seed{seed}" / "all", ctr)
        write_run(tmp_path / f"seed{seed}" / "mean", ctr - 0.1, gold=gold)
    write_run(tmp_path / "seed0" / "ppl", 0.3, gold=gold)
    (tmp_path / "seed1" / "unfinished").mkdir()
    ablation.run(argparse.Namespace(run=str(tmp_path), gold="built_in_world"))
    result = json.loads((tmp_path / "ablation.json").read_text())
    assert list(result["arms"]) == ["all", "mean", "ppl"]
    assert result["arms"]["all"]["ctr"]["mean"] == pytest.approx(0.52) and result["arms"]["all"]["ctr"]["n"] == 2
    assert result["arms"]["ppl"]["ctr"]["half"] is None
    assert set(result["overoptimisation"]) == {"ppl", "mean"}
    assert result["base"] == "all" and "over_base" not in result["arms"]["all"]
    over = [0.40 / 0.50 - 1, 0.44 / 0.54 - 1]  # each within its seed
    assert result["arms"]["mean"]["over_base"]["mean"] == pytest.approx(np.mean(over))
    assert result["arms"]["mean"]["over_base"]["half"] == pytest.approx(t_interval(over).half)
    # one arm with two seeds, and one with one, which no test can tell: a family of one, so no correction
    assert result["arms"]["mean"]["p_holm"]["mean"] == pytest.approx(stats.ttest_1samp(over, 0).pvalue)
    assert result["arms"]["ppl"]["p_holm"]["mean"] is None
    for name in ("arms.svg", "overoptimisation.svg"):
        assert (tmp_path / name).read_text().startswith("<?xml")
    assert "52.0%" in capsys.readouterr().out
    table = (tmp_path / "ablation.md").read_text().splitlines()
    assert table[0].startswith(
        "| arm | seeds | CTR | over all | p, Holm | over SFT | GSB | worthless | valid | distinct-2 |"
    )
    assert [row.split(" | ")[:2] for row in table[2:]] == [["| `all`", "2"], ["| `mean`", "2"], ["| `ppl`", "1"]]
    assert table[4].split(" | ")[2:4] == ["30.0%", "-40.0%"] and len({row.count("|") for row in table}) == 1


@pytest.mark.parametrize("intervals", [False, True])
def test_eighty_columns_have_room_for_the_table(monkeypatch, intervals):
    monkeypatch.setenv("COLUMNS", "80")
    one = Interval(-0.98765, 0.98765 if intervals else math.nan, 3)
    console = Console(record=True)
    console.print(ablation._table({"no_garm_sigma": dict.fromkeys(ablation.COLUMNS, one)}, "all"))
    shown = console.export_text()
    assert "no_garm_sigma " in shown and " 3 seeds " in shown and "…" not in shown and shown.count("-98.8%") == 5
    assert shown.count("± 98.8%") == 5 * intervals


def test_the_policies_of_one_run_folder_a_seed_are_arms_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for seed, distilled in ((0, 0.5), (1, 0.6)):
        report = tmp_path / f"seed{seed}" / "report"
        report.mkdir(parents=True)
        rates = {"cold_start": 0.3, "raw": 0.4, "distilled": distilled}
        quality = {"malformed": 0.0, "distinct_2": 0.3, "near_duplicates": 0.1, "log_ppl": None}
        metrics = {"quality": dict.fromkeys(rates, quality), "ab": {name: {"ctr": ctr} for name, ctr in rates.items()}}
        metrics["lift"] = {f"{name}_over_cold_start": ctr / 0.3 - 1 for name, ctr in rates.items()}
        (report / "metrics.json").write_text(json.dumps(metrics))
    ablation.run(argparse.Namespace(run=str(tmp_path), gold="none"))
    result = json.loads((tmp_path / "ablation.json").read_text())
    assert list(result["arms"]) == ["raw", "distilled", "cold_start"] and result["base"] == "raw"
    assert result["arms"]["distilled"]["ctr"]["mean"] == pytest.approx(0.55)
    assert result["arms"]["distilled"]["over_base"]["mean"] == pytest.approx((0.25 + 0.5) / 2)
    assert {seed: row["over_base"] for seed, row in result["seeds"]["distilled"].items()} == pytest.approx(
        {"seed0": 0.25, "seed1": 0.5}
    )
    assert not (tmp_path / "overoptimisation.svg").exists()
    assert "over raw" in capsys.readouterr().out


def test_without_a_finished_run_it_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="run recipes/ablate_rewards.sh or recipes/ablate_sft.sh first"):
        finished_runs(tmp_path)


# The recipe


def dry_run(**variables):
    env = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "RUN": "/runs/of_no_one"} | variables
    recipe = ROOT / "recipes" / "ablate_rewards.sh"
    return subprocess.run(["bash", recipe], env=env, capture_output=True, text=True, timeout=120)


def rewards_of(text):
    """Arm to the parts that its GRPO is given, of one seed."""
    arms, arm = {}, "all"
    for line in text.replace("\\,", ",").splitlines():
        words = line.split()
        if line.startswith("# seed"):
            arm = words[-1]
        elif words[:2] == ["openrlhf-qs", "grpo"]:
            arms[arm] = words[words.index("--qs.reward") + 1].split(",")
    return arms


def test_every_arm_differs_from_the_whole_reward_in_what_its_name_says():
    done = dry_run(SEEDS="0")
    assert done.returncode == 0, done.stderr
    arms = rewards_of(done.stdout)
    parts = arms["all"]
    assert [arms[name] for name in ("mean", "ppl", "rules")] == [parts[:1], parts[:2], parts[:3]]
    assert arms["sigma"] == ["garm", "garm_sigma"]
    for part in parts:
        assert arms[f"no_{part}"] == [one for one in parts if one != part]
    assert arms["only_ood"] == ["ood"]
    assert arms["bradley_terry"] == arms["equal"] == parts
    assert done.stdout.splitlines()[-1].startswith("openrlhf-qs ablation --run /runs/of_no_one")


def test_each_seed_has_data_and_models_of_its_own_and_its_arms_have_them_in_common():
    lines = [line for line in dry_run(SEEDS="0 1", ARMS="mean bradley_terry").stdout.splitlines()]
    commands = [line.split()[1] for line in lines if line.startswith("openrlhf-qs")]
    calibrations = sum(line.startswith("openrlhf-qs garm calibrate") for line in lines)
    assert commands.count("sft") == commands.count("data") == 2
    assert calibrations == 4  # one a seed, and one a seed with the head of bradley_terry
    assert sum(line.startswith("openrlhf-qs garm --") for line in lines) == 4  # as many are trained
    assert commands.count("grpo") == commands.count("evaluate") == 6


def test_an_unknown_arm_is_refused_before_the_work():
    done = dry_run(ARMS="mean meen")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("unknown arm meen; known: mean sigma ppl")
    for arm in ("no_odd", "only_odd"):
        assert f"arm {arm}: odd is not in REWARD=garm" in dry_run(ARMS=arm).stderr


def test_the_arms_of_the_sft_ablation_differ_in_what_they_learn_from_and_nothing_else():
    recipe = ROOT / "recipes" / "ablate_sft.sh"
    env = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "RUN": "/runs/of_no_one", "SEEDS": "0"}
    done = subprocess.run(["bash", recipe], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    arms, arm = {}, "teacher"
    for line in done.stdout.splitlines():
        words = line.split()
        if line.startswith("# seed"):
            arm = words[-1]
        elif words[:2] == ["openrlhf-qs", "sft"]:
            arms[arm] = " ".join(words).replace(f"/seed0/{arm}", "/seed0")
    assert list(arms) == ["teacher", "raw", "clicks", "distilled", "distilled_diverse"]
    assert arms["clicks"] == arms["raw"].replace("--qs.sft_dataset raw", "--qs.sft_dataset diverse")
    assert arms["distilled_diverse"] == arms["clicks"].replace("data/sft.jsonl", "distil/candidates.jsonl")
    alike = " --qs.option diverse.max_similarity=1 --qs.option diverse.near_duplicate=1"
    assert arms["distilled"] == arms["distilled_diverse"] + alike
    evaluate, ablation = done.stdout.splitlines()[-2:]
    assert evaluate.startswith("openrlhf-qs evaluate --run /runs/of_no_one/seed0 ")
    assert ablation.split() == ["openrlhf-qs", "ablation", "--run", "/runs/of_no_one"]
