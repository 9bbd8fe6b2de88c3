"""Gradient norms that training must not pass over in silence.

Clipping hides them: a step of norm 1e4 that is clipped to 1 moves the weights by one batch's worst pair.
"""

from __future__ import annotations

import math
import warnings

CURE = (
    "raise gaussian.std_floor, set gaussian.link to probit_logistic or mackay, or lower the learning rate (--adam.lr)"
)


class GradientMonitor:
    """Warns once of a large gradient norm, and stops training at a larger one or at one that is no number.

    Args:
        warn: norm before clipping above which a RuntimeWarning names the cure, once.
        stop: norm above which :meth:`check` raises.
    """

    def __init__(self, warn: float = 1e3, stop: float = 1e5) -> None:
        if not 0 < warn <= stop:
            raise ValueError(f"gradient norms to warn at {warn} and to stop at {stop}: give 0 < warn <= stop")
        self.warn = warn
        self.stop = stop
        self.warned = False

    def check(self, grad_norm: float, step: int) -> None:
        """Look at the norm of one optimizer step, before clipping. ValueError above ``stop`` or where it is nan."""
        if math.isnan(grad_norm) or grad_norm > self.stop:
            raise ValueError(f"step {step}: gradient norm {grad_norm:.3g}, the limit is {self.stop:g}; {CURE}")
        if grad_norm > self.warn and not self.warned:
            self.warned = True
            warnings.warn(
                f"step {step}: gradient norm {grad_norm:.3g}, above {self.warn:g}; if it stays, {CURE}",
                RuntimeWarning,
                stacklevel=2,
            )
