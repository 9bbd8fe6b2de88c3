"""What can be reached in the built-in world, and what a fixed choice reaches there: lines for a table of policies.

Chances are those of one or more clicks, averaged over all users, in the position-based form (:mod:`expected_clicks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.response import N_SUGGESTIONS
from openrlhf_qs.world.expected_clicks import Meaning, expected_clicks, of_meanings
from openrlhf_qs.world.language import DOMAINS, INTENTS, facet
from openrlhf_qs.world.users import Scene, meanings, read_scene

SHORTLIST = 8  # intents of which every choice is tried


def ceiling(conversations: Sequence[list[Message]], n: int = N_SUGGESTIONS) -> np.ndarray:
    """The chance of a click on the best ``n`` suggestions of each conversation; see :func:`best_suggestions`."""
    return expected_clicks(conversations, [best_suggestions(conversation, n) for conversation in conversations])[1]


def best_suggestions(conversation: list[Message], n: int = N_SUGGESTIONS) -> list[str]:
    """The ``n`` suggestions, from the top, of which users of this conversation most likely click one.

    A search over meanings: questions with one intent each, all about the topic and each about another aspect that was
    not yet spoken of. Of the ``SHORTLIST`` intents that are clicked most when they stand alone, every choice is tried,
    the most clicked one on top. Anything else that the world knows (no aspect, an aspect that was spoken of, another
    topic, two intents at once) is worth less to the average user and spreads no wider. ValueError where the
    conversation is not one of this world, or ``n`` is above what its unspoken aspects allow.
    """
    scene = read_scene(conversation)
    n_most = min(SHORTLIST, len(unspoken_aspects(scene)))
    if not 1 <= n <= n_most:
        raise ValueError(f"n must be from 1 to {n_most}, got {n}")
    return _worded(scene, [list(INTENTS)[index] for index in _best(_alone(conversation, scene), n)])


def _alone(conversation: list[Message], scene: Scene) -> tuple[Meaning, ...]:
    """What a question of each intent about an unspoken aspect means, where it stands alone."""
    aspect = unspoken_aspects(scene)[0]
    return tuple(meanings(conversation, [_question(scene, intent, aspect)])[0] for intent in INTENTS)


@lru_cache(maxsize=1 << 12)
def _best(meant: tuple[Meaning, ...], n: int) -> tuple[int, ...]:
    """Of these meanings, the places of the ``n`` that are best together, the best one first."""
    likely = sorted(range(len(meant)), key=lambda index: -of_meanings((meant[index],))[1])[:SHORTLIST]
    return max(combinations(likely, n), key=lambda chosen: of_meanings(tuple(meant[index] for index in chosen))[1])


def fixed_suggestions(conversations: Sequence[list[Message]], n: int = N_SUGGESTIONS) -> list[list[str]]:
    """What a policy of ``n`` fixed templates suggests: everywhere the same intents, with the conversation's topic and
    aspects that were not yet spoken of. Those that do best on these very conversations, so it is flattered.

    Returns:
        ``[n_conversations][n]``.
    """
    scenes = [read_scene(conversation) for conversation in conversations]
    meant = [_alone(conversation, scene) for conversation, scene in zip(conversations, scenes, strict=True)]
    alone = np.mean([[of_meanings((meaning,))[1] for meaning in row] for row in meant], axis=0)
    likely = np.argsort(-alone)[:SHORTLIST].tolist()
    chosen = max(  # in the order of their chance alone
        combinations(likely, n),
        key=lambda indices: sum(of_meanings(tuple(row[index] for index in indices))[1] for row in meant),
    )
    return [_worded(scene, [list(INTENTS)[index] for index in chosen]) for scene in scenes]


def unspoken_aspects(scene: Scene) -> list[str]:
    """The aspects of the topic's domain that nobody named yet; ValueError where the topic is none of this world."""
    if scene.domain is None:
        raise ValueError(f"topic {scene.topic!r} is not from the built-in world: give a conversation from contexts()")
    return [aspect for aspect in DOMAINS[scene.domain].aspects if aspect not in scene.aspects]


def _question(scene: Scene, intent: str, aspect: str) -> str:
    return INTENTS[intent].questions[0].format(it=facet(scene.topic, aspect))


def _worded(scene: Scene, intents: Sequence[str]) -> list[str]:
    """A question of each intent, each about another unspoken aspect."""
    return [_question(scene, intent, aspect) for intent, aspect in zip(intents, unspoken_aspects(scene), strict=False)]
