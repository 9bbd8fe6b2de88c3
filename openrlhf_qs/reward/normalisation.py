"""How the parts of a reward are made comparable before they are added: three ways to a mean and a deviation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


Normalisation = Literal["sft", "group", "running"]
NORMALISATIONS = {
    "sft": "by the mean of the SFT policy's responses and their deviation within a prompt",
    "group": "by mean and deviation of the responses to the same prompt",
    "running": "by mean and deviation of all responses so far, begun with the SFT policy's",
}


def within_group(values: Tensor, group: Tensor, min_deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from the group's mean, in the group's standard deviations, which come second; 0 in a group of one.

    Args:
        values: ``[batch, n_rewards]``.
        group: ``[batch]``, numbers from 0.
        min_deviation: ``[n_rewards]``, > 0: the least that a group's deviation is taken for.
    """
    import torch

    centred = values - group_means(values, group)
    n = torch.bincount(group)[group][:, None]
    variance = group_means(centred.square(), group) * n / (n - 1).clamp(min=1)
    deviation = torch.maximum(variance.sqrt(), min_deviation)
    return centred / deviation, deviation


def group_means(values: Tensor, group: Tensor) -> Tensor:
    """The mean of the group that each row of ``values [batch, k]`` is in, ``[batch, k]``."""
    import torch

    n = torch.bincount(group)
    sums = values.new_zeros(len(n), values.shape[1]).index_add_(0, group, values)
    return (sums / n[:, None])[group]


class RunningStatistics:
    """Mean and deviation of everything seen so far, by the parallel form of Welford's update (Chan et al., 1979).

    Attributes:
        mean, std: ``[n_rewards]``.
    """

    def __init__(self, mean: Tensor, std: Tensor, n: float = 1000) -> None:
        """Begin as if ``n`` responses of that mean and deviation had been seen."""
        self.n, self.mean, self.squares = n, mean.clone(), n * std.square()

    @property
    def std(self) -> Tensor:
        return (self.squares / self.n).sqrt()

    def update(self, values: Tensor) -> None:
        """Take in ``values [batch, n_rewards]``."""
        if not len(values):
            return
        total, difference = self.n + len(values), values.mean(0) - self.mean
        self.squares = (
            self.squares
            + (values - values.mean(0)).square().sum(0)
            + difference.square() * self.n * len(values) / total
        )
        self.mean = self.mean + difference * len(values) / total
        self.n = total
