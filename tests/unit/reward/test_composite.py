import json
import math

import pytest
import torch

from openrlhf_qs.form.request import Request
from openrlhf_qs.registry import REWARDS
from openrlhf_qs.reward.composite import CompositeReward, Part, Weights, read_weights, variance_shares
from openrlhf_qs.reward.offline import offline_batch


def batch(*responses, group=None):
    """A rollout batch of ``responses``, each to a question with its place as the text."""
    conversations = [[{"role": "user", "content": f"question {n}"}] for n in range(len(responses))]
    return offline_batch([Request(c) for c in conversations], responses, group=group)


@pytest.fixture(autouse=True)
def made_up_rewards(monkeypatch):
    """``length`` and ``scaled_length`` of a response, and rewards that are wrong in one way each."""
    monkeypatch.setattr(REWARDS, "_plugins", {})

    @REWARDS.register("length")
    class Length:
        def __call__(self, batch):
            return torch.tensor([float(len(response)) for response in batch.responses])

    @REWARDS.register("scaled_length")
    class ScaledLength:
        needs = ("reward_model", "reference")

        def __init__(self, coef: float = 1.0) -> None:
            self.coef = coef

        def __call__(self, batch):
            return [self.coef * len(response) for response in batch.responses]

    @REWARDS.register("bad_at_b")
    class BadAtB:
        def __init__(self, value: float = math.nan) -> None:
            self.value = value

        def __call__(self, batch):
            return torch.tensor([self.value if response == "b" else 0.0 for response in batch.responses])

    @REWARDS.register("one_number")
    class OneNumber:
        def __call__(self, batch):
            return torch.tensor(1.0)

    @REWARDS.register("a_row_each")
    class ARowEach:
        def __call__(self, batch):
            return torch.ones(len(batch.responses), 2)


def test_the_total_is_the_weighted_sum_of_normalised_parts():
    parts = {"length": Part(weight=0.5, mean=2.0, std=4.0), "scaled_length": Part(weight=2.0, mean=-10.0, std=5.0)}
    composite = CompositeReward(["length", "scaled_length"], {"scaled_length": {"coef": "-10"}}, Weights(parts))
    scored = composite.score(batch("ab", "abcd"))
    torch.testing.assert_close(scored.raw["length"], torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(scored.raw["scaled_length"], torch.tensor([-20.0, -40.0]))
    # (2 - 2) / 4, (4 - 2) / 4;  2 * (-20 + 10) / 5, 2 * (-40 + 10) / 5
    torch.testing.assert_close(scored.normalised["length"], torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(scored.weighted["scaled_length"], torch.tensor([-4.0, -12.0]))
    # 0.5 * (2 - 2) / 4 + 2 * (-20 + 10) / 5 = -4;  0.5 * (4 - 2) / 4 + 2 * (-40 + 10) / 5 = 0.25 - 12
    torch.testing.assert_close(scored.total, torch.tensor([-4.0, -11.75]))


def test_the_order_of_the_weights_file_does_not_matter():
    parts = {"length": Part(weight=1.0), "scaled_length": Part(weight=100.0, mean=3.0)}
    totals = []
    for names in (["length", "scaled_length"], ["scaled_length", "length"]):
        composite = CompositeReward(names, {"scaled_length": {"coef": "10"}}, Weights(parts))
        totals.append(composite.score(batch("ab", "abcd")).total.tolist())
    # 2 + 100 * (20 - 3) = 1702;  4 + 100 * (40 - 3) = 3704
    assert totals == [[1702.0, 3704.0]] * 2


def test_without_weights_the_raw_parts_are_added():
    composite = CompositeReward(["length", "scaled_length"], {"scaled_length": {"coef": "10"}})
    # 1 + 10, 3 + 30
    assert composite.score(batch("a", "abc")).total.tolist() == [11.0, 33.0]


def test_every_response_gets_every_part_as_float32():
    raw = CompositeReward(["length", "scaled_length"]).raw(batch("a", "", "abc"))
    assert list(raw) == ["length", "scaled_length"]
    assert all(value.shape == (3,) and value.dtype == torch.float32 for value in raw.values())


def test_a_batch_of_one_is_scored_as_in_a_batch_of_many():
    composite = CompositeReward(["length", "scaled_length"])
    many = composite.score(batch("a", "abc")).total
    one = composite.score(batch("abc")).total
    assert one.tolist() == many[1:].tolist()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_part_that_is_no_number_names_reward_prompt_and_response(value):
    composite = CompositeReward(["length", "bad_at_b"], {"bad_at_b": {"value": value}})
    message = rf"reward 'bad_at_b' is {value} for response 'b' to 'question 1' \(2 of 3 responses\)"
    with pytest.raises(ValueError, match=message):
        composite.score(batch("a", "b", "b"))


@pytest.mark.parametrize(("name", "shape"), [("one_number", r"\[\]"), ("a_row_each", r"\[2, 2\]")])
def test_a_part_of_another_shape_names_the_reward(name, shape):
    with pytest.raises(ValueError, match=f"reward '{name}' returned shape {shape} for 2 responses"):
        CompositeReward([name]).score(batch("a", "b"))


def test_weights_of_other_rewards_are_refused_by_name():
    parts = {"length": Part(), "garm": Part()}
    message = "without a weight: scaled_length; a weight, but not loaded: garm; run the fusion stage again"
    with pytest.raises(ValueError, match=message):
        CompositeReward(["length", "scaled_length"], {}, Weights(parts))


def test_a_reward_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match="reward length,length: a name occurs twice"):
        CompositeReward(["length", "length"])


def test_an_unknown_reward_lists_the_known():
    with pytest.raises(ValueError, match="unknown reward 'lenght'; known: .*length"):
        CompositeReward(["lenght"])


def test_what_the_parts_need_is_known_before_they_are_called():
    assert CompositeReward(["length"]).needs() == set()
    assert CompositeReward(["length", "scaled_length"]).needs() == {"reward_model", "reference"}


def test_a_weights_file_is_read_as_parts_whatever_else_is_in_it(tmp_path):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps({"rewards": {"length": {"weight": 0.5, "mean": 1, "std": 2}}, "fusion": "equal"}))
    assert read_weights(file) == Weights({"length": Part(weight=0.5, mean=1, std=2)}, "sft")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a weights file of the fusion stage"),
        ("[]", "is not a weights file of the fusion stage"),
        ('{"length": 1.0}', "is not a weights file of the fusion stage"),
        ('{"rewards": {"length": 1.0}}', "is not a weights file of the fusion stage"),
        ('{"rewards": {"length": {"wieght": 1.0}}}', "is not a weights file of the fusion stage: .*wieght"),
        ('{"rewards": {"length": {"weight": "1.0"}}}', "is not a weights file of the fusion stage"),
        ('{"rewards": {"length": {"std": 0.0}}}', "length has .*std=0.0.*; give finite numbers and a std above 0"),
        ('{"rewards": {"length": {"weight": NaN}}}', "length has .*weight=nan"),
        ('{"rewards": {}, "normalisation": "none"}', "normalisation 'none' is unknown; known: sft, group, running"),
    ],
)
def test_a_file_that_holds_no_usable_weights_is_refused(tmp_path, text, message):
    file = tmp_path / "weights.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"weights.json:? {message}"):
        read_weights(file)


def test_a_missing_weights_file_says_which_stage_is_due(tmp_path):
    with pytest.raises(ValueError, match="weights.json does not exist: run the fusion stage first"):
        read_weights(tmp_path / "weights.json")


# Gates


@pytest.fixture
def gated():
    """``length`` with a gate that is closed for a response with an x in it."""

    @REWARDS.register("no_x")
    class NoX:
        gate = True

        def __call__(self, batch):
            return torch.tensor(["x" not in response for response in batch.responses])

    def make(**options):
        weights = Weights({"length": Part(weight=2.0, mean=4.0, std=2.0)})
        return CompositeReward(["length", "no_x"], weights=weights, **options)

    return make


def test_where_a_gate_is_closed_the_total_is_the_floor_whatever_the_rest_says(gated):
    scored = gated(gate_floor=-5.0).score(batch("abcd", "xxxxxxxx", "abcde", group=[0, 0, 0]))
    # 2 * (4 - 4) / 2 = 0;  closed;  2 * (5 - 4) / 2 = 1
    assert scored.total.tolist() == [0.0, -5.0, 1.0]
    assert scored.closed.tolist() == [False, True, False]
    assert scored.raw["no_x"].tolist() == [1.0, 0.0, 1.0] and "no_x" not in scored.weighted
    assert scored.logged()["gate_closed"].mean().item() == pytest.approx(1 / 3)


def test_no_response_of_the_group_is_below_one_whose_gate_is_closed(gated):
    scored = gated(gate_floor=-1.0).score(batch("a", "xxxxxxxx", "xabcd", group=[7, 7, 3]))
    # 2 * (1 - 4) / 2 = -3 is below the floor of -1; in the other group there is no other
    assert scored.total.tolist() == [-3.0, -3.0, -1.0]


def test_a_gate_that_is_neither_open_nor_closed_is_refused(gated, monkeypatch):
    monkeypatch.setattr(REWARDS["no_x"], "__call__", lambda self, batch: [0.5, 1.0])
    with pytest.raises(ValueError, match="gate 'no_x' returned .0.5, 1.0.; give 1 for a response that passes, or 0"):
        gated().score(batch("a", "b"))


# Normalisation


def test_within_a_group_each_part_has_mean_0_and_its_deviation_but_not_less_than_the_floor():
    weights = Weights({"length": Part(std=10.0)}, "group")
    scored = CompositeReward(["length"], weights=weights).score(
        batch("a", "a" * 5, "a", "aa", "a", group=[0, 0, 1, 1, 2])
    )
    # 1, 5: mean 3, deviation sqrt(8);  1, 2: mean 1.5, deviation sqrt(0.5), taken for 0.1 * 10;  one alone: 0
    expected = [-2 / 8**0.5, 2 / 8**0.5, -0.5, 0.5, 0.0]
    torch.testing.assert_close(scored.total, torch.tensor(expected))


def test_running_statistics_begin_with_the_sft_policy_and_end_with_what_is_seen():
    from openrlhf_qs.reward.normalisation import RunningStatistics

    values = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    prior = RunningStatistics(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5]))
    prior.update(torch.empty(0, 2))
    assert (prior.mean.tolist(), prior.std.tolist()) == ([1.0, -1.0], [2.0, 0.5])
    seen = RunningStatistics(torch.zeros(2), torch.ones(2), n=1e-9)
    for part in values.split([1, 7, 992, 4000]):
        seen.update(part)
    torch.testing.assert_close(seen.mean, values.mean(0))
    torch.testing.assert_close(seen.std, values.std(0, correction=0))


def test_weights_of_another_normalisation_are_refused():
    with pytest.raises(
        ValueError, match="learned for the normalisation 'sft', not 'group': run the fusion stage again"
    ):
        CompositeReward(["length"], weights=Weights({"length": Part()}), normalisation="group")
    assert CompositeReward(["length"], weights=Weights({"length": Part()}, "group")).normalisation == "group"
    assert CompositeReward(["length"], normalisation="running").normalisation == "running"


def test_an_unknown_choice_lists_the_known():
    with pytest.raises(ValueError, match="normalisation 'none' is unknown; known: sft, group, running"):
        CompositeReward(["length"], normalisation="none")
    with pytest.raises(ValueError, match="on_failure 'ignore' is unknown; known: raise, skip_group"):
        CompositeReward(["length"], on_failure="ignore")


def test_options_that_were_calibrated_hold_unless_the_user_gives_others():
    weights = Weights({"scaled_length": Part(options={"coef": 3.0})})
    assert CompositeReward(["scaled_length"], weights=weights).rewards["scaled_length"].coef == 3.0
    given = CompositeReward(["scaled_length"], {"scaled_length": {"coef": "5"}}, weights)
    assert given.rewards["scaled_length"].coef == 5.0


# Failures


@pytest.fixture
def raises_at_b():
    @REWARDS.register("raises_at_b")
    class RaisesAtB:
        def __call__(self, batch):
            if any("b" in response for response in batch.responses):
                raise RuntimeError("no b")
            return [0.0] * len(batch.responses)


def test_a_part_that_raises_names_reward_prompt_and_response(raises_at_b):
    message = r"reward 'raises_at_b' raised RuntimeError\('no b'\) for response 'ab' to 'question 2'"
    with pytest.raises(ValueError, match=message):
        CompositeReward(["raises_at_b"]).score(batch("a", "aa", "ab", "b", group=[0, 0, 1, 1]))


@pytest.mark.parametrize("name", ["raises_at_b", "bad_at_b"])
def test_a_group_that_is_skipped_has_no_advantage_and_is_counted(raises_at_b, name):
    composite = CompositeReward(["length", name], on_failure="skip_group")
    scored = composite.score(batch("a", "aa", "aaaa", "b", group=[0, 0, 1, 1]))
    # lengths 1 and 2; the other group gets their average, 1.5
    assert scored.total.tolist() == [1.0, 2.0, 1.5, 1.5]
    assert scored.failed.tolist() == [False, False, True, True] and scored.no_signal.tolist() == scored.failed.tolist()
    logged = scored.logged()
    assert logged["reward_failed"].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert logged[f"reward/{name}"].tolist() == [0.0] * 4  # the average of those that could be scored
    assert all(value.isfinite().all() and value.shape == (4,) for value in logged.values())


@pytest.mark.parametrize("name", ["raises_at_b", "bad_at_b"])
def test_a_part_that_fails_on_every_prompt_is_never_skipped(raises_at_b, name):
    with pytest.raises(ValueError, match=f"reward '{name}' .* for response 'b' to 'question 0'"):
        CompositeReward([name], on_failure="skip_group").score(batch("b", "a", "b", group=[0, 0, 1]))


def returning(value):
    @REWARDS.register("returns")
    class Returns:
        def __call__(self, batch):
            return value(batch) if callable(value) else value


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "None"),
        ([10**400, 1.0], r"\[1000"),
        (torch.ones(2).to_sparse(), "a sparse tensor"),
        ([1 + 2j, 0.0], "a complex tensor"),
        (torch.ones(2, dtype=torch.complex64), "a complex tensor"),
        ("ab", "'ab'"),
        (["a", "b"], r"\['a', 'b'\]"),
        ({"a": 1.0}, "{'a': 1.0}"),
        (lambda batch: (1.0 for _ in batch.responses), "<generator"),
    ],
)
@pytest.mark.parametrize("on_failure", ["raise", "skip_group"])
def test_what_is_no_number_a_response_names_the_reward_and_what_it_returned(value, found, on_failure):
    returning(value)
    with pytest.raises(
        ValueError, match=f"reward 'returns' returned {found}.*; give one number per response"
    ) as error:
        CompositeReward(["returns"], on_failure=on_failure).score(batch("a", "b"))
    assert "\n" not in str(error.value)


def test_a_response_that_gets_none_is_one_that_failed():
    returning(lambda batch: [None if response == "b" else 1.0 for response in batch.responses])
    with pytest.raises(ValueError, match=r"reward 'returns' is nan for response 'b' to 'question 1' \(1 of 2 resp"):
        CompositeReward(["returns"]).score(batch("a", "b"))
    scored = CompositeReward(["length", "returns"], on_failure="skip_group").score(batch("a", "aa", "b"))
    assert scored.failed.tolist() == [False, False, True]


def test_a_group_for_which_a_part_returns_nothing_is_skipped():
    returning(lambda batch: None if "b" in batch.responses else [1.0] * len(batch.responses))
    scored = CompositeReward(["length", "returns"], on_failure="skip_group").score(batch("a", "aa", "b"))
    assert scored.failed.tolist() == [False, False, True] and scored.total.tolist() == [2.0, 3.0, 2.5]


def test_a_model_without_no_grad_is_a_part_too():
    weight = torch.ones(1, requires_grad=True)
    returning(lambda batch: weight * torch.tensor([1.0, 2.0]))
    raw = CompositeReward(["returns"]).raw(batch("a", "b"))["returns"]
    assert raw.numpy().tolist() == [1.0, 2.0] and not raw.requires_grad


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch.responses.clear(),
        lambda batch: batch.parsed.reverse(),
        lambda batch: batch.conversations[0].append({"role": "user", "content": "more"}),
        lambda batch: batch.group.zero_(),
    ],
)
def test_a_part_that_changes_what_the_others_read_is_named(change):
    def value(batch):
        n = len(batch.responses)
        change(batch)
        return [1.0] * n

    returning(value)
    batch_of_two = batch("a", "b")
    batch_of_two = type(batch_of_two)(
        **{k: list(v) if isinstance(v, tuple) else v for k, v in vars(batch_of_two).items()}
    )
    with pytest.raises(ValueError, match="reward 'returns' changed the batch that it was given, .*: let it copy"):
        CompositeReward(["returns"]).score(batch_of_two)


@pytest.mark.parametrize("credit", [None, torch.ones(2), [[1.0], [1.0]]])
def test_credit_of_another_shape_names_the_reward(credit):
    @REWARDS.register("credits")
    class Credits:
        def __call__(self, batch):
            return [1.0] * len(batch.responses)

        def credit(self, batch):
            return credit

    with pytest.raises(ValueError, match="credit of reward 'credits' returned .* give one number for each of 3 sugg"):
        CompositeReward(["credits"]).score(batch("a", "b"), with_credit=True)


# Statistics


def test_shares_add_up_to_one_and_are_the_covariances_with_the_total():
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(6).repeat_interleave(8)
    columns = {name: torch.randn(48, generator=generator) * scale for name, scale in (("a", 1), ("b", 3), ("c", 0))}
    total = sum(columns.values())
    shares = variance_shares(columns, total, group)
    assert sum(shares.values()) == pytest.approx(1) and shares["c"] == pytest.approx(0, abs=1e-7)
    for name, share in shares.items():
        pairs = [torch.stack([columns[name][group == g], total[group == g]]) for g in range(6)]
        expected = sum((torch.cov(pair)[0, 1] / torch.cov(pair)[1, 1]).item() for pair in pairs) / 6
        assert share == pytest.approx(expected, abs=1e-5)


def test_groups_without_a_signal_are_counted_and_have_no_share():
    scored = CompositeReward(["length"]).score(batch("a", "b", "a", "aa", group=[0, 0, 1, 1]))
    assert scored.no_signal.tolist() == [True, True, False, False]
    assert scored.share == {"length": pytest.approx(1.0)}
    assert CompositeReward(["length"]).score(batch("a", "b", group=[0, 0])).share == {"length": 0.0}


def test_every_batch_logs_the_same_names(gated):
    names = [list(gated().score(batch(*texts)).logged()) for texts in (["a"], ["x", "y", "abcd"])]
    assert names[0] == names[1]
    assert names[0] == [
        "reward/length", "reward/no_x", "reward_normalised/length", "reward_weighted/length", "share/length",
        "share/gate", "gate_closed", "no_signal_groups", "reward_failed",
    ]  # fmt: skip


def test_the_order_of_a_batch_changes_nothing_else(gated):
    texts, group = ["abc", "x", "abcdefg", "a", "xx", "ab"], [2, 0, 2, 0, 1, 1]
    first = gated().score(batch(*texts, group=group))
    order = [5, 3, 1, 0, 4, 2]
    second = gated().score(batch(*(texts[n] for n in order), group=[group[n] for n in order]))
    torch.testing.assert_close(second.total, first.total[order])
    assert second.share == pytest.approx(first.share, abs=1e-6)
