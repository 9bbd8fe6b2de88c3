"""Conversations for the report: the largest gains from one policy to the next, the largest losses, and some drawn at
random."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from openrlhf_qs.evaluation.ab_test import ArmResult
from openrlhf_qs.evaluation.arms import COLD_START, Shown
from openrlhf_qs.evaluation.rewards import RunReward
from openrlhf_qs.form.keys import conversation_key, text_key

N_EXAMPLES = 5  # of each group


def examples(
    arms: Mapping[str, Sequence[Shown]],
    results: Mapping[str, ArmResult],
    clicked: Mapping[str, Sequence[str]],
    in_log: Mapping[str, Collection[str]],
    before: str,
    after: str,
    seed: int,
    scorer: Any = None,
    reward: RunReward | None = None,
) -> list[dict[str, Any]]:
    """Rows with ``group`` (best, worst, random), ``conversation``, ``clicked`` and, arm by arm, what it shows there.

    Args:
        arms: what the report shows, of the same conversations.
        results: of the A/B test; none: all are drawn at random.
        clicked: what was clicked in the log, by :func:`conversation_key`.
        in_log: :func:`text_key` of all that the log shows, by the same; new: neither there nor of ``before``.
        before, after: the arms whose change sorts the conversations.
        scorer: the reward model, for ``garm``: mean and std of each suggestion.
        reward: for ``parts``: each part of the reward, weighted, as it enters the sum.
    """
    n = len(arms[COLD_START])
    groups = _groups(n, results, before, after, seed)
    rows = []
    for group, context in groups:
        conversation = arms[COLD_START][context].conversation
        key = conversation_key(conversation)
        known = {*in_log.get(key, ()), *map(text_key, arms[before][context].suggestions)}
        rows.append(
            {
                "group": group,
                "conversation": conversation,
                "clicked": list(dict.fromkeys(clicked.get(key, []))),
                "arms": {
                    name: {
                        "suggestions": list(shown[context].suggestions),
                        "malformed": not shown[context].well_formed,
                        "ctr": float(results[name].context_ctr[context]) if results else None,
                        "new": [name == after and text_key(text) not in known for text in shown[context].suggestions],
                    }
                    for name, shown in arms.items()
                },
            }
        )
    for name in arms:
        shown = [arms[name][context] for _, context in groups]
        if scorer is not None:
            pairs = [(row.conversation, text) for row in shown for text in row.suggestions]
            mean, std, _ = scorer([c for c, _ in pairs], [text for _, text in pairs]) if pairs else ((), (), ())
            scores = iter(zip(map(float, mean), map(float, std), strict=True))
            for row in rows:
                row["arms"][name]["garm"] = [list(next(scores)) for _ in row["arms"][name]["suggestions"]]
        if reward is not None:
            for row, parts in zip(rows, reward.weighted(shown), strict=True):
                row["arms"][name]["parts"] = parts
    return rows


def _groups(n: int, results: Mapping[str, ArmResult], before: str, after: str, seed: int) -> list[tuple[str, int]]:
    """The conversations, each in one group: the most gained and the most lost, then at random of the others."""
    groups: list[tuple[str, int]] = []
    if before in results and after in results:
        change = results[after].context_ctr - results[before].context_ctr
        order = np.argsort(-change, kind="stable").tolist()
        n_each = min(N_EXAMPLES, n // 2)
        groups += [("best", context) for context in order[:n_each]]
        groups += [("worst", context) for context in order[::-1][:n_each]]
    left = [context for context in range(n) if context not in {context for _, context in groups}]
    drawn = np.random.default_rng(seed).choice(left, size=min(len(left), N_EXAMPLES), replace=False) if left else []
    return groups + [("random", int(context)) for context in sorted(drawn)]
