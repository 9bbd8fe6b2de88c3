"""Training curves, and shares with their intervals as bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from openrlhf_qs.plots.style import INK, LINE, PLOT_STYLE, arm_colors

N_CURVE_POINTS = 400  # a longer curve is averaged down to as many points: the file stays light


def small_multiples(scalars: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """A small picture for each of ``scalars``: tag to steps and values, ``[n]`` each."""
    n_columns = min(len(scalars), 4)
    n_rows = -(-len(scalars) // n_columns)
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(2.75 * n_columns, 1.75 * n_rows), layout="constrained")
        axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for axis, (tag, (steps, values)) in zip(axes, scalars.items(), strict=False):
            steps, values = _averaged_down(steps), _averaged_down(values)
            smooth = len(values) >= 20
            axis.plot(steps, values, color=LINE, linewidth=0.8 if smooth else 1.4, alpha=0.35 if smooth else 1.0)
            if len(values) == 1:
                axis.plot(steps, values, "o", color=LINE, markersize=4)
            if smooth:
                axis.plot(steps, _running_mean(values, len(values) // 10), color=LINE, linewidth=1.6)
            axis.set_title(tag.removeprefix("train/"), fontsize=9, loc="left")
            axis.tick_params(labelsize=7)
            axis.locator_params(nbins=4)
        for axis in axes[len(scalars) :]:
            axis.set_axis_off()
        return figure


def _averaged_down(values: np.ndarray) -> np.ndarray:
    if len(values) <= N_CURVE_POINTS:
        return values
    return np.array([chunk.mean() for chunk in np.array_split(values, N_CURVE_POINTS)])


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over ``width`` neighbours, over fewer at the ends; the same length as ``values``."""
    window = np.ones(width)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values, dtype=float), window, "same")


def ctr_bars(ab: Mapping[str, Mapping[str, Any]]) -> Figure:
    """CTR of each arm with its interval: arm to ``ctr``, ``ci95``, both in [0, 1]."""
    names, colors = list(ab), arm_colors(ab)
    ctr = np.array([ab[name]["ctr"] for name in names])
    low, high = np.array([ab[name]["ci95"] for name in names]).T
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(8, 0.55 * len(names) + 0.7), layout="constrained")
        axis = figure.subplots()
        axis.barh(names, ctr, color=[colors[name] for name in names], height=0.62)
        axis.errorbar(ctr, names, xerr=[ctr - low, high - ctr], fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
        for name, share, end in zip(names, ctr, high, strict=True):
            axis.annotate(
                f"{share:.1%}", (end, name), xytext=(7, 0), textcoords="offset points", va="center", weight="bold"
            )
        axis.invert_yaxis()
        axis.set_xlim(0, max(float(high.max()) * 1.15, 0.01))
        axis.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        axis.spines["left"].set_visible(False)
        axis.tick_params(left=False)
        axis.set_xlabel("users with at least one click, 95 % interval")
        return figure
