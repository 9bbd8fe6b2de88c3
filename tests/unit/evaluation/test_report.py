import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from openrlhf_qs.evaluation.report import STAGES, write_report
from openrlhf_qs.evaluation.summary import answer, warnings
from openrlhf_qs.evaluation.tensorboard import read_scalars
from openrlhf_qs.files.whole import write_json_lines, write_whole

EVIL = "<script>alert('x')</script> & $x_1 \\frac \"quoted\" 😀 \u202eright to left"
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Checks that tags nest, and collects tags, text and sources."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.sources = [], [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "srcset", "data") or name.startswith("on")]
        self.sources += [value for name, value in attrs if name == "href" and not value.startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def quality(**figures):
    return {
        "n_responses": 200,
        "malformed": 0.01,
        "distinct_1": 0.1,
        "distinct_2": 0.2,
        "near_duplicates": 0.03,
        "same_meaning": None,
        "self_similarity": 0.2,
        "words": 7.2,
        "likeness": 0.5,
        "n_likeness": 90,
        "log_ppl": None,
    } | figures


def ab(ctr, slots):
    return {
        "ctr": ctr,
        "ci95": [ctr - 0.01, ctr + 0.01],
        "malformed": 0.0,
        "n_users": 20_000,
        "n_contexts": 200,
        "slot_ctr": slots,
    }


@pytest.fixture
def metrics():
    """What evaluate measures, with an arm of an unkind name and unkind texts."""
    rates = {"cold_start": 0.28, "sft": 0.45, "grpo": 0.58, EVIL: 0.1}
    return {
        "seed": 0,
        "judge": "built_in_world",
        "contexts": {"heldout": 200, "compared": 200},
        "quality": {name: quality() for name in rates},
        "ab": {name: ab(ctr, [0.3, 0.2, 0.1][: 3 - (name == EVIL)]) for name, ctr in rates.items()},
        "lift": {"grpo_over_sft": 0.289, "grpo_over_cold_start": None},
        "lift_ci95": {"grpo_over_sft": [0.25, 0.33], "grpo_over_cold_start": None},
        "verdict": f"grpo beats sft and {EVIL}.",
        "garm": {
            "n_pairs": 1200,
            "n_impressions": 800,
            "n_bins": 20,
            "accuracy": 0.71,
            "accuracy_ci95": [0.69, 0.73],
            "nll": 0.55,
            "nll_ci95": [0.54, 0.56],
            "brier": 0.19,
            "brier_ci95": [0.18, 0.2],
            "ece": 0.031,
            "ece_ci95": [0.027, 0.05],
            "ece_if_calibrated": 0.02,
            "reliability": [
                {
                    "lower": n / 20,
                    "upper": (n + 1) / 20,
                    "predicted": (n + 0.5) / 20,
                    "observed": (n + 0.5) / 20,
                    "ci95": [n / 20, (n + 1) / 20],
                    "n_pairs": 60,
                }
                for n in range(20)
            ],
            "verdict": "GaRM prefers the clicked suggestion in 71.0% of 1,200 held-out pairs.",
        },
        "examples": [
            {
                "conversation": [{"role": "user", "content": EVIL}, {"role": EVIL, "content": "Answer."}],
                "clicked": [EVIL],
                "arms": {
                    name: {"suggestions": [EVIL, "Plain?"], "malformed": True, "ctr": ctr}
                    for name, ctr in rates.items()
                },
            }
        ],
    }


@pytest.fixture
def full_run(tmp_path):
    """A run folder with something of every stage."""
    from torch.utils.tensorboard import SummaryWriter

    for stage in ("data", "sft", "garm"):
        (tmp_path / stage).mkdir()
    stages = {name: {"state": "done", "seconds": 125.7} for name in ("data", "distil", "sft", "evaluate")}
    (tmp_path / "run.json").write_text(json.dumps({"stages": stages | {"garm": {"state": "begun"}}}))
    log = {"n_impressions": 32000, "ctr_by_position": [0.14, 0.1], "policies": {EVIL: 3}, "first": "2025-01-01"}
    (tmp_path / "data" / "log.json").write_text(json.dumps(log))
    rewards = {"garm": {"weight": 0.7, "mean": 0.1, "std": 1.2}, EVIL: {"weight": -0.1, "mean": 0, "std": 1}}
    (tmp_path / "fusion").mkdir()
    (tmp_path / "fusion" / "weights.json").write_text(json.dumps({"rewards": rewards}))
    with SummaryWriter(str(tmp_path / "grpo" / "tensorboard" / "run_1")) as writer:
        for step in range(1, 61):
            writer.add_scalar("train/rollout/reward_mean", np.tanh(step / 30), step)
            writer.add_scalar("train/reward/$garm_", step / 60, step)
        writer.add_scalar("train/kl", float("nan"), 1)
    return tmp_path


def test_the_report_is_one_file_that_reaches_nowhere_and_runs_nothing(full_run, metrics):
    path = write_report(full_run, metrics)
    assert path == full_run / "report" / "report.html"
    reader = read(path)
    assert "script" not in reader.tags and "link" not in reader.tags
    # three curves of grpo, and the reliability diagram
    assert len(reader.sources) == 4 == reader.tags.count("img")
    assert all(source.startswith("data:image/svg+xml;base64,") for source in reader.sources)
    assert path.stat().st_size < 1_000_000


def test_what_others_wrote_is_text_in_the_page_and_in_the_plots(full_run, metrics):
    path = write_report(full_run, metrics)
    reader = read(path)
    # in the verdict, a card, the tables of arms, rewards and policies, 4 lists of suggestions, both turns
    assert reader.text.count(EVIL) >= 12
    for source in reader.sources:
        svg = base64.b64decode(source.split(",")[1]).decode()
        assert "<script" not in svg
    assert "<script" not in path.read_text()


def test_the_sections_follow_the_way_of_the_data(full_run, metrics):
    html = write_report(full_run, metrics).read_text()
    stages = ["data", "sft", "garm", "fusion", "grpo", "evaluate"]
    assert re.findall(r'<section id="(\w+)">', html) == ["examples", *stages, "made"]
    assert list(STAGES) == ["data", "distil", *stages[1:4], "rft", *stages[4:]]
    text = read(full_run / "report" / "report.html").text
    for shown in (
        "32,000",
        "0.14, 0.1",
        "58.0%",
        "+28.9%",
        "0.0310.027 to 0.050",
        "2 min 05 s",
        "malformed",
        "20,000",
    ):
        assert shown in text


def test_the_same_numbers_give_the_same_file(full_run, metrics):
    first = write_report(full_run, metrics).read_bytes()
    assert write_report(full_run, metrics).read_bytes() == first


def test_an_empty_run_folder_has_a_report_that_says_so(tmp_path):
    text = read(write_report(tmp_path, {"judge": "none"})).text
    for stage in ("data", "sft", "garm", "fusion", "grpo"):
        assert f"This run folder has no data from the stage {stage}." in text
    assert "No judge, so no A/B test" in text


def test_a_run_without_a_judge_shows_quality_and_calibration(tmp_path, metrics):
    for key in ("ab", "lift", "lift_ci95", "verdict"):
        del metrics[key]
    for arm in metrics["examples"][0]["arms"].values():
        arm["ctr"] = None
    text = read(write_report(tmp_path, metrics)).text
    assert "71.0% of the held-out pairs (69.0% to 73.0%)" in text and "with near-duplicates" in text
    assert "% click" not in text and "✓ clicked" in text


def test_no_heldout_pair_is_said_and_not_drawn(tmp_path):
    metrics = {"judge": "none", "garm": {"n_pairs": 0, "verdict": "No held-out pair."}}
    reader = read(write_report(tmp_path, metrics))
    assert "No held-out pair." in reader.text and "img" not in reader.tags


def test_every_finished_stage_has_its_duration(full_run, metrics):
    table = re.search(
        r'<table class="text">(?:(?!</table>).)*<td>total', write_report(full_run, metrics).read_text(), re.DOTALL
    )[0]
    assert re.findall(r"<tr><td>(\w+)", table) == ["data", "distil", "sft", "evaluate", "total"]


def test_scalars_of_a_resumed_run_are_joined_and_the_later_value_counts(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    for run, steps, value, wall_time in (("a", (1, 2, 3), 1.0, 100.0), ("b", (3, 4), 2.0, 200.0)):
        with SummaryWriter(str(tmp_path / run)) as writer:
            for step in steps:
                writer.add_scalar("train/loss", value, step, walltime=wall_time)
    steps, values = read_scalars(tmp_path)["train/loss"]
    assert steps.tolist() == [1, 2, 3, 4] and values.tolist() == [1.0, 1.0, 2.0, 2.0]
    assert read_scalars(tmp_path / "nothing") == {}


def test_a_long_curve_stays_light(tmp_path, metrics):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "sft" / "tensorboard")) as writer:
        for step in range(5000):
            writer.add_scalar("train/loss", step % 7, step)
    assert write_report(tmp_path, {"judge": "none"}).stat().st_size < 100_000


def test_a_text_that_is_no_unicode_does_not_cost_the_report(tmp_path):
    assert "a ? b" in read(write_report(tmp_path, {"judge": "none", "verdict": "a \ud800 b"})).text


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_whole(tmp_path / "new" / "file.txt", "first")
    monkeypatch.setattr("os.replace", lambda source, target: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "new" / "file.txt", "second")
    assert (tmp_path / "new" / "file.txt").read_text() == "first"


def test_the_alarms_of_the_monitors_stand_in_the_section_of_grpo(full_run, metrics):
    alarms = full_run / "grpo" / "alarms.jsonl"
    alarms.write_text("")
    assert "No monitor raised an alarm." in read(write_report(full_run, metrics)).text
    alarms.write_text(json.dumps({"step": 34, "monitor": "sigma", "sentence": EVIL}) + "\n")
    text = read(write_report(full_run, metrics)).text
    assert "34sigma" in text and EVIL in text and "No monitor" not in text


# The first screen


def first_screen(html):
    return re.search(r'<div class="first">.*?</nav>', html, re.DOTALL)[0]


def test_the_first_screen_says_what_came_out_under_which_conditions_and_what_got_worse(full_run, metrics):
    metrics["served"] = {
        "grpo": {"temperature": 0.5, "tried": {"1": 0.5, "0.5": 0.6}, "by": "CTR", "n_conversations": 9}
    }
    metrics["quality"]["grpo"] = quality(near_duplicates=0.26, distinct_2=0.05)
    sure = {"near_duplicates": [0.2, 0.26], "self_similarity": [-0.01, 0.02]}
    metrics["quality_change"] = {"before": "sft", "after": "grpo", "ci95": sure}
    html = write_report(full_run, metrics).read_text()
    assert "simulated users (built_in_world), no real users · 200 held-out conversations" in html
    assert "grpo at temperature 0.5 · seed 0, one training" in html
    screen = first_screen(html)
    assert "58.0% of users click with grpo, 45.0% with the strongest baseline, sft: clearly more (" in screen
    assert "(relative lift +28.9%, 95 % interval" in screen
    assert "26.0% of the grpo responses contain near-duplicates (3.0% for sft)." in screen
    assert "grpo repeats itself: distinct-2 is 0.050 (0.200 for sft)." in screen
    assert re.search(r"with near-duplicates</td><td>3.0%</td><td>26.0%</td><td class=\"bad\">worse", screen)
    assert re.search(r"self-similarity</td><td>0.200</td><td>0.200</td><td class=\"muted\">no clear change", screen)
    assert re.search(r"users who click</td><td>45.0%</td><td>58.0%</td><td class=\"good\">better", screen)


def test_the_first_screen_compares_the_best_of_several_samples_of_both(full_run, metrics):
    for name, ctr in (("sft_best_of_8", 0.5), ("grpo_best_of_8", 0.6)):
        metrics["ab"][name] = metrics["ab"]["sft"] | {"ctr": ctr}
        metrics["quality"][name] = quality()
    metrics["lift"]["grpo_over_sft_best_of_8"], metrics["lift_ci95"]["grpo_over_sft_best_of_8"] = 0.16, [0.1, 0.2]
    said = (
        "When the reward picks one of 8 samples, 60.0% click with grpo and 50.0% with sft (+20.0%, +15.0% to +25.0%)."
    )
    assert said not in answer(metrics)  # they cannot be compared
    metrics["lift"]["grpo_best_of_8_over_sft_best_of_8"] = 0.2
    metrics["lift_ci95"]["grpo_best_of_8_over_sft_best_of_8"] = [0.15, 0.25]
    assert said in answer(metrics)


@pytest.mark.parametrize(
    ("ci95", "kind", "word"), [([0.16, 0.3], "bad", "are off"), ([0.07, 0.27], "warn", "may be off")]
)
def test_probabilities_are_called_off_where_their_interval_says_so(metrics, ci95, kind, word):
    metrics["garm"] |= {"ece": 0.17, "ece_ci95": ci95}
    (flag,) = (one for one in warnings(metrics) if "probabilities" in one["sentence"])
    assert flag["kind"] == kind and f"probabilities {word}" in flag["sentence"]


def test_a_reward_that_training_did_not_raise_is_a_warning(full_run, metrics):
    def screen_with(total):
        metrics["quality"] |= {
            "sft": quality() | {"reward": {"total": 0.62}},
            "grpo": quality() | {"reward": {"total": total}},
        }
        return first_screen(write_report(full_run, metrics).read_text())

    said = "has no more of the reward it was trained on (0.600) than sft, which it started from (0.620)."
    assert said in screen_with(0.6)
    assert "which it started from" not in screen_with(0.63)


def test_what_an_earlier_version_did_not_compare_is_not_called_unchanged(full_run, metrics):
    metrics["quality"]["grpo"] = quality(near_duplicates=0.26)
    screen = first_screen(write_report(full_run, metrics).read_text())
    assert re.search(r"with near-duplicates</td><td>3.0%</td><td>26.0%</td><td class=\"muted\">not compared", screen)


def test_a_reward_model_that_is_no_better_than_a_coin_on_what_the_policy_says_is_a_warning(full_run, metrics):
    figures = {"n_pairs": 900, "accuracy": 0.53, "accuracy_ci95": [0.52, 0.55], "nll": 0.72, "nll_ci95": [0.71, 0.73]}
    found = warnings(metrics | {"garm_on_policy": {"grpo": figures}})
    assert found[0]["kind"] == "bad" and "worse than a coin's (NLL 0.720, coin: 0.693)" in found[0]["sentence"]
    assert "in 53.0% of the pairs (52.0% to 55.0%); its" in found[0]["sentence"]
    found = warnings(
        metrics | {"garm_on_policy": {"grpo": figures | {"baselines": {"bayes_rule": {"accuracy": 0.57}}}}}
    )
    assert "(52.0% to 55.0%; the Bayes rule would in 57.0%)" in found[0]["sentence"]
    found = warnings(metrics | {"garm_on_policy": {"grpo": figures | {"nll_ci95": [0.68, 0.73]}}})
    assert any(one["kind"] == "warn" and "not clearly better than a coin's" in one["sentence"] for one in found)
    found = warnings(metrics | {"garm_on_policy": {"grpo": figures | {"nll": 0.6, "nll_ci95": [0.5, 0.65]}}})
    assert not any("a coin" in one["sentence"] for one in found)


def test_what_the_policy_starts_from_stands_in_the_answer(metrics):
    metrics["ab"]["rft"] = ab(0.57, [0.3, 0.2, 0.1])
    metrics["lift"]["grpo_over_rft"], metrics["lift_ci95"]["grpo_over_rft"] = 0.018, [-0.01, 0.04]
    assert "With rft, which it starts from, 57.0% click: no clear difference." in answer(metrics)
    metrics["lift_ci95"]["grpo_over_rft"] = [0.01, 0.04]
    assert "57.0% click: clearly fewer." in answer(metrics)


def test_a_policy_that_loses_to_a_baseline_says_so_first_and_in_red(full_run, metrics):
    metrics["lift"]["grpo_over_sft"], metrics["lift_ci95"]["grpo_over_sft"] = -0.07, [-0.1, -0.04]
    metrics["ab"]["sft"]["ctr"] = 0.62
    screen = first_screen(write_report(full_run, metrics).read_text())
    assert '<ul class="flags"><li class="bad">grpo loses to the baseline sft.</li>' in screen
    assert "62.0% with the strongest baseline, sft: clearly fewer (" in screen
    assert "(relative lift -7.0%, 95 % interval -10.0% to -4.0%" in screen


def test_a_part_that_clicks_fall_with_and_that_is_trained_on_is_a_warning(full_run, metrics):
    weights = {
        "rewards": {"garm_sigma": {"weight": 0.06, "mean": 0.0, "std": 1.0}},
        "first_stage": {"coefficient": {"garm_sigma": -0.25}, "standard_error": {"garm_sigma": 0.08}},
    }
    (full_run / "fusion" / "weights.json").write_text(json.dumps(weights))
    html = write_report(full_run, metrics).read_text()
    assert "Clicks fall as garm_sigma rises (-0.25 ± 0.08), but its weight in training was +0.06." in html
    weights["first_stage"]["coefficient"]["garm_sigma"] = -0.15  # within twice its error: noise
    (full_run / "fusion" / "weights.json").write_text(json.dumps(weights))
    assert "Clicks fall as" not in write_report(full_run, metrics).read_text()


def test_examples_stand_in_their_groups_with_scores_parts_and_what_is_new(full_run, metrics):
    arm = {"suggestions": ["Old?", "New?"], "malformed": False, "ctr": 0.41, "new": [False, True]}
    arm |= {"garm": [[0.5, 1.0], [-0.25, 2.0]], "parts": {"ood": -0.5, "rules": 0.25}}
    example = {"conversation": [{"role": "user", "content": "Hi"}], "clicked": ["Old?"], "arms": {"grpo": arm}}
    metrics["examples"] = [example | {"group": group} for group in ("worst", "best", "random")]
    html = write_report(full_run, metrics).read_text()
    titles = ["largest gains", "largest losses", "drawn at random"]
    assert re.findall(r"<h3>(largest.*?|drawn.*?)</h3>", html) == titles
    assert html.count('Old? <span class="tag good">✓ clicked</span><small>GaRM +0.50 ± 1.00</small>') == 3
    assert html.count('New? <span class="tag muted">new</span><small>GaRM -0.25 ± 2.00</small>') == 3
    # bars in per cent of the largest part of the page
    assert '<span>ood -0.50</span><i class="minus" style="width:100.0%"></i><span>rules +0.25</span>' in html
    assert 'style="width:50.0%"' in html and "41% click" in html


def sample(step, kind, prompt, texts=("One?", "Two?"), **weighted):
    conversation = [{"role": "user", "content": f"Prompt {prompt} {EVIL}"}]
    row = {"step": step, "kind": kind, "conversation": conversation, "suggestions": list(texts), "malformed": False}
    garm = [[step / 10, 0.5] for _ in texts]
    return row | {"parts": weighted, "weighted": weighted or {"rules": 0.25, "ood": None}, "garm": garm}


def write_samples(run, steps=(1, 11, 21, 31, 41, 51)):
    rows = [sample(step, "same", prompt) for step in steps for prompt in range(8)]
    rows += [
        sample(step, kind, f"of step {step}") for step in steps for kind in ("highest", "lowest") for _ in range(2)
    ]
    write_json_lines(run / "grpo" / "samples.jsonl", rows)


def test_the_same_prompts_stand_side_by_side_at_four_steps_and_the_extremes_are_folded(full_run, metrics):
    write_samples(full_run)
    html = write_report(full_run, metrics).read_text()
    grpo = re.search(r'<section id="grpo">.*?</section>', html, re.DOTALL)[0]
    same, *folded = grpo.split("<summary>6 more prompts")
    # of six steps the first, the last and two between: two prompts at once, the other six folded
    assert re.findall(r"<h4>step (\d+)", same) == ["1", "21", "31", "51"] * 2
    assert folded[0].split("<summary>")[0].count("<article>") == 6
    assert "GaRM +5.10 ± 0.50" in same and "reward +0.25" in same and "ood failed" in same
    for kind in ("highest", "lowest"):
        shown = grpo.split(f"{kind} reward in the first and the last step")[1].split("</details>")[0]
        assert re.findall(r"<h4>step (\d+)", shown) == ["1", "1", "51", "51"]


def test_fusion_says_of_each_part_what_the_clicks_say_and_whether_the_floor_holds_it(full_run, metrics):
    names = {"garm": 0.6, "rules": 0.12, "diversity": 0.28, "language": 0.0}
    first = {"coefficient": {"garm": 0.3, "rules": -0.1, "diversity": 0.01}, "told": True, "floor": 0.2}
    first["standard_error"] = dict.fromkeys(first["coefficient"], 0.02)  # a part that never differs has none
    weights = {"rewards": {name: {"weight": value, "mean": 0.0, "std": 1.0} for name, value in names.items()}}
    weights |= {"first_stage": first, "shares": {"garm": 0.8, "rules": 0.05, "diversity": 0.15, "language": 0.0}}
    (full_run / "fusion" / "weights.json").write_text(json.dumps(weights))
    text = read(write_report(full_run, metrics)).text
    assert "+0.300± 0.020" in text and "-0.100± 0.020clicks fall as it rises, at the floor5%" in text
    assert "language0–the same for every response0%" in text
    assert "+0.010± 0.020may be 015%" in text and "below the floor, which is 20% of the largest" in text


def test_the_proxy_stands_against_the_gold_in_words_and_as_a_picture(full_run, metrics):
    bins = [{"proxy": n - 1.0, "gold": 0.1 * n, "ci95": [0.1 * n - 0.05, 0.1 * n + 0.05]} for n in range(3)]
    arms = {"sft": {"proxy": 0.0, "gold": 0.4}, EVIL: {"proxy": 0.5, "gold": 0.5}}
    metrics["proxy"] = {"arms": arms, "before": "sft", "after": "grpo", "n_contexts": 500, "bins": bins}
    metrics["proxy"]["correlation"] = 0.4459
    html = write_report(full_run, metrics).read_text()
    assert "the two changes have a rank correlation of +0.45." in html and 'alt="Proxy against gold"' in html
    metrics["proxy"]["correlation"] = None
    assert "One of the two did not change." in write_report(full_run, metrics).read_text()


def test_gold_of_every_rollout_is_drawn_over_the_kl_where_a_judge_said_it(full_run, metrics):
    rows = [{"step": n, "proxy": n / 10, "proxy_std": 0.5, "distinct_2": 0.1, "kl": n / 5} for n in range(1, 9)]
    write_json_lines(full_run / "grpo" / "statistics.jsonl", rows)
    assert "over KL" not in write_report(full_run, metrics).read_text()
    write_json_lines(full_run / "grpo" / "statistics.jsonl", [row | {"gold": 0.5} for row in rows])
    html = write_report(full_run, metrics).read_text()
    assert 'alt="Proxy and gold over KL"' in html and 'alt="distinct-2 per step, over training steps' in html


def test_parts_of_the_log_have_their_change_with_its_interval(full_run, metrics):
    part = {"n_contexts": 50, "ctr": {"sft": 0.5, "grpo": 0.55}, "ci95": {"sft": [0.47, 0.53], "grpo": [0.52, 0.58]}}
    metrics["segments"] = {"language": {"de": part | {"change": 0.05, "change_ci95": [0.01, 0.09]}}}
    text = read(write_report(full_run, metrics)).text
    assert "CTR by language" in text and "de5050.0%47.0% to 53.0%55.0%52.0% to 58.0%+5.0 points+1.0 to +9.0" in text


def test_the_end_says_by_which_commands_versions_and_files_the_run_was_made(full_run, metrics):
    entry = {"state": "done", "seconds": 61.0, "commit": "0123456789abcdef+", "versions": {"torch": "2.13.0"}}
    entry |= {"given": {"SEED": "3", "OPTION": "ood.threshold=3 rules.max_width=80"}, "flags": ["--adam.lr", "1e-3"]}
    entry["files"] = {"CLICK_LOG": {"/data/clicks.jsonl": {"size": 5, "hash": "abc123"}}}
    (full_run / "run.json").write_text(json.dumps({"stages": {"sft": entry}}))
    text = read(write_report(full_run, metrics)).text
    assert "SEED=3 OPTION='ood.threshold=3 rules.max_width=80' bash recipes/sft.sh --adam.lr 1e-3" in text
    assert "0123456789+" in text and "Versions: torch 2.13.0." in text and "/data/clicks.jsonlabc123" in text


# In a browser

PROBE = """<script>
window.onerror = message => document.title = 'error ' + message;
const luminance = rgb => rgb.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const numbers = text => text.match(/[\\d.]+/g).map(Number);
function paper(element) {
  for (; element; element = element.parentElement) {
    const color = numbers(getComputedStyle(element).backgroundColor);
    if (color.length === 3 || color[3] === 1) return color.slice(0, 3);
  }
  return [255, 255, 255];
}
window.onload = () => {
  const bad = [];
  document.querySelectorAll('details').forEach(one => one.open = true);
  if (document.documentElement.scrollWidth > innerWidth) bad.push('page ' + document.documentElement.scrollWidth);
  document.querySelectorAll('section, .first').forEach(card => card.querySelectorAll('*').forEach(one => {
    if (!one.closest('.scroll') && one.getBoundingClientRect().right > card.getBoundingClientRect().right + 1)
      bad.push('overflow ' + one.tagName + ' ' + one.className);
  }));
  document.querySelectorAll('main *').forEach(one => {
    if (![...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) return;
    const [a, b] = [numbers(getComputedStyle(one).color).slice(0, 3), paper(one)].map(luminance);
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) bad.push('contrast ' + contrast.toFixed(2) + ' ' + one.tagName + ' ' + one.className);
  });
  document.title = 'probed ' + bad.length + ': ' + bad.slice(0, 5).join('; ');
};
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser_nothing_leaves_its_card_and_all_can_be_read(full_run, metrics, width, theme):
    metrics["served"] = {"grpo": {"temperature": 0.5, "tried": {"1": 0.5}, "by": "CTR", "n_conversations": 9}}
    metrics["quality"]["grpo"] = quality(near_duplicates=0.26)
    part = {"n_contexts": 50, "ctr": {"sft": 0.5, "grpo": 0.5}, "ci95": {"sft": [0.4, 0.6], "grpo": [0.4, 0.6]}}
    metrics["segments"] = {"topic": {"a very long name " * 3: part | {"change": 0.0, "change_ci95": [-0.1, 0.1]}}}
    write_samples(full_run)
    html = write_report(full_run, metrics).read_text()
    # chromium has no narrower window than 500 pixels, so the page stands in a frame of that width
    page, frame = full_run / "report" / "probe.html", full_run / "report" / "frame.html"
    page.write_text(html.replace("</body>", PROBE.replace("document.title =", "parent.document.title =") + "</body>"))
    frame.write_text(f'<iframe src="probe.html" style="width:{width}px;height:2000px;border:0"></iframe>')
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--window-size=1400,2100",
    ]
    flags += ["--virtual-time-budget=4000", f"--user-data-dir={full_run / 'profile'}", "--dump-dom"]
    flags += ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
    shown = subprocess.run(["chromium", *flags, frame.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert "<title>probed 0: </title>" in shown, shown[:500]
