import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from rapidfuzz.fuzz import token_set_ratio

from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import format_response, parse_response
from openrlhf_qs.plugins.rewards.garm import Garm, GarmSigma
from openrlhf_qs.plugins.rewards.general import GeneralReward
from openrlhf_qs.plugins.rewards.heuristics import Diversity, GateMalformed, Relevance, Repetition, Rules
from openrlhf_qs.plugins.rewards.ood import OODPenalty
from openrlhf_qs.reward.offline import offline_batch
from openrlhf_qs.reward.rollout import RolloutBatch

GOOD = "1. How long does it take?\n2. Which flour is the best one?\n3. Can I bake bread without an oven?"
SHORT = "1. How long does it take?\n2. Flour?\n3. Can I bake bread without an oven?"
ALIKE = "1. How long does it take?\n2. Does it take how long?\n3. Can I bake bread without an oven?"
TWO = "1. How long does it take?\n2. Which flour is the best one?"
NONE = "I do not know."


def rollout_batch(
    responses=(GOOD,), cut=None, ref_log_ppl=None, reward_mean=None, reward_std=None, reward_epistemic_std=None
):
    return RolloutBatch(
        requests=[Request([{"role": "user", "content": "How do I bake bread?"}])] * len(responses),
        responses=responses,
        parsed=[
            parse_response(response, finish_reason="length" if one_cut else "stop")
            for response, one_cut in zip(responses, cut or [False] * len(responses), strict=True)
        ],
        group=torch.zeros(len(responses), dtype=torch.long),
        ref_log_ppl=None if ref_log_ppl is None else torch.tensor(ref_log_ppl),
        reward_mean=reward_mean,
        reward_std=reward_std,
        reward_epistemic_std=reward_epistemic_std,
    )


def test_garm_averages_the_means_over_three_suggestions():
    batch = rollout_batch(
        [GOOD, GOOD], reward_mean=[[1.0, 2.0, 3.0], [-1.0, 0.0, 0.4]], reward_std=[[1.0, 2.0, 3.0]] * 2
    )
    # (1 + 2 + 3) / 3 = 2;  (-1 + 0 + 0.4) / 3 = -0.2
    torch.testing.assert_close(Garm()(batch), torch.tensor([2.0, -0.2]))


def test_a_suggestion_that_is_missing_counts_the_least():
    batch = rollout_batch([TWO, NONE], reward_mean=[[1.0, 2.0], []], reward_std=[[0.5, 1.0], []])
    # (1 + 2 - 3) / 3 = 0;  3 * -3 / 3 = -3
    torch.testing.assert_close(Garm()(batch), torch.tensor([0.0, -3.0]))
    # -(0.5 + 1 + 3) / 3 = -1.5;  -3
    torch.testing.assert_close(GarmSigma()(batch), torch.tensor([-1.5, -3.0]))
    # (1 + 2 - 6) / 3 = -1
    assert Garm(missing=-6.0)(batch).tolist() == [-1.0, -6.0]


def test_the_chance_of_a_click_is_that_of_at_least_one_looked_at_and_clicked():
    odds = [math.log(0.5 / 0.5), math.log(0.2 / 0.8), math.log(0.4 / 0.6)]
    std = 2.0
    means = [one * math.sqrt(1 + math.pi / 8 * std**2) for one in odds]  # so that the average user's odds are these
    batch = rollout_batch((GOOD, TWO), reward_mean=[means, means[:2]], reward_std=[[std] * 3, [std] * 2])
    garm = Garm(form="click_chance", examination="1,0.5,0.25")
    # 1 - .5 * (1 - .5 * .2) * (1 - .25 * .4), and 1 - .5 * .9 where the third is missing
    torch.testing.assert_close(garm(batch), torch.tensor([1 - 0.5 * 0.9 * 0.9, 1 - 0.5 * 0.9]))
    # what is lost without it: .5 * .9 * .9, .1 * .5 * .9, .1 * .5 * .9
    torch.testing.assert_close(garm.credit(batch)[0], torch.tensor([0.5 * 0.81, 0.1 * 0.45, 0.1 * 0.45]))
    assert garm.credit(batch)[1, 2] == 0
    torch.testing.assert_close(Garm(form="click_chance")(batch)[0], torch.tensor(1 - 0.5 * 0.8 * 0.6))
    shown = offline_batch(batch.requests[:1], [f"{GOOD}\n4. Why?"], n_shown=[4])  # more than the task asks for
    shown = replace(shown, reward_mean=[[*means, 0.0]], reward_std=[[std] * 4])
    torch.testing.assert_close(Garm(form="click_chance")(shown), torch.tensor([1 - 0.5 * 0.8 * 0.6 * 0.5]))
    with pytest.raises(ValueError, match="2 positions for 3 suggestions"):
        Garm(form="click_chance", examination="1,0.5")(batch)
    with pytest.raises(ValueError, match="garm.examination = '1,x'"):
        Garm(examination="1,x")


def test_garm_sigma_is_the_negative_mean_of_the_deviations():
    batch = rollout_batch([GOOD], reward_std=[[0.3, 0.6, 1.2]])
    # -(0.3 + 0.6 + 1.2) / 3 = -0.7
    torch.testing.assert_close(GarmSigma()(batch), torch.tensor([-0.7]))
    epistemic = rollout_batch([GOOD], reward_epistemic_std=[[0.0, 0.0, 0.6]])
    torch.testing.assert_close(GarmSigma("epistemic")(epistemic), torch.tensor([-0.2]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"form": "lower"}, 2.0 - 0.7),  # the mean deviation is (0.3 + 0.6 + 1.2) / 3 = 0.7
        ({"form": "lower", "k": 2.0}, 2.0 - 1.4),
        ({"form": "risk", "beta": 0.5}, 2.0 - 0.63),  # (0.09 + 0.36 + 1.44) / 3 = 0.63, over 2 * 0.5
        ({"form": "quantile", "q": 0.5}, 2.0),
        ({"form": "quantile", "q": 0.158655254}, 2.0 - 0.7),  # one deviation below
        ({"form": "lower", "uncertainty": "epistemic"}, 2.0 - 0.9),  # (0.4 + 0.8 + 1.5) / 3
        ({"form": "lower", "uncertainty": "total"}, 2.0 - (0.5 + 1.0 + 1.5 * 1.64**0.5) / 3),
    ],
)
def test_garm_takes_from_the_mean_what_its_form_says(options, expected):
    batch = rollout_batch(
        [GOOD],
        reward_mean=[[1.0, 2.0, 3.0]],
        reward_std=[[0.3, 0.6, 1.2]],
        reward_epistemic_std=[[0.4, 0.8, 1.5]],
    )
    # total: root of 0.09 + 0.16 = 0.5, of 0.36 + 0.64 = 1, of 1.44 + 2.25 = 3.69 = 1.5^2 * 1.64
    torch.testing.assert_close(Garm(**options)(batch), torch.tensor([expected]))


def test_a_missing_suggestion_counts_the_same_in_every_form():
    batch = rollout_batch([NONE], reward_mean=[[]], reward_std=[[]], reward_epistemic_std=[[]])
    assert [Garm(form)(batch).item() for form in ("mean", "lower", "risk", "quantile")] == [-3.0] * 4


@pytest.mark.parametrize(("option", "value"), [("beta", 0.0), ("q", 0.0), ("q", 1.0)])
def test_a_form_that_cannot_be_is_refused(option, value):
    with pytest.raises(ValueError, match=f"garm.{option} must be .*, got {value}"):
        Garm(**{option: value})


def test_ood_takes_only_what_is_above_the_threshold():
    batch = rollout_batch([GOOD] * 3, ref_log_ppl=[2.0, 3.0, 5.0])
    # 2 - 3 < 0, 3 - 3 = 0, 5 - 3 = 2
    torch.testing.assert_close(OODPenalty(threshold=3.0)(batch), torch.tensor([0.0, 0.0, -2.0]))
    torch.testing.assert_close(OODPenalty()(batch), torch.tensor([-2.0, -3.0, -5.0]))


def test_the_forms_of_ood_on_one_batch():
    batch = rollout_batch([GOOD] * 5, ref_log_ppl=[1.0, 2.0, 3.0, 4.0, 8.0])
    assert OODPenalty("linear")(batch).tolist() == [-1.0, -2.0, -3.0, -4.0, -8.0]
    quantile = OODPenalty("quantile", quantile=0.75)
    with pytest.raises(ValueError, match="ood.form = quantile has no threshold"):
        quantile(batch)
    # three quarters of the samples lie at 4 or below
    assert quantile.calibrate(batch) == {"threshold": 4.0}
    assert quantile(batch).tolist() == [0.0, 0.0, 0.0, 0.0, -4.0]
    assert OODPenalty("quantile", threshold=4.0)(batch).tolist() == quantile(batch).tolist()
    assert OODPenalty("quantile", threshold=3.0).calibrate(batch) == OODPenalty().calibrate(batch) == {}


def test_the_multiplier_of_the_constraint_grows_above_the_threshold_and_shrinks_below():
    ood = OODPenalty("constraint", threshold=0.5, rate=0.5)
    batch = rollout_batch([GOOD, GOOD], ref_log_ppl=[0.5, 0.7])
    torch.testing.assert_close(ood(batch), torch.tensor([-0.5, -0.7]))
    # a mean of 0.6 is 20 % above 0.5: exp(0.5 * 0.2)
    assert ood.adapt(batch) == pytest.approx(math.exp(0.1))
    torch.testing.assert_close(ood(batch), torch.tensor([-0.5, -0.7]) * math.exp(0.1))
    for _ in range(30):
        ood.adapt(rollout_batch(ref_log_ppl=[0.25]))
    assert 0 < ood.multiplier < 1e-3
    # one wild step at most multiplies by exp(rate)
    assert OODPenalty("constraint", threshold=0.5, rate=0.5).adapt(rollout_batch(ref_log_ppl=[50.0])) == pytest.approx(
        math.exp(0.5)
    )


def test_the_level_of_the_constraint_is_the_reference_policys_own_and_a_slack():
    ood = OODPenalty("constraint", slack=0.1)
    with pytest.raises(ValueError, match="ood.form = constraint has no threshold"):
        ood.adapt(rollout_batch(ref_log_ppl=[1.0]))
    assert ood.calibrate(rollout_batch([GOOD, GOOD], ref_log_ppl=[0.4, 0.6])) == pytest.approx({"threshold": 0.6})
    assert ood.multiplier == 1.0
    assert OODPenalty("hinge").adapt(rollout_batch(ref_log_ppl=[1.0])) is None


def test_what_parts_credit_suggestions_with_adds_up_to_their_reward():
    batch = replace(
        rollout_batch(
            [GOOD, TWO],
            ref_log_ppl=[0.6, 0.9],
            reward_mean=[[1.0, 2.0, 3.0], [1.0, 2.0]],
            reward_std=[[0.5, 1.0, 1.5], [0.5, 1.0]],
        ),
        ref_log_ppl_share=torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.0]]),
    )
    for reward in (Garm(), Garm("lower"), GarmSigma(), Relevance(), OODPenalty(), OODPenalty("linear")):
        credit = reward.credit(batch)
        assert credit.shape == (2, 3)
        torch.testing.assert_close(credit.sum(-1), reward(batch))
    # what is free as a whole is free in its suggestions
    torch.testing.assert_close(OODPenalty(threshold=0.8).credit(batch)[0], torch.zeros(3))


def test_of_two_suggestions_that_are_alike_the_later_one_is_blamed():
    credit = Diversity().credit(rollout_batch([ALIKE, TWO]))
    one, two, three = (parse_response(ALIKE).suggestions[n].lower().rstrip("?") for n in range(3))
    worst = max(token_set_ratio(three, one), token_set_ratio(three, two)) / 100
    # the second says in other words what the first says
    torch.testing.assert_close(credit[0], torch.tensor([0.0, -1.0, -worst]))
    assert credit[1][0] == credit[1][2] == 0  # there is no third
    whole = Diversity(across=0.5).credit(rollout_batch([ALIKE, GOOD]))
    assert (whole == whole[:, :1]).all()


def test_a_length_is_blamed_on_its_suggestion_and_a_bad_form_on_all():
    one_word = "1. Why?\n2. Which flour is best for a loaf?\n3. How long does it rise?"
    credit = Rules().credit(rollout_batch([one_word, NONE]))
    torch.testing.assert_close(credit, torch.tensor([[-1 / 3, 0, 0], [-1.0, -1.0, -1.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantile": 1.0}, "between 0 and 1, got 1.0"),
        ({"form": "linear", "threshold": 1.0}, "use ood.form=hinge"),
        ({"rate": 0.0}, "ood.rate must be > 0"),
        ({"form": "constraint", "threshold": 0.0}, "ood.threshold must be > 0"),
    ],
)
def test_options_of_ood_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OODPenalty(**options)


def test_the_gate_lets_through_what_is_in_good_form_and_whole():
    batch = rollout_batch([GOOD, GOOD, TWO, NONE], cut=[False, True, False, False])
    assert GateMalformed()(batch).tolist() == [1.0, 0.0, 0.0, 0.0] and GateMalformed.gate


def test_repetition_is_the_larger_share_of_words_and_of_n_grams():
    stuffed = "1. bread flour bread bread?\n2. Which flour?\n3. What is it?"
    copied = "1. Which flour is the best one?\n2. Which flour is the best one?\n3. How long?"
    value = Repetition()(rollout_batch([GOOD, stuffed, copied, NONE]))
    # none;  2 of the first one's 4 words;  4-grams: 3 of 7, "how long" is one;  no suggestion
    torch.testing.assert_close(value, torch.tensor([0.0, -0.5, -3 / 7, 0.0]))
    # one word at a time: 6 of 14 come again, as "which flour is the best one"
    torch.testing.assert_close(Repetition(n=1)(rollout_batch([copied])), torch.tensor([-6 / 14]))
    with pytest.raises(ValueError, match="repetition.n must be at least 1, got 0"):
        Repetition(n=0)


def test_diversity_across_the_group_is_what_the_likeness_to_every_other_leaves():
    other = "1. Is rye healthy?\n2. Who invented ovens?\n3. Why does dough need salt?"
    batch = rollout_batch([GOOD, GOOD, other, TWO])
    within = Diversity()(batch)
    texts = [[text.casefold().strip("?") for text in parse_response(r).suggestions] for r in (GOOD, GOOD, other)]

    def likeness(a, b):
        return sum(token_set_ratio(x, y) for x in texts[a] for y in texts[b]) / 900

    across = torch.tensor(
        [1 - (likeness(n, (n + 1) % 3) + likeness(n, (n + 2) % 3)) / 2 for n in range(3)] + [0.0]
    )  # the last has two suggestions only
    torch.testing.assert_close(Diversity(across=1.0)(batch), across)
    torch.testing.assert_close(Diversity(across=0.25)(batch), 0.75 * within + 0.25 * across)
    alone = offline_batch([Request([{"role": "user", "content": "?"}])] * 2, [GOOD, other])
    torch.testing.assert_close(Diversity(across=0.5)(alone), Diversity()(alone))
    shown = replace(
        offline_batch([batch.requests[0]] * 2, [GOOD, TWO], n_shown=[3, 2]), group=torch.zeros(2, dtype=torch.long)
    )
    pairs = [token_set_ratio(x, y) / 100 for x in texts[0] for y in texts[0][:2]]
    torch.testing.assert_close(Diversity(across=1.0)(shown), torch.tensor([1 - sum(pairs) / 6] * 2))
    with pytest.raises(ValueError, match="diversity.across must be in .0, 1., got 2"):
        Diversity(across=2)


def test_rules_take_a_third_for_each_suggestion_of_a_bad_length_and_all_for_bad_form():
    batch = rollout_batch([GOOD, SHORT, TWO, NONE])
    # GOOD has 22, 28 and 33 columns; in SHORT the second has 6 of at least 10: -1/3; TWO and NONE are malformed
    torch.testing.assert_close(Rules()(batch), torch.tensor([0.0, -1 / 3, -1.0, -1.0]))
    # at most 30 columns: the third is too wide, and in SHORT the second too narrow
    torch.testing.assert_close(Rules(max_width=30)(batch)[:2], torch.tensor([-1 / 3, -2 / 3]))


def test_a_response_that_was_cut_is_malformed_even_where_three_lines_are_there():
    assert Rules()(rollout_batch([GOOD, GOOD], cut=[True, False])).tolist() == [-1.0, 0.0]


@pytest.mark.parametrize(("min_width", "max_width"), [(0, 5), (6, 5)])
def test_rules_that_nothing_can_meet_are_refused(min_width, max_width):
    with pytest.raises(ValueError, match=f"got {min_width} and {max_width}"):
        Rules(min_width=min_width, max_width=max_width)


def test_diversity_is_one_minus_the_likeness_of_the_two_most_alike():
    value = Diversity()(rollout_batch([GOOD]))
    # the nearest pair of GOOD, in lower case and without question marks
    texts = [text.casefold().strip("?") for text in parse_response(GOOD).suggestions]
    likeness = [token_set_ratio(texts[a], texts[b]) / 100 for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(value, torch.tensor([1 - max(likeness)]))
    assert 0 < value.item() < 1


def test_diversity_sees_through_case_order_and_punctuation_and_needs_three():
    again = "1. How long does it take?\n2. HOW LONG DOES IT TAKE?\n3. Can I bake bread without an oven?"
    value = Diversity()(rollout_batch([again, ALIKE, TWO, NONE]))
    # the same words in upper case, and in another order: likeness 1; fewer than three: 0
    torch.testing.assert_close(value, torch.zeros(4))


MANY = rollout_batch(
    [GOOD, SHORT, TWO, NONE, ALIKE],
    cut=[False, True, False, False, False],
    ref_log_ppl=[1.0, 2.0, 3.0, 4.0, 5.0],
    reward_mean=[[1.0, 2.0, 3.0], [0.0, 0.5, 0.1], [1.0, -1.0], [], [2.0, 2.0, 2.5]],
    reward_std=[[0.5, 1.0, 1.5], [0.2, 0.5, 0.1], [1.0, 0.4], [], [2.0, 2.0, 2.5]],
    reward_epistemic_std=[[0.1, 0.2, 0.3], [0.0, 0.0, 0.1], [0.5, 0.4], [], [0.2, 0.2, 0.5]],
)


@pytest.mark.parametrize(
    "reward",
    [Garm(), Garm("lower", "total"), GarmSigma(), OODPenalty("hinge", 2.5), Rules(), Repetition(), Diversity()],
    ids=type,
)
@pytest.mark.parametrize("order", [[4, 2, 0, 1, 3], [3], [0, 0]], ids=["permuted", "one", "twice"])
def test_a_response_gets_the_same_whatever_stands_beside_it(reward, order):
    all_of_them = reward(MANY)
    assert all_of_them.shape == (5,) and all_of_them.isfinite().all()
    assert reward(MANY.take(order)).tolist() == all_of_them[order].tolist()


def test_an_offline_batch_has_what_training_would_have_given():
    asked = []

    def scorer(conversations, suggestions):
        asked.extend(zip(conversations, suggestions, strict=True))
        n = np.arange(len(suggestions))
        return n, n + 0.5, n + 0.25

    conversations = [[{"role": "user", "content": text}] for text in "abc"]
    batch = offline_batch([Request(c) for c in conversations], [GOOD, NONE, TWO], [1.0, 2.0, 3.0], scorer)
    # three suggestions, none, two: numbered in the order in which they were scored
    assert batch.reward_mean == [[0, 1, 2], [], [3, 4]]
    assert batch.reward_std == [[0.5, 1.5, 2.5], [], [3.5, 4.5]]
    assert batch.reward_epistemic_std == [[0.25, 1.25, 2.25], [], [3.25, 4.25]]
    assert [conversation[0]["content"] for conversation, _ in asked] == ["a", "a", "a", "c", "c"]
    assert asked[4][1] == "Which flour is the best one?"
    assert batch.ref_log_ppl.tolist() == [1.0, 2.0, 3.0] and batch.malformed.tolist() == [False, True, True]
    assert len(set(batch.group.tolist())) == 3


def test_relevance_counts_suggestions_that_take_up_a_content_word_of_the_last_user_message():
    conversation = [{"role": "user", "content": "Tell me about sourdough bread."}]
    response = format_response(
        ["How long does sourdough rest?", "What about Rome?", "About sourdough bread, tell me."]
    )
    # The first takes up "sourdough"; the second shares only stop words; the third is the message again: 1 of 3.
    batch = offline_batch([Request(conversation)], [response])
    torch.testing.assert_close(Relevance()(batch), torch.tensor([1 / 3]))


def test_words_weigh_less_the_more_conversations_of_their_language_they_stand_in():
    # 100 conversations: "please" stands in all, "garden" in 10, a subject of its own in each
    requests = [
        Request([{"role": "user", "content": f"Please tell me what the {'garden and ' * (n < 10)}subject{n} needs"}])
        for n in range(100)
    ]
    log = offline_batch(requests, [format_response([f"What is subject{n}?"] * 3) for n in range(100)])
    part = Relevance()
    found = dict(one.split("=") for one in part.calibrate(log)["frequent"].split())
    assert found["en/please"] == "1.000" and found["en/garden"] == "0.100" and "en/subject7" not in found
    asked = Request([{"role": "user", "content": "Please tell me about the garden and about subject7."}])
    suggestions = ["How large is a garden?", "Could you help me please?", "Why does subject7 matter?"]
    batch = offline_batch([asked], [format_response(suggestions)])
    # log(0.2 / 0.1) / log(0.2 / 0.05) = 1/2 for the garden, 0 for what stands everywhere, 1 for the subject
    torch.testing.assert_close(part.credit(batch)[0], torch.tensor([1 / 2, 0, 1]) / 3)
    again = Relevance(frequent=part.frequent)
    torch.testing.assert_close(again(batch), part(batch))


def test_relevance_of_a_language_with_few_conversations_goes_by_the_background():
    part = Relevance(frequent="en/how=0.8 en/garden=0.3")
    asked = Request([{"role": "user", "content": "Wie gieße ich die Pflanzen in meinem Garten?"}])
    batch = offline_batch([asked], [format_response(["Wie teuer ist das?", "Wie groß ist ein Garten?", "Und nun?"])])
    torch.testing.assert_close(part.credit(batch)[0], torch.tensor([0.0, 1, 0]) / 3)


def test_widths_are_those_of_what_was_clicked_where_a_script_has_enough():
    part = Rules()
    assert part.measure(["a" * 30] * 99 + ["怎" * 12] * 100) == {"widths": "CJK=16-36"}
    asked = Request([{"role": "user", "content": "q"}])
    # 14 columns are too few, 24 are not; of Latin letters the limits are still 10 and 100
    batch = offline_batch([asked], [format_response(["怎" * 7, "怎" * 12, "a" * 12])])
    torch.testing.assert_close(part(batch), torch.tensor([-1 / 3]))
    assert Rules(widths=part.widths)(batch) == part(batch)
    with pytest.raises(ValueError, match="rules.widths: 'CJK=9'; give scripts with least and most columns"):
        Rules(widths="CJK=9")


# A general reward model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Folder of a sequence classifier with one label and random weights, as Skywork's are made."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

    from openrlhf_qs.clicks.click_log import SCHEMA
    from openrlhf_qs.sft.small_policy import build_small_policy

    folder = tmp_path_factory.mktemp("classifier")
    rows = {"conversation": [[{"role": "user", "content": "How do I bake bread?"}]] * 4, "suggestions": [["a b"]] * 4}
    log = pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows})
    build_small_policy(log, folder / "policy", vocab_size=400, hidden_size=128, n_layers=1)
    config = Qwen3Config.from_pretrained(folder / "policy")
    config.num_labels = 1
    torch.manual_seed(0)
    Qwen3ForSequenceClassification(config).save_pretrained(folder / "reward")
    AutoTokenizer.from_pretrained(folder / "policy").save_pretrained(folder / "reward")
    return folder


def test_a_general_reward_model_scores_in_batches_what_it_scores_alone(classifier):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from openrlhf_qs.form.task import SUGGEST

    reward = GeneralReward(str(classifier / "reward"), batch_size=2, device="cpu")
    assert reward.model is None  # until it is called
    batch = rollout_batch([GOOD, NONE, TWO, ALIKE, ""])
    tokenizer = AutoTokenizer.from_pretrained(classifier / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(classifier / "reward", dtype=torch.float32).eval()
    expected = []
    for conversation, response in zip(batch.conversations, batch.responses, strict=True):
        messages = [*SUGGEST.messages(conversation), {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, return_tensors="pt")
        expected.append(model(ids).logits.item())
    torch.testing.assert_close(reward(batch), torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert len(set(expected)) == 5


@pytest.mark.parametrize(
    ("model", "message"),
    [("policy", "is a Qwen3ForCausalLM .* give a sequence classifier with one"), ("nothing", "general.model = ")],
)
def test_what_is_no_classifier_is_refused(classifier, model, message):
    with pytest.raises(ValueError, match=message):
        GeneralReward(str(classifier / model), device="cpu")(rollout_batch())


def test_a_classifier_without_its_head_is_refused(classifier, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(classifier / "reward", tmp_path / "reward")
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has no weights for score.weight; it would score by random numbers"):
        GeneralReward(str(folder), device="cpu")(rollout_batch())
