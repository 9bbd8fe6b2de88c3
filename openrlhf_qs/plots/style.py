"""The look of every plot: colours, fonts, and a figure as SVG text."""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import cycle

import matplotlib as mpl
from matplotlib.figure import Figure

ARM_COLORS = {"cold_start": "#8b929c", "sft": "#3572b0", "grpo": "#d4622a"}
OTHER_COLORS = ("#5d8a54", "#8a6bb0", "#b0913a", "#3f8f8c", "#b05a7a", "#6f7a2a")
INK, MUTED, LINE = "#1f2430", "#667085", "#3572b0"
PLOT_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and sharp at any size
    "svg.hashsalt": "openrlhf-qs",  # the same numbers give the same file
    "text.parse_math": False,  # a name with a dollar sign is a name
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c5cad3",
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
}


def arm_colors(arms: Iterable[str]) -> dict[str, str]:
    """The colour of each arm: its own if it has one, else the next of ``OTHER_COLORS``."""
    others = cycle(OTHER_COLORS)
    return {name: ARM_COLORS.get(name) or next(others) for name in arms}


def svg(figure: Figure) -> str:
    """The figure as SVG text; the same figure gives the same text."""
    file = io.StringIO()
    with mpl.rc_context(PLOT_STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
