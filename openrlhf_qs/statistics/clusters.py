"""Which rows hang together: those of one conversation, and, where they are known, those of one user.

A row is in one cluster of each kind, and two rows are independent only where they share none (Cameron, Gelbach and
Miller 2011, *Robust Inference with Multiway Clustering*).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class Clusters:
    """Clusters of ``n`` rows, of one kind or more; ``numbers`` has ``[n]`` for each kind."""

    numbers: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, first: Sequence[Hashable], *others: Sequence[Hashable | None]) -> Clusters:
        """From a name for each row and kind; None, as of a user whom nobody knows, is a cluster of its own.

        A kind whose clusters all lie in one of another kind adds nothing and is left out, and so is one of the others
        in which all rows are one cluster.
        """
        kinds = [_numbered(first), *(number for number in map(_numbered, others) if number.max(initial=0) > 0)]
        kept: list[np.ndarray] = []
        for place, kind in enumerate(kinds):
            if not any(_lies_in(kind, other) for other in [*kept, *kinds[place + 1 :]]):
                kept.append(kind)
        return cls(tuple(kept))

    @property
    def n_clusters(self) -> int:
        """Of the kind that has the fewest."""
        return min(int(number.max()) + 1 for number in self.numbers)

    def __len__(self) -> int:
        return len(self.numbers[0])

    def __getitem__(self, rows: np.ndarray) -> Clusters:
        """The clusters of some of the rows."""
        return Clusters.of(*(number[rows] for number in self.numbers))

    def terms(self) -> list[tuple[int, np.ndarray]]:
        """Signs and numbers ``[n]`` of the clusterings whose one-way variances add up to that of all kinds together:
        each kind, minus what two have in common, and so on."""
        found = []
        for size in range(1, len(self.numbers) + 1):
            for first, *others in combinations(self.numbers, size):
                for other in others:
                    first = _of_both(first, other)
                found.append(((-1) ** (size + 1), first))
        return found

    def squares(self, values: np.ndarray) -> np.ndarray:
        """The sum of the products of all rows of ``values`` ``[n, k]`` that share a cluster, ``[k, k]``.

        The variance of the sum of values whose expectation is 0. It may be a little below that of one kind alone, by
        chance; a variance on its diagonal never is below that of the first kind here.
        """
        total = sum(sign * _squares(values, number) for sign, number in self.terms())
        least = np.diag(_squares(values, self.numbers[0]))
        return total + np.diag(np.maximum(least - np.diag(total), 0.0))


def as_clusters(clusters: Clusters | Sequence[Hashable]) -> Clusters:
    """Names of one kind as :class:`Clusters`."""
    return clusters if isinstance(clusters, Clusters) else Clusters.of(clusters)


def _numbered(names: Sequence[Hashable | None]) -> np.ndarray:
    if isinstance(names, np.ndarray) and names.dtype.kind in "iu":
        return np.unique(names, return_inverse=True)[1]
    first: dict[Hashable, int] = {}
    return np.array(
        [first.setdefault(row if name is None else (name,), len(first)) for row, name in enumerate(names)], dtype=int
    )


def _of_both(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Numbers of the clusters that two kinds have in common."""
    return np.unique(one * (other.max(initial=0) + 1) + other, return_inverse=True)[1]


def _lies_in(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether each cluster of ``one`` is within one of ``other``."""
    return _of_both(one, other).max(initial=-1) == one.max(initial=-1)


def _squares(values: np.ndarray, number: np.ndarray) -> np.ndarray:
    summed = np.zeros((number.max() + 1, values.shape[1]))
    np.add.at(summed, number, values)
    return summed.T @ summed
