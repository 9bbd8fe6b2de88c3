"""What each round of a closed loop gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from openrlhf_qs.plots.style import MUTED, PLOT_STYLE, arm_colors

PANELS = {"gauc": "GAUC", "ndcg": "NDCG@3", "ctr": "CTR@3"}


def over_rounds(ways: Mapping[str, Sequence[Mapping[str, Any]]], levels: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A panel per metric, a line per way over its rounds from 0, with 95 % intervals; arms without rounds are levels.

    Args:
        ways: for each, the metrics ``{"mean", "half"}`` of its rounds, by the names of ``PANELS``.
        levels: the metrics of arms without rounds.
    """
    colors = arm_colors(ways)
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(8.6, 3.0), layout="constrained")
        for axis, (metric, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            n_rounds = max(map(len, ways.values()))
            for place, (name, rounds) in enumerate(ways.items()):
                means, halves = zip(*((one[metric]["mean"], one[metric]["half"] or 0) for one in rounds), strict=True)
                beside = (place - (len(ways) - 1) / 2) * 0.06  # so that intervals of one round do not hide each other
                at = [number + beside for number in range(len(rounds))]
                axis.errorbar(
                    at, means, yerr=halves, fmt="o-", color=colors[name], label=name, markersize=4, capsize=2
                )
            for name, one in levels.items():
                axis.axhline(one[metric]["mean"], color=MUTED, linewidth=0.9, linestyle="--")
                axis.annotate(name, (0, one[metric]["mean"]), (0, 3), textcoords="offset points", fontsize=7)
            axis.set(title=label, xlabel="round", xticks=range(n_rounds))
            axis.set_xlim(-0.3, n_rounds - 0.7)
        figure.axes[0].legend(frameon=False, fontsize=8)
        return figure
