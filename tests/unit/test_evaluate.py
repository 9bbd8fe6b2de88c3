import argparse
import json
import math
import sys
import types

import numpy as np
import pytest

from openrlhf_qs.evaluation import evaluate, rewards
from openrlhf_qs.evaluation.evaluate import (
    ArmResult,
    Shown,
    clicked_suggestions,
    compare,
    load_arms,
    load_judge,
    on_same_conversations,
    relative_lift,
    response_quality,
    run_ab_test,
)
from openrlhf_qs.files import write_json_lines, write_whole
from openrlhf_qs.garm.calibration import calibration_verdict
from openrlhf_qs.garm.eval import load_on_device
from openrlhf_qs.registry import JUDGES, load_plugins


def conversation(n):
    return [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Answer {n}."}]


def arm(*suggestion_lists):
    return [(conversation(n), suggestions) for n, suggestions in enumerate(suggestion_lists)]


def says(text_to_probability):
    """A judge that gives each text the probability it stands for."""
    return lambda conversations, suggestions: [[text_to_probability[text] for text in row] for row in suggestions]


def result(context_ctr):
    context_ctr = np.array(context_ctr, dtype=float)
    ctr = context_ctr.mean()
    half = 1.959964 * context_ctr.std(ddof=1) / math.sqrt(len(context_ctr))
    interval = (ctr - half, ctr + half)
    return ArmResult(ctr, interval, 10 * len(context_ctr), len(context_ctr), [], context_ctr, np.array([]))


# ---- the A/B test


def test_ctr_is_the_share_of_users_with_a_click_whichever_slot():
    judge = says({"no": 0.0, "yes": 1.0, "half": 0.5})
    arms = {"none": arm(["no"] * 3, ["no"] * 3), "some": arm(["no", "yes", "half"], ["no", "no", "half"])}
    results = run_ab_test(arms, judge, n_users=20_000)
    assert results["none"].ctr == 0.0 and results["none"].ci95 == (0.0, 0.0)
    # the first context always clicks, the second half of the time: (1 + 0.5) / 2
    assert results["some"].ctr == pytest.approx(0.75, abs=0.01)
    assert results["some"].slot_ctr == pytest.approx([0.0, 0.5, 0.5], abs=0.02)
    assert results["some"].context_ctr[0] == 1.0


def test_every_context_gets_the_same_number_of_users_and_never_fewer_than_asked_for():
    seen = []

    def judge(conversations, suggestions):
        seen.extend(c[0]["content"] for c in conversations)
        return [[0.5] for _ in suggestions]

    results = run_ab_test({"one": arm(["a"], ["b"], ["c"])}, judge, n_users=10)
    # ceil(10 / 3) = 4 users each
    assert results["one"].n_users == 12 and results["one"].n_contexts == 3
    assert seen == ["Question 0?"] * 4 + ["Question 1?"] * 4 + ["Question 2?"] * 4


def test_the_interval_is_clustered_by_context():
    # half of the contexts always click, half never: 10 contexts, 1,000 users each. Standard deviation of the context
    # means 0.527 (ddof 1), / sqrt(10) * 1.96 = 0.327; counting users alone it would be 0.0098
    judge = says({"no": 0.0, "yes": 1.0})
    results = run_ab_test({"one": arm(*[["yes"], ["no"]] * 5)}, judge, n_users=10_000)
    low, high = results["one"].ci95
    assert (results["one"].ctr, low, high) == pytest.approx((0.5, 0.5 - 0.3267, 0.5 + 0.3267), abs=1e-3)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        truth = rng.beta(2, 3, size=60)  # mean 0.4
        judge = says({f"{n}": p for n, p in enumerate(truth)})
        arms = {"one": arm(*[[f"{n}"] for n in range(60)])}
        low, high = run_ab_test(arms, judge, n_users=300, seed=seed)["one"].ci95
        hits += low <= 0.4 <= high
    assert 180 <= hits <= 199  # 190 expected


def test_an_arm_does_not_depend_on_the_others_and_the_seed_decides():
    judge = says({"x": 0.3})
    one = arm(["x"], ["x"])
    alone = run_ab_test({"b": one}, judge, 100, seed=1)["b"].ctr
    assert run_ab_test({"a": one, "b": one}, judge, 100, seed=1)["b"].ctr == alone
    assert run_ab_test({"b": one}, judge, 100, seed=2)["b"].ctr != alone


def test_two_equal_arms_cannot_be_told_apart():
    judge = says({"x": 0.3, "y": 0.6})
    same = arm(*[["x", "y"], ["y", "x"], ["x", "x"], ["y", "y"]] * 25)
    results = run_ab_test({"sft": same, "grpo": same}, judge, 20_000)
    low, high = relative_lift(results["grpo"], results["sft"]).ci95
    assert low < 0 < high
    assert "cannot be told from" in compare("grpo", results["grpo"], "sft", results["sft"])


def test_an_arm_that_suggests_nothing_is_never_clicked():
    results = run_ab_test({"mute": arm([], []), "one": arm(["x"], [])}, says({"x": 1.0}), 10)
    assert results["mute"].ctr == 0.0 and results["mute"].slot_ctr == []
    assert results["one"].ctr == 0.5


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([[0.5]], "1 rows for 4 users"),
        ([[0.5], [0.5, 0.5], [0.5], [0.5]], "row 1: 2 probabilities for 1 suggestions"),
        ([[0.5], [0.5], [1.5], [0.5]], "row 2: 1.5 for suggestion 1"),
        ([[0.5], [0.5], [float("nan")], [0.5]], "row 2: nan for suggestion 1"),
    ],
)
def test_a_judge_that_breaks_its_word_is_named_with_the_row(answer, said):
    class Oracle:
        def __call__(self, conversations, suggestions):
            return answer

    with pytest.raises(ValueError, match=f"judge Oracle, arm sft.*{said}"):
        run_ab_test({"sft": arm(["x"], ["x"])}, Oracle(), 4)


def test_one_conversation_alone_has_no_interval():
    with pytest.raises(ValueError, match="an interval needs at least 2"):
        run_ab_test({"sft": arm(["x"])}, says({"x": 0.5}), 10)


# ---- the lift


def test_lift_by_hand():
    # 0.6 / 0.5 - 1 = 20 %. Influence (a - 1.2 b) / 0.5 over contexts: (0.4 - 0.48, 0.8 - 0.72) / 0.5 = -0.16, 0.16;
    # sd (ddof 1) 0.22627, / sqrt(2) = 0.16; times 1.96 = 0.3136
    lift = relative_lift(result([0.4, 0.8]), result([0.4, 0.6]))
    assert lift.value == pytest.approx(0.2)
    assert lift.ci95 == pytest.approx((0.2 - 0.31359, 0.2 + 0.31359), abs=1e-4)


def test_the_lift_of_an_arm_that_is_better_by_the_same_factor_everywhere_is_certain():
    lift = relative_lift(result([0.2, 0.4, 0.6]), result([0.1, 0.2, 0.3]))
    assert lift.value == pytest.approx(1.0) and lift.ci95 == pytest.approx((1.0, 1.0))


def test_there_is_no_lift_over_nothing():
    assert relative_lift(result([0.1, 0.2]), result([0.0, 0.0])) is None
    assert "cannot be compared with sft" in compare("grpo", result([0.1, 0.2]), "sft", result([0.0, 0.0]))


def test_the_sentence_says_who_beats_whom_and_whether_intervals_are_apart():
    better, worse = result([0.58, 0.60, 0.62]), result([0.48, 0.50, 0.52])
    assert compare("grpo", better, "sft", worse).startswith("grpo beats sft: CTR 60.0% against 50.0%, lift +20.0%")
    assert compare("grpo", better, "sft", worse).endswith("the two intervals are apart.")
    assert compare("grpo", worse, "sft", better).startswith("grpo loses to sft")
    # better by 0.02 in every context, while contexts differ widely: certain in pairs, invisible in the two intervals
    assert compare("grpo", result([0.12, 0.52, 0.92]), "sft", result([0.1, 0.5, 0.9])).endswith("overlap.")


# ---- arms


def test_arms_are_joined_on_the_text_of_the_conversation():
    joined = on_same_conversations(
        {
            "a": [(conversation(2), ["2"]), (conversation(0), ["0"]), (conversation(2), ["again"])],
            "b": [(conversation(0), ["zero"]), ([m | {"extra": None} for m in conversation(2)], ["two"])],
            "c": arm(["null"], ["eins"], ["zwei"]),
        }
    )
    assert {name: [row[1] for row in rows] for name, rows in joined.items()} == {
        "a": [["2"], ["0"]],
        "b": [["two"], ["zero"]],
        "c": [["zwei"], ["null"]],
    }


def test_arms_without_a_conversation_in_common_are_an_error_with_their_sizes():
    with pytest.raises(ValueError, match=r"no conversation is in every arm \(a 1, b 1\)"):
        on_same_conversations({"a": [(conversation(0), [])], "b": [(conversation(1), [])]})


def impression(n, suggestions, clicks, impression_id="i"):
    return {
        "impression_id": impression_id,
        "timestamp": "2025-01-01T00:00:00Z",
        "conversation": conversation(n),
        "suggestions": suggestions,
        "clicks": clicks,
    }


def test_the_arms_of_a_run_come_in_order_and_know_what_is_malformed(tmp_path):
    three = "1. How long?\n2. Which one?\n3. Why so?"
    for name, response in (("zeta", three), ("grpo", three), ("sft", "1. How long?\nno number"), ("alpha", three)):
        rows = [{"conversation": conversation(0), "response": response, "log_ppl": 1.5}]
        write_json_lines(tmp_path / "report" / f"responses.{name}.jsonl", rows)
    arms = load_arms(
        tmp_path,
        [
            impression(0, ["First?", "Second?", "???"], [0, 0, 0]),
            impression(0, ["Later", "impression", "here"], [1, 0, 0]),
            impression(1, ["Good?", "Better?", "Best?"], [0, 0, 0]),
        ],
    )
    assert list(arms) == ["cold_start", "sft", "grpo", "alpha", "zeta"]
    logged = "1. First?\n2. Second?\n3. ???"
    assert arms["cold_start"][0] == Shown(conversation(0), ["First?", "Second?", "???"], False, None, logged)
    assert arms["cold_start"][1].well_formed
    assert arms["sft"] == [Shown(conversation(0), ("How long?",), False, 1.5, "1. How long?\nno number")]
    assert arms["grpo"][0].well_formed


def test_a_run_without_responses_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="run `openrlhf-qs generate` first"):
        load_arms(tmp_path, [])


def test_bad_rows_are_told_together_by_line(tmp_path):
    good = {"conversation": conversation(0), "response": "1. x"}
    bad = {"conversation": conversation(0)}
    write_json_lines(tmp_path / "report" / "responses.sft.jsonl", [good] + [bad] * 25)
    with pytest.raises(ValueError) as error:
        load_arms(tmp_path, [])
    lines = str(error.value).splitlines()
    assert "responses.sft.jsonl:2: no response" in lines[0]
    assert len(lines) == 21 and lines[-1] == "and 5 more"


@pytest.mark.parametrize("clicks", [[1], [0, 2], None, "01", [0, [1]]])
def test_impressions_need_one_click_value_per_suggestion(tmp_path, clicks):
    write_json_lines(tmp_path / "heldout.jsonl", [impression(0, ["a", "b"], clicks)])
    with pytest.raises(ValueError, match="heldout.jsonl:1: clicks .* for 2 suggestions"):
        evaluate.read_impressions(tmp_path / "heldout.jsonl")


# ---- quality


def test_quality_by_hand():
    rows = [
        Shown(conversation(0), ["bake the bread", "Bake the bread!", "buy flour"], True, 1.0),
        Shown(conversation(1), ["why"], False, 2.0),
    ]
    quality = response_quality(rows, clicked_suggestions([impression(0, ["buy flour", "sleep"], [1, 0])]))
    assert quality["n_responses"] == 2 and quality["malformed"] == 0.5
    assert quality["near_duplicates"] == 0.5  # the first two say the same but for case and mark
    assert quality["distinct_1"] == pytest.approx(6 / 9)  # bake the bread buy flour why, of 3 + 3 + 2 + 1
    assert quality["distinct_2"] == pytest.approx(3 / 5)  # bake-the the-bread buy-flour, of 2 + 2 + 1
    assert quality["words"] == pytest.approx(9 / 4)
    assert quality["n_likeness"] == 3  # nothing was clicked under the second conversation
    assert quality["log_ppl"] == 1.5
    assert quality["self_similarity"] == pytest.approx(1 / 3)  # one of three pairs is the same
    assert quality["same_meaning"] is None  # nobody looked at the meaning


def test_same_meaning_is_the_share_of_responses_with_two_of_one_direction():
    directions = {"a": [1, 0], "b": [0, 1], "c": [0.8, 0.6], "d": [0.6, 0.8]}

    class Embedder:
        def get_embedding_dimension(self):
            return 2

        def encode(self, texts, **_):
            return np.array([directions[text] for text in texts], dtype=np.float32)

    def share(*responses):
        rows = [Shown(conversation(n), texts, True) for n, texts in enumerate(responses)]
        return response_quality(rows, {}, Embedder())["same_meaning"]

    assert share("abb", "abd", "bca", "a", "") == 0.2  # the nearest others: 0.8, 0.8, none, none
    assert share("acd", "abc") == 0.5  # c and d: 0.96
    assert share() is None


def test_likeness_is_one_for_the_clicked_text_itself_and_takes_the_nearest():
    clicked = clicked_suggestions([impression(0, ["buy flour", "zzz"], [1, 1]), impression(1, ["no"], [0])])
    assert response_quality([Shown(conversation(0), ["Buy flour?"], True)], clicked)["likeness"] == 1.0
    assert response_quality([Shown(conversation(0), ["qqq"], True)], clicked)["likeness"] == 0.0
    assert response_quality([Shown(conversation(1), ["no"], True)], clicked)["likeness"] is None


def test_an_arm_that_says_nothing_has_no_figures_but_is_malformed():
    quality = response_quality([Shown(conversation(0), [], False)], {})
    assert quality["malformed"] == 1.0 and quality["near_duplicates"] == 0.0
    assert [quality[key] for key in ("distinct_1", "distinct_2", "words", "likeness", "log_ppl")] == [None] * 5


# ---- judges


def write_judge(path, names, body="return [[0.5 for _ in row] for row in suggestions]"):
    classes = [
        f"@JUDGES.register({name!r})\nclass Judge{n}:\n"
        f"    def __init__(self, scale: float = 1.0):\n        self.scale = scale\n"
        f"    def __call__(self, conversations, suggestions):\n        {body}\n"
        for n, name in enumerate(names)
    ]
    path.write_text("from openrlhf_qs.registry import JUDGES\n" + "\n".join(classes))
    return str(path)


@pytest.fixture
def judges_of_this_test(monkeypatch):
    """The registry of judges, put back as it was afterwards."""
    load_plugins()
    monkeypatch.setattr(JUDGES, "_plugins", dict(JUDGES._plugins))


@pytest.mark.usefixtures("judges_of_this_test")
def test_a_file_is_a_judge_with_options_also_when_it_was_loaded_before(tmp_path):
    file = write_judge(tmp_path / "judge_of_a_file.py", ["of_a_file"])
    for _ in range(2):
        assert load_judge(file, ["of_a_file.scale=0.25"]).scale == 0.25


@pytest.mark.usefixtures("judges_of_this_test")
def test_a_file_must_register_exactly_one_judge(tmp_path):
    with pytest.raises(ValueError, match="registers 0 judges"):
        load_judge(write_judge(tmp_path / "judge_of_none.py", []))
    with pytest.raises(ValueError, match="registers 2 judges .*must register exactly one"):
        load_judge(write_judge(tmp_path / "judge_of_two.py", ["one_of_two", "two_of_two"]))


def test_a_judge_that_is_unknown_or_an_option_of_no_plugin_is_refused():
    assert load_judge("none") is None
    with pytest.raises(ValueError, match="unknown judge 'nobody'; known: .*openai_endpoint"):
        load_judge("nobody")
    assert load_judge("none", ["ood.threshold=1"]) is None, "one list of options serves every stage"
    with pytest.raises(ValueError, match="reward 'ood' has no option 'coef'"):
        load_judge("none", ["ood.coef=1"])


# ---- the stage


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
    pairs = [
        {
            "chosen": [*conversation(n % 8), {"role": "user", "content": "better"}],
            "rejected": [*conversation(n % 8), {"role": "user", "content": "worse" if n % 4 else "better still"}],
            "weight": 1.0 + n % 2,
            "chosen_position": 0,
            "rejected_position": 1,
            "impression_id": f"i{n // 2}",
        }
        for n in range(40)
    ]
    write_json_lines(tmp_path / "data" / "pairs.heldout.jsonl", pairs)
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


def run_stage(*argv):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    evaluate.run(parser.parse_args([str(argument) for argument in argv]))


def test_the_stage_writes_what_it_measured_and_a_report(run_dir, scorer, capsys, monkeypatch):
    judge = says({"A good one?": 0.2, "A great one?": 0.4, "Three?": 0.1, "???": 0.0, "Bland one?": 0.1})
    monkeypatch.setattr(
        evaluate, "load_judge", lambda name, options: lambda c, s: judge(c, [[r[0], r[0], r[2]] for r in s])
    )
    run_stage("--run", run_dir, "--judge", "mine", "--n_users", 20_000)
    metrics = json.loads((run_dir / "report" / "metrics.json").read_text())
    assert metrics["contexts"] == {"heldout": 8, "compared": 8}
    for name in ("cold_start", "sft", "grpo"):
        assert metrics["ab"][name]["n_users"] == 20_000
        low, high = metrics["ab"][name]["ci95"]
        assert low < metrics["ab"][name]["ctr"] < high
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
    assert len(metrics["examples"]) == 8
    assert "<h2>evaluate</h2>" in (run_dir / "report" / "report.html").read_text()
    shown = " ".join(capsys.readouterr().out.split())
    assert "grpo beats sft" in shown and "cold_start" in shown
    assert not list(run_dir.rglob(".*writing"))


def test_the_reward_model_is_judged_by_what_users_click_among_what_an_arm_says(run_dir, scorer):
    """Longer is better to this model; users click "long one", or nothing, wherever it stands."""
    conversations = [conversation(n) for n in range(30)]
    suggestions = [["short", "long one"] if n % 2 else ["long one", "short"] for n in range(30)]
    clicks = np.zeros((30, 4, 2), dtype=int)
    for n, texts in enumerate(suggestions):
        clicks[n, :2, texts.index("long one")] = 1
    found = rewards.on_clicks(load_on_device(run_dir / "garm"), conversations, suggestions, clicks)
    assert (found["accuracy"], found["n_pairs"], found["n_impressions"]) == (1.0, 60, 30)
    assert (
        rewards.on_clicks(load_on_device(run_dir / "garm"), conversations, suggestions, np.ones_like(clicks)) is None
    )


def test_the_parts_of_the_reward_are_measured_on_what_every_arm_says(run_dir, scorer):
    parts = {"rules": {"weight": 2.0, "mean": 0.0, "std": 1.0}, "ood": {"weight": 1.0, "mean": 0.0, "std": 1.0}}
    write_whole(run_dir / "fusion" / "weights.json", json.dumps({"rewards": parts}))
    conversations = [conversation(0), conversation(1)]
    responses = ["1. How long?\n2. Which flour?\n3. Why so?", "nothing at all"]
    reward = rewards.RunReward(run_dir, None, {"ood": {"threshold": "3"}})
    found = reward(conversations, responses, [1.0, 9.0])
    assert found["ood"] == pytest.approx(-3.0) and found["rules"] < 0  # by a hinge: 0 and 3 - 9, averaged
    assert found["total"] == pytest.approx(2 * found["rules"] + found["ood"])


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
    assert "above 0.15, its probabilities and sigmas are not to be trusted" in calibration_verdict(figures)
    assert "can be used" in calibration_verdict(figures | {"ece": 0.05})


def test_a_run_without_a_reward_model_or_pairs_goes_on_without(run_dir, scorer):
    write_json_lines(run_dir / "data" / "pairs.heldout.jsonl", [])
    assert rewards.on_heldout_pairs(run_dir, None)["n_pairs"] == 0
    (run_dir / "garm").rmdir()
    run_stage("--run", run_dir)
    assert "garm" not in json.loads((run_dir / "report" / "metrics.json").read_text())
