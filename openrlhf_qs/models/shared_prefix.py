"""One conversation, many suggestions or responses: a decoder reads the conversation once, and each of them after it.

A row holds the tokens that the texts of one conversation begin with in common, then what is left of each text, one
after the other. Segment ids stand in the place of the attention mask: 0 padding, 1 the common beginning, k + 1 the
row's k-th suggestion. A suggestion sees the beginning and itself, and its positions go on from the beginning, so that
its outputs are those of its whole text alone (tree attention, arXiv:2305.09781).

The reward model reads the suggestions of a conversation so; on a CPU, GRPO its responses.
"""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "openrlhf_qs_shared_prefix"  # its name among transformers' attention functions
MAX_ROW = 1024  # tokens; attention costs the square of a row's length


class SharedRows(NamedTuple):
    """Texts in rows that share their beginnings.

    Attributes:
        input_ids, segments: ``[rows, length]``; the common beginnings are padded right to one width, the suggestions
            begin after it, and what is left is padding again.
        place: ``[texts]``; text n is number ``place[n]`` of the suggestions in the rows, read row by row.
    """

    input_ids: Tensor
    segments: Tensor
    place: Tensor


def share_prefixes(
    texts: Sequence[Sequence[int]], groups: Sequence[Hashable], pad_token_id: int | None, max_row: int = MAX_ROW
) -> SharedRows:
    """Lay out the token ids of ``texts``; those of one group share a row, or several where one would be too long.
    Equal texts of a group are there once.

    Args:
        texts: token ids, each with one token or more.
        groups: of each text; equal for those that follow the same conversation.
        max_row: tokens of a row that holds more than one text.
    """
    members = defaultdict(list)
    for n, group in enumerate(groups):
        members[group].append(n)
    rows, place = [], [0] * len(texts)
    place_of: dict[tuple[Hashable, tuple[int, ...]], int] = {}
    for group in members.values():
        n_common = common_length([texts[n] for n in group])
        common, own_parts, n_row = texts[group[0]][:n_common], [], n_common
        for n in group:
            own = tuple(texts[n][n_common:])
            if (groups[n], own) not in place_of:
                if own_parts and n_row + len(own) > max_row:
                    rows.append((common, own_parts))
                    own_parts, n_row = [], n_common
                own_parts.append(own)
                n_row += len(own)
                place_of[groups[n], own] = len(place_of)
            place[n] = place_of[groups[n], own]
        rows.append((common, own_parts))
    width = max((len(common) for common, _ in rows), default=0)
    laid_out = [_row(common, own_parts, width, (pad_token_id or 0, 0)) for common, own_parts in rows]
    length = max(map(len, laid_out), default=0)
    padded = [row + [(pad_token_id or 0, 0)] * (length - len(row)) for row in laid_out]
    input_ids, segments = torch.tensor(padded, dtype=torch.long).view(len(rows), length, 2).unbind(-1)
    return SharedRows(input_ids, segments, torch.tensor(place, dtype=torch.long))


def is_encoder(config) -> bool:
    """Whether a backbone is bidirectional, like the masked language models of transformers."""
    from transformers import AutoModelForMaskedLM

    known = type(config) in AutoModelForMaskedLM._model_mapping
    return known and not (config.is_decoder or config.is_encoder_decoder)


def can_share_prefix(config, attn_implementation: str, packing_samples: bool = False) -> bool:
    """Whether a backbone can read segment ids: a decoder with unlimited attention that accepts any mask."""
    layers = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    unlimited = set(layers) == {"full_attention"} if layers else window is None
    free_mask = attn_implementation in ("sdpa", ATTENTION, "eager") and not packing_samples
    return free_mask and unlimited and not is_encoder(config) and _takes_any_mask(config)


def _takes_any_mask(config) -> bool:
    """Whether transformers' model passes a 4-D mask and our arguments on to its attention unchanged."""
    from transformers import AutoModel

    if type(config) not in AutoModel._model_mapping:
        return False
    base = AutoModel._model_mapping[type(config)]
    parameters = inspect.signature(base.forward).parameters
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    masked_by_transformers = hasattr(sys.modules[base.__module__], "create_causal_mask")
    return hands_on and masked_by_transformers and "position_ids" in parameters


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


def n_before(segments: Tensor) -> int:
    """Columns before the first suggestion of any row: they hold common beginnings, and padding after these."""
    return int((segments <= 1).all(dim=0).long().cumprod(0).sum())


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    n_before: int = 0,
    **options,
) -> tuple[Tensor, None]:
    """Transformers' ``sdpa`` attention, the first ``n_before`` columns apart.

    They look back at each other only, for which the kernels need no mask and skip half of the work.
    """
    if n_before == 0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    early = [one[:, :, :n_before] for one in (query, key, value)]
    before, _ = sdpa_attention_forward(module, *early, None, **options)
    late_mask = attention_mask[:, :, n_before:]
    after, _ = sdpa_attention_forward(module, query[:, :, n_before:], key, value, late_mask, **options)
    return torch.cat((before, after), dim=1), None


def use_attention(config) -> None:
    """Let a model whose attention is ``sdpa`` take :func:`attention` in its place."""
    if config._attn_implementation == "sdpa":
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
        config._attn_implementation = ATTENTION


def ends(segments: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each suggestion's last token, ``[suggestions]`` each, row by row."""
    following = torch.zeros_like(segments)
    following[:, :-1] = segments[:, 1:]
    return torch.nonzero((segments > 1) & (following != segments), as_tuple=True)


def token_places(rows: SharedRows, n_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tokens of each text stand: its row, ``[texts]``, and the columns in it, ``[texts, longest]``.

    Args:
        rows: of the texts.
        n_tokens: ``[texts]``, tokens of each; columns after a text's last are 0.
    """
    row, last = (of_each[rows.place] for of_each in ends(rows.segments))
    n_common = (rows.segments == 1).sum(dim=1)[row, None]
    token = torch.arange(int(n_tokens.max()))
    column = torch.where(token < n_common, token, last[:, None] - n_tokens[:, None] + 1 + token)
    return row, column.masked_fill(token >= n_tokens[:, None], 0)


def texts_of(input_ids: Tensor, segments: Tensor) -> Iterator[list[int]]:
    """The tokens of each suggestion's whole text, in the order in which a reward model gives their scores.

    Args:
        input_ids, segments: ``[rows, length]``; a mask, or segment ids.
    """
    input_ids, segments = input_ids.cpu(), segments.cpu()
    if not is_shared(segments):
        yield from (row[mask > 0].tolist() for row, mask in zip(input_ids, segments, strict=True))
        return
    for row, column in zip(*ends(segments), strict=True):
        seen = (segments[row] == 1) | (segments[row] == segments[row, column])
        yield input_ids[row][seen].tolist()


def _row(
    common: Sequence[int], own_parts: Sequence[Sequence[int]], width: int, padding: tuple[int, int]
) -> list[tuple[int, int]]:
    """(token, segment) of one row, the common beginning padded to ``width``."""
    row = [(token, 1) for token in common] + [padding] * (width - len(common))
    for segment, own in enumerate(own_parts, start=2):
        row += [(token, segment) for token in own]
    return row


def common_length(texts: Sequence[Sequence[int]]) -> int:
    """Tokens that all texts begin with; each keeps one of its own."""
    columns = zip(*(text[:-1] for text in texts), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
