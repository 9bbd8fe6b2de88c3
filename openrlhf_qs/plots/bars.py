"""Shares with their intervals as bars."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from openrlhf_qs.plots.style import ARM_COLORS, INK, PLOT_STYLE


def share_bars(shares: Mapping[str, tuple[float, float]], marked: Collection[str], label: str) -> Figure:
    """A bar for each of ``shares``, its mean and half its interval (or nan): largest on top, ``marked`` in another
    colour."""
    names = sorted(shares, key=lambda name: -shares[name][0])
    values, halves = np.nan_to_num([shares[name] for name in names]).T
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(7, 0.32 * len(names) + 0.9), layout="constrained")
        axis = figure.subplots()
        colors = [ARM_COLORS["grpo" if name in marked else "sft"] for name in names]
        axis.barh(names, values, color=colors, height=0.62)
        axis.errorbar(values, names, xerr=halves, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2)
        axis.invert_yaxis()
        axis.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        axis.set_xlabel(label)
        return figure
