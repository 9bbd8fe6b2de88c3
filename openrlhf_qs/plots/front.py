"""A Pareto front and the point chosen on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from openrlhf_qs.plots.style import ARM_COLORS, MUTED, PLOT_STYLE

MARKS = (("x", ARM_COLORS["sft"]), ("o", ARM_COLORS["grpo"]))  # shape and colour of each marked point


def front_figure(front: Sequence[Mapping[str, float]], marked: Mapping[str, Mapping[str, float]]) -> Figure:
    """Every objective against the first. A point maps objective to value; ``marked`` maps two labels to points."""
    first, *others = next(iter(marked.values()))
    others = others or [first]
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(3.2 * len(others), 3.2), layout="constrained")
        for axis, name in zip(np.atleast_1d(figure.subplots(1, len(others))), others, strict=True):
            axis.scatter(
                [point[first] for point in front], [point[name] for point in front], s=10, color=MUTED, label="front"
            )
            for (label, point), (marker, color) in zip(marked.items(), MARKS, strict=True):
                axis.scatter(point[first], point[name], marker=marker, color=color, s=50, label=label)
            axis.set(xlabel=first, ylabel=name)
        figure.axes[0].legend(fontsize=7)
        return figure
