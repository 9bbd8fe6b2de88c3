"""Which tokens of a text were said before, and in which turn: exact match, as an input of the reward model.

Whether a suggestion names what the conversation is about, repeats the question or takes up a word of the answer is a
matter of equal words. A large pretrained decoder has learnt to look them up (induction heads); a small one, or one
that learns from a few thousand clicks, has not, and learns it for each word alone. So each token is told, as in the
reader of arXiv:1704.00051: its embedding gets one learned vector for each turn in which the same token stood before.

Turns are told apart by the token that ends one, and counted back from the token's own: no role, no language and no
list of stop words is in it. In rows that share a prefix (:mod:`openrlhf_qs.models.shared_prefix`) a suggestion sees
the common beginning and itself, so the flags are those of its whole text alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of a token of a suggestion: in the suggestion itself, in the answer, in the question, further back, nowhere.
N_FLAGS = 5


def exact_match(input_ids: Tensor, segments: Tensor, turn_end_id: int) -> Tensor:
    """Whether each token stood before: in its own turn, the turn before, the one before that, earlier, nowhere.

    Args:
        input_ids: ``[rows, length]``.
        segments: attention mask, or segment ids of a shared prefix, ``[rows, length]``; 0 is padding.
        turn_end_id: the token that ends every turn.

    Returns:
        ``[rows, length, N_FLAGS]``, float32, 0 or 1; of padding nothing is to be read.
    """
    length = input_ids.shape[1]
    common = segments == 1
    ended = ((input_ids == turn_end_id) & (segments > 0)).long()
    before = ended.cumsum(1) - ended
    starts = torch.ones_like(common)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    at_start = (before * starts).cummax(dim=1).values
    # Turns that ended before a token, in its own part and, for a suggestion's, in all of the common beginning.
    turn = before - at_start + (ended * common).sum(1, keepdim=True) * ~common
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril(-1)
    seen = (segments[:, None, :] == segments[:, :, None]) | common[:, None, :]
    same = (input_ids[:, None, :] == input_ids[:, :, None]) & seen & earlier & (segments > 0)[:, None, :]
    back = turn[:, :, None] - turn[:, None, :]
    flags = [(same & (back == n)).any(-1) for n in range(N_FLAGS - 2)]
    flags += [(same & (back >= N_FLAGS - 2)).any(-1), ~same.any(-1)]
    return torch.stack(flags, dim=-1).float()
