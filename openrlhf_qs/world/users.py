"""The built-in world: simulated users, for when no click log is given.

They click in the log that a cold start policy would have left behind (:mod:`openrlhf_qs.world.click_log`), and they
are the judge ``built_in_world`` of ``evaluate``. No other stage knows them: they see clicks alone.

Whoever looks at a suggestion finds it attractive with the probability ``sigmoid(utility)``; which suggestions are
looked at, and whether an attractive one is clicked, is up to the click model (:mod:`openrlhf_qs.world.click_models`).
The utility is read from the text (:mod:`openrlhf_qs.world.reading`, see :func:`mean_utility`): it is about the topic,
it names an aspect not yet talked about, it asks for what comes next after this question, and it is short English, in
whatever wording. On top come the tastes of the user: one Gaussian deviation for each intent, wide for some intents
and narrow for others, and one for specific questions. So what users think of one suggestion is a Gaussian whose mean
and standard deviation are known: :func:`gold_utility`.

What is malformed or empty, and what says again what an earlier suggestion of the impression said, attracts nobody.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.world.click_models import click_chances
from openrlhf_qs.world.language import DOMAIN_OF_TOPIC, DOMAINS, INTENTS
from openrlhf_qs.world.reading import Reading, read, what_is_asked, what_is_named

# Each intent: how much users like it on average, and the standard deviation between users. Log-odds.
INTENT_TASTES: dict[str, tuple[float, float]] = {
    "begin": (0.1, 0.3),
    "explain": (-0.1, 0.2),
    "reason": (-0.1, 0.3),
    "mistakes": (0.2, 0.4),
    "example": (0.1, 0.3),
    "steps": (0.2, 0.2),
    "improve": (0.1, 0.3),
    "tools": (0.1, 0.8),
    "time": (0.0, 0.4),
    "cost": (0.1, 1.2),
    "options": (0.1, 0.6),
    "risk": (-0.1, 1.3),
    "fix": (0.1, 0.5),
    "track": (-0.1, 0.9),
    "experts": (0.0, 1.0),
    "myths": (0.0, 1.5),
    "books": (-0.2, 1.4),
    "habits": (-0.1, 0.7),
    "trends": (-0.1, 1.5),
    "advanced": (-0.1, 1.2),
}
SPECIFIC_SPREAD = 0.5  # standard deviation between users of the taste for suggestions that name an aspect

# The mean utility, in log-odds. It is a sum; a plain topic with a vague wording has BASE + NO_INTENT.
BASE = -3.0
TOPIC_NOT_NAMED, NEIGHBOUR_TOPIC, OFF_TOPIC = -0.7, -2.3, -3.0
FRESH_ASPECT, KNOWN_ASPECT, FOREIGN_ASPECT = 1.1, 0.2, -1.5
# What comes next depends on what was asked, so no fixed choice of suggestions suits every conversation.
NEXT_STEP, OTHER_STEP, NO_INTENT, REPEATED_QUESTION = 1.3, -1.2, -0.3, -2.0
CRAMMED = -1.5  # for each aspect, topic or intent after the first, and for each word said again
LONG, MAX_WORDS = -0.4, 14  # for each word above
FAULT = -2.0  # for each place that is no English
CUT_OFF = -3.0  # where the text ends as no question ends
MAX_READABLE_WORDS, MAX_FAULT_SHARE = 30, 0.2  # above these a text is worth nothing
WORTHLESS = -10.0  # the lowest utility, and what gold_utility calls a text that no user clicks

_INTENT_INDEX = {intent: index for index, intent in enumerate(INTENT_TASTES)}
TASTE_SPREADS = np.array([spread for _, spread in INTENT_TASTES.values()] + [SPECIFIC_SPREAD])


def gold_utility(conversations: Sequence[list[Message]], suggestions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation over users of the utility of single suggestions.

    Args:
        conversations, suggestions: ``[n]`` each, suggestion ``i`` under conversation ``i``.

    Returns:
        Two arrays ``[n]``, log-odds of being found attractive. What attracts nobody is ``(WORTHLESS, 0)``.
    """
    check_lengths(conversations, suggestions)
    gold = np.empty((2, len(suggestions)))
    for index, (conversation, suggestion) in enumerate(zip(conversations, suggestions, strict=True)):
        scene = read_scene(conversation)
        reading = _readable(scene, suggestion)
        gold[:, index] = (
            (WORTHLESS, 0.0)
            if reading is None
            else (mean_utility(scene, reading), np.linalg.norm(TASTE_SPREADS[tastes_met(reading)]))
        )
    return gold[0], gold[1]


def draw_users(rng: np.random.Generator, n: int) -> np.ndarray:
    """``[n, n_intents + 1]``: each user's deviation for each intent, and for specific suggestions; log-odds."""
    return rng.standard_normal((n, len(TASTE_SPREADS))) * TASTE_SPREADS


def attraction(conversation: list[Message], suggestions: Sequence[str], user: np.ndarray) -> list[float]:
    """How likely ``user`` (a row of :func:`draw_users`) finds each of ``suggestions`` attractive, looking at it."""
    return [
        0.0 if meaning is None else 1 / (1 + math.exp(-meaning[0] - sum(user[taste] for taste in meaning[1])))
        for meaning in meanings(conversation, suggestions)
    ]


def click_probabilities(
    conversation: list[Message], suggestions: Sequence[str], user: np.ndarray, clicks: str = "pbm"
) -> list[float]:
    """The probability that ``user`` clicks each of ``suggestions``, in their order, under a click model."""
    return click_chances(clicks, attraction(conversation, suggestions, user)).tolist()


def meanings(conversation: list[Message], suggestions: Sequence[str]) -> list[tuple[float, tuple[int, ...]] | None]:
    """For each suggestion of an impression its mean utility and the tastes that it meets (columns of
    :func:`draw_users`); None for what attracts nobody: it cannot be read, or an earlier one said the same."""
    scene = read_scene(conversation)
    said: set[object] = set()
    found: list[tuple[float, tuple[int, ...]] | None] = []
    for suggestion in suggestions:
        reading = _readable(scene, suggestion)
        if reading is None or said & _says(scene, reading):
            found.append(None)
            continue
        said |= _says(scene, reading)
        found.append((mean_utility(scene, reading), tuple(tastes_met(reading))))
    return found


@dataclass(frozen=True)
class Scene:
    """What a conversation is about.

    Attributes:
        topic: the last one that the user named; None where there is none that the world knows.
        aspects: all that were named, by whomever.
        asked_aspects, asked_intents: those of the user's own turns.
        next: the intents that are a natural next step after the last question.
    """

    topic: str | None
    aspects: frozenset[str]
    asked_aspects: frozenset[str]
    asked_intents: frozenset[str]
    next: frozenset[str]

    @property
    def domain(self) -> str | None:
        return DOMAIN_OF_TOPIC.get(self.topic)


def read_scene(conversation: Sequence[Message]) -> Scene:
    """Read any conversation; never raises."""
    return _read_scene(tuple((message["role"], message["content"]) for message in conversation))


@lru_cache(maxsize=1 << 16)
def _read_scene(conversation: tuple[tuple[str, str], ...]) -> Scene:
    user_turns = [content for role, content in conversation if role == "user"]
    topics = [topic for turn in user_turns for topic in sorted(set(what_is_named(turn).topics))]
    topic = topics[-1] if topics else None
    domain = DOMAIN_OF_TOPIC.get(topic)
    asked = [what_is_asked(turn, domain) for turn in user_turns]
    aspects = [(role, frozenset(what_is_named(content, domain).aspects)) for role, content in conversation]
    return Scene(
        topic=topic,
        aspects=frozenset().union(*(named for _, named in aspects)),
        asked_aspects=frozenset().union(*(named for role, named in aspects if role == "user")),
        asked_intents=frozenset().union(*asked),
        next=frozenset(following for intent in asked[-1] for following in INTENTS[intent].next)
        if asked
        else frozenset(),
    )


def mean_utility(scene: Scene, reading: Reading) -> float:
    """What the average user thinks of a readable suggestion, in log-odds of a click."""
    own = frozenset(DOMAINS[scene.domain].aspects) if scene.domain else frozenset()
    utility = BASE

    if scene.topic in reading.topics:
        pass
    elif any(DOMAIN_OF_TOPIC[topic] == scene.domain for topic in reading.topics):
        utility += NEIGHBOUR_TOPIC
    elif reading.topics or not reading.aspects & own:
        utility += OFF_TOPIC
    else:
        utility += TOPIC_NOT_NAMED

    if reading.aspects - own:
        utility += FOREIGN_ASPECT
    elif reading.aspects:
        utility += FRESH_ASPECT if reading.aspects - scene.aspects else KNOWN_ASPECT

    if not reading.intents:
        utility += NO_INTENT
    elif reading.intents <= scene.asked_intents and reading.aspects <= scene.asked_aspects:
        utility += REPEATED_QUESTION
    else:
        utility += NEXT_STEP if reading.intents <= scene.next else OTHER_STEP
    utility += sum(INTENT_TASTES[intent][0] for intent in reading.intents)

    n_extra = sum(max(len(named) - 1, 0) for named in (reading.topics, reading.aspects, reading.intents))
    utility += CRAMMED * (n_extra + reading.n_repeats)
    utility += LONG * max(len(reading.words) - MAX_WORDS, 0)
    utility += FAULT * reading.n_faults
    utility += 0.0 if reading.finished else CUT_OFF
    return max(utility, WORTHLESS)


def tastes_met(reading: Reading) -> list[int]:
    """The columns of :func:`draw_users` that count for this suggestion."""
    columns = [_INTENT_INDEX[intent] for intent in sorted(reading.intents)]
    return columns + [len(_INTENT_INDEX)] if reading.aspects else columns


def _readable(scene: Scene, suggestion: str) -> Reading | None:
    """None for what no user clicks: no letter in it, too long to read, or word salad."""
    if len(suggestion) > MAX_READABLE_WORDS * 50 or not any(map(str.isalpha, suggestion)):
        return None
    reading = read(suggestion, scene.domain)
    salad = reading.fault_share > MAX_FAULT_SHARE or (reading.n_faults > 0 and not reading.finished)
    return None if salad or len(reading.words) > MAX_READABLE_WORDS else reading


def _says(scene: Scene, reading: Reading) -> set[object]:
    """Two suggestions that share one of these say the same: the same words, or aspect, intent and topic."""
    return {frozenset(reading.words), (reading.topics or frozenset({scene.topic}), reading.aspects, reading.intents)}


def conversation_seed(conversation: Sequence[Message]) -> int:
    """The same number for the same conversation, on every machine."""
    return int.from_bytes(hashlib.blake2b(conversation_key(conversation).encode(), digest_size=8).digest())


def check_lengths(conversations: Sequence[object], suggestions: Sequence[object]) -> None:
    if len(conversations) != len(suggestions):
        raise ValueError(
            f"built_in_world: {len(conversations)} conversations but suggestions for {len(suggestions)}; give one each"
        )
