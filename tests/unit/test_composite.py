import json
import math

import pytest
import torch

from openrlhf_qs.composite import CompositeReward, Part, read_weights
from openrlhf_qs.offline import offline_batch
from openrlhf_qs.registry import REWARDS


def batch(*responses):
    """A rollout batch of ``responses``, each to a question with its place as the text."""
    return offline_batch([[{"role": "user", "content": f"question {n}"}] for n in range(len(responses))], responses)


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
    composite = CompositeReward(["length", "scaled_length"], {"scaled_length": {"coef": "-10"}}, parts)
    raw = composite.score(batch("ab", "abcd"))
    torch.testing.assert_close(raw["length"], torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(raw["scaled_length"], torch.tensor([-20.0, -40.0]))
    # 0.5 * (2 - 2) / 4 + 2 * (-20 + 10) / 5 = -4;  0.5 * (4 - 2) / 4 + 2 * (-40 + 10) / 5 = 0.25 - 12
    torch.testing.assert_close(composite.total(raw), torch.tensor([-4.0, -11.75]))


def test_the_order_of_the_weights_file_does_not_matter():
    parts = {"length": Part(weight=1.0), "scaled_length": Part(weight=100.0, mean=3.0)}
    totals = []
    for names in (["length", "scaled_length"], ["scaled_length", "length"]):
        composite = CompositeReward(names, {"scaled_length": {"coef": "10"}}, parts)
        totals.append(composite.total(composite.score(batch("ab", "abcd"))).tolist())
    # 2 + 100 * (20 - 3) = 1702;  4 + 100 * (40 - 3) = 3704
    assert totals == [[1702.0, 3704.0]] * 2


def test_without_weights_the_raw_parts_are_added():
    composite = CompositeReward(["length", "scaled_length"], {"scaled_length": {"coef": "10"}})
    # 1 + 10, 3 + 30
    assert composite.total(composite.score(batch("a", "abc"))).tolist() == [11.0, 33.0]


def test_every_response_gets_every_part_as_float32():
    raw = CompositeReward(["length", "scaled_length"]).score(batch("a", "", "abc"))
    assert list(raw) == ["length", "scaled_length"]
    assert all(value.shape == (3,) and value.dtype == torch.float32 for value in raw.values())


def test_a_batch_of_one_is_scored_as_in_a_batch_of_many():
    composite = CompositeReward(["length", "scaled_length"])
    many = composite.total(composite.score(batch("a", "abc")))
    one = composite.total(composite.score(batch("abc")))
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
        CompositeReward(["length", "scaled_length"], {}, parts)


def test_a_reward_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match="reward length,length: a name stands twice"):
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
    assert read_weights(file) == {"length": Part(weight=0.5, mean=1, std=2)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no weights file of the fusion stage"),
        ("[]", "is no weights file of the fusion stage"),
        ('{"length": 1.0}', "is no weights file of the fusion stage"),
        ('{"rewards": {"length": 1.0}}', "is no weights file of the fusion stage"),
        ('{"rewards": {"length": {"wieght": 1.0}}}', "is no weights file of the fusion stage: .*wieght"),
        ('{"rewards": {"length": {"weight": "1.0"}}}', "is no weights file of the fusion stage"),
        ('{"rewards": {"length": {"std": 0.0}}}', "length has .*std=0.0.*; give finite numbers and a std above 0"),
        ('{"rewards": {"length": {"weight": NaN}}}', "length has .*weight=nan"),
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
