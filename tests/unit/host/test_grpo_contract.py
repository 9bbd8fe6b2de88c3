"""The composite reward under each advantage estimator of the installed OpenRLHF, on rollouts without a rollout."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from openrlhf_qs.host.settings import VARIABLE, GRPOSettings, Settings

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openrlhf") is None, reason="OpenRLHF is not installed")

N_SAMPLES = 4
GROUP_BASED = ("group_norm", "dr_grpo", "rloo", "reinforce_baseline")
ESTIMATORS = (*GROUP_BASED, "reinforce", "flash_reinforce", "gae")
FORMS = ("plain", "use_loss", "dynamic_batch", "other_order")

MADE = """
import json, os, sys, tempfile
from pathlib import Path
from openrlhf_qs.benchmark.grpo_overhead import LocalGroup, host_arguments, local_experience_maker, local_rollout
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.host.bootstrap import install
from openrlhf_qs.host.settings import GRPOSettings, Settings
from openrlhf_qs.world.click_log import cold_start_suggestions, contexts, write_click_log
from openrlhf_qs.form.response import format_response
from openrlhf_qs.sft.small_policy import train_tokenizer
from openrlhf_qs.registry import REWARDS
import random, torch
install()
estimators, n_samples = json.loads(sys.argv[1]), int(sys.argv[2])
folder = Path(tempfile.mkdtemp())
write_click_log(folder / "clicks.jsonl", 200, 100, 0)
tokenizer = train_tokenizer(read_click_log(folder / "clicks.jsonl"), 600)
rng = random.Random(0)
prompts = [[(c, format_response(cold_start_suggestions(c, rng)[: 2 + n % 2])) for n in range(n_samples)]
           for c in contexts(6, 0)]

n_forwards = {"policy": 0, "reference": 0}

def log_probs(name, shift):
    def forward(sequences, action_mask, attention_mask):
        n_forwards[name] += 1
        # a log-prob that depends on the token, so that every response has a perplexity of its own
        return -shift - (sequences[:, 1:] % 7) / 10
    return LocalGroup(forward)

def made(estimator, form, rewards=("ood", "rules", "diversity"), credit="response"):
    arguments = host_arguments(folder, n_samples, estimator)
    arguments.rollout.micro_batch_size = 8
    arguments.algo.kl.init_coef = 0.0  # so that an advantage is the shaped reward and nothing else
    arguments.algo.kl.use_loss = form == "use_loss"
    arguments.train.dynamic_batch_enable = form == "dynamic_batch"
    arguments.rollout.max_tokens_per_gpu = 600
    settings = Settings("cpu", GRPOSettings(rewards, monitor="warn", credit=credit))
    critic = LocalGroup(lambda sequences, action_mask, attention_mask: torch.zeros(action_mask.shape))
    maker = local_experience_maker(settings, arguments, tokenizer, actor=log_probs("policy", 1.0),
                                   reference=log_probs("reference", 1.5),
                                   critic=critic if estimator == "gae" else None)
    order = [3, 0, 5, 1, 4, 2] if form == "other_order" else range(len(prompts))
    rollouts = [local_rollout(tokenizer, c, r) for n in order for c, r in prompts[n]]
    n_forwards.update(policy=0, reference=0)
    experiences = maker.make_experience_batch(rollouts)
    rows = {}
    for one in experiences:
        for n, index in enumerate(one.index):
            mask = one.action_mask[n].bool()
            where = list(order)[index // n_samples] * n_samples + index % n_samples
            rows[where] = {
                "reward": one.info["reward"][n].item(),
                "advantages": one.advantages[n][mask].tolist(),
                "malformed": one.info["malformed"][n].item(),
                "keys": sorted(one.info),
            }
    (statistics,) = read_json_lines(folder / "statistics.jsonl")
    return {"rows": [rows[n] for n in range(len(rows))], "statistics": statistics, "n_forwards": dict(n_forwards)}

@REWARDS.register("rounding")
class Rounding:  # a number that is the same for all responses but for its last bits
    def __call__(self, batch):
        return 0.3 + 3e-8 * torch.arange(len(batch.responses))

def looked_at():  # two steps of which the first carries answers to two of the same prompts; then the generator's own
    from types import SimpleNamespace
    from openrlhf.trainer.ppo_utils import samples_generator
    arguments = host_arguments(folder, n_samples)
    settings = Settings("cpu", GRPOSettings(("ood", "rules", "diversity"), samples_every=1))
    groups = {name: log_probs(name, shift) for name, shift in (("policy", 1.0), ("reference", 1.5))}
    groups["reference"]._actor_handlers = [None] * 3  # more processes than answers
    maker = local_experience_maker(settings, arguments, tokenizer, actor=groups["policy"],
                                   reference=groups["reference"])
    for carried in (2, 0):
        rollouts = [local_rollout(tokenizer, c, r) for n in range(6) for c, r in prompts[n]]
        if carried:
            rollouts[0].same_prompts = [local_rollout(tokenizer, *prompts[n][0]) for n in range(carried)]
        maker.make_experience_batch(rollouts)
    asked = []

    def generate(self, iterator, n, dynamic_filtering, **kwargs):
        drawn = [row for row, _ in zip(iterator, range(n))]
        asked.append([kwargs.get("temperature"), kwargs.get("n_samples_per_prompt"), [p[0] for _, p, *_ in drawn]])
        return [SimpleNamespace(prompts=p) for _, p, *_ in reversed(drawn)], n, False

    from openrlhf_qs.host.same_prompts import SamePromptsGenerator
    from openrlhf_qs.reward.samples import taken_off
    samples_generator.SamplesGenerator._generate_vllm = generate
    class Rows(list):
        def collate_fn(self, rows):
            return ["d"], [rows[0]], [""], [None]
    arguments.vllm = SimpleNamespace(enable_sleep=False)
    generator = SamePromptsGenerator(SimpleNamespace(args=arguments), None, None, tokenizer, [])
    generator.prompts_dataloader = SimpleNamespace(dataset=Rows(f"prompt {n}" for n in range(24)))
    generator.every = 2
    generator._dataloader_iter = iter([Rows().collate_fn([f"drawn {n}"]) for n in range(9)])
    carried = []
    for _ in range(3):
        rollout, *_ = generator._generate_vllm(generator._dataloader_iter, 2, False, temperature=0.6)
        carried.append([one.prompts[0] for one in taken_off(rollout)])
        assert not taken_off(rollout)
    rollout, *_ = generator._generate_vllm(iter([Rows().collate_fn(["eval"])]), 1, False, temperature=0.6)
    return {"rows": read_json_lines(folder / "samples.jsonl"), "carried": carried, "asked": asked,
            "of_an_evaluation": len(taken_off(rollout)), "conversations": [prompts[n][0][0] for n in range(2)]}

forms = sys.argv[3].split(",")
equal = made("group_norm", "plain", rewards=("rounding",))
found = {f"{e}, {form}": made(e, form) for e in estimators for form in forms}
for e in ("group_norm", "rloo", "dr_grpo"):
    found |= {f"credit, {e}, {form}": made(e, form, credit="suggestion") for form in forms}
    found[f"without ood, credit of nothing, {e}"] = made(e, "plain", ("repetition",), "suggestion")
    found[f"without ood, repetition, {e}"] = made(e, "plain", ("repetition",))
found |= {f"without ood, {form}": made("group_norm", form, rewards=("rules",)) for form in forms}
found["equal up to rounding"] = equal
print(json.dumps({"made": found, "looked_at": looked_at()}))
"""

CLASSES = """
import json
from openrlhf_qs.host.bootstrap import install
install()
from openrlhf.trainer import ppo_trainer, ppo_trainer_async
actor = ppo_trainer_async.TrainingActor.__ray_metadata__.modified_class
print(json.dumps({
    "makers": ppo_trainer.RemoteExperienceMaker.func.__name__,
    "async trainer": issubclass(actor, ppo_trainer.BasePPOTrainer),
}))
"""


def in_a_new_process(code, *argv, settings):
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | settings.to_environment()
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    """One process, for OpenRLHF takes seconds to import."""
    return in_a_new_process(MADE, json.dumps(ESTIMATORS), str(N_SAMPLES), ",".join(FORMS), settings=Settings("cpu"))


@pytest.fixture(scope="module")
def made(found):
    """Experiences of every estimator in every form."""
    return found["made"]


def expected(estimator, rewards, n_tokens):
    """Advantages by the textbook: ``[n]``, the same for every token of a response."""
    groups = rewards.reshape(-1, N_SAMPLES)
    mean = groups.mean(1, keepdims=True)
    shaped = {
        "group_norm": (groups - mean) / (groups.std(1, ddof=1, keepdims=True) + 1e-9),
        "rloo": (groups - mean) * N_SAMPLES / (N_SAMPLES - 1),
        "dr_grpo": groups - mean,
        "reinforce_baseline": groups - mean,
        "flash_reinforce": groups - groups.mean(),
    }.get(estimator, groups).ravel()
    if estimator in ("gae", "reinforce", "reinforce_baseline"):  # these are whitened over all tokens
        average = np.average(shaped, weights=n_tokens)
        shaped = (shaped - average) / np.sqrt(np.average((shaped - average) ** 2, weights=n_tokens))
    return shaped


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_advantages_are_those_of_the_composite_reward(made, estimator, form):
    rows = made[f"{estimator}, {form}"]["rows"]
    rewards = np.array([row["reward"] for row in rows])
    assert len(set(rewards.round(6))) > len(rows) / 2  # there is something to tell apart
    n_tokens = np.array([len(row["advantages"]) for row in rows])
    for row, advantage in zip(rows, expected(estimator, rewards, n_tokens), strict=True):
        np.testing.assert_allclose(row["advantages"], advantage, rtol=1e-4, atol=2e-4)


def test_responses_that_are_equal_up_to_rounding_have_no_advantage(made):
    for row in made["equal up to rounding"]["rows"]:
        assert set(row["advantages"]) == {0.0} and abs(row["reward"] - 0.3) < 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_the_rewards_do_not_depend_on_how_openrlhf_batches_and_orders_the_rollouts(made, form):
    plain, other = made["group_norm, plain"]["rows"], made[f"group_norm, {form}"]["rows"]
    np.testing.assert_allclose(
        [row["reward"] for row in other], [row["reward"] for row in plain], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("estimator", ["group_norm", "rloo", "dr_grpo"])
def test_credit_goes_to_suggestions_and_adds_up_to_nothing_in_a_group(made, estimator, form):
    rows = made[f"credit, {estimator}, {form}"]["rows"]
    plain = made[f"{estimator}, plain"]["rows"]
    n_told = 0
    for start in range(0, len(rows), N_SAMPLES):
        group = range(start, start + N_SAMPLES)
        # the first and the last token are of the first and the third suggestion
        for place in (0, -1):
            assert sum(rows[n]["advantages"][place] for n in group) == pytest.approx(0, abs=1e-3)
        for n in group:
            distinct = len(set(np.round(rows[n]["advantages"], 4)))
            assert distinct == 1 if rows[n]["malformed"] else distinct <= 3
            n_told += distinct == 3
            assert rows[n]["reward"] == pytest.approx(plain[n]["reward"], abs=1e-4)
    assert (
        n_told > sum(not row["malformed"] for row in rows) / 2
    )  # the others have two suggestions that are worth the same


@pytest.mark.parametrize("estimator", ["group_norm", "rloo", "dr_grpo"])
def test_where_no_part_knows_its_suggestions_the_advantages_are_those_of_responses(made, estimator):
    credited, plain = (
        made[f"without ood, credit of nothing, {estimator}"]["rows"],
        made[f"without ood, repetition, {estimator}"]["rows"],
    )
    for one, other in zip(credited, plain, strict=True):
        np.testing.assert_allclose(one["advantages"], other["advantages"], rtol=1e-4, atol=2e-4)


def test_every_response_logs_the_same_keys(made):
    for name, rows in ((name, one["rows"]) for name, one in made.items()):
        assert len({tuple(row["keys"]) for row in rows}) == 1
        assert {"reward", "malformed", "kl"} <= set(rows[0]["keys"])
        assert ("reward/ood" in rows[0]["keys"]) == (name.partition(",")[0] in (*ESTIMATORS, "credit"))


@pytest.mark.parametrize("form", FORMS)
def test_the_perplexity_costs_no_forward_pass(made, form):
    with_ood = made[f"group_norm, {form}"]["n_forwards"]
    assert with_ood == made[f"without ood, {form}"]["n_forwards"]
    assert with_ood["policy"] == with_ood["reference"] > 1  # one of each model for each micro-batch


@pytest.mark.parametrize("form", FORMS)
def test_the_monitors_see_the_step(made, form):
    one = made[f"group_norm, {form}"]
    n_tokens = np.mean([len(row["advantages"]) for row in one["rows"]])
    assert one["statistics"]["step"] == 1 and one["statistics"]["response_length"] == pytest.approx(n_tokens)
    assert one["statistics"]["kl"] == pytest.approx(0.5 * n_tokens, rel=1e-4)  # half a nat a token, as it was made
    assert one["statistics"]["malformed"] == pytest.approx(np.mean([row["malformed"] for row in one["rows"]]))


def test_the_same_prompts_are_asked_again_and_nothing_is_trained_on_the_answers(found):
    looked_at = found["looked_at"]
    eight = [f"prompt {n}" for n in range(0, 24, 3)]  # 8 of 24, as far from each other as they can be
    assert looked_at["carried"] == [eight, [], eight]  # with every second rollout, and in their order
    likeliest = [one for one in looked_at["asked"] if one[0] == 0.0]
    assert likeliest == [[0.0, 1, eight]] * 2 and looked_at["of_an_evaluation"] == 0


def test_samples_hold_the_same_prompts_and_the_extremes_of_their_step_with_all_parts(found):
    rows, conversations = found["looked_at"]["rows"], found["looked_at"]["conversations"]
    assert [row["kind"] for row in rows] == ["same", "same", "highest", "highest", "lowest", "lowest"]
    assert {row["step"] for row in rows} == {1}  # the second step carried none
    assert [row["conversation"] for row in rows[:2]] == conversations
    for row in rows:
        assert set(row["parts"]) == set(row["weighted"]) == {"ood", "rules", "diversity"}
        assert row["malformed"] == (len(row["suggestions"]) != 3)
    totals = [sum(row["weighted"].values()) for row in rows]
    assert totals[2] >= totals[3] > totals[5] >= totals[4]


def test_the_benchmark_prints_one_json_object_with_its_ratio():
    code = "from openrlhf_qs.cli import main; main()"
    sizes = ["--n_prompts", "2", "--n_samples", "2", "--n_steps", "1"]
    env = {name: value for name, value in os.environ.items() if name != VARIABLE} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, "benchmark", "grpo-overhead", *sizes],
        capture_output=True,
        text=True,
        env=env,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["n_responses"] == 4 and found["ratio"] > 0 and found["scoring"]["ratio"] > 0
    assert found["step_s"]["garm_forward"] > 0


def test_both_trainers_make_experience_with_the_composite_reward():
    found = in_a_new_process(CLASSES, settings=Settings("cpu", GRPOSettings(("rules",))))
    assert found == {"makers": "CompositeExperienceMaker", "async trainer": True}
