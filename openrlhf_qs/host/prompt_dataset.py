"""GRPO's prompts: as the policy was taught them, in the roles of its template and as long as there is room for.

In: rows of ``prompts.jsonl``. Imported by its patch alone, for its base is OpenRLHF's class.
"""

from __future__ import annotations

from openrlhf.datasets import PromptDataset

from openrlhf_qs.form.task import read_task
from openrlhf_qs.models.template import fitted, prepared


class FittedPromptDataset(PromptDataset):
    """OpenRLHF's dataset of the prompts that fit; those that do not are left out, and counted."""

    def __init__(self, dataset, tokenizer, strategy, **kwargs) -> None:
        args = strategy.args
        n_most = read_task(args.actor.model_name_or_path).room(args.data.max_len) - args.rollout.max_new_tokens
        rows, key, n_cut = [], args.data.input_key, 0
        for row in dataset:
            messages = row[key] if isinstance(row[key], list) else [{"role": "user", "content": row[key]}]
            prompt = fitted(tokenizer, messages, n_most)
            if prompt is not None:
                rows.append({**row, key: prompt})
                n_cut += prompt != prepared(tokenizer, messages)
        n_long = len(dataset) - len(rows)
        strategy.print(f"{len(rows)} prompts, {n_cut} of them cut to {n_most} tokens; {n_long} left out as too long")
        if not rows:
            raise ValueError(
                f"no prompt fits in {n_most} tokens: increase --data.max_len, or use a policy trained with more"
            )
        super().__init__(rows, tokenizer, strategy, **kwargs)
