"""GRPO's rewards: the composite reward of a whole rollout batch, between OpenRLHF's rollout and its advantages.

In: the samples of one rollout, as OpenRLHF's generator hands them on. Out: the same samples with log-probs, rewards,
and every part of the reward in ``info``, from where OpenRLHF logs it. Imported by its patch alone, for its base is
OpenRLHF's class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from openrlhf.models.utils import masked_mean
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import ParsedResponse
from openrlhf_qs.form.task import read_task
from openrlhf_qs.host.composite import composite_of
from openrlhf_qs.host.settings import Settings
from openrlhf_qs.registry import JUDGES
from openrlhf_qs.reward.monitors import batch_statistics, parse_thresholds, watch
from openrlhf_qs.reward.rollout import RolloutBatch, reward_fields


class CompositeExperienceMaker(RemoteExperienceMaker):
    """OpenRLHF's experience maker; its rewards come from :class:`~openrlhf_qs.reward.composite.CompositeReward`."""

    def __init__(self, settings: Settings, *args, **kwargs) -> None:
        """
        Args:
            settings: of the run; its stage is ``grpo``.
            args, kwargs: of OpenRLHF.
        """
        super().__init__(*args, **kwargs)
        self.composite = composite_of(settings)
        self.task = read_task(self.args.actor.model_name_or_path)
        self.with_reward_model = "reward_model" in self.composite.needs()
        self.watch = None
        grpo = settings.stage
        if grpo.monitor != "off":
            thresholds = parse_thresholds(grpo.monitor_threshold)
            self.watch = watch(self.args.ckpt, thresholds, grpo.monitor_window, stop=grpo.monitor == "stop")
            judge = grpo.monitor_judge
            self.judge = JUDGES.create(judge, **settings.options_of(judge)) if judge else None
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
        """OpenRLHF's samples with log-probs, composite rewards and their parts. ValueError as ``composite.score``."""
        responses = [
            self.tokenizer.decode(sequence[1:][action_mask.bool()], skip_special_tokens=True)
            for samples in samples_list
            for sequence, action_mask in zip(samples.sequences, samples.action_mask, strict=True)
        ]
        requests = [Request.of_label(label) for samples in samples_list for label in samples.labels]
        cut = torch.cat([samples.truncated for samples in samples_list]).tolist()
        finish_reasons = ["length" if one_cut else "stop" for one_cut in cut]
        parsed = [self.task.read(*one) for one in zip(responses, finish_reasons, strict=True)]
        n_samples = self.args.rollout.n_samples_per_prompt

        # Dispatched before the policy and the reference, so that on GPUs of its own it runs beside them.
        rewards_ref = self.dispatch_reward_model(requests, parsed) if self.with_reward_model else None
        for samples in samples_list:
            samples.rewards = torch.zeros(len(samples.sequences))  # given: the host asks no model of its own
        samples_list = super().make_experience(samples_list)

        rewards = self.gather_rewards(rewards_ref, parsed) if self.with_reward_model else {}
        batch = RolloutBatch(
            requests=requests,
            responses=responses,
            parsed=parsed,
            group=torch.tensor([index // n_samples for samples in samples_list for index in samples.index]),
            task=self.task,
            ref_log_ppl=self.ref_log_ppl(samples_list) if self.initial_model_group is not None else None,
            **rewards,
        )
        scored = self.composite.score(batch)
        total = scored.total
        logged = scored.logged() | {"reward": total, "malformed": batch.malformed.float()}
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

    def dispatch_reward_model(self, requests: Sequence[Request], parsed: Sequence[ParsedResponse]):
        """Send every suggestion of the batch to the reward-model group in micro-batches; do not wait for it."""
        from openrlhf_qs.garm.reward_model import suggestion_rows

        pairs = [(r.conversation, s) for r, p in zip(requests, parsed, strict=True) for s in p.suggestions]
        # A batch without one suggestion still makes the call: the group wants work for each of its processes.
        pairs = pairs or [(requests[0].conversation, "-")]
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

    def gather_rewards(self, rewards_ref, parsed: Sequence[ParsedResponse]) -> dict[str, list[list[float]]]:
        """The reward model's fields of the rollout batch."""
        duplicates = self.args.ds.ring_attn_size * self.args.ds.tensor_parallel_size
        in_rows = torch.cat(self._flatten_results(rewards_ref, duplicates))
        return reward_fields(in_rows[self.reward_place].tolist(), parsed)
