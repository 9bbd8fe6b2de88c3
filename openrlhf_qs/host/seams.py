"""Where our plugins enter OpenRLHF: the smallest class or function at each place, replaced by one that calls it."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from types import ModuleType

from openrlhf_qs.host.patches import patch
from openrlhf_qs.host.settings import Settings


@patch(
    "openrlhf.datasets",
    "SFTDataset.__init__",
    "self dataset tokenizer max_length strategy input_template pretrain_mode num_processors multiturn",
    wanted=lambda settings: bool(settings.sft_dataset),
)
def sft_dataset(module: ModuleType, settings: Settings) -> None:
    """The assembly plugin chooses three of a conversation's candidates. Without it `sft.jsonl` has no responses."""
    from openrlhf_qs.prompt import policy_messages
    from openrlhf_qs.registry import SFT_DATASETS, load_plugins
    from openrlhf_qs.response import format_response

    load_plugins(settings.plugin_files)
    assemble = SFT_DATASETS.create(settings.sft_dataset, **settings.options.get(settings.sft_dataset, {}))

    class AssembledSFTDataset(module.SFTDataset):
        def __init__(self, dataset, tokenizer, max_length, strategy, **kwargs) -> None:
            from datasets import Dataset

            assembled = [(row["conversation"], assemble(row)) for row in dataset]
            rows = [
                {
                    strategy.args.data.input_key: policy_messages(conversation),
                    strategy.args.data.output_key: [{"role": "assistant", "content": format_response(suggestions)}],
                }
                for conversation, suggestions in assembled
                if suggestions is not None
            ]
            strategy.print(
                f"{settings.sft_dataset}: {len(rows)} of {len(assembled)} conversations have three suggestions"
            )
            if not rows:
                raise ValueError(
                    f"sft dataset {settings.sft_dataset!r} made no instance of {len(assembled)} conversations"
                )
            kwargs["num_processors"] = os.cpu_count()
            super().__init__(Dataset.from_list(rows), tokenizer, max_length, strategy, **kwargs)

    module.SFTDataset = AssembledSFTDataset


@patch(
    "openrlhf.models.model",
    "_get_reward_model",
    "base_pretrained_model base_llm_model value_head_prefix packing_samples",
)
def reward_model_class(module: ModuleType, settings: Settings) -> None:
    """A checkpoint says in its config.json which registered head it has. Without this OpenRLHF builds its one-output
    head and loads a Gaussian checkpoint into it with random numbers."""
    host_function = module.get_llm_for_sequence_regression

    @functools.wraps(host_function)
    def get_llm_for_sequence_regression(model_name_or_path: str, model_type: str, **kwargs):
        from openrlhf_qs.registry import load_plugins
        from openrlhf_qs.reward_model import check_checkpoint, read_mark
        from openrlhf_qs.reward_model import reward_model_class as our_class

        load_plugins(settings.plugin_files)
        mark = None
        if settings.reward_model:  # training: the head is new, whatever the backbone was
            mark = {"name": settings.reward_model, "options": settings.options.get(settings.reward_model, {})}
        elif model_type == "reward" and read_mark(model_name_or_path) is not None:
            mark = check_checkpoint(model_name_or_path)
        if mark is None:
            return host_function(model_name_or_path, model_type, **kwargs)
        host_class = module._get_reward_model
        module._get_reward_model = functools.partial(our_class, mark=mark)
        try:
            return host_function(model_name_or_path, model_type, **kwargs)
        finally:
            module._get_reward_model = host_class

    module.get_llm_for_sequence_regression = get_llm_for_sequence_regression


@patch(
    "openrlhf.datasets",
    "RewardDataset.__init__",
    "self dataset tokenizer max_length strategy input_template is_dpo num_processors",
    wanted=lambda settings: bool(settings.reward_model),
)
def reward_dataset(module: ModuleType, settings: Settings) -> None:
    """A pair has a weight, and of a long conversation the beginning is what can be spared. Without this all pairs
    count the same, and the suggestion, which stands at the end, is cut off."""

    class WeightedRewardDataset(module.RewardDataset):
        def __init__(self, dataset, tokenizer, *args, **kwargs) -> None:
            tokenizer.truncation_side = "left"
            kwargs["num_processors"] = os.cpu_count()
            super().__init__(dataset, tokenizer, *args, **kwargs)
            self.extras = [float(weight) for weight in dataset["weight"]]

    module.RewardDataset = WeightedRewardDataset


@patch(
    "openrlhf.trainer.rm_trainer",
    "RewardModelTrainer.concatenated_forward",
    "self model chosen_ids c_mask reject_ids r_mask",
    wanted=lambda settings: bool(settings.reward_model),
)
def reward_model_trainer(module: ModuleType, settings: Settings) -> None:
    """The trainer's loss takes scalar rewards. Without this a mean and a standard deviation are compared with each
    other."""
    from openrlhf_qs.registry import REWARD_MODELS, load_plugins

    load_plugins(settings.plugin_files)
    head = REWARD_MODELS.create(settings.reward_model, **settings.options.get(settings.reward_model, {}))

    class SuggestionRewardModelTrainer(module.RewardModelTrainer):
        """The trainer logs, counts and evaluates means; the deviations wait here for the loss of the same batch."""

        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.margin_loss = True  # hands the dataset's extra column, our pair weight, to the loss
            self.loss_fn = self.preference_loss

        def concatenated_forward(self, *args):
            chosen, rejected, aux_loss = super().concatenated_forward(*args)
            self.outputs = chosen, rejected
            return chosen[:, 0], rejected[:, 0], aux_loss

        def preference_loss(self, chosen_mean, rejected_mean, weight):
            return head.loss(*self.outputs, weight)

    module.RewardModelTrainer = SuggestionRewardModelTrainer


@patch(
    "openrlhf.trainer.ppo_utils.experience_maker",
    "RemoteExperienceMaker.make_experience",
    "self samples_list",
    wanted=lambda settings: bool(settings.rewards),
)
def experience_maker(module: ModuleType, settings: Settings) -> None:
    """The composite reward sees the whole rollout batch, with the reference log-probs. Without it a response gets one
    scalar from one model."""
    import torch
    from openrlhf.models.utils import masked_mean

    from openrlhf_qs.composite import CompositeReward, read_weights
    from openrlhf_qs.registry import load_plugins
    from openrlhf_qs.response import parse_response
    from openrlhf_qs.rollout import RolloutBatch

    load_plugins(settings.plugin_files)

    class CompositeExperienceMaker(module.RemoteExperienceMaker):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            parts = read_weights(settings.weights) if settings.weights else None
            self.composite = CompositeReward(settings.rewards, settings.options, parts)
            self.with_reward_model = "reward_model" in self.composite.needs()
            if self.with_reward_model:
                from transformers import AutoTokenizer

                self.reward_tokenizer = AutoTokenizer.from_pretrained(self.args.reward.model_name_or_path)

        @torch.no_grad()
        def make_experience(self, samples_list):
            responses = [
                self.tokenizer.decode(sequence[1:][action_mask.bool()], skip_special_tokens=True)
                for samples in samples_list
                for sequence, action_mask in zip(samples.sequences, samples.action_mask, strict=True)
            ]
            conversations = [json.loads(label) for samples in samples_list for label in samples.labels]
            parsed = [parse_response(response) for response in responses]
            n_samples = self.args.rollout.n_samples_per_prompt

            # Dispatched before the policy and the reference, so that on GPUs of its own it runs beside them.
            rewards_ref = self.dispatch_reward_model(conversations, parsed) if self.with_reward_model else None
            for samples in samples_list:
                samples.rewards = torch.zeros(len(samples.sequences))  # given: the host asks no model of its own
            samples_list = super().make_experience(samples_list)

            mean, std = self.gather_rewards(rewards_ref, parsed) if self.with_reward_model else (None, None)
            batch = RolloutBatch(
                conversations=conversations,
                responses=responses,
                parsed=parsed,
                group=torch.tensor([index // n_samples for samples in samples_list for index in samples.index]),
                truncated=torch.cat([samples.truncated for samples in samples_list]).bool(),
                ref_log_ppl=self.ref_log_ppl(samples_list) if self.initial_model_group is not None else None,
                reward_mean=mean,
                reward_std=std,
            )
            raw = self.composite.score(batch)
            total = self.composite.total(raw)
            malformed = torch.tensor([0.0 if p.well_formed else 1.0 for p in parsed])
            logged = {f"reward/{name}": value for name, value in raw.items()} | {
                "reward": total,
                "malformed": malformed,
            }
            sizes = [len(samples.sequences) for samples in samples_list]
            for name, value in logged.items():
                for samples, share in zip(samples_list, value.split(sizes), strict=True):
                    samples.info[name] = share
            for samples, share in zip(samples_list, total.split(sizes), strict=True):
                samples.rewards = share
            return samples_list

        def ref_log_ppl(self, samples_list) -> torch.Tensor:
            """``[batch]``, nats per token, from log-probs that are there already."""
            ref_log_probs = []
            for samples in samples_list:
                # Kept under --algo.kl.use_loss, where the difference is 0.
                if samples.base_action_log_probs is not None:
                    mean = masked_mean(samples.base_action_log_probs.float(), samples.action_mask, dim=-1)
                else:
                    mean = masked_mean(samples.action_log_probs.float(), samples.action_mask, dim=-1)
                    mean = mean - samples.info["logprobs_diff"]
                ref_log_probs.append(mean)
            return -torch.cat(ref_log_probs)

        def dispatch_reward_model(self, conversations: Sequence, parsed: Sequence):
            """Send every suggestion of the batch to the reward-model group in micro-batches; do not wait for it."""
            from openrlhf_qs.reward_model import encode_suggestions

            pairs = [(c, s) for c, p in zip(conversations, parsed, strict=True) for s in p.suggestions]
            # A batch without one suggestion still makes the call: the group wants work for each of its processes.
            pairs = pairs or [(conversations[0], "-")]
            input_ids, mask = encode_suggestions(
                self.reward_tokenizer, *map(list, zip(*pairs, strict=True)), max_len=self.args.data.max_len
            )
            n_processes = len(self.reward_model_group._actor_handlers) // self.reward_model_group.duplicate_actors
            size = max(1, min(-(-len(pairs) // n_processes), 4 * self.args.rollout.micro_batch_size))
            input_ids, mask = input_ids.split(size), mask.split(size)
            # Fewer suggestions than processes: the last is scored again, then cut off.
            while len(input_ids) < n_processes:
                input_ids, mask = (*input_ids, input_ids[-1]), (*mask, mask[-1])
            return self._dispatch_forward(
                self.reward_model_group,
                self.args.train.colocate_all,
                sequences=list(input_ids),
                attention_mask=list(mask),
                pad_sequence=[True] * len(input_ids),
            )

        def gather_rewards(self, rewards_ref, parsed: Sequence) -> tuple[list[list[float]], list[list[float]]]:
            """The means and the standard deviations of each response's suggestions."""
            duplicates = self.args.ds.ring_attn_size * self.args.ds.tensor_parallel_size
            rows = iter(torch.cat(self._flatten_results(rewards_ref, duplicates)).tolist())
            rewards = [[next(rows) for _ in p.suggestions] for p in parsed]
            return [[mean for mean, _ in r] for r in rewards], [[std for _, std in r] for r in rewards]

    module.RemoteExperienceMaker = CompositeExperienceMaker
