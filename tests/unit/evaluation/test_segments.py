"""Parts of the held-out conversations: by turns, and by what meta says."""

from __future__ import annotations

import numpy as np
import pytest

from openrlhf_qs.evaluation.ab_test import conversation_clusters
from openrlhf_qs.evaluation.segments import segments


def test_parts_have_the_rate_of_their_conversations_and_small_ones_are_left_out():
    answer, question = {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}
    conversations = [
        [{"role": "user", "content": f"a {n}"}] + [answer, question] * (0 if n < 30 else 1 if n < 60 else 3)
        for n in range(65)
    ]
    ctr = {"sft": np.r_[np.tile([0.0, 1.0], 15), np.ones(35)]}
    meta = [{"topic": f"t{n}", "language": "en" if n < 32 else "de", "same": 1} for n in range(65)]
    found = segments(ctr, conversations, meta, conversation_clusters(conversations))
    assert list(found) == ["turns", "language"]  # 65 topics are names, and one value tells nothing
    assert list(found["turns"]) == ["1", "2"]  # five conversations of four turns are too few
    part = found["turns"]["1"]
    # 15 of 30: deviation (ddof 1) of 0 and 1 in equal parts .50855, / sqrt(30) * t(.975, 29) 2.04523 = .18990
    assert part["n_contexts"] == 30 and part["ctr"] == {"sft": 0.5}
    assert part["ci95"]["sft"] == pytest.approx([0.5 - 0.18990, 0.5 + 0.18990], abs=1e-4)
    assert found["turns"]["2"]["ctr"] == {"sft": 1.0}
    assert found["language"]["de"]["n_contexts"] == 33
