"""Where our plugins enter OpenRLHF: the smallest class or function at each place, replaced by one that calls it."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
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
    from openrlhf_qs.form.prompt import policy_messages, teacher_messages
    from openrlhf_qs.form.response import format_response
    from openrlhf_qs.registry import SFT_DATASETS, load_plugins

    load_plugins(settings.plugin_files)
    choose = SFT_DATASETS.create(settings.sft_dataset, **settings.options.get(settings.sft_dataset, {}))
    report_names = iter(("assembly.json", "assembly.eval.json"))  # train_sft makes these two datasets, in this order

    def teacher_instances(rows: list[dict]) -> list[tuple[list[dict], str]]:
        answers = zip(rows, choose(rows), strict=True)
        return [(teacher_messages(row["conversation"]), text) for row, texts in answers for text in texts or ()]

    def policy_instances(rows: list[dict], strategy) -> list[tuple[list[dict], str]]:
        from rich.console import Console

        from openrlhf_qs.sft.sft_set import assemble, report_table, write_report

        assembled, report = assemble(choose, rows)
        if strategy.is_rank_0():
            write_report(Path(strategy.args.ckpt.output_dir) / next(report_names), report)
            Console(markup=False, emoji=False).print(report_table(f"sft dataset {settings.sft_dataset}", report))
        return [(policy_messages(row["conversation"]), format_response(row["suggestions"])) for row in assembled]

    class AssembledSFTDataset(module.SFTDataset):
        def __init__(self, dataset, tokenizer, max_length, strategy, **kwargs) -> None:
            from datasets import Dataset

            rows = dataset.to_list()
            one_each = getattr(choose, "single", False)  # each text is an instance: the teacher's way
            instances = teacher_instances(rows) if one_each else policy_instances(rows, strategy)
            strategy.print(f"{settings.sft_dataset}: {len(instances)} instances of {len(rows)} conversations")
            if not instances:
                raise ValueError(f"sft dataset {settings.sft_dataset!r} made no instance of {len(rows)} conversations")
            data = strategy.args.data
            made = [
                {data.input_key: messages, data.output_key: [{"role": "assistant", "content": response}]}
                for messages, response in instances
            ]
            kwargs["num_processors"] = os.cpu_count()
            super().__init__(Dataset.from_list(made), tokenizer, max_length, strategy, **kwargs)

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
        from openrlhf_qs.garm.reward_model import check_checkpoint, is_adapter, read_mark
        from openrlhf_qs.garm.reward_model import reward_model_class as our_class
        from openrlhf_qs.registry import load_plugins

        load_plugins(settings.plugin_files)
        mark = None
        if settings.reward_model:  # training: the head is new, whatever the backbone was
            mark = {"name": settings.reward_model, "options": settings.options.get(settings.reward_model, {})}
        elif model_type == "reward" and read_mark(model_name_or_path) is not None:
            mark = check_checkpoint(model_name_or_path)
        if mark is None:
            return host_function(model_name_or_path, model_type, **kwargs)
        if not settings.reward_model and is_adapter(model_name_or_path):
            raise ValueError(
                f"{model_name_or_path} holds LoRA weights, which OpenRLHF loads for no reward model; merge them with "
                f"`openrlhf-qs garm merge {model_name_or_path} --out FOLDER` and give that folder"
            )
        host_class, host_lora = module._get_reward_model, module.LoraConfig
        module._get_reward_model = functools.partial(our_class, mark=mark)
        # Under LoRA the head is trained and saved whole, as it is new; the host would keep its random start.
        head = kwargs.get("value_head_prefix", "score")
        module.LoraConfig = functools.partial(host_lora, modules_to_save=[head], exclude_modules=[head])
        try:
            return host_function(model_name_or_path, model_type, **kwargs)
        finally:
            module._get_reward_model, module.LoraConfig = host_class, host_lora

    module.get_llm_for_sequence_regression = get_llm_for_sequence_regression


@patch(
    "openrlhf.datasets",
    "RewardDataset.__init__",
    "self dataset tokenizer max_length strategy input_template is_dpo num_processors",
    wanted=lambda settings: bool(settings.reward_model),
)
def reward_dataset(module: ModuleType, settings: Settings) -> None:
    """An impression is read once, with all its suggestions, and its pairs have weights and soft labels. Without this
    each pair reads its conversation twice, all count the same, and of a long text the suggestion, which stands at the
    end, is cut off."""
    from transformers import AutoConfig

    from openrlhf_qs.garm.impressions import ImpressionDataset
    from openrlhf_qs.garm.reward_model import can_share_prefix

    class RewardDataset(ImpressionDataset):
        def __init__(self, dataset, tokenizer, max_length, strategy, **kwargs) -> None:
            args = strategy.args
            config = AutoConfig.from_pretrained(args.model.model_name_or_path)
            share_prefix = can_share_prefix(config, args.ds.attn_implementation, args.ds.packing_samples)
            super().__init__(dataset.to_list(), tokenizer, max_length, share_prefix, settings.on_error)
            strategy.print(f"{len(self)} impressions of {len(dataset)} pairs, shared prefixes: {share_prefix}")
            for reason, count in self.skipped.items():
                strategy.print(f"skipped {count} pairs: {reason}")

    module.RewardDataset = RewardDataset


@patch(
    "openrlhf.trainer.rm_trainer",
    "RewardModelTrainer.concatenated_forward",
    "self model chosen_ids c_mask reject_ids r_mask",
    wanted=lambda settings: bool(settings.reward_model),
)
def reward_model_trainer(module: ModuleType, settings: Settings) -> None:
    """The trainer's loss takes scalar rewards of two texts a pair. Without this a mean and a standard deviation are
    compared with each other."""
    from openrlhf_qs.garm.gradient_monitor import GradientMonitor
    from openrlhf_qs.registry import REWARD_MODELS, load_plugins

    load_plugins(settings.plugin_files)
    head = REWARD_MODELS.create(settings.reward_model, **settings.options.get(settings.reward_model, {}))

    class SuggestionRewardModelTrainer(module.RewardModelTrainer):
        """The trainer logs, counts and evaluates means; all that the loss wants waits in ``batch``."""

        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.loss_fn = self.preference_loss
            self.monitor = GradientMonitor()

        def concatenated_forward(self, model, input_ids, mask, pairs, values):
            raw, output = model(
                input_ids, attention_mask=mask, return_output=True, ring_attn_group=self.strategy.ring_attn_group
            )
            chosen, rejected = raw[pairs[:, 0]], raw[pairs[:, 1]]
            self.batch = chosen, rejected, *values.unbind(-1)
            aux_loss = output.aux_loss if "aux_loss" in output else []
            return head.output(chosen)[:, 0], head.output(rejected)[:, 0], aux_loss

        def preference_loss(self, chosen_mean, rejected_mean, margin):
            return head.loss(*self.batch)

        def save_logs_and_checkpoints(self, args, global_step, step_bar, logs_dict=None, client_states=None):
            self.monitor.check(logs_dict["grad_norm"], global_step)
            super().save_logs_and_checkpoints(args, global_step, step_bar, logs_dict, client_states)

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

    from openrlhf_qs.form.response import parse_response
    from openrlhf_qs.registry import JUDGES, load_plugins
    from openrlhf_qs.reward.composite import composite_of
    from openrlhf_qs.reward.monitors import batch_statistics, watch
    from openrlhf_qs.reward.rollout import RolloutBatch, reward_fields

    load_plugins(settings.plugin_files)

    class CompositeExperienceMaker(module.RemoteExperienceMaker):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.composite = composite_of(settings)
            self.with_reward_model = "reward_model" in self.composite.needs()
            self.watch = None
            if settings.monitor != "off":
                stop = settings.monitor == "stop"
                self.watch = watch(self.args.ckpt, settings.monitor_thresholds, settings.monitor_window, stop)
                judge = settings.monitor_judge
                self.judge = JUDGES.create(judge, **settings.options.get(judge, {})) if judge else None
            if self.with_reward_model:
                from transformers import AutoConfig, AutoTokenizer

                from openrlhf_qs.garm.reward_model import can_share_prefix

                path, ds = self.args.reward.model_name_or_path, self.args.ds
                self.reward_tokenizer = AutoTokenizer.from_pretrained(path)
                self.share_prefix = can_share_prefix(
                    AutoConfig.from_pretrained(path), ds.attn_implementation, ds.packing_samples
                )

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

            rewards = self.gather_rewards(rewards_ref, parsed) if self.with_reward_model else {}
            batch = RolloutBatch(
                conversations=conversations,
                responses=responses,
                parsed=parsed,
                group=torch.tensor([index // n_samples for samples in samples_list for index in samples.index]),
                truncated=torch.cat([samples.truncated for samples in samples_list]).bool(),
                ref_log_ppl=self.ref_log_ppl(samples_list) if self.initial_model_group is not None else None,
                **rewards,
            )
            scored = self.composite.score(batch)
            total = scored.total
            malformed = torch.tensor([0.0 if p.well_formed else 1.0 for p in parsed])
            logged = scored.logged() | {"reward": total, "malformed": malformed}
            sizes = [len(samples.sequences) for samples in samples_list]
            for name, value in logged.items():
                for samples, share in zip(samples_list, value.split(sizes), strict=True):
                    samples.info[name] = share
            for samples, share in zip(samples_list, total.split(sizes), strict=True):
                samples.rewards = share
            if self.watch:
                n_tokens = torch.cat([samples.action_mask.sum(-1) for samples in samples_list])
                log_prob = torch.cat([(s.action_log_probs.float() * s.action_mask).sum(-1) for s in samples_list])
                self.watch(batch_statistics(batch, total, n_tokens, log_prob, self.judge))
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
            from openrlhf_qs.garm.reward_model import suggestion_rows

            pairs = [(c, s) for c, p in zip(conversations, parsed, strict=True) for s in p.suggestions]
            # A batch without one suggestion still makes the call: the group wants work for each of its processes.
            pairs = pairs or [(conversations[0], "-")]
            input_ids, mask, self.reward_place = suggestion_rows(
                self.reward_tokenizer, *zip(*pairs, strict=True), self.args.data.max_len, self.share_prefix
            )
            n_processes = len(self.reward_model_group._actor_handlers) // self.reward_model_group.duplicate_actors
            n_rows = max(1, 4 * self.args.rollout.micro_batch_size * len(input_ids) // len(pairs))
            size = max(1, min(-(-len(input_ids) // n_processes), n_rows))
            input_ids, mask = input_ids.split(size), mask.split(size)
            # Fewer rows than processes: the last is scored again, then cut off.
            while len(input_ids) < n_processes:
                input_ids, mask = (*input_ids, input_ids[-1]), (*mask, mask[-1])
            return self._dispatch_forward(
                self.reward_model_group,
                self.args.train.colocate_all,
                sequences=list(input_ids),
                attention_mask=list(mask),
                pad_sequence=[True] * len(input_ids),
            )

        def gather_rewards(self, rewards_ref, parsed: Sequence) -> dict[str, list[list[float]]]:
            """The reward model's fields of the rollout batch."""
            duplicates = self.args.ds.ring_attn_size * self.args.ds.tensor_parallel_size
            in_rows = torch.cat(self._flatten_results(rewards_ref, duplicates))
            return reward_fields(in_rows[self.reward_place].tolist(), parsed)

    module.RemoteExperienceMaker = CompositeExperienceMaker
