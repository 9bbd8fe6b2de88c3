"""Plots of how reliable probabilities are: a reliability diagram, and accuracy over groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from openrlhf_qs.plots.style import LINE, PLOT_STYLE


def reliability_diagram(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """Observed against predicted share with Wilson intervals, and below it the number of pairs in each bin."""
    predicted = np.array([b["predicted"] for b in bins])
    observed = np.array([b["observed"] for b in bins])
    low, high = np.array([b["ci95"] for b in bins]).T
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(4.6, 5.2), layout="constrained")
        diagram, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        diagram.plot([0, 1], [0, 1], color="#c5cad3", linewidth=1, linestyle="--")
        # rounding may put a weighted mean just outside its own interval
        errors = [np.maximum(observed - low, 0), np.maximum(high - observed, 0)]
        diagram.errorbar(
            predicted, observed, yerr=errors, fmt="o", color=LINE, markersize=4, elinewidth=1.1, capsize=2
        )
        diagram.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed share preferred")
        widths = [b["upper"] - b["lower"] for b in bins]
        counts.bar(
            [b["lower"] for b in bins], [b["n_pairs"] for b in bins], width=widths, align="edge", color="#c9d8ea"
        )
        counts.set(xlabel="predicted probability of being preferred", ylabel="pairs")
        return figure


def accuracy_curve(groups: Sequence[Mapping[str, Any]], of: str, diagonal: bool = False) -> Figure:
    """Accuracy with Wilson intervals over groups by rising ``of``; on the diagonal accuracy equals ``of``."""
    mean, accuracy = (np.array([group[key] for group in groups]) for key in ("mean", "accuracy"))
    low, high = np.array([group["ci95"] for group in groups]).T
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(4.6, 3.4), layout="constrained")
        axis = figure.subplots()
        if diagonal:
            axis.plot([0.5, 1], [0.5, 1], color="#c5cad3", linewidth=1, linestyle="--")
        errors = [np.maximum(accuracy - low, 0), np.maximum(high - accuracy, 0)]
        axis.errorbar(mean, accuracy, yerr=errors, fmt="o-", color=LINE, markersize=4, linewidth=1.1, capsize=2)
        axis.set(ylim=(min(0.4, float(low.min())), 1), xlabel=of, ylabel="accuracy")
        return figure
