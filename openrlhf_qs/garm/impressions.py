"""What the reward model is trained on: impressions, each with its suggestions once and its pairs as places among them.

In: rows of preferences (:mod:`openrlhf_qs.clicks.preferences`), one an impression, in any order. A suggestion that
stands in two pairs is read once, and a decoder reads a conversation once (:mod:`openrlhf_qs.models.shared_prefix`),
with all that was shown under it.
Out: batches that hold whole lists, what was clicked on them and how much each place is looked at, beside the pairs.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from openrlhf_qs.clicks.preferences import check_preferences
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.garm.reward_model import pad_left, suggestion_ids
from openrlhf_qs.models.shared_prefix import share_prefixes

LISTS = ("suggestions", "clicks", "examination", "trust")  # of a row, a value for each suggestion
MAX_TOGETHER = 8  # impressions of one conversation that are read in one go


class Impression(NamedTuple):
    """The texts shown under one conversation, what was clicked, and which of them won over which.

    Attributes:
        key: a number of its own, the same in every run.
        texts: token ids of each suggestion with its conversation, in the order shown.
        clicks: of each: 0 or 1, or a number or share of many shows; 0 where the row does not say.
        examination: of each, how often it was looked at, in looks at the top; 1 where the row does not say.
        trust: of each, the clicks that its place brought by itself; 0 where the row does not say.
        pairs: (chosen, rejected), as places in ``texts``.
        values: (weight, label) of each pair; a label of 1 says that the chosen one surely is the better one.
    """

    key: int
    texts: list[list[int]]
    clicks: list[float]
    examination: list[float]
    trust: list[float]
    pairs: list[tuple[int, int]]
    values: list[tuple[float, float]]


@dataclass(frozen=True)
class ImpressionBatch:
    """What is known of a batch of impressions; the model's outputs are those of all its suggestions, in one order.

    Attributes:
        key: ``[impressions]``, a number of its own for each.
        place: ``[impressions, most suggestions]``, where the output of each suggestion is; 0 where there is none.
        shown: the same shape, whether there is one.
        clicks, examination, trust: the same shape, float32; 0, 1 and 0 where there is no suggestion.
        pairs: ``[pairs, 2]``, where the outputs of chosen and rejected are.
        pair_impression: ``[pairs]``, the impression of each.
        weight, label: ``[pairs]``. The weights are such that an impression counts the same in every batch.
    """

    key: Tensor
    place: Tensor
    shown: Tensor
    clicks: Tensor
    examination: Tensor
    trust: Tensor
    pairs: Tensor
    pair_impression: Tensor
    weight: Tensor
    label: Tensor

    def squeeze(self, dim: int) -> ImpressionBatch:
        """Itself: OpenRLHF's trainer takes a dimension out of all that a batch holds."""
        return self

    def to(self, device) -> ImpressionBatch:
        return ImpressionBatch(*(getattr(self, field.name).to(device) for field in fields(self)))

    def member_weights(self, n_members: int) -> Tensor:
        """What each impression counts for each member of an ensemble, ``[impressions, n_members]``, mean 1.

        The Bayesian bootstrap (Rubin 1981): exponential weights, drawn from the impression's key, so that they are the
        same in every epoch and members are those of ``n_members`` logs. In the evaluation, and of one member, all 1.
        """
        ones = torch.ones(len(self.key), n_members, device=self.key.device)
        if n_members == 1 or not torch.is_grad_enabled():
            return ones
        # SplitMix64: 53 good bits of every (key, member); int64 wraps around as the unsigned arithmetic does.
        bits = self.key[:, None] + torch.arange(1, n_members + 1, device=self.key.device) * -7046029254386353131
        bits = (bits ^ ((bits >> 30) & (1 << 34) - 1)) * -4658895280553007687
        bits = (bits ^ ((bits >> 27) & (1 << 37) - 1)) * -7723592293110705685
        bits = bits ^ ((bits >> 31) & (1 << 33) - 1)
        uniform = ((bits >> 11) & (1 << 53) - 1).double() / (1 << 53)
        return -torch.log1p(-uniform).to(ones)


class ImpressionDataset(Dataset):
    """One item is a conversation with all that was shown under it, up to ``MAX_TOGETHER`` impressions; OpenRLHF's
    batch sizes count items. Impressions without a conversation, as headlines are, are items of their own."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer,
        max_len: int,
        share_prefix: bool,
        whole_lists: bool = False,
    ) -> None:
        """
        Args:
            rows: see :data:`openrlhf_qs.clicks.preferences.SCHEMA`, as they stand in a file.
            max_len: tokens of a conversation with one suggestion; a longer conversation is cut by whole turns, and
                :attr:`n_cut` says how many were.
            share_prefix: whether the model reads segment ids.
            whole_lists: keep all that was shown. Otherwise what no pair needs is not read: impressions without a
                pair, suggestions that stand in none.

        Raises:
            ValueError: the first 20 bad rows or pairs, by row, from 1.
        """
        self.pad_token_id = tokenizer.pad_token_id
        self.share_prefix = share_prefix
        check_preferences(rows, lambda number: f"row {number}")
        if whole_lists and any(row.get("clicks") is None for row in rows):
            raise ValueError(
                "rows without clicks, and an objective that reads them: give clicks, or train on pairs "
                "(--qs.objective pairs)"
            )
        # No rows, no impressions: OpenRLHF evaluates on a hundredth of the rows, of fewer than a hundred on none.
        kept = rows if whole_lists else _paired(rows)
        cut: set[str] = set()
        impressions = _impressions(kept, tokenizer, max_len, cut)
        self.n_cut = len(cut)
        self.items = _together(kept, impressions)
        self.n_impressions = len(impressions)
        n_paired = sum(bool(impression.pairs) for impression in impressions)
        self.pairs_per_impression = sum(len(one.pairs) for one in impressions) / max(1, n_paired)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> list[Impression]:
        return self.items[index]

    def collate_fn(
        self, items: Sequence[Sequence[Impression]]
    ) -> tuple[Tensor, Tensor, ImpressionBatch, Tensor, None]:
        """A batch in the five places of OpenRLHF's reward trainer.

        Returns:
            Token ids and mask (or segment ids) ``[rows, 1, length]``; the :class:`ImpressionBatch`; two places that
            are empty.
        """
        impressions = [impression for item in items for impression in item]
        texts = [text for impression in impressions for text in impression.texts]
        groups = [n for n, item in enumerate(items) for impression in item for _ in impression.texts]
        if self.share_prefix:
            input_ids, mask, output = share_prefixes(texts, groups, self.pad_token_id)
        else:
            input_ids, mask = pad_left(texts, self.pad_token_id)
            output = torch.arange(len(texts))
        most = max(len(impression.texts) for impression in impressions)
        place = torch.zeros(len(impressions), most, dtype=torch.long)
        shown = torch.zeros(len(impressions), most, dtype=torch.bool)
        clicks, examination, trust = torch.zeros(place.shape), torch.ones(place.shape), torch.zeros(place.shape)
        pairs, pair_impression, first = [], [], 0
        for n, impression in enumerate(impressions):
            end = first + len(impression.texts)
            place[n, : end - first], shown[n, : end - first] = output[first:end], True
            clicks[n, : end - first] = torch.tensor(impression.clicks)
            examination[n, : end - first] = torch.tensor(impression.examination)
            trust[n, : end - first] = torch.tensor(impression.trust)
            pairs += [(first + chosen, first + rejected) for chosen, rejected in impression.pairs]
            pair_impression += [n] * len(impression.pairs)
            first = end
        values = torch.tensor([value for one in impressions for value in one.values]).view(-1, 2)
        # A loss is a mean over the batch's pairs. An impression must not count less where the others have fewer.
        n_paired = sum(bool(impression.pairs) for impression in impressions)
        batch = ImpressionBatch(
            key=torch.tensor([impression.key for impression in impressions], dtype=torch.long),
            place=place,
            shown=shown,
            clicks=clicks,
            examination=examination,
            trust=trust,
            pairs=output[torch.tensor(pairs, dtype=torch.long).view(-1, 2)],
            pair_impression=torch.tensor(pair_impression, dtype=torch.long),
            weight=values[:, 0] * (len(pairs) / max(1, n_paired) / max(self.pairs_per_impression, 1e-9)),
            label=values[:, 1],
        )
        return input_ids[:, None], mask[:, None], batch, torch.empty(0, 1), None


def _paired(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with a pair, with those of their suggestions that stand in one."""
    kept = []
    for row in rows:
        pairs = row["pairs"]
        if not pairs:
            continue
        wanted = sorted({int(place) for chosen, rejected, *_ in pairs for place in (chosen, rejected)})
        place_of = {place: n for n, place in enumerate(wanted)}
        lists = {name: row[name] for name in LISTS if row.get(name) is not None}
        kept.append(
            row
            | {name: [values[place] for place in wanted] for name, values in lists.items()}
            | {"pairs": [(place_of[chosen], place_of[rejected], *value) for chosen, rejected, *value in pairs]}
        )
    return kept


def _impressions(rows: Sequence[Mapping[str, Any]], tokenizer, max_len: int, cut: set[str]) -> list[Impression]:
    """One item a row; all texts are tokenized together. The keys of conversations that are too long go to ``cut``."""
    shown = [(row["conversation"], text) for row in rows for text in row["suggestions"]]
    ids = iter(suggestion_ids(tokenizer, *zip(*shown, strict=True), max_len, cut) if shown else [])
    impressions = []
    for number, row in enumerate(rows):
        n, pairs = len(row["suggestions"]), row["pairs"]
        impressions.append(
            Impression(
                key=_number(row.get("impression_id") or str(number)),
                texts=[next(ids) for _ in range(n)],
                clicks=row.get("clicks") or [0.0] * n,
                examination=row.get("examination") or [1.0] * n,
                trust=row.get("trust") or [0.0] * n,
                pairs=[(int(chosen), int(rejected)) for chosen, rejected, *_ in pairs],
                values=[(weight, label) for *_, weight, label in pairs],
            )
        )
    return impressions


def _together(rows: Sequence[Mapping[str, Any]], impressions: Sequence[Impression]) -> list[list[Impression]]:
    """The impressions of one conversation side by side, in the order in which conversations are first seen."""
    members = defaultdict(list)
    for number, (row, impression) in enumerate(zip(rows, impressions, strict=True)):
        members[conversation_key(row["conversation"]) if row["conversation"] else number].append(impression)
    return [
        group[start : start + MAX_TOGETHER]
        for group in members.values()
        for start in range(0, len(group), MAX_TOGETHER)
    ]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)
