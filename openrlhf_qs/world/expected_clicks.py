"""How often users click, averaged over all users there are: exact, with no draw of users or clicks.

Tastes are independent Gaussians, one for each intent and one for specific questions, so the average over users is an
integral in as many dimensions as tastes are met. Given the tastes that two or more suggestions of an impression share,
the suggestions are independent, and all that is left of one suggestion is one Gaussian: each integral is a
Gauss-Hermite sum over the shared tastes of sums over one dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.world.click_models import chance_of_a_click, click_chances
from openrlhf_qs.world.users import TASTE_SPREADS, check_lengths, meanings

Meaning = tuple[float, tuple[int, ...]] | None  # mean utility and the tastes that are met; None attracts nobody

N_NODES = 24  # of a Gauss-Hermite sum; with 48 no chance differs by 1e-6
MAX_GRID = 20_000  # nodes over the shared tastes together; above, fewer a taste


def expected_clicks(
    conversations: Sequence[list[Message]], suggestions: Sequence[Sequence[str]], clicks: str = "pbm"
) -> tuple[list[np.ndarray], np.ndarray]:
    """What the average user does.

    Args:
        conversations: ``[n]``.
        suggestions: ``[n][k]``, from the top; how many may differ between rows.
        clicks: the click model.

    Returns:
        ``[n][k]``: the chance of a click on each place; and ``[n]``: the chance of one or more clicks.
    """
    check_lengths(conversations, suggestions)
    rows = [
        of_meanings(tuple(meanings(conversation, shown)), clicks)
        for conversation, shown in zip(conversations, suggestions, strict=True)
    ]
    return [chances for chances, _ in rows], np.array([chance for _, chance in rows])


@lru_cache(maxsize=1 << 17)
def of_meanings(meant: tuple[Meaning, ...], clicks: str = "pbm") -> tuple[np.ndarray, float]:
    """The same for one impression, from what its suggestions mean."""
    met = [taste for meaning in meant if meaning is not None for taste in meaning[1]]
    shared = sorted({taste for taste in met if met.count(taste) > 1})
    nodes, weights = _nodes(_n_nodes(len(shared)))
    grid = np.array(list(product(nodes, repeat=len(shared))), dtype=float)  # [n_nodes ** n_shared, n_shared]
    grid_weights = np.array([np.prod(chosen) for chosen in product(weights, repeat=len(shared))])
    own_nodes, own_weights = _nodes(N_NODES)
    attraction = np.zeros((len(grid), len(meant)))
    for place, meaning in enumerate(meant):
        if meaning is None:
            continue
        mean, tastes = meaning
        together = [index for index, taste in enumerate(shared) if taste in tastes]
        own = np.linalg.norm(TASTE_SPREADS[[taste for taste in tastes if taste not in shared]])
        given = mean + grid[:, together] @ TASTE_SPREADS[[shared[index] for index in together]]
        attraction[:, place] = _sigmoid(given[:, None] + own * own_nodes) @ own_weights
    # Each formula of the click models is linear in the attraction of each place, so averages may be put in for it.
    chances = grid_weights @ click_chances(clicks, attraction)
    return chances, float(grid_weights @ chance_of_a_click(clicks, attraction))


def _n_nodes(n_shared: int) -> int:
    return N_NODES if N_NODES**n_shared <= MAX_GRID else max(2, int(MAX_GRID ** (1 / n_shared)))


@lru_cache(maxsize=32)
def _nodes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for the average over a standard normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


def _sigmoid(utility: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-utility))
