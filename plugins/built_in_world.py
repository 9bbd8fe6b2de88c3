"""The built-in world: simulated users, for when no click log is given.

It writes the click log that a cold start policy would have left behind, and it is the judge ``built_in_world`` of
``evaluate``. No other stage knows it: they see clicks alone.

A user looks at slot ``k`` with the probability ``EXAMINATION[k]`` and then clicks with the probability
``sigmoid(utility)``. The utility is read from the text (see :func:`mean_utility`): it is about the topic, it names an
aspect not yet talked about, it is a natural next step, it is good short English. On top come the tastes of the user:
one Gaussian deviation for each intent, wide for some intents and narrow for others, and one for specific questions. So
what users think of one suggestion is a Gaussian whose mean and standard deviation are known: :func:`gold_utility`.

What is malformed or empty, and what says again what an earlier suggestion of the impression said, is never clicked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from openrlhf_qs.files import write_json_lines
from openrlhf_qs.plugins.built_in_world_language import (
    DOMAIN_OF_TOPIC,
    DOMAINS,
    INTENTS,
    OPENERS,
    TAILS,
    VAGUE_QUESTIONS,
    Reading,
    facet,
    read,
)
from openrlhf_qs.prompt import Message
from openrlhf_qs.registry import JUDGES
from openrlhf_qs.response import N_SUGGESTIONS

EXAMINATION = (1.0, 0.75, 0.55)  # probability that a slot is looked at; later slots are not shown

# Each intent: how much users like it on average, and the standard deviation between users. Log-odds of a click.
INTENT_TASTES: dict[str, tuple[float, float]] = {
    "begin": (0.2, 0.3),
    "explain": (-0.1, 0.2),
    "reason": (-0.3, 0.3),
    "mistakes": (0.4, 0.4),
    "example": (0.3, 0.3),
    "steps": (0.4, 0.2),
    "improve": (0.2, 0.3),
    "tools": (0.1, 0.8),
    "time": (0.0, 0.4),
    "cost": (0.3, 1.2),
    "options": (0.2, 0.6),
    "risk": (-0.1, 1.3),
    "fix": (0.2, 0.5),
    "track": (-0.2, 0.9),
    "experts": (0.0, 1.0),
    "myths": (0.1, 1.5),
    "books": (-0.4, 1.4),
    "habits": (-0.1, 0.7),
    "trends": (-0.2, 1.5),
    "advanced": (-0.1, 1.2),
}
SPECIFIC_SPREAD = 0.5  # standard deviation between users of the taste for suggestions that name an aspect

# The mean utility, in log-odds of a click. It is a sum; a plain topic with a vague wording has BASE + NO_INTENT.
BASE = -3.0
TOPIC_NOT_NAMED, NEIGHBOUR_TOPIC, OFF_TOPIC = -0.7, -1.5, -2.5
FRESH_ASPECT, KNOWN_ASPECT, FOREIGN_ASPECT = 1.1, 0.2, -1.5
NEXT_STEP, NO_INTENT, REPEATED_QUESTION = 1.1, -0.3, -2.0
CRAMMED = -1.5  # for each aspect, topic or intent after the first, and for each word said again
LONG, MAX_WORDS = -0.4, 12  # for each word above
STUMBLE = -8.0  # times the share of word pairs that the language does not know
CUT_OFF = -3.0  # where the text ends as no question ends
MAX_READABLE_WORDS, MIN_FLUENCY = 30, 0.7  # outside of these a text is worth nothing
WORTHLESS = -10.0  # the lowest utility, and what gold_utility calls a text that no user clicks

# The cold start policy: how often it makes a suggestion of each kind.
COLD_START: dict[str, float] = {
    "next_step": 0.21,
    "bland": 0.20,
    "other_step": 0.14,
    "repetition": 0.11,
    "neighbour": 0.08,
    "off_topic": 0.08,
    "duplicate": 0.07,
    "crammed": 0.06,
    "malformed": 0.05,
}
N_USERS = 5000
FIRST_DAY, N_DAYS = datetime(2025, 1, 1, tzinfo=UTC), 30
_INTENT_INDEX = {intent: index for index, intent in enumerate(INTENT_TASTES)}
_SPREADS = np.array([spread for _, spread in INTENT_TASTES.values()] + [SPECIFIC_SPREAD])


@JUDGES.register("built_in_world")
class BuiltInWorld:
    """Simulated users who click what suits them.

    Every row meets one fresh user. Who that is depends on the seed, the conversation, and how often the conversation
    came before in the same call, and on nothing else: two policies judged on the same conversations meet the same
    users, whatever the order of the rows.

    Args:
        seed: another seed is another draw of users; the world stays the same.
    """

    def __init__(self, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"built_in_world.seed must be >= 0, got {seed}")
        self.seed = seed

    def __call__(
        self, conversations: Sequence[list[Message]], suggestions: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Click probabilities ``[n][k]``, examination of the slot included; ValueError where the lengths differ."""
        _check_lengths(conversations, suggestions)
        n_seen: dict[int, int] = {}
        probabilities = []
        for conversation, shown in zip(conversations, suggestions, strict=True):
            key = _key(conversation)
            n_seen[key] = n_seen.get(key, -1) + 1
            user = draw_users(np.random.default_rng([self.seed, key, n_seen[key]]), 1)[0]
            probabilities.append(click_probabilities(conversation, shown, user))
        return probabilities


def gold_utility(conversations: Sequence[list[Message]], suggestions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation over users of the utility of single suggestions.

    Args:
        conversations, suggestions: ``[n]`` each, suggestion ``i`` under conversation ``i``.

    Returns:
        Two arrays ``[n]``, log-odds of a click where the slot is looked at. What no user clicks is ``(WORTHLESS, 0)``.
    """
    _check_lengths(conversations, suggestions)
    gold = np.empty((2, len(suggestions)))
    for index, (conversation, suggestion) in enumerate(zip(conversations, suggestions, strict=True)):
        scene, reading = read_scene(conversation), _readable(suggestion)
        gold[:, index] = (
            (WORTHLESS, 0.0)
            if reading is None
            else (mean_utility(scene, reading), np.linalg.norm(_SPREADS[_tastes_met(scene, reading)]))
        )
    return gold[0], gold[1]


def draw_users(rng: np.random.Generator, n: int) -> np.ndarray:
    """``[n, n_intents + 1]``: each user's deviation for each intent, and for specific suggestions; log-odds."""
    return rng.standard_normal((n, len(_SPREADS))) * _SPREADS


def click_probabilities(conversation: list[Message], suggestions: Sequence[str], user: np.ndarray) -> list[float]:
    """The probability that ``user`` (a row of :func:`draw_users`) clicks each of ``suggestions``, in their order."""
    scene = read_scene(conversation)
    said: set[object] = set()
    probabilities = []
    for position, suggestion in enumerate(suggestions):
        reading = _readable(suggestion)
        if reading is None or position >= len(EXAMINATION) or said & _meanings(scene, reading):
            probabilities.append(0.0)
            continue
        said |= _meanings(scene, reading)
        utility = mean_utility(scene, reading) + sum(user[taste] for taste in _tastes_met(scene, reading))
        probabilities.append(EXAMINATION[position] / (1 + math.exp(-utility)))
    return probabilities


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
    user_turns = [read(message["content"]) for message in conversation if message["role"] == "user"]
    topics = [topic for turn in user_turns for topic in sorted(turn.topics)]
    last = user_turns[-1].intents if user_turns else frozenset()
    return Scene(
        topic=topics[-1] if topics else None,
        aspects=frozenset().union(*(read(message["content"]).aspects for message in conversation)),
        asked_aspects=frozenset().union(*(turn.aspects for turn in user_turns)),
        asked_intents=frozenset().union(*(turn.intents for turn in user_turns)),
        next=frozenset(following for intent in last for following in INTENTS[intent].next),
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
    elif reading.intents <= scene.next:
        utility += NEXT_STEP
    utility += sum(INTENT_TASTES[intent][0] for intent in reading.intents)

    n_extra = sum(max(len(named) - 1, 0) for named in (reading.topics, reading.aspects, reading.intents))
    utility += CRAMMED * (n_extra + reading.n_repeats)
    utility += LONG * max(len(reading.words) - MAX_WORDS, 0)
    utility += STUMBLE * (1 - reading.fluency)
    utility += 0.0 if reading.finished else CUT_OFF
    return max(utility, WORTHLESS)


def _tastes_met(scene: Scene, reading: Reading) -> list[int]:
    """The columns of :func:`draw_users` that count for this suggestion."""
    columns = [_INTENT_INDEX[intent] for intent in sorted(reading.intents)]
    return columns + [len(_INTENT_INDEX)] if reading.aspects else columns


def _readable(suggestion: str) -> Reading | None:
    """None for what no user clicks: no letter in it, too long to read, or word salad."""
    reading = read(suggestion)
    if not any(map(str.isalpha, suggestion)) or len(reading.words) > MAX_READABLE_WORDS:
        return None
    return reading if reading.fluency >= MIN_FLUENCY else None


def _meanings(scene: Scene, reading: Reading) -> set[object]:
    """Two suggestions that share one of these say the same: the same words, or aspect, intent and topic."""
    return {frozenset(reading.words), (reading.topics or frozenset({scene.topic}), reading.aspects, reading.intents)}


def _key(conversation: Sequence[Message]) -> int:
    text = json.dumps([[message["role"], message["content"]] for message in conversation])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _check_lengths(conversations: Sequence[object], suggestions: Sequence[object]) -> None:
    if len(conversations) != len(suggestions):
        raise ValueError(
            f"built_in_world: {len(conversations)} conversations but suggestions for {len(suggestions)}; give one each"
        )


N_CONTEXTS = (
    len(OPENERS)
    * sum(len(domain.topics) * len(domain.aspects) for domain in DOMAINS.values())
    * sum(len(intent.questions) for intent in INTENTS.values())
)


def contexts(n: int, seed: int) -> list[list[Message]]:
    """``n`` conversations, no question in them twice; ValueError where there are not so many (``N_CONTEXTS``)."""
    if not 0 < n <= N_CONTEXTS:
        raise ValueError(f"n_contexts must be from 1 to {N_CONTEXTS}, got {n}")
    rng = random.Random(seed)
    drawn: dict[str, list[Message]] = {}
    while len(drawn) < n:
        conversation = _draw_conversation(rng)
        drawn.setdefault(conversation[0]["content"], conversation)
    return list(drawn.values())


def _draw_conversation(rng: random.Random) -> list[Message]:
    topic = rng.choice(list(DOMAIN_OF_TOPIC))
    aspect, other = rng.sample(DOMAINS[DOMAIN_OF_TOPIC[topic]].aspects, 2)
    intent = rng.choice(list(INTENTS.values()))
    question = f"{rng.choice(OPENERS).format(topic=topic)} {rng.choice(intent.questions).format(it=aspect)}"
    answer = rng.choice(intent.answers).format(topic=topic, aspect=aspect)
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"{answer} {rng.choice(TAILS).format(other=other)}"},
    ]


def cold_start_suggestions(conversation: Sequence[Message], rng: random.Random) -> list[str]:
    """Three suggestions of the mixed policy ``COLD_START``, in random order: a slot says nothing about quality.

    ValueError where the conversation is not one of this world (see :func:`contexts`).
    """
    scene = read_scene(conversation)
    if scene.topic is None or not scene.next or not scene.asked_aspects:
        raise ValueError(f"conversation {conversation!r} is not of the built-in world: give one of contexts()")
    kinds = rng.choices(list(COLD_START), COLD_START.values(), k=N_SUGGESTIONS)
    kinds.sort(key="duplicate".__eq__)  # last, so that there is something to say again
    suggestions: list[str] = []
    for kind in kinds:
        if kind == "duplicate" and suggestions:
            suggestions.append(rng.choice(suggestions))
        else:
            suggestions.append(suggestion_of_kind("next_step" if kind == "duplicate" else kind, scene, rng))
    rng.shuffle(suggestions)
    return suggestions


def suggestion_of_kind(kind: str, scene: Scene, rng: random.Random) -> str:
    """One suggestion of a kind of ``COLD_START``, other than ``duplicate``, for a scene of :func:`contexts`."""
    topic, domain = scene.topic, DOMAINS[scene.domain]
    following = rng.choice(sorted(scene.next))
    fresh = [aspect for aspect in domain.aspects if aspect not in scene.aspects]

    if kind == "next_step":
        return _question(rng, following, facet(topic, rng.choice(fresh)))
    if kind == "bland":
        return rng.choice([*VAGUE_QUESTIONS, *INTENTS[following].questions]).format(it=topic)
    if kind == "other_step":
        others = [intent for intent in INTENTS if intent not in scene.next | scene.asked_intents]
        return _question(rng, rng.choice(others), facet(topic, rng.choice(fresh)))
    if kind == "repetition":
        known = rng.choice(sorted(scene.asked_aspects))
        return _question(rng, rng.choice(sorted(scene.asked_intents)), facet(topic, known))
    if kind == "neighbour":
        neighbour = rng.choice([other for other in domain.topics if other != topic])
        return _question(rng, following, facet(neighbour, rng.choice(fresh)))
    if kind == "off_topic":
        elsewhere = rng.choice([other for other, name in DOMAIN_OF_TOPIC.items() if name != scene.domain])
        return _question(rng, following, facet(elsewhere, rng.choice(DOMAINS[DOMAIN_OF_TOPIC[elsewhere]].aspects)))
    if kind == "crammed":
        first, second = rng.sample(fresh, 2)
        if rng.random() < 0.5:
            return _question(rng, following, facet(topic, f"{first} and {second}"))
        question = _question(rng, following, facet(topic, first)).strip("?.")
        again = _question(rng, rng.choice(sorted(scene.next)), facet(topic, second))
        return f"{question} and {again[0].lower()}{again[1:]}"
    if kind == "malformed":
        question = _question(rng, following, facet(topic, rng.choice(fresh)))
        salad = question.strip("?.").split()
        rng.shuffle(salad)
        return rng.choice(["???", "...", question[: len(question) // 2].strip(), " ".join(salad)])
    raise ValueError(f"unknown kind of suggestion {kind!r}; known: {', '.join(COLD_START)}")


def _question(rng: random.Random, intent: str, it: str) -> str:
    return rng.choice(INTENTS[intent].questions).format(it=it)


def write_click_log(
    path: str | Path, n_impressions: int, n_contexts: int, seed: int, ranker_noise: float | None = None
) -> np.ndarray:
    """Show the suggestions of the cold start policy to simulated users and write what they click.

    Args:
        path: JSON Lines, one impression a row, in the order of time; replaced in one go.
        n_impressions: rows. Each context is shown ``n_impressions / n_contexts`` times, or once more.
        n_contexts: different conversations, at most ``n_impressions``.
        seed: the same seed writes the same file.
        ranker_noise: None shows the suggestions in random order; else a ranker shows those first whose gold utility is
            highest, as it sees it: with Gaussian noise of this deviation, in log-odds.

    Returns:
        The clicks, 0 or 1, ``[n_impressions, 3]``.
    """
    if n_contexts > n_impressions:
        raise ValueError(
            f"n_contexts {n_contexts} is more than n_impressions {n_impressions}; show each at least once"
        )
    conversations = contexts(n_contexts, seed)
    words, numbers = random.Random(seed), np.random.default_rng(seed)
    users = draw_users(numbers, N_USERS)
    order = numbers.permutation(np.arange(n_impressions) % n_contexts)
    moments = np.sort(numbers.uniform(0, N_DAYS, n_impressions))

    clicks = np.zeros((n_impressions, N_SUGGESTIONS), dtype=int)
    rows = []
    for row, (context, day) in enumerate(zip(order, moments, strict=True)):
        conversation = conversations[context]
        suggestions = cold_start_suggestions(conversation, words)
        if ranker_noise is not None:
            utility, _ = gold_utility([conversation] * N_SUGGESTIONS, suggestions)
            seen = utility + numbers.normal(0, ranker_noise, N_SUGGESTIONS)
            suggestions = [suggestions[place] for place in np.argsort(-seen)]
        user = int(numbers.integers(N_USERS))
        clicks[row] = numbers.random(N_SUGGESTIONS) < click_probabilities(conversation, suggestions, users[user])
        scene = read_scene(conversation)
        rows.append(
            {
                "impression_id": f"impression-{row:07d}",
                "timestamp": (FIRST_DAY + timedelta(days=day)).isoformat(timespec="seconds"),
                "user_id": f"user-{user:04d}",
                "policy": "cold_start_v1",
                "conversation": conversation,
                "suggestions": suggestions,
                "clicks": clicks[row].tolist(),
                "meta": {"topic": scene.topic, "domain": scene.domain},
            }
        )
    write_json_lines(path, rows)
    return clicks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``openrlhf-qs world``."""
    parser.add_argument(
        "--out", type=Path, required=True, help="click log to write (JSON Lines); an existing file is replaced"
    )
    parser.add_argument(
        "--n_impressions",
        type=int,
        default=32_000,
        help="rows of the log, each with three suggestions (default 32000: some 9000 with a click)",
    )
    parser.add_argument(
        "--n_contexts",
        type=int,
        default=10_000,
        help="different conversations (default 10000: each is shown about three times, to different users)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same log (default 0)")
    parser.add_argument(
        "--ranker_noise",
        type=float,
        metavar="LOG_ODDS",
        help="show first what users like best, as a ranker with noise of this deviation sees it (default: the order "
        "is random)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the log and print how often its users click."""
    clicks = write_click_log(args.out, args.n_impressions, args.n_contexts, args.seed, args.ranker_noise)
    table = Table("measure", "value", title=f"built-in world: {args.out}")
    table.columns[1].justify = "right"
    table.add_row("impressions", str(args.n_impressions))
    table.add_row("contexts", str(args.n_contexts))
    table.add_row("impressions with a click", f"{clicks.any(axis=1).mean():.1%}")
    for position, rate in enumerate(clicks.mean(axis=0), start=1):
        table.add_row(f"clicks in slot {position}", f"{rate:.1%}")
    Console().print(table)
