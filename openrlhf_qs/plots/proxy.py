"""The reward that a policy was trained on against what it stands in for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openrlhf_qs.plots.style import LINE, MUTED, PLOT_STYLE, arm_colors

NAME_WIDTH, NAME_HEIGHT = 70, 10  # points of a name beside its dot


def proxy_and_gold(arms: Mapping[str, Mapping[str, float]], bins: Sequence[Mapping[str, Any]]) -> Figure:
    """On the left each arm by its reward and its click probability, on the right how both changed, by conversation.

    Args:
        arms: name to ``proxy`` and ``gold``.
        bins: mean changes ``proxy`` and ``gold`` of some conversations, and ``ci95`` of the latter.
    """
    colors = arm_colors(arms)
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(8.6, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, one in arms.items():
            left.plot(one["proxy"], one["gold"], "o", color=colors[name], markersize=6)
        left.margins(0.18)
        left.set(xlabel="proxy: composite reward", ylabel="gold: click probability")
        _names(left, arms)
        right.axhline(0, color="#c5cad3", linewidth=1)
        right.axvline(0, color="#c5cad3", linewidth=1)
        if bins:
            changed = np.array([one["gold"] for one in bins])
            low, high = np.array([one["ci95"] for one in bins]).T
            right.errorbar(
                [one["proxy"] for one in bins],
                changed,
                yerr=[np.maximum(changed - low, 0), np.maximum(high - changed, 0)],
                fmt="o",
                color=LINE,
                ecolor=MUTED,
                markersize=5,
                elinewidth=1.1,
                capsize=2,
            )
        right.set(xlabel="change in proxy", ylabel="change in gold, 95 % interval")
        for axis in (left.yaxis, right.yaxis):
            axis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
        return figure


def _names(axis: Axes, arms: Mapping[str, Mapping[str, float]]) -> None:
    """The name beside each point, moved up until it does not overlap another."""
    taken: list[tuple[float, float]] = []  # in points of the figure
    for name, one in sorted(arms.items(), key=lambda arm: arm[1]["gold"]):
        x, y = axis.transData.transform((one["proxy"], one["gold"])) * 72 / axis.figure.dpi
        moved = y
        for other_x, other_y in sorted(taken, key=lambda place: place[1]):
            if abs(other_x - x) < NAME_WIDTH and abs(other_y - moved) < NAME_HEIGHT:
                moved = other_y + NAME_HEIGHT
        taken.append((x, moved))
        axis.annotate(name, (one["proxy"], one["gold"]), (7, moved - y - 3), textcoords="offset points", fontsize=8)
