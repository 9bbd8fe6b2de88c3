"""Conversations and their suggestions, as the report shows them: before and after, and over the course of training.

In: ``examples`` of the metrics, rows of ``grpo/samples.jsonl``. Out: input of the template's macro ``example``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openrlhf_qs.evaluation.arms import AT
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.plots.style import MUTED, arm_colors

GROUPS = {
    "best": "largest gains",
    "worst": "largest losses",
    "random": "drawn at random",
}
N_STEPS = 4  # of a training, shown side by side
N_OPEN = 2  # prompts that are shown openly; the others are folded


def before_and_after(metrics: Mapping[str, Any], before: str, after: str) -> list[dict[str, Any]]:
    """``title`` and ``rows`` of each group of the examples."""
    colors = arm_colors(name for name in metrics.get("quality", {}) if AT not in name)
    examples = metrics.get("examples", ())
    unit = largest(arm.get("parts", {}) for one in examples for arm in one["arms"].values())
    groups: dict[str, list] = {}
    for one in examples:
        arms = one["arms"]
        chances = [arms[name]["ctr"] if name in arms else None for name in (before, after)]
        shown = {
            "conversation": one["conversation"],
            "change": "" if None in chances else f"{before} {chances[0]:.0%} → {after} {chances[1]:.0%} click",
            "arms": [
                column(
                    name,
                    colors.get(name, MUTED),
                    "" if arm["ctr"] is None else f"{arm['ctr']:.0%} click",
                    arm,
                    unit,
                    one["clicked"],
                )
                for name, arm in arms.items()
            ],
        }
        groups.setdefault(one.get("group", "random"), []).append(shown)
    return [{"title": title, "rows": groups[group]} for group, title in GROUPS.items() if group in groups]


def over_training(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Blocks: the same prompts at several steps side by side, then responses with the highest and lowest reward."""
    steps = _spread(sorted({row["step"] for row in rows}), N_STEPS)
    colors = dict(zip(steps, ("#8b929c", "#b0913a", "#3572b0", "#d4622a")[-len(steps) :], strict=True))
    unit = largest(row["weighted"] for row in rows)

    def of(row: Mapping[str, Any], name: str) -> dict[str, Any]:
        total = sum(value or 0.0 for value in row["weighted"].values())
        arm = {**row, "parts": row["weighted"]}
        return column(name, colors[row["step"]], f"reward {total:+z.2f}", arm, unit)

    prompts: dict[str, list] = {}
    for row in rows:
        if row["kind"] == "same" and row["step"] in colors:
            prompts.setdefault(conversation_key(row["conversation"]), []).append(row)
    same = [
        {
            "conversation": asked[0]["conversation"],
            "change": "",
            "arms": [of(row, f"step {row['step']}") for row in asked],
        }
        for asked in prompts.values()
    ]
    blocks: list[dict[str, Any]] = []
    if same:
        note = (
            "The most probable response at each step. Reward and parts are in standard deviations of the SFT policy."
        )
        blocks.append(
            {
                "kind": "examples",
                "title": "the same prompts in the course of training",
                "note": note,
                "rows": same[:N_OPEN],
            }
        )
        if same[N_OPEN:]:
            blocks.append({"kind": "folded", "summary": f"{len(same) - N_OPEN} more prompts", "rows": same[N_OPEN:]})
    for kind in ("highest", "lowest"):
        found = [row for row in rows if row["kind"] == kind and row["step"] in (*steps[:1], *steps[-1:])]
        shown = [
            {"conversation": row["conversation"], "change": "", "arms": [of(row, f"step {row['step']}")]}
            for row in found
        ]
        if shown:
            blocks.append(
                {"kind": "folded", "summary": f"{kind} reward in the first and the last step", "rows": shown}
            )
    return blocks


def column(
    name: str, color: str, shown: str, arm: Mapping[str, Any], unit: float, clicked: Sequence[str] = ()
) -> dict[str, Any]:
    """One arm, or one step: its suggestions, and each part of its reward as a bar in shares of ``unit``.

    Args:
        shown: the text beside the name.
        arm: ``suggestions`` and ``malformed``; maybe ``garm``, mean and std of each suggestion, ``new``, ``parts``.
    """
    garm = arm.get("garm") or [None] * len(arm["suggestions"])
    new = arm.get("new") or [False] * len(arm["suggestions"])
    return {
        "name": name,
        "color": color,
        "shown": shown,
        "malformed": arm["malformed"],
        "suggestions": [
            {
                "text": text,
                "clicked": text in clicked,
                "new": is_new,
                "garm": "" if score is None else f"GaRM {score[0]:+z.2f} ± {score[1]:.2f}",
            }
            for text, score, is_new in zip(arm["suggestions"], garm, new, strict=True)
        ],
        "parts": [
            {
                "name": part,
                "shown": "failed" if value is None else f"{value:+z.2f}",
                "minus": (value or 0.0) < 0,
                "width": round(100 * abs(value or 0.0) / unit, 1),
            }
            for part, value in arm.get("parts", {}).items()
        ],
    }


def largest(parts: Iterable[Mapping[str, float | None]]) -> float:
    """The largest absolute value, which gets the full width of a bar; 1 if there is none."""
    return max((abs(value or 0.0) for one in parts for value in one.values()), default=0.0) or 1.0


def _spread(steps: Sequence[int], n: int) -> list[int]:
    """``n`` of ``steps``, or all, evenly, the first and the last among them."""
    if len(steps) <= n:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (n - 1))] for place in range(n)]
