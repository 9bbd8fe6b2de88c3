import math

import torch

from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import parse_response
from openrlhf_qs.plugins.judges.built_in_world import BuiltInWorld
from openrlhf_qs.plugins.rewards.oracle import Oracle
from openrlhf_qs.reward.rollout import RolloutBatch
from openrlhf_qs.world.ceiling import best_suggestions, fixed_suggestions
from openrlhf_qs.world.click_log import contexts
from openrlhf_qs.world.expected_clicks import expected_clicks

CONVERSATIONS = contexts(3, seed=0)


def rollouts(texts):
    return RolloutBatch(
        requests=[Request(conversation) for conversation in CONVERSATIONS],
        responses=texts,
        parsed=[parse_response(text, finish_reason="stop") for text in texts],
        group=torch.arange(len(texts)),
    )


def test_the_oracle_is_the_chance_of_a_click_that_evaluate_counts():
    best = best_suggestions(CONVERSATIONS[0])
    good = "\n".join(f"{n}. {text}" for n, text in enumerate(best, start=1))
    batch = rollouts([good, "1. ???\n2. how the of\n3. !", f"1. {best[0]}"])
    reward, credit = Oracle()(batch), Oracle().credit(batch)
    chances, any_click = expected_clicks(CONVERSATIONS[:1], [best])
    torch.testing.assert_close(reward[0], torch.tensor(float(any_click[0]), dtype=torch.float32))
    torch.testing.assert_close(credit[0], torch.tensor(chances[0].tolist()))
    assert reward[1] == 0 and reward[0] > 0.5 > reward[2]  # the third answers another conversation
    assert credit.shape == (3, 3) and credit[2, 1:].tolist() == [0, 0]


def test_the_average_over_users_is_what_many_users_do():
    shown = [best_suggestions(conversation) for conversation in CONVERSATIONS]
    n = 2000
    clicks = BuiltInWorld()(CONVERSATIONS[:1] * n, shown[:1] * n)
    drawn = sum(1 - math.prod(1 - chance for chance in row) for row in clicks) / n
    assert abs(BuiltInWorld().chance_of_a_click(CONVERSATIONS, shown)[0] - drawn) < 0.02  # four standard errors


def test_the_judge_says_what_bounds_a_policy_and_nothing_of_other_conversations():
    limits = BuiltInWorld().limits(CONVERSATIONS, 3)
    assert limits["ceiling"] == [best_suggestions(conversation) for conversation in CONVERSATIONS]
    assert limits["fixed_templates"] == fixed_suggestions(CONVERSATIONS)
    assert BuiltInWorld().limits([*CONVERSATIONS, [{"role": "user", "content": "Hello"}]], 3) == {}
