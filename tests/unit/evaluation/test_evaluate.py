import argparse
import json
import sys
import types

import numpy as np
import pytest
from held_out import conversation, impression

from openrlhf_qs.evaluation import evaluate, rewards
from openrlhf_qs.evaluation.arms import Shown
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import write_json_lines, write_whole
from openrlhf_qs.garm.calibration import calibration_verdict
from openrlhf_qs.garm.eval import load_on_device
from openrlhf_qs.reward.composite import EXACT


@pytest.fixture
def run_dir(tmp_path):
    """A run with 8 held-out conversations, two policies, held-out pairs and a reward model."""
    heldout = [impression(n % 8, ["Bland one?", f"Bland {n}?", "???"], [n % 2, 0, 0], f"i{n}") for n in range(16)]
    write_json_lines(tmp_path / "data" / "heldout.jsonl", heldout)
    for name, text in (("sft", "good"), ("grpo", "great")):
        write_json_lines(
            tmp_path / "report" / f"responses.{name}.jsonl",
            [
                {
                    "conversation": conversation(n),
                    "response": f"1. A {text} one?\n2. Two {n}?\n3. Three?",
                    "log_ppl": 2,
                }
                for n in range(8)
            ],
        )
    preferences = [
        {
            "impression_id": f"i{n // 2}",
            "conversation": conversation(n % 8),
            "suggestions": ["better", "worse" if n % 4 else "better still"],
            "positions": [1, 2],
            "pairs": [[0, 1, 1.0 + n % 2, 1.0]],
        }
        for n in range(40)
    ]
    write_json_lines(tmp_path / "data" / "preferences.heldout.jsonl", preferences)
    (tmp_path / "garm").mkdir()
    return tmp_path


@pytest.fixture
def scorer(monkeypatch):
    """A reward model that finds what is shorter worse."""

    class SuggestionScorer:
        link = "probit"

        def __init__(self, path, device="cpu"):
            assert path.name == "garm"

        def __call__(self, conversations, suggestions):
            assert len(conversations) == len(suggestions) and len(conversations[0]) == 2
            n = len(suggestions)
            return np.array([float(len(s)) for s in suggestions]), np.full(n, 0.5**0.5), np.zeros(n)

    monkeypatch.setitem(
        sys.modules,
        "openrlhf_qs.garm.reward_model",
        types.SimpleNamespace(SuggestionScorer=SuggestionScorer),
    )


class Judge:
    """Users of a test: ``chance`` says for the suggestions of a row how likely each is clicked."""

    def __init__(self, chance, limits=None):
        self.chance, self.limits, self.chance_of_a_click = chance, limits, None

    def __call__(self, conversations, suggestions):
        return [self.chance(row) for row in suggestions]


def run_stage(*argv):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    evaluate.run(parser.parse_args([str(argument) for argument in argv]))


def test_the_stage_writes_what_it_measured_and_a_report(run_dir, scorer, capsys, monkeypatch):
    chance = {"A good one?": 0.2, "A great one?": 0.4, "Three?": 0.1, "???": 0.0, "Bland one?": 0.1}
    monkeypatch.setattr(
        evaluate, "load_judge", lambda name, options: Judge(lambda row: [chance[row[n]] for n in (0, 0, 2)])
    )
    run_stage("--run", run_dir, "--judge", "mine", "--n_users", 20_000)
    metrics = json.loads((run_dir / "report" / "metrics.json").read_text())
    assert metrics["contexts"] == {"heldout": 8, "compared": 8}
    for name in ("cold_start", "sft", "grpo"):
        assert metrics["ab"][name]["n_users"] == 20_000
        # no draws, and every conversation has the same chance: nothing varies
        assert metrics["ab"][name]["ci95"] == pytest.approx([metrics["ab"][name]["ctr"]] * 2)
    assert [metrics["ab"][name]["malformed"] for name in ("cold_start", "sft", "grpo")] == [1.0, 0.0, 0.0]
    # 1 - 0.8 * 0.8 * 0.9 = 0.424 and 1 - 0.6 * 0.6 * 0.9 = 0.676: lift 0.594
    assert metrics["ab"]["sft"]["ctr"] == pytest.approx(0.424, abs=0.015)
    assert metrics["lift"]["grpo_over_sft"] == pytest.approx(0.594, abs=0.07)
    assert set(metrics["lift"]) == {"sft_over_cold_start", "grpo_over_sft", "grpo_over_cold_start"}
    assert set(metrics["lift_ci95"]) == set(metrics["lift"])
    assert "grpo beats sft" in metrics["verdict"]
    # longer is better: right on 30 of 40 pairs, those with n % 4 > 0, of weight 1, 2 and 2 in turn: wrong ones weigh 1
    assert metrics["garm"]["accuracy"] == pytest.approx(50 / 60)
    assert metrics["garm"]["n_impressions"] == 20
    assert set(metrics["garm_on_policy"]) == {"cold_start", "sft", "grpo"}
    assert {found["n_impressions"] for found in metrics["garm_on_policy"].values()} == {8}
    assert [one["group"] for one in metrics["examples"]] == ["best"] * 4 + ["worst"] * 4
    # 1 - .8 * .8 * .9 to 1 - .6 * .6 * .9, without drawing; what grpo says is new, but for its "Two n?" and "Three?"
    example = metrics["examples"][0]["arms"]
    assert (example["sft"]["ctr"], example["grpo"]["ctr"]) == pytest.approx((0.424, 0.676))
    assert example["grpo"]["new"] == [True, False, False] and not any(example["sft"]["new"])
    assert example["grpo"]["garm"][0] == [len("A great one?"), pytest.approx(0.5**0.5)]
    assert "<h2>evaluate</h2>" in (run_dir / "report" / "report.html").read_text()
    shown = " ".join(capsys.readouterr().out.split())
    assert "with the strongest baseline, sft: clearly more" in shown and "cold_start" in shown
    assert not list(run_dir.rglob(".*writing"))


def at_temperatures(run_dir, name, texts, n_samples=1):
    """Responses of a policy at temperatures 1 and 0.5, to the held-out conversations and to those of the selection."""
    for file, numbers in ((f"responses.{name}.jsonl", range(8)), (f"selection.{name}.jsonl", range(20, 24))):
        rows = [
            {
                "conversation": conversation(number),
                "response": f"1. {text} {sample}?\n2. {text} two?\n3. {text} three?",
                "temperature": temperature,
                "log_ppl": 1.0,
            }
            for temperature, text in zip((1.0, 0.5), texts, strict=True)
            for number in numbers
            for sample in range(n_samples if temperature == 1 else 1)
        ]
        write_json_lines(run_dir / "report" / file, rows)


def test_a_policy_is_served_at_the_temperature_that_was_best_on_other_conversations(run_dir, scorer, monkeypatch):
    at_temperatures(run_dir, "sft", ("Warm", "Cold"))
    at_temperatures(run_dir, "grpo", ("Warm", "Hot"))
    (run_dir / "garm").rmdir()
    for policy in ("sft", "grpo"):
        (run_dir / policy).mkdir()
        (run_dir / policy / "config.json").write_text("{}")
    (run_dir / "sft" / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 1.0}')
    chance = {"Warm": 0.2, "Cold": 0.3, "Hot": 0.1}
    judge = Judge(
        lambda row: [chance.get(text.split()[0], 0.0) for text in row],
        lambda conversations, n: {"ceiling": [["Cold 1?", "Cold 2?", "Cold 3?"]] * len(conversations)},
    )
    monkeypatch.setattr(evaluate, "load_judge", lambda name, options: judge)
    run_stage("--run", run_dir, "--judge", "mine", "--n_users", 4000)
    metrics = json.loads((run_dir / "report" / "metrics.json").read_text())
    # of three: 1 - .8 ** 3 = .488 when warm, 1 - .7 ** 3 = .657 when cold, 1 - .9 ** 3 = .271 when hot
    assert metrics["served"]["sft"] == {
        "temperature": 0.5,
        "tried": {"1": pytest.approx(0.488), "0.5": pytest.approx(0.657)},
        "by": "users who click",
        "n_conversations": 4,
    }
    assert metrics["served"]["grpo"]["temperature"] == 1.0
    assert list(metrics["ab"]) == ["cold_start", "sft", "sft@1", "grpo", "grpo@0.5", "ceiling"]
    assert metrics["ab"]["sft"]["ctr"] == pytest.approx(0.657, abs=0.03)
    # best with best, and nothing over an arm at another temperature
    assert set(metrics["lift"]) == {
        *("sft_over_cold_start", "grpo_over_cold_start", "grpo_over_sft"),
        *("ceiling_over_cold_start", "ceiling_over_sft", "ceiling_over_grpo"),
    }
    assert metrics["lift_ci95"]["grpo_over_sft"][1] < 0 and "grpo loses to sft" in metrics["verdict"]
    written = json.loads((run_dir / "sft" / "generation_config.json").read_text())
    assert written == {"eos_token_id": 2, "do_sample": True, "temperature": 0.5}


def test_the_best_of_several_samples_and_the_favourites_of_the_log_are_arms(run_dir, scorer):
    at_temperatures(run_dir, "sft", ("Warm", "Cold"), n_samples=4)
    # rules alone: the more words the less, from the first; sample 3 has a fault, so another one is the best
    parts = {"rules": {"weight": 1.0, "mean": 0.0, "std": 1.0}}
    write_whole(run_dir / "fusion" / "weights.json", json.dumps({"rewards": parts}))
    candidates = [{"text": "Favourite?", "n_shown": 3, "n_clicked": 2, "weight": 1.0}]
    write_json_lines(run_dir / "data" / "sft.jsonl", [{"conversation": conversation(3), "candidates": candidates}])
    run_stage("--run", run_dir)
    metrics = json.loads((run_dir / "report" / "metrics.json").read_text())
    served = metrics["served"]["sft"]["temperature"]
    other = {1.0: "sft@0.5", 0.5: "sft@1"}[served]
    assert list(metrics["quality"]) == ["cold_start", "most_clicked", "sft", other, "sft_best_of_4", "grpo"]
    assert metrics["served"]["sft"]["by"] == "composite reward"
    best, served = metrics["quality"]["sft_best_of_4"]["reward"]["total"], metrics["quality"]["sft"]["reward"]["total"]
    assert best >= served
    # one favourite is not three; what the others show stays whole beside it
    assert metrics["quality"]["most_clicked"]["malformed"] == 1.0
    assert metrics["quality"]["sft"]["malformed"] == 0.0


def test_the_closing_table_fits_80_columns_whole(run_dir, scorer, capsys, monkeypatch):
    at_temperatures(run_dir, "sft", ("Warm", "Cold"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(evaluate, "load_judge", lambda name, options: Judge(lambda row: [0.2] * len(row)))
    run_stage("--run", run_dir, "--judge", "mine", "--n_users", 400)
    out = capsys.readouterr().out
    *lines, report = out.splitlines()
    assert "…" not in out and max(map(len, lines)) <= 80
    assert report == f"report: {run_dir / 'report' / 'report.html'}"  # whole, however long: it is copied
    row = next(line for line in out.splitlines() if line.lstrip().startswith("cold_start "))
    assert len(row.split()) == 10, row  # arm, CTR, low, to, high and five more figures


def test_a_judge_whose_users_click_nothing_is_an_error_and_one_silent_arm_is_not(run_dir, scorer, monkeypatch):
    only_sft = lambda row: [0.5 * ("good" in row[0]), 0.0, 0.0]  # noqa: E731
    monkeypatch.setattr(evaluate, "load_judge", lambda name, options: Judge(only_sft))
    run_stage("--run", run_dir, "--judge", "mine", "--n_users", 100)
    metrics = json.loads((run_dir / "report" / "metrics.json").read_text())
    assert (metrics["ab"]["sft"]["ctr"], metrics["ab"]["grpo"]["ctr"]) == (0.5, 0.0)
    assert metrics["lift"]["grpo_over_sft"] is None
    monkeypatch.setattr(evaluate, "load_judge", lambda name, options: Judge(lambda row: [0.0] * 3))
    with pytest.raises(ValueError, match="^--judge mine: its users click nothing in any of 3 arms, .*; see that"):
        run_stage("--run", run_dir, "--judge", "mine", "--n_users", 100)


def test_the_reward_model_is_judged_by_what_users_click_among_what_an_arm_says(run_dir, scorer):
    """Longer is better to this model; users click "long one", or nothing, wherever it stands."""
    conversations = [conversation(n) for n in range(30)]
    suggestions = [["short", "long one"] if n % 2 else ["long one", "short"] for n in range(30)]
    clicks = np.zeros((30, 4, 2), dtype=int)
    for n, texts in enumerate(suggestions):
        clicks[n, :2, texts.index("long one")] = 1
    scorer = load_on_device(run_dir / "garm")

    def chance(conversations, shown):
        return [{"long one": 0.9, "short": 0.1}[text] for [text] in shown]

    found = rewards.on_clicks(scorer, conversations, suggestions, clicks, chance=chance)
    assert found["baselines"]["bayes_rule"]["accuracy"] == 1.0 and found["baselines"]["coin"]["accuracy"] == 0.5
    assert (found["accuracy"], found["n_pairs"], found["n_impressions"]) == (1.0, 60, 30)
    assert rewards.on_clicks(scorer, conversations, suggestions, np.ones_like(clicks)) is None


def by_length(conversations, suggestions):
    return np.array([[len(text) / 20, 0.5, 0.0] for text in suggestions]).T


by_length.link = "probit"


def test_clicks_on_an_order_that_a_policy_chose_are_weighed_by_what_the_log_says_of_places():
    # 60 users click the long one at the top, 20 a short one below it, 120 nothing
    conversations, suggestions = [conversation(n) for n in range(20)], [["a long one", "short"]] * 20
    clicks = np.zeros((20, 10, 2), dtype=int)
    clicks[:, :3, 0], clicks[:, 3, 1] = 1, 1
    found = rewards.on_clicks(by_length, conversations, suggestions, clicks, propensities=[1.0, 0.5])
    # a click below counts twice one at the top; no click below by (1 - g) / (1 - g / 2) for one at the top by 1
    attraction = 61 / 202
    right, wrong = 60 * (1 - attraction) / (1 - attraction / 2), 20 * 2 * 1
    assert found["accuracy"] == pytest.approx(right / (right + wrong), abs=1e-4)
    # by click rates of the very order that the policy chose, a click below would count three times one at the top
    assert rewards.on_clicks(by_length, conversations, suggestions, clicks)["accuracy"] == pytest.approx(0.75)


def test_the_users_of_one_conversation_are_one_cluster_of_the_floor():
    # which of two is liked is a matter of the conversation, and all its 100 users click that one
    rng = np.random.default_rng(0)
    conversations, suggestions = [conversation(n) for n in range(40)], [["a long one", "short"]] * 40
    first = rng.random(40) < 0.65
    clicks = np.zeros((40, 100, 2), dtype=int)
    clicks[first, :, 0] = clicks[~first, :, 1] = 1
    found = rewards.on_clicks(by_length, conversations, suggestions, clicks)
    # a share seen in 40 conversations is off by sqrt(.65 * .35 / 40) * sqrt(2 / pi) = .06 on average, in 4000 by .006
    assert found["n_pairs"] == 4000 and found["ece_if_calibrated"] == pytest.approx(0.06, rel=0.25)
    assert found["accuracy_ci95"][1] - found["accuracy_ci95"][0] > 0.2


@pytest.mark.parametrize("normalisation", ["sft", "group", "running"])
def test_the_parts_of_the_reward_are_measured_on_what_every_arm_says(run_dir, scorer, normalisation):
    """In deviations of the SFT policy, whatever training normalises by."""
    parts = {"rules": {"weight": 2.0, "mean": 0.0, "std": 1.0}, "ood": {"weight": 1.0, "mean": 0.0, "std": 1.0}}
    weights = {"rewards": parts, "normalisation": normalisation}
    write_whole(run_dir / "fusion" / "weights.json", json.dumps(weights))
    conversations = [conversation(0), conversation(1)]
    responses = ["1. How long?\n2. Which flour?\n3. Why so?", "nothing at all"]
    reward = rewards.RunReward(RunFolder(run_dir), None, {"ood": {"threshold": "3"}})
    rows = [
        Shown(conversations[0], (), True, 1.0, responses[0]),
        Shown(conversations[1], (), False, 9.0, responses[1]),
    ]
    found, totals = reward(rows)
    assert found["ood"] == pytest.approx(-3.0) and found["rules"] < 0  # by a hinge: 0 and 3 - 9, averaged
    # a response alone has no group to be better than: its total is rounded to EXACT, as any without a signal
    assert found["total"] == pytest.approx(2 * found["rules"] + found["ood"], abs=EXACT / 2)
    assert found["total"] == pytest.approx(totals.mean()) and len(totals) == 2


def test_a_log_perplexity_of_another_temperature_is_measured_again(run_dir, scorer, monkeypatch):
    parts = {"ood": {"weight": 1.0, "mean": 0.0, "std": 1.0}}
    write_whole(run_dir / "fusion" / "weights.json", json.dumps({"rewards": parts, "temperature": 0.6}))
    monkeypatch.setattr(rewards, "reference_log_ppl", lambda reference, c, r, temperature: [10 * temperature] * len(r))
    reward = rewards.RunReward(RunFolder(run_dir), None, {})
    row = Shown(conversation(0), (), True, 1.0, "1. How long?\n2. Which flour?\n3. Why so?")
    assert reward([row])[0]["ood"] == pytest.approx(-6.0)
    assert reward([row._replace(reference_temperature=0.6)])[0]["ood"] == pytest.approx(-1.0)
    assert reward([row, row._replace(reference_temperature=0.6)])[0]["ood"] == pytest.approx(-6.0)


def test_without_a_judge_the_heldout_clicks_speak(run_dir, scorer):
    run_stage("--run", run_dir)
    metrics = json.loads((run_dir / "report" / "metrics.json").read_text())
    assert "ab" not in metrics and "lift" not in metrics
    assert metrics["judge"] == "none"
    assert metrics["garm"]["ece"] > 0
    assert metrics["quality"]["grpo"]["n_likeness"] == 4 * 3
    assert metrics["examples"][0]["arms"]["grpo"]["ctr"] is None


def test_a_reward_model_far_off_is_flagged_in_words():
    figures = {"accuracy": 0.6, "n_pairs": 4000, "ece": 0.21, "ece_ci95": [0.2, 0.22], "ece_if_calibrated": 0.02}
    figures |= {"accuracy_ci95": [0.58, 0.62], "nll_ci95": [0.65, 0.69]}
    assert "That is above 0.15: its probabilities and deviations cannot be trusted" in calibration_verdict(figures)
    assert "better than a coin: its probabilities can be used" in calibration_verdict(figures | {"ece": 0.05})
    # a coin that says 0.5 is perfectly calibrated, and of no use
    coin = figures | {"ece": 0.01, "accuracy_ci95": [0.49, 0.52], "nll_ci95": [0.69, 0.694]}
    assert "Its accuracy and NLL cannot be told from a coin's" in calibration_verdict(coin)
    assert "Its NLL cannot be told" in calibration_verdict(figures | {"nll_ci95": [0.68, 0.70]})


def test_a_run_without_a_reward_model_or_pairs_goes_on_without(run_dir, scorer):
    write_json_lines(run_dir / "data" / "preferences.heldout.jsonl", [])
    assert rewards.on_heldout_pairs(RunFolder(run_dir), None)["n_pairs"] == 0
    (run_dir / "garm").rmdir()
    run_stage("--run", run_dir)
    assert "garm" not in json.loads((run_dir / "report" / "metrics.json").read_text())
