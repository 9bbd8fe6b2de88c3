import sys

import numpy as np
import pytest
from held_out import conversation

from openrlhf_qs.evaluation.ab_test import ArmResult, compare, load_judge, relative_lift, run_ab_test
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.registry import JUDGES, load_plugins
from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import cluster_half_width


def arm(*suggestion_lists):
    return [(conversation(n), suggestions) for n, suggestions in enumerate(suggestion_lists)]


def says(text_to_probability):
    """A judge that gives each text the probability it stands for."""
    return lambda conversations, suggestions: [[text_to_probability[text] for text in row] for row in suggestions]


def result(context_ctr, *clusters):
    context_ctr = np.array(context_ctr, dtype=float)
    n, ctr = len(context_ctr), context_ctr.mean()
    clusters = Clusters.of(*(clusters or [range(n)]))
    half = cluster_half_width(context_ctr, clusters)
    return ArmResult(ctr, (ctr - half, ctr + half), 10 * n, n, [], context_ctr, clusters, np.array([]))


def test_ctr_is_the_share_of_users_with_a_click_whichever_slot():
    judge = says({"no": 0.0, "yes": 1.0, "half": 0.5})
    arms = {"none": arm(["no"] * 3, ["no"] * 3), "some": arm(["no", "yes", "half"], ["no", "no", "half"])}
    results = run_ab_test(arms, judge, n_users=20_000)
    assert results["none"].ctr == 0.0 and results["none"].ci95 == (0.0, 0.0)
    # the first context always clicks, the second half of the time: (1 + 0.5) / 2
    assert results["some"].ctr == pytest.approx(0.75) and results["some"].clicks.any(2).mean() == pytest.approx(
        0.75, abs=0.01
    )
    assert results["some"].slot_ctr == pytest.approx([0.0, 0.5, 0.5])
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
    # means 0.527 (ddof 1), / sqrt(10) * 2.262, the t quantile, = 0.377; counting users alone it would be 0.0098
    judge = says({"no": 0.0, "yes": 1.0})
    results = run_ab_test({"one": arm(*[["yes"], ["no"]] * 5)}, judge, n_users=10_000)
    low, high = results["one"].ci95
    assert (results["one"].ctr, low, high) == pytest.approx((0.5, 0.5 - 0.3770, 0.5 + 0.3770), abs=1e-3)


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


def test_a_judges_probabilities_tell_more_than_clicks_drawn_from_them():
    rng = np.random.default_rng(1)
    chances = {f"{n}": p for n, p in enumerate(rng.uniform(0.25, 0.45, 200))}
    found = run_ab_test({"one": arm(*[[text] for text in chances])}, says(chances), n_users=2200)["one"]
    drawn = result(found.clicks.any(2).mean(1)).ci95  # 11 users a conversation
    # variance of a conversation's mean: .0033 of the chances, and .35 * .65 / 11 = .0207 of the draws
    ratio = (drawn[1] - drawn[0]) / (found.ci95[1] - found.ci95[0])
    assert ratio == pytest.approx(((0.0033 + 0.0204) / 0.0033) ** 0.5, rel=0.2)


def test_an_arm_does_not_depend_on_the_others_and_the_seed_decides():
    judge = says({"x": 0.3})
    one = arm(["x"], ["x"])
    alone = run_ab_test({"b": one}, judge, 100, seed=1)["b"].clicks
    assert (run_ab_test({"a": one, "b": one}, judge, 100, seed=1)["b"].clicks == alone).all()
    assert (run_ab_test({"b": one}, judge, 100, seed=2)["b"].clicks != alone).any()


def test_two_equal_arms_cannot_be_told_apart():
    judge = says({"x": 0.3, "y": 0.6})
    same = arm(*[["x", "y"], ["y", "x"], ["x", "x"], ["y", "y"]] * 25)
    results = run_ab_test({"sft": same, "grpo": same}, judge, 20_000)
    low, high = relative_lift(results["grpo"], results["sft"]).ci95
    assert low == high == 0  # no draws: the two are the same
    assert "does not differ clearly from" in compare("grpo", results["grpo"], "sft", results["sft"])


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
        (None, "it returned None; return click probabilities, one row per user"),
        ([[0.5], None, [0.5], [0.5]], "row 1: None; return one number per suggestion"),
        ([[0.5], [None], [0.5], [0.5]], r"row 1: \[None\]; return one number per suggestion"),
        ([["a"], [0.5], [0.5], [0.5]], r"row 0: \['a'\]; return one number per suggestion"),
        ([[10**400], [0.5], [0.5], [0.5]], r"row 0: \[10+\.\.\.; return one number per suggestion"),
    ],
)
def test_a_judge_that_breaks_its_word_is_named_with_the_row(answer, said):
    class Oracle:
        def __call__(self, conversations, suggestions):
            return answer

    with pytest.raises(ValueError, match=f"judge Oracle, arm sft.*{said}"):
        run_ab_test({"sft": arm(["x"], ["x"])}, Oracle(), 4)


def test_a_judge_that_raises_is_named_with_what_it_raised():
    class Raises:
        def __call__(self, conversations, suggestions):
            return {}["no such key"]

    class RaisesLate:
        def __call__(self, conversations, suggestions):
            yield {}["no such key"]

    for judge in (Raises(), RaisesLate()):
        name = type(judge).__name__
        with pytest.raises(ValueError, match=rf"judge {name}, arm sft: it raised KeyError\('no such key'\)"):
            run_ab_test({"sft": arm(["x"], ["x"])}, judge, 4)


def test_a_judge_that_ends_the_process_is_an_error_and_no_success():
    class Exits:
        def __call__(self, conversations, suggestions):
            sys.exit(0)

    with pytest.raises(ValueError, match=r"judge Exits, arm sft: it raised SystemExit\(0\)"):
        run_ab_test({"sft": arm(["x"], ["x"])}, Exits(), 4)


def test_a_judge_may_be_a_generator():
    class Yields:
        def __call__(self, conversations, suggestions):
            yield from ([0.5] * len(row) for row in suggestions)

    assert run_ab_test({"sft": arm(["x"], ["x"])}, Yields(), 4)["sft"].ctr == 0.5


def test_one_conversation_alone_has_no_interval():
    with pytest.raises(ValueError, match="an interval needs at least 2"):
        run_ab_test({"sft": arm(["x"])}, says({"x": 0.5}), 10)


def test_lift_by_hand():
    # 0.6 / 0.5 - 1 = 20 %. Influence (a - 1.2 b) / 0.5 over contexts: (0.4 - 0.48, 0.8 - 0.72) / 0.5 = -0.16, 0.16;
    # sd (ddof 1) 0.22627, / sqrt(2) = 0.16; times 12.706, the t quantile of two conversations, = 2.033
    lift = relative_lift(result([0.4, 0.8]), result([0.4, 0.6]))
    assert lift.value == pytest.approx(0.2)
    assert lift.ci95 == pytest.approx((0.2 - 2.03298, 0.2 + 2.03298), abs=1e-4)


def test_the_lift_of_an_arm_that_is_better_by_the_same_factor_everywhere_is_certain():
    lift = relative_lift(result([0.2, 0.4, 0.6]), result([0.1, 0.2, 0.3]))
    assert lift.value == pytest.approx(1.0) and lift.ci95 == pytest.approx((1.0, 1.0))


def test_there_is_no_lift_over_nothing():
    assert relative_lift(result([0.1, 0.2]), result([0.0, 0.0])) is None
    assert "cannot be compared with sft" in compare("grpo", result([0.1, 0.2]), "sft", result([0.0, 0.0]))


def test_a_lift_from_the_clicks_of_one_conversation_has_no_interval():
    one_click, none = result([0.1, 0.0, 0.0]), result([0.2, 0.0, 0.0])
    assert relative_lift(one_click, none) is None  # where an interval of width 0 would be told
    assert relative_lift(result([0.0, 0.0]), result([0.1, 0.2])) is None
    assert "because fewer than two conversations have clicks" in compare("grpo", one_click, "sft", none)


def test_the_turns_of_one_conversation_are_one_cluster():
    turns = [conversation(n // 4) + [{"role": "user", "content": f"turn {n % 4}"}] * (n % 4) for n in range(12)]
    arms = {"one": [(turn, ["yes" if n < 4 else "no"]) for n, turn in enumerate(turns)]}
    found = run_ab_test(arms, says({"yes": 1.0, "no": 0.0}), n_users=100)["one"]
    assert found.clusters.n_clusters == 3 and found.n_contexts == 12
    low, high = found.ci95
    # three conversations of which one is clicked: 1/3 and the deviation 0.577, / sqrt(3) * 4.303
    assert (low, high) == pytest.approx((0.0, 1.0)) and found.ctr == pytest.approx(1 / 3)


def test_two_equal_policies_are_told_apart_no_more_often_than_they_should_be():
    # four turns of a conversation are alike, and both arms differ on a conversation as a whole by chance
    rng, n_called, n_tests = np.random.default_rng(0), {"roots": 0, "turns": 0}, 400
    for _ in range(n_tests):
        base = rng.uniform(0.2, 0.5, (60, 1))
        one, other = (
            np.clip(base + rng.normal(0, 0.1, (60, 1)) + rng.normal(0, 0.03, (60, 4)), 0, 1) for _ in range(2)
        )
        for name, roots in (("roots", np.repeat(np.arange(60), 4)), ("turns", np.arange(240))):
            lift = relative_lift(result(one.ravel(), roots), result(other.ravel(), roots))
            n_called[name] += not lift.ci95[0] < 0 < lift.ci95[1]
    # 5 % of 400 are 20, with a standard deviation of 4.4
    assert n_called["roots"] < 34 and n_called["turns"] > 100


def test_two_equal_policies_are_not_told_apart_by_users_who_come_back():
    # 30 users with 8 conversations each, of whom some like what the one policy writes and some what the other does
    rng, n_called, n_tests = np.random.default_rng(0), {"users": 0, "conversations": 0}, 400
    user, roots = np.repeat(np.arange(30), 8), np.arange(240)
    for _ in range(n_tests):
        base = rng.uniform(0.2, 0.5, 240)
        one, other = (np.clip(base + rng.normal(0, 0.08, 30)[user] + rng.normal(0, 0.1, 240), 0, 1) for _ in range(2))
        for name, kinds in (("users", (roots, user)), ("conversations", (roots,))):
            lift = relative_lift(result(one, *kinds), result(other, *kinds))
            n_called[name] += not lift.ci95[0] < 0 < lift.ci95[1]
    # 5 % of 400 are 20, with a standard deviation of 4.4
    assert n_called["users"] < 34 and n_called["conversations"] > 60


def test_who_had_a_conversation_is_a_cluster_where_the_log_says_it():
    arms, judge = {"one": arm(*[["yes"], ["no"]] * 6)}, says({"yes": 1.0, "no": 0.0})
    owners = {conversation_key(conversation(n)): f"user {n % 2}" if n < 8 else None for n in range(12)}
    known, unknown = run_ab_test(arms, judge, 24, owners=owners)["one"], run_ab_test(arms, judge, 24)["one"]
    # one user had four that are clicked, another four that are not; four are nobody's
    assert (known.clusters.n_clusters, unknown.clusters.n_clusters) == (6, 12)
    assert known.ci95[0] < unknown.ci95[0]


def test_the_sentence_says_who_beats_whom_and_whether_intervals_are_apart():
    better, worse = result([0.58, 0.60, 0.62]), result([0.48, 0.50, 0.52])
    assert compare("grpo", better, "sft", worse).startswith("grpo beats sft: CTR 60.0% against 50.0%, lift +20.0%")
    assert compare("grpo", better, "sft", worse).endswith("the two intervals do not overlap.")
    assert compare("grpo", worse, "sft", better).startswith("grpo loses to sft")
    # better by 0.02 in every context, while contexts differ widely: certain in pairs, invisible in the two intervals
    assert compare("grpo", result([0.12, 0.52, 0.92]), "sft", result([0.1, 0.5, 0.9])).endswith("overlap.")


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
    with pytest.raises(ValueError, match="registers 2 judges .*register exactly one"):
        load_judge(write_judge(tmp_path / "judge_of_two.py", ["one_of_two", "two_of_two"]))


def test_a_judge_that_is_unknown_or_an_option_of_no_plugin_is_refused():
    assert load_judge("none") is None
    with pytest.raises(ValueError, match="unknown judge 'nobody'; known: .*openai_endpoint"):
        load_judge("nobody")
    assert load_judge("none", ["ood.threshold=1"]) is None, "one list of options serves every stage"
    with pytest.raises(ValueError, match="reward 'ood' has no option 'coef'"):
        load_judge("none", ["ood.coef=1"])
