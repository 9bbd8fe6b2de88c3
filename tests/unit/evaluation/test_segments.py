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
    ctr = {"sft": np.r_[np.tile([0.0, 1.0], 15), np.ones(35)], "grpo": np.r_[np.full(30, 0.75), np.ones(35)]}
    meta = [{"topic": f"t{n}", "language": "en" if n < 32 else "de", "same": 1} for n in range(65)]
    found = segments(ctr, conversations, meta, conversation_clusters(conversations), "sft", "grpo")
    assert list(found) == ["turns", "language"]  # 65 topics are names, and one value tells nothing
    assert list(found["turns"]) == ["1", "2"]  # five conversations of four turns are too few
    part = found["turns"]["1"]
    # 15 of 30: deviation (ddof 1) of 0 and 1 in equal parts .50855, / sqrt(30) * t(.975, 29) 2.04523 = .18990
    assert part["n_contexts"] == 30 and part["ctr"] == {"sft": 0.5, "grpo": 0.75}
    assert part["ci95"]["sft"] == pytest.approx([0.5 - 0.18990, 0.5 + 0.18990], abs=1e-4)
    assert found["turns"]["2"]["ctr"] == {"sft": 1.0, "grpo": 1.0}
    assert found["language"]["de"]["n_contexts"] == 33
    # .75 - 0 and .75 - 1 in equal parts: the same deviation about .25
    assert part["change"] == pytest.approx(0.25)
    assert part["change_ci95"] == pytest.approx([0.25 - 0.18990, 0.25 + 0.18990], abs=1e-4)


def test_the_language_is_that_of_the_users_messages_where_meta_does_not_say_it():
    german = "Ich möchte mehr über den Garten wissen. Welche Pflanzen wachsen im Schatten am besten?"
    english = "I would like to know more about the garden. Which plants grow best in the shade?"
    conversations = [[{"role": "user", "content": f"{german if n < 25 else english} ({n})"}] for n in range(50)]
    clusters = conversation_clusters(conversations)
    found = segments({"sft": np.ones(50)}, conversations, [{}] * 50, clusters, "sft", "sft")
    assert {value: part["n_contexts"] for value, part in found["language"].items()} == {"de": 25, "en": 25}
    assert "change" not in found["language"]["de"]
