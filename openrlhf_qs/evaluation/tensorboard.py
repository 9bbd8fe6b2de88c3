"""Scalars out of TensorBoard event files."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read_scalars(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every scalar in the TensorBoard event files under ``folder``: tag to steps and values, by step.

    Where a resumed run wrote a step twice, the later one counts.
    """
    event_folders = sorted({file.parent for file in folder.rglob("events.out.tfevents.*")})
    if not event_folders:
        return {}
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    points: dict[str, dict[int, tuple[float, float]]] = {}
    for event_folder in event_folders:
        events = EventAccumulator(str(event_folder), size_guidance={SCALARS: 0}).Reload()
        for tag in events.Tags()[SCALARS]:
            of_tag = points.setdefault(tag, {})
            for event in events.Scalars(tag):
                of_tag[event.step] = max(of_tag.get(event.step, (0.0, 0.0)), (event.wall_time, event.value))
    return {
        tag: (np.array(sorted(of_tag)), np.array([of_tag[step][1] for step in sorted(of_tag)]))
        for tag, of_tag in points.items()
    }
