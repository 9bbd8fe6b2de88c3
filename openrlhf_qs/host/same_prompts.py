"""The same few prompts, asked again every so many rollouts: how a policy changes under what it is rewarded for.

Out: the answers ride on the first sample of the rollout, in an attribute that OpenRLHF does not read; the experience
maker takes them off again, so that nothing is trained on them. Imported by its patch alone, for its base is OpenRLHF's
class.
"""

from __future__ import annotations

from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from openrlhf_qs.reward.samples import CARRIED, N_SAME


class SamePromptsGenerator(SamplesGenerator):
    """OpenRLHF's generator; with the first rollout and every ``every`` after it, it answers ``N_SAME`` prompts too."""

    every = 10
    n_rollouts = 0

    def _generate_vllm(self, dataloader_iter, num_prompts, dynamic_filtering, **generate_kwargs):
        rollout, n_prompts, exhausted = super()._generate_vllm(
            dataloader_iter, num_prompts, dynamic_filtering, **generate_kwargs
        )
        if rollout and dataloader_iter is self._dataloader_iter:  # and not that of an evaluation
            if self.n_rollouts % self.every == 0:
                setattr(rollout[0], CARRIED, self.answers(**generate_kwargs))
            self.n_rollouts += 1
        return rollout, n_prompts, exhausted

    def answers(self, **generate_kwargs) -> list[Experience]:
        """One response to each of the same prompts, the likeliest at every token: what differs from step to step is
        the policy then, and vLLM draws no random number that the rollouts would miss."""
        dataset = self.prompts_dataloader.dataset
        n = min(N_SAME, len(dataset))
        same = [dataset.collate_fn([dataset[place * len(dataset) // n]]) for place in range(n)]
        likeliest = generate_kwargs | {"temperature": 0.0, "n_samples_per_prompt": 1}
        answers, *_ = super()._generate_vllm(iter(same), n, False, **likeliest)
        order = [prompts[0] for _, prompts, *_ in same]
        return sorted(answers, key=lambda answer: order.index(answer.prompts[0]))  # they come as they are finished
