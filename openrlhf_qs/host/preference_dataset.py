"""``dpo``'s dataset in the place of OpenRLHF's: prompts as the policy was taught them, two answers to each.

In: rows ``{"prompt": messages, "chosen": text, "rejected": text}``. Imported by its patch alone, for its base is
OpenRLHF's class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from openrlhf.datasets import RewardDataset

from openrlhf_qs.clicks.lengths import N_END
from openrlhf_qs.models.template import as_plain_text, end_token, fitted


class FittedPreferenceDataset(RewardDataset):
    """OpenRLHF's dataset of the pairs whose prompt and longer answer have room."""

    def __init__(self, dataset, tokenizer, max_length, strategy, **kwargs) -> None:
        end_token(tokenizer)
        rows = fitting_pairs(dataset, tokenizer, max_length)
        n_long = len(dataset) - len(rows)
        strategy.print(f"{len(rows)} preferences; {n_long} left out as too long for {max_length} tokens")
        if not rows:
            raise ValueError(f"no preference fits in {max_length} tokens: increase --data.max_len")
        super().__init__(Dataset.from_list(rows), tokenizer, max_length, strategy, **kwargs)


def fitting_pairs(
    rows: Iterable[Mapping[str, Any]], tokenizer, max_length: int
) -> list[dict[str, Sequence[Mapping[str, str]]]]:
    """The pairs that fit, prompt and answers as messages."""
    found = []
    for row in rows:
        answers = {name: as_plain_text(tokenizer, row[name]) for name in ("chosen", "rejected")}
        n_answer = max(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers.values())
        prompt = fitted(tokenizer, row["prompt"], max_length - n_answer - N_END)
        if prompt is not None:
            as_messages = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
            found.append({"prompt": prompt, **as_messages})
    return found
