"""Clicks by the position that a suggestion was shown at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from openrlhf_qs.plots.style import ARM_COLORS, INK, LINE, PLOT_STYLE


def clicks_by_place(places: Sequence[Mapping[str, Any]]) -> Figure:
    """The click-through rate of each position as a bar and its examination as a line, both with 95 % intervals.

    Args:
        places: from the top; ``ctr`` and ``ctr_ci95`` in [0, 1], ``examination`` and ``examination_ci95`` relative
            to the top, None if it is not known.
    """
    numbers = np.arange(1, len(places) + 1)
    ctr = np.array([one["ctr"] for one in places])
    low, high = np.array([one["ctr_ci95"] for one in places]).T
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(max(3.5, 0.9 * len(places) + 1.8), 3), layout="constrained")
        axis = figure.subplots()
        axis.bar(numbers, ctr, color=LINE, width=0.6)
        error = [np.maximum(ctr - low, 0), np.maximum(high - ctr, 0)]
        axis.errorbar(numbers, ctr, yerr=error, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
        axis.set_xticks(numbers)
        axis.set_xlabel("position (1 is the top)")
        axis.set_ylabel("clicks per impression, 95 % interval")
        axis.set_ylim(0, max(float(high.max()) * 1.15, 0.01))
        axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
        known = [(n, one) for n, one in zip(numbers, places, strict=True) if one["examination"] is not None]
        if known:
            color = ARM_COLORS["grpo"]
            looks = axis.twinx()
            values = np.array([one["examination"] for _, one in known])
            bounds = np.array([one["examination_ci95"] for _, one in known]).T
            error = np.maximum([values - bounds[0], bounds[1] - values], 0)
            looks.errorbar([n for n, _ in known], values, yerr=error, color=color, marker="o", markersize=4, capsize=3)
            looks.set_ylim(0, max(1.15, min(float(bounds[1].max()), 2 * float(values.max())) * 1.1))
            looks.set_ylabel("examination (top = 1)", color=color)
            looks.spines["right"].set_visible(True)
        return figure
