"""One conversation, many suggestions: a decoder reads the conversation once, and each suggestion after it.

A row holds the tokens that the texts of one conversation begin with in common, then what is left of each text, one
after the other. Segment ids stand in the place of the attention mask: 0 padding, 1 the common beginning, k + 1 the
row's k-th suggestion. A suggestion sees the beginning and itself, and its positions go on from the beginning, so that
its outputs are those of its whole text alone (tree attention, arXiv:2305.09781).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

MAX_ROW = 1024  # tokens; attention costs the square of a row's length


class SharedRows(NamedTuple):
    """Texts in rows that share their beginnings.

    Attributes:
        input_ids, segments: ``[rows, length]``, padded right.
        order: ``[texts]``; the i-th suggestion of the rows, read row by row, is text ``order[i]``.
    """

    input_ids: Tensor
    segments: Tensor
    order: Tensor


def share_prefixes(
    texts: Sequence[Sequence[int]], groups: Sequence[Hashable], pad_token_id: int | None, max_row: int = MAX_ROW
) -> SharedRows:
    """Lay out the token ids of ``texts``; those of one group share a row, or several where one would be too long.

    Args:
        texts: token ids, each with one token or more.
        groups: of each text; equal for those that follow the same conversation.
        max_row: tokens of a row that holds more than one text.
    """
    members = defaultdict(list)
    for n, group in enumerate(groups):
        members[group].append(n)
    rows, order = [], []
    for group in members.values():
        n_common = _n_common([texts[n] for n in group])
        row: list[tuple[int, int]] = []
        for n in group:
            own = texts[n][n_common:]
            if row and len(row) + len(own) > max_row:
                rows.append(row)
                row = []
            row = row or [(token, 1) for token in texts[n][:n_common]]
            segment = row[-1][1] + 1 if row else 2
            row.extend((token, segment) for token in own)
            order.append(n)
        rows.append(row)
    length = max(map(len, rows), default=0)
    padding = (pad_token_id or 0, 0)
    padded = torch.tensor([row + [padding] * (length - len(row)) for row in rows], dtype=torch.long)
    input_ids, segments = padded.view(len(rows), length, 2).unbind(-1)
    return SharedRows(input_ids, segments, torch.tensor(order, dtype=torch.long))


def is_shared(attention_mask: Tensor) -> bool:
    """Whether a mask holds segment ids."""
    return bool((attention_mask > 1).any())


def positions(segments: Tensor) -> Tensor:
    """Segment ids to position ids, ``[rows, length]`` both: each suggestion goes on from the common beginning."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    start = (index * starts).cummax(dim=1).values
    n_common = (segments == 1).sum(dim=1, keepdim=True)
    return torch.where(segments > 1, n_common + index - start, index)


def tree_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Segment ids ``[rows, length]`` to what is added to the attention logits, ``[rows, 1, length, length]``."""
    length = segments.shape[1]
    seen = (segments[:, None, :] == segments[:, :, None]) | (segments[:, None, :] == 1)
    seen &= torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    added = torch.zeros(seen.shape, dtype=dtype, device=segments.device).masked_fill_(~seen, torch.finfo(dtype).min)
    return added[:, None]


def ends(segments: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each suggestion's last token, ``[suggestions]`` each, row by row."""
    following = torch.zeros_like(segments)
    following[:, :-1] = segments[:, 1:]
    return torch.nonzero((segments > 1) & (following != segments), as_tuple=True)


def _n_common(texts: Sequence[Sequence[int]]) -> int:
    """Tokens that all texts begin with; each keeps one of its own."""
    columns = zip(*(text[:-1] for text in texts), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
