"""``openrlhf-qs benchmark grpo-overhead``: what the composite reward costs, in ratios of one run.

``ratio``: a GRPO step with the full composite reward and its monitors, GaRM's own forward pass apart, over the same
step with one constant reward. The step is OpenRLHF's ``make_experience_batch`` (policy and reference passes, rewards,
advantages) and its policy loss with backward and optimiser, on the same responses, at the sizes of the CPU form, in
this process. Generation, the weight sync and DeepSpeed are left out: they would make both steps longer and the ratio
smaller, so it is an upper bound. It is a ratio of CPU seconds, which other processes do not touch; ``wall_ratio`` is
that of seconds on the clock.

``scoring.ratio``: CPU seconds of OpenRLHF's way, a reward function that is called with one response at a time and runs
the reward model over each suggestion with its conversation, over those of our way, one call with all responses, in
rows that share a conversation; the same models and parts. ``one_by_one_shared`` is one response at a time in our rows.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.host.settings import GRPOSettings, Settings
from openrlhf_qs.registry import load_plugins

FULL = "garm,garm_sigma,ood,rules,relevance,diversity"
CONSTANT = '''
import torch
from openrlhf_qs.registry import REWARDS

@REWARDS.register("constant")
class Constant:
    """0 for every response."""
    def __call__(self, batch):
        return torch.zeros(len(batch.responses))
'''
MAX_LEN, MICRO_BATCH = 512, 64  # tokens, and responses of a forward or update, as in recipes/grpo.sh


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reward", default=FULL, help=f"parts of the full composite; default {FULL}")
    parser.add_argument("--n_prompts", type=int, default=16, help="prompts per step; default 16")
    parser.add_argument("--n_samples", type=int, default=8, help="responses per prompt; default 8")
    parser.add_argument("--n_steps", type=int, default=10, help="steps of each kind, taking turns; default 10")
    parser.add_argument("--seed", type=int, default=0, help="seed of texts and weights; default 0")


def run(args: argparse.Namespace) -> None:
    """Measure, print one JSON object."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ |= Settings("cpu").to_environment()
    from openrlhf_qs.host.bootstrap import install

    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:  # OpenRLHF prints
        install()
        result = measure(Path(folder), args)
    print(json.dumps(result, indent=1))


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.manual_seed(args.seed)
    conversations, responses = write_models(folder, args.n_prompts, args.n_samples, args.seed)
    (folder / "constant.py").write_text(CONSTANT)
    full = Settings("cpu", GRPOSettings(tuple(args.reward.split(","))))
    constant = Settings("cpu", GRPOSettings(("constant",), monitor="off"), (str(folder / "constant.py"),))
    steps = {name: Step(folder, args, settings) for name, settings in (("full", full), ("constant", constant))}
    rollouts = steps["full"].rollouts(conversations, responses)
    cost: dict[str, list[Seconds]] = {name: [] for name in ("full", "constant", "garm_forward")}
    for n in range(args.n_steps + 1):
        for name in sorted(steps, reverse=bool(n % 2)):  # in turn, each first every other time
            step, forward = steps[name](copy.deepcopy(rollouts))
            if n:  # the first warms up
                cost[name].append(step - forward)
                if name == "full":
                    cost["garm_forward"].append(forward)
    pairs = list(zip(cost["full"], cost["constant"], strict=True))
    return {
        "ratio": round(median(full.cpu / constant.cpu for full, constant in pairs), 4),
        "wall_ratio": round(median(full.wall / constant.wall for full, constant in pairs), 4),
        "ratios": [round(full.cpu / constant.cpu, 4) for full, constant in pairs],
        "step_cpu_s": {name: round(median(one.cpu for one in values), 4) for name, values in cost.items()},
        "step_s": {name: round(median(one.wall for one in values), 4) for name, values in cost.items()},
        "n_responses": len(responses),
        "n_threads": torch.get_num_threads(),
        "reward": args.reward,
        "scoring": scoring_speed(folder, args.reward, conversations, responses),
    }


class Seconds(NamedTuple):
    """A moment, or how long something took: on the clock, and of all cores for this process."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Seconds:
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def plus(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)


def scoring_speed(folder: Path, reward: str, conversations: Sequence[Any], responses: Sequence[str]) -> dict[str, Any]:
    """CPU seconds to score all responses in one call and one by one; parts that need the reference stay out."""
    from openrlhf_qs.form.request import Request
    from openrlhf_qs.registry import REWARDS
    from openrlhf_qs.reward.remote import Rollout, load_reward

    names = [name for name in reward.split(",") if "reference" not in REWARDS[name].needs]
    environ = {"OPENRLHF_QS_REWARD": ",".join(names), "OPENRLHF_QS_REWARD_MODEL": str(RunFolder(folder).garm)}
    reward = load_reward(environ | {"OPENRLHF_QS_DEVICE": "cpu"})
    rollouts = [Rollout(Request(c), r, "stop") for c, r in zip(conversations, responses, strict=True)]

    def seconds(share_prefix: bool, calls: Sequence[Sequence[Rollout]]) -> float:
        reward.scorer.share_prefix = share_prefix
        start = Seconds.now()
        for call in calls:
            reward.score(call)
        return (Seconds.now() - start).cpu

    single = [[rollout] for rollout in rollouts]
    ways = {"batched": (True, [rollouts]), "one_by_one": (False, single), "one_by_one_shared": (True, single)}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for n in range(4):
        for way, how in ways.items():
            cpu_s = seconds(*how)
            if n:  # the first warms up
                taken[way].append(cpu_s)
    return {
        "ratio": round(median(taken["one_by_one"]) / median(taken["batched"]), 2),
        "cpu_s": {way: round(median(values), 4) for way, values in taken.items()},
        "reward": ",".join(names),
    }


def write_models(folder: Path, n_prompts: int, n_samples: int, seed: int) -> tuple[list[Any], list[str]]:
    """Write an SFT policy and a reward model with random weights, and make conversations and responses of the built-in
    world for them.

    Both lists have ``n_prompts * n_samples`` entries, those of one prompt together.
    """
    from transformers import AutoConfig, AutoTokenizer, Qwen3Model, Qwen3PreTrainedModel

    from openrlhf_qs.clicks.click_log import read_click_log
    from openrlhf_qs.form.response import format_response
    from openrlhf_qs.garm.reward_model import reward_model_class
    from openrlhf_qs.sft.small_policy import build_small_policy
    from openrlhf_qs.world.click_log import cold_start_suggestions, contexts, write_click_log

    load_plugins()
    write_click_log(RunFolder(folder).data.click_log, 2000, 1000, seed)
    build_small_policy(read_click_log(RunFolder(folder).data.click_log), RunFolder(folder).sft, seed=seed)
    mark = {"name": "gaussian", "options": {}}
    config = AutoConfig.from_pretrained(RunFolder(folder).sft)
    reward_model_class(Qwen3PreTrainedModel, Qwen3Model, mark=mark)(config).save_pretrained(RunFolder(folder).garm)
    AutoTokenizer.from_pretrained(RunFolder(folder).sft).save_pretrained(RunFolder(folder).garm)
    rng = random.Random(seed)
    conversations = [c for c in contexts(n_prompts, seed) for _ in range(n_samples)]
    return conversations, [format_response(cold_start_suggestions(c, rng)) for c in conversations]


class Step:
    """One GRPO step of OpenRLHF with our experience maker, all models in this process."""

    def __init__(self, folder: Path, args: argparse.Namespace, settings: Settings) -> None:
        import torch
        from openrlhf.models import Actor, PolicyLoss
        from transformers import AutoTokenizer

        from openrlhf_qs.garm.reward_model import load_reward_model

        self.tokenizer = AutoTokenizer.from_pretrained(RunFolder(folder).sft)
        self.policy, reference = (
            Actor(str(RunFolder(folder).sft), attn_implementation="sdpa", param_dtype="bf16") for _ in range(2)
        )
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-6)
        self.loss = PolicyLoss()
        self.reward_model = LocalGroup(load_reward_model(RunFolder(folder).garm, torch.bfloat16))
        self.maker = local_experience_maker(
            settings,
            host_arguments(folder, args.n_samples),
            self.tokenizer,
            actor=LocalGroup(self.policy),
            reference=LocalGroup(reference.eval()),
            reward_model=self.reward_model,
        )

    def rollouts(self, conversations: Sequence[Any], responses: Sequence[str]) -> list[Any]:
        """What OpenRLHF's generator hands on: a sample each response."""
        return [local_rollout(self.tokenizer, c, r) for c, r in zip(conversations, responses, strict=True)]

    def __call__(self, rollouts: list[Any]) -> tuple[Seconds, Seconds]:
        """What the step took, and what the reward model's forward passes took of it."""
        self.reward_model.seconds = Seconds(0.0, 0.0)
        start = Seconds.now()
        self.policy.eval()
        experiences = self.maker.make_experience_batch(rollouts)
        self.policy.train()
        for one in experiences:
            log_probs = self.policy(one.sequences, one.action_mask, one.attention_mask)
            loss = self.loss(log_probs, one.action_log_probs, one.advantages, action_mask=one.action_mask)
            (loss[0] if isinstance(loss, tuple) else loss).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return Seconds.now() - start, self.reward_model.seconds


class LocalGroup:
    """A model in place of OpenRLHF's group of Ray actors: answers at once, in this process, and counts the seconds."""

    duplicate_actors = 1

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self._actor_handlers = [model]
        self.seconds = Seconds(0.0, 0.0)

    def async_run_method_batch(self, method_name: str, **columns: Sequence[Any]) -> list[list[Any]]:
        """``forward`` of each row of ``columns``, as the one actor of the group would answer."""
        import torch

        assert method_name == "forward"
        start = Seconds.now()
        with torch.no_grad():
            rows = [self.model(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        self.seconds = self.seconds.plus(Seconds.now() - start)
        return [rows]


def local_experience_maker(
    settings: Settings, arguments: SimpleNamespace, tokenizer, actor, reference=None, reward_model=None, critic=None
):
    """Our experience maker over OpenRLHF's own, with groups that answer in this process in place of Ray's.

    Args:
        arguments: of OpenRLHF, by :func:`host_arguments`.
        actor, reference, reward_model, critic: :class:`LocalGroup`; None where the run has none.
    """
    load_plugins(settings.plugin_files)
    module: ModuleType = importlib.import_module("openrlhf.trainer.ppo_utils.experience_maker")
    module.ray = SimpleNamespace(put=lambda value: value, get=lambda value: value)
    from openrlhf_qs.host.experience_maker import CompositeExperienceMaker

    if reward_model is not None:
        reward_model.model = _as_reward_actor(reward_model.model)
    strategy = SimpleNamespace(args=arguments)
    kl_controller = SimpleNamespace(value=arguments.algo.kl.init_coef)
    return CompositeExperienceMaker(
        settings, actor, critic, reward_model, reference, kl_controller, strategy, tokenizer
    )


def _as_reward_actor(model: Callable[..., Any]) -> Callable[..., Any]:
    """OpenRLHF's reward-model actor names the token ids ``sequences``."""
    return lambda sequences, attention_mask, pad_sequence: model(sequences, attention_mask, pad_sequence=pad_sequence)


def host_arguments(folder: Path, n_samples: int, estimator: str = "group_norm") -> SimpleNamespace:
    """The arguments of OpenRLHF that its experience maker and ours read, as recipes/grpo.sh sets them."""
    space = SimpleNamespace
    return space(
        actor=space(model_name_or_path=str(RunFolder(folder).sft), num_nodes=1, num_gpus_per_node=1),
        reward=space(
            model_name_or_path=str(RunFolder(folder).garm),
            clip_range=(-10, 10),
            overlong_buffer_len=None,
            overlong_penalty_factor=1,
            stop_properly_penalty_coef=None,
        ),
        data=space(max_len=MAX_LEN),
        rollout=space(n_samples_per_prompt=n_samples, micro_batch_size=MICRO_BATCH, max_tokens_per_gpu=8192),
        train=space(
            dynamic_batch_enable=False, colocate_all=False, colocate_actor_ref=False, colocate_critic_reward=False
        ),
        ds=space(ring_attn_size=1, tensor_parallel_size=1, attn_implementation="sdpa", packing_samples=False),
        algo=space(
            advantage=space(estimator=estimator, gamma=1.0, lambd=1.0, no_std_norm=False),
            kl=space(init_coef=0.01, use_loss=False, estimator="k1"),
        ),
        ckpt=space(path=str(folder / "ckpt"), output_dir=str(folder), load_enable=False),
    )


def local_rollout(tokenizer, conversation: Sequence[Any], response: str) -> Any:
    """One response as OpenRLHF's generator hands it on."""
    import torch
    from openrlhf.trainer.ppo_utils.experience import Experience

    from openrlhf_qs.form.request import Request
    from openrlhf_qs.form.task import Task
    from openrlhf_qs.models.template import rendered

    prompt = rendered(tokenizer, Task().messages(conversation), add_generation_prompt=True)
    asked, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, response))
    answer = [*answer, tokenizer.eos_token_id]
    ids = torch.tensor([asked + answer])
    action_mask = torch.zeros_like(ids)
    action_mask[0, len(asked) :] = 1
    return Experience(
        sequences=ids,
        attention_mask=torch.ones_like(ids),
        action_mask=action_mask[:, 1:],
        prompts=[prompt],
        labels=[Request(conversation).label()],
        response_length=torch.tensor([len(answer)]),
        truncated=torch.tensor([False]),
        total_length=torch.tensor([float(ids.shape[1])]),
        info={},
    )
