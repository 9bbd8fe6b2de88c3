"""The reward that a policy was trained on against what it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from openrlhf_qs.plots.style import LINE, MUTED, PLOT_STYLE, arm_colors


def proxy_and_gold(arms: Mapping[str, Mapping[str, float]], bins: Sequence[Mapping[str, Any]]) -> Figure:
    """On the left each arm by its reward and its chance of a click, on the right how both changed, by conversation.

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
            left.annotate(name, (one["proxy"], one["gold"]), (6, -3), textcoords="offset points", fontsize=8)
        left.margins(0.18)
        left.set(xlabel="proxy: composite reward", ylabel="gold: chance of a click")
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
        right.set(xlabel="change of the proxy", ylabel="change of the gold, 95 % interval")
        for axis in (left.yaxis, right.yaxis):
            axis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        return figure
