"""The temperature that a policy is served with: chosen on conversations of the fusion split, never on the test set.

In: ``report/selection.NAME.jsonl``, the policy's responses at several temperatures to conversations of the fusion
split. Out: the one where most users of the judge click, or, where there is no judge, with the largest composite
reward; it is written into the policy's ``generation_config.json``, from where vLLM and transformers take it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_qs.evaluation.arms import Shown
from openrlhf_qs.files.whole import write_whole
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.reward.judged import Judge, click_probabilities

N_USERS = 8  # of each conversation


def choose(
    rows: Sequence[Shown], judge: Judge | None, totals: Callable[[Sequence[Shown]], np.ndarray] | None
) -> dict[str, Any] | None:
    """The best temperature of ``rows``.

    Args:
        rows: responses that say their temperature; the first to a conversation counts.
        judge: whose users click; None: ``totals`` decides.
        totals: the composite reward of each response, nan where it failed; None: there is none.

    Returns:
        ``temperature``; ``tried``, temperature to what it reached; ``by``, what that is; ``n_conversations``. None
        where neither a judge nor a reward can tell.
    """
    if judge is None and totals is None:
        return None
    by_temperature: dict[float, dict[str, Shown]] = {}
    for row in rows:
        by_temperature.setdefault(row.temperature, {}).setdefault(conversation_key(row.conversation), row)
    shared = set.intersection(*(set(some) for some in by_temperature.values()))
    reached = {}
    for temperature, some in by_temperature.items():
        kept = [row for key, row in some.items() if key in shared]
        if judge is not None:
            users = [row for row in kept for _ in range(N_USERS)]
            chance = click_probabilities(
                judge, [row.conversation for row in users], [row.suggestions for row in users], where="temperature"
            )
            reached[temperature] = float((1 - (1 - chance).prod(axis=1)).mean())
        else:
            reached[temperature] = float(np.nanmean(totals(kept)))
    return {
        "temperature": max(reached, key=reached.__getitem__),
        "tried": {f"{temperature:g}": value for temperature, value in reached.items()},
        "by": "composite reward" if judge is None else "users who click",
        "n_conversations": len(shared),
    }


def write_generation_config(policy: Path, temperature: float) -> None:
    """Say in the policy's folder how it is to be sampled; 0 is greedy. What else the file says stays."""
    file = policy / "generation_config.json"
    config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    kept = {name: value for name, value in config.items() if name not in ("do_sample", "temperature")}
    write_whole(file, json.dumps(kept | sampling, indent=2) + "\n")
