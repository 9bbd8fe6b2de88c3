"""Training curves: scalars over the steps, and the reward over the KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from openrlhf_qs.plots.style import ARM_COLORS, LINE, OTHER_COLORS, PLOT_STYLE

N_CURVE_POINTS = 200  # a longer curve is averaged down to this many points, to keep the file small


def curve(title: str, steps: np.ndarray, values: np.ndarray) -> Figure:
    """One training scalar, ``[n]``, over its steps, with its running mean if it has many points."""
    steps, values = _averaged_down(steps), _averaged_down(values)
    smooth = len(values) >= 20
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(3.4, 2.1), layout="constrained")
        axis = figure.subplots()
        axis.plot(steps, values, color=LINE, linewidth=0.8 if smooth else 1.4, alpha=0.35 if smooth else 1.0)
        if len(values) < 4:
            axis.plot(steps, values, "o", color=LINE, markersize=4)
        if smooth:
            axis.plot(steps, _running_mean(values, len(values) // 10), color=LINE, linewidth=1.6)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.locator_params(nbins=4)
        return figure


def _averaged_down(values: np.ndarray) -> np.ndarray:
    if len(values) <= N_CURVE_POINTS:
        return values
    return np.array([chunk.mean() for chunk in np.array_split(values, N_CURVE_POINTS)])


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over ``width`` neighbours, over fewer at the ends; the same length as ``values``."""
    window = np.ones(width)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values, dtype=float), window, "same")


def over_kl(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """``proxy`` above ``gold``, both against ``sqrt_kl``, one line for each of ``curves``."""
    colors = (ARM_COLORS["grpo"], ARM_COLORS["sft"], *OTHER_COLORS, ARM_COLORS["cold_start"])
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(6, 5), layout="constrained")
        axes = figure.subplots(2, 1, sharex=True)
        labels = ("proxy, change from start\n(standard deviations)", "gold, share of\nusers who click")
        for axis, name, label in zip(axes, ("proxy", "gold"), labels, strict=True):
            for n, (arm, curve) in enumerate(curves.items()):
                axis.plot(curve["sqrt_kl"], curve[name], "o-", color=colors[n % len(colors)], markersize=3, label=arm)
            axis.set_ylabel(label)
        axes[0].legend(frameon=False, fontsize=8)
        axes[1].set_xlabel("square root of the KL to the SFT policy (KL in nats per response)")
        return figure
