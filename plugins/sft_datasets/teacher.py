"""SFT dataset ``single``: one clicked suggestion per instance, for the teacher that suggestions are distilled from.

In: all rows of the SFT set, from a click log. Out: for each row the texts of its instances, each as often as it
counts; the prompt asks for one suggestion (:data:`openrlhf_qs.form.task.TEACHER`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from math import floor
from typing import Any

from openrlhf_qs.form.language import in_users_language
from openrlhf_qs.form.response import suggestion_problem
from openrlhf_qs.registry import SFT_DATASETS


@SFT_DATASETS.register("single")
class Single:
    """Clicked suggestions one by one, repeated according to their debiased clicks.

    A conversation has as many instances as clicks. They are divided by the debiased clicks of its clicked
    suggestions, ``n_shown * weight``: each click counts by its inverse propensity, at most 5, and the sum is shrunk
    towards the log's average (:func:`openrlhf_qs.clicks.candidates.click_candidates`). The shares become whole
    numbers by systematic resampling (Kitagawa, 1996): the expected repetition is the share itself, and none is off by
    1 or more. OpenRLHF's SFTDataset has no weights, hence repetitions.

    Args:
        max_instances: maximum number per conversation, >= 1, so that popular ones do not dominate.
        seed: for the resampling.
    """

    single = True

    def __init__(self, max_instances: int = 64, seed: int = 0) -> None:
        if max_instances < 1:
            raise ValueError(f"single.max_instances must be at least 1, got {max_instances}")
        self.max_instances = max_instances
        self.seed = seed

    def __call__(self, rows: Sequence[Mapping[str, Any]], n: int = 1) -> list[list[str] | None]:
        return [self._instances(row) or None for row in rows]

    def _instances(self, row: Mapping[str, Any]) -> list[str]:
        candidates = row["candidates"]
        if any("n_clicked" not in c or "weight" not in c for c in candidates):
            raise ValueError("single: a candidate has no n_clicked or no weight; give rows that the data stage wrote")
        clicked = [
            c
            for c in candidates
            if c["n_clicked"]
            and not suggestion_problem(c["text"])
            and in_users_language(row["conversation"], c["text"])
        ]
        n_instances = min(sum(c["n_clicked"] for c in clicked), self.max_instances)
        text = json.dumps([self.seed, row["conversation"]], sort_keys=True)
        start = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48
        counts = systematic_counts([c["n_shown"] * c["weight"] for c in clicked], n_instances, start)
        return [c["text"].strip() for c, count in zip(clicked, counts, strict=True) for _ in range(count)]


def systematic_counts(weights: Sequence[float], n: int, start: float) -> list[int]:
    """``n`` shared out by ``weights``: whole numbers with the sum ``n``, each the share rounded down or up.

    Over ``start``, uniform in [0, 1), the mean of each is its share, ``n * weight / sum``.
    """
    sums = list(accumulate(weights))
    edges = [0, *(min(floor(n * part / sums[-1] + start), n) for part in sums[:-1]), n]
    return [end - begin for begin, end in pairwise(edges)] if sums else []
