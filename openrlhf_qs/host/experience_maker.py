"""GRPO's rewards: the composite reward of a whole rollout batch, between OpenRLHF's rollout and its advantages.

In: the samples of one rollout, as OpenRLHF's generator hands them on. Out: the same samples with log-probs, rewards,
and every part of the reward in ``info``, from where OpenRLHF logs it. Imported by its patch alone, for its base is
OpenRLHF's class.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from openrlhf.models.utils import masked_mean
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import ParsedResponse
from openrlhf_qs.form.task import read_task
from openrlhf_qs.host.composite import composite_of
from openrlhf_qs.host.settings import Settings
from openrlhf_qs.models.template import token_texts
from openrlhf_qs.registry import JUDGES
from openrlhf_qs.reward.credit import NO_SUGGESTION, centred_credit, group_norm_scales, suggestion_of_tokens
from openrlhf_qs.reward.monitors import batch_statistics, parse_thresholds, watch
from openrlhf_qs.reward.normalisation import group_means
from openrlhf_qs.reward.rollout import RolloutBatch, reward_fields
from openrlhf_qs.reward.samples import SampleLog, taken_off


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
        self.with_credit = grpo.credit == "suggestion"
        self.piece = token_texts(self.tokenizer)
        self.samples = SampleLog(self.args.ckpt, self.composite) if grpo.samples_every > 0 else None
        if grpo.monitor != "off":
            thresholds = parse_thresholds(grpo.monitor_threshold)
            self.watch = watch(self.args.ckpt, thresholds, grpo.monitor_window, stop=grpo.monitor == "stop")
            judge = grpo.monitor_judge
            self.judge = JUDGES.create(judge, **settings.options_of(judge)) if judge else None
        if self.with_reward_model:
            from transformers import AutoConfig

            from openrlhf_qs.garm.reward_model import load_tokenizer, trained_length
            from openrlhf_qs.models.shared_prefix import can_share_prefix

            path, ds = self.args.reward.model_name_or_path, self.args.ds
            self.reward_tokenizer = load_tokenizer(path)
            config = AutoConfig.from_pretrained(path)
            self.share_prefix = can_share_prefix(config, ds.attn_implementation, ds.packing_samples)
            self.reward_max_len = min(self.args.data.max_len, trained_length(config))

    @torch.no_grad()
    def make_experience_batch(self, rollout_samples):
        """OpenRLHF's experiences; what rides on the rollout to be looked at goes into ``samples.jsonl``."""
        same = taken_off(rollout_samples)
        experiences = super().make_experience_batch(rollout_samples)
        if self.samples:
            self.samples.step += 1
            if same:
                _, batch = self.scored_batch(self.one_by_one(same), n_samples=1)
                batch = batch.take(range(len(same)))
                self.samples.write("same", batch, self.composite.raw(batch))
                self.samples.write_extremes(*self.rollout)
        return experiences

    @torch.no_grad()
    def make_experience(self, samples_list):
        """OpenRLHF's samples with log-probs, composite rewards and their parts. ValueError as ``composite.score``."""
        samples_list, batch = self.scored_batch(samples_list, self.args.rollout.n_samples_per_prompt)
        place = self.suggestion_of_actions(samples_list) if self.with_credit else None
        if self.with_credit:
            batch = replace(batch, ref_log_ppl_share=self.ref_log_ppl_share(samples_list, place))
        scored = self.composite.score(batch, self.with_credit)
        total = scored.total
        self.rollout = batch, scored.raw, total
        logged = scored.logged() | {"reward": total, "malformed": batch.malformed.float()}
        adapted = self.composite.adapt(batch)
        logged |= {f"multiplier/{name}": torch.full_like(total, value) for name, value in adapted.items()}
        sizes = [len(samples.sequences) for samples in samples_list]
        for name, value in logged.items():
            for samples, share in zip(samples_list, value.split(sizes), strict=True):
                samples.info[name] = share
        for samples, share in zip(samples_list, total.split(sizes), strict=True):
            samples.rewards = share
        if self.with_credit:
            untold = torch.cat([(rows == NO_SUGGESTION).all(-1) for rows in place])
            whole = untold | batch.malformed | scored.closed | scored.failed
            _, group = torch.unique(batch.group, return_inverse=True)
            self.credit = centred_credit(scored.credit, total, whole, group).split(sizes)
            self.place = place
        if self.watch:
            n_tokens = torch.cat([samples.action_mask.sum(-1) for samples in samples_list])
            log_prob = torch.cat([(s.action_log_probs.float() * s.action_mask).sum(-1) for s in samples_list])
            self.watch(batch_statistics(batch, total, n_tokens, log_prob, self.judge))
        return samples_list

    def scored_batch(self, samples_list, n_samples: int):
        """OpenRLHF's samples with log-probs, and all responses of them as one batch with what the models say of it.

        Args:
            n_samples: responses to each prompt.
        """
        responses = [
            self.tokenizer.decode(sequence[1:][action_mask.bool()], skip_special_tokens=True)
            for samples in samples_list
            for sequence, action_mask in zip(samples.sequences, samples.action_mask, strict=True)
        ]
        requests = [Request.of_label(label) for samples in samples_list for label in samples.labels]
        cut = torch.cat([samples.truncated for samples in samples_list]).tolist()
        finish_reasons = ["length" if one_cut else "stop" for one_cut in cut]
        parsed = [self.task.read(*one) for one in zip(responses, finish_reasons, strict=True)]

        # Dispatched before the policy and the reference, so that on GPUs of its own it runs beside them.
        rewards_ref = self.dispatch_reward_model(requests, parsed) if self.with_reward_model else None
        for samples in samples_list:
            samples.rewards = torch.zeros(len(samples.sequences))  # given: the host asks no model of its own
        samples_list = super().make_experience(samples_list)

        rewards = self.gather_rewards(rewards_ref, parsed) if self.with_reward_model else {}
        return samples_list, RolloutBatch(
            requests=requests,
            responses=responses,
            parsed=parsed,
            group=torch.tensor([index // n_samples for samples in samples_list for index in samples.index]),
            task=self.task,
            ref_log_ppl=self.ref_log_ppl(samples_list) if self.initial_model_group is not None else None,
            **rewards,
        )

    def one_by_one(self, samples: Sequence):
        """A batch each sample, and as many for each model process as for the others, which wait for it under ZeRO-3:
        the last sample is there several times where that takes it."""
        groups = (self.actor_model_group, self.initial_model_group, self.critic_model_group)
        n = max(len(group._actor_handlers) // group.duplicate_actors for group in groups if group is not None)
        for index, sample in enumerate(samples):
            sample.index = [index]
        return [*samples, *(copy.deepcopy(samples[-1]) for _ in range(-len(samples) % n))]

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences):
        """OpenRLHF's advantages. Where credit goes by suggestion, tokens get that of their suggestion in place of the
        response's: the KL penalty, which is a token's own, stays."""
        experiences = super().compute_advantages_and_returns(experiences)
        if not self.with_credit:
            return experiences
        group = torch.tensor(
            [index // self.args.rollout.n_samples_per_prompt for e in experiences for index in e.index]
        )
        _, group = torch.unique(group, return_inverse=True)
        total = torch.cat([experience.rewards for experience in experiences]).float()[:, None]
        centred = total - group_means(total, group)
        credit = torch.cat(self.credit)
        scale = credit_scale = torch.ones_like(total)
        if self.advantage_estimator == "group_norm":
            scale, credit_scale = group_norm_scales(centred, credit, group)
        elif self.advantage_estimator == "rloo":
            n = torch.bincount(group)[group][:, None]
            scale = credit_scale = n / (n - 1).clamp(min=1)
        low, high = self.args.reward.clip_range  # which OpenRLHF's advantages of responses went through
        sizes = [len(experience.sequences) for experience in experiences]
        scaled = (centred * scale, centred * credit_scale, credit * credit_scale)
        given, of_response, of_suggestion = (one.clamp(low, high).split(sizes) for one in scaled)
        for experience, place, was, whole, own in zip(
            experiences, self.place, given, of_response, of_suggestion, strict=True
        ):
            by_token = torch.where(place == NO_SUGGESTION, whole, own.gather(1, place.clamp(min=0)))
            experience.advantages = experience.advantages + (by_token - was) * experience.action_mask
        return experiences

    def suggestion_of_actions(self, samples_list) -> list[torch.Tensor]:
        """Which suggestion, from 0, each token belongs to that the policy wrote, ``[batch, length]`` as the action
        masks; ``NO_SUGGESTION`` elsewhere."""
        places = []
        for samples in samples_list:
            place = torch.full_like(samples.action_mask, NO_SUGGESTION, dtype=torch.long)
            for row, tokens, mask in zip(place, samples.sequences[:, 1:], samples.action_mask.bool(), strict=True):
                pieces = [self.piece(token) for token in tokens[mask].tolist()]
                row[mask] = torch.tensor(suggestion_of_tokens(pieces, self.task.n), dtype=torch.long)
            places.append(place)
        return places

    def ref_log_ppl_share(self, samples_list, place: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """``[batch, n]``, nats: what the tokens of each suggestion add to ``ref_log_ppl``. None where OpenRLHF keeps
        the reference's log-probs of no token: it keeps the KL, which is the difference for the estimator k1 alone."""
        if self.initial_model_group is None:
            return None
        shares = []
        for samples, rows in zip(samples_list, place, strict=True):
            log_probs = samples.base_action_log_probs
            if log_probs is None and self.args.algo.kl.estimator != "k1":
                return None
            if log_probs is None:
                log_probs = samples.action_log_probs.float() - samples.kl
            nll = -log_probs.float() * samples.action_mask
            by_suggestion = torch.stack([(nll * (rows == number)).sum(-1) for number in range(self.task.n)], dim=-1)
            shares.append(by_suggestion / samples.action_mask.sum(-1, keepdim=True).clamp(min=1))
        return torch.cat(shares)

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
            self.reward_tokenizer, *zip(*pairs, strict=True), self.reward_max_len, self.share_prefix
        )
        n_processes = len(self.reward_model_group._actor_handlers) // self.reward_model_group.duplicate_actors
        n_rows = max(1, 4 * self.args.rollout.micro_batch_size * len(input_ids) // len(pairs))
        size = max(1, min(-(-len(input_ids) // n_processes), n_rows))
        input_ids, mask = input_ids.split(size), mask.split(size)
        # Every process makes as many passes as the others, which wait for it under ZeRO-3: the last row is scored
        # again, then cut off.
        while len(input_ids) % n_processes:
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
