"""What the reward model is trained on: impressions, each with its suggestions once and its pairs as places among them.

In: rows of preference pairs (:mod:`openrlhf_qs.clicks.pairs`), those of one impression side by side. A suggestion that
stands in two pairs is read once, and a decoder reads the conversation once (:mod:`openrlhf_qs.garm.shared_prefix`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from openrlhf_qs.garm.reward_model import pad_left, suggestion_ids
from openrlhf_qs.garm.shared_prefix import share_prefixes

SHOWN_PROBLEMS = 20


class Impression(NamedTuple):
    """The texts of one conversation, and which of them won over which.

    Attributes:
        texts: token ids of each suggestion with its conversation.
        pairs: (chosen, rejected), as places in ``texts``.
        values: (weight, label) of each pair; a label of 1 says that the chosen one surely is the better one.
    """

    texts: list[list[int]]
    pairs: list[tuple[int, int]]
    values: list[tuple[float, float]]


class ImpressionDataset(Dataset):
    """One item is one impression; OpenRLHF's batch sizes count impressions."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer,
        max_len: int,
        share_prefix: bool,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        """
        Args:
            rows: ``chosen`` and ``rejected`` (messages), and where they are there ``impression_id`` (a row without one
                is an impression of its own), ``weight`` (1), ``label`` (1).
            max_len: tokens of a conversation with one suggestion; of a longer conversation the beginning is cut.
            share_prefix: whether the model reads segment ids.
            on_error: ``skip`` leaves bad pairs out; :attr:`skipped` counts them by reason.

        Raises:
            ValueError: the first 20 bad pairs, by row, from 1; where none is good, with ``skip`` too.
        """
        self.pad_token_id = tokenizer.pad_token_id
        self.share_prefix = share_prefix
        self.skipped: Counter[str] = Counter()
        problems, good = [], []
        for number, row in enumerate(rows, start=1):
            problem = _problem(row)
            if problem:
                self.skipped[problem] += 1
                problems.append(f"pair {number}: {problem}")
            else:
                good.append(row)
        if problems and (on_error == "raise" or not good):
            more = f"\nand {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
            raise ValueError("\n".join(problems[:SHOWN_PROBLEMS]) + more)
        # No rows, no impressions: OpenRLHF evaluates on a hundredth of the pairs, of fewer than a hundred on none.
        self.impressions = _impressions(good, tokenizer, max_len)
        self.pairs_per_impression = len(good) / max(1, len(self.impressions))

    def __len__(self) -> int:
        return len(self.impressions)

    def __getitem__(self, index: int) -> Impression:
        return self.impressions[index]

    def collate_fn(self, impressions: Sequence[Impression]) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        """A batch in the five places of OpenRLHF's reward trainer.

        Returns:
            Token ids and mask (or segment ids) ``[rows, 1, length]``; the pairs' places among the model's outputs and
            their weights and labels, ``[pairs, 1, 2]`` both; nothing. The weights are such that an impression counts
            the same in every batch.
        """
        texts = [text for impression in impressions for text in impression.texts]
        groups = [n for n, impression in enumerate(impressions) for _ in impression.texts]
        if self.share_prefix:
            input_ids, mask, place = share_prefixes(texts, groups, self.pad_token_id)
        else:
            input_ids, mask = pad_left(texts, self.pad_token_id)
            place = torch.arange(len(texts))
        pairs, first = [], 0
        for impression in impressions:
            pairs += [(first + chosen, first + rejected) for chosen, rejected in impression.pairs]
            first += len(impression.texts)
        values = torch.tensor([value for impression in impressions for value in impression.values])
        # The loss is a mean over the batch's pairs. An impression must not count less where the others have fewer.
        values[:, 0] *= len(pairs) / len(impressions) / self.pairs_per_impression
        return input_ids[:, None], mask[:, None], place[torch.tensor(pairs)][:, None], values[:, None], None


def _problem(row: Mapping[str, Any]) -> str:
    """What is wrong with a pair; empty where nothing is."""
    for side in ("chosen", "rejected"):
        messages = row.get(side)
        if not messages or not str(messages[-1]["content"]).strip():
            return f"{side} has no text; leave the pair out"
    if row["chosen"] == row["rejected"]:
        return "chosen and rejected are the same; leave the pair out"
    weight, label = _value(row, "weight"), _value(row, "label")
    if not 0 <= weight < math.inf:
        return f"weight {weight}; give a number >= 0"
    if not 0 <= label <= 1:
        return f"label {label}; give the probability, 0 to 1, that the chosen one is better"
    return ""


def _value(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    return 1.0 if value is None else float(value)


def _impressions(rows: Sequence[Mapping[str, Any]], tokenizer, max_len: int) -> list[Impression]:
    """The rows of one ``impression_id`` as one item; all texts are tokenized together."""
    conversations, suggestions, impressions = [], [], []
    places: dict[str, int] = {}
    last = None
    for row in rows:
        if last is None or row.get("impression_id") is None or row["impression_id"] != last:
            impressions.append(Impression([], [], []))
            places = {}
        last = row.get("impression_id")
        pair = []
        for messages in (row["chosen"], row["rejected"]):
            key = json.dumps(messages, ensure_ascii=False)
            if key not in places:
                places[key] = len(places)
                conversations.append(messages[:-1])
                suggestions.append(messages[-1]["content"])
                impressions[-1].texts.append(len(suggestions) - 1)
            pair.append(places[key])
        impressions[-1].pairs.append(tuple(pair))
        impressions[-1].values.append((_value(row, "weight"), _value(row, "label")))
    ids = suggestion_ids(tokenizer, conversations, suggestions, max_len)
    return [impression._replace(texts=[ids[n] for n in impression.texts]) for impression in impressions]
