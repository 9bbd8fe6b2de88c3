"""What the built-in world writes: conversations, suggestions of a policy, and the click log of its users.

In: flags of ``openrlhf-qs world``; in a later round the policy whose suggestions are shown, not the cold start's; or
a log of suggestions that nobody saw yet, as a language model's cold start writes one.
Out: a click log (:mod:`openrlhf_qs.clicks.click_log`). No other stage knows this world: they see clicks alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from rich.table import Table

from openrlhf_qs.files.printable import from_here, print_table
from openrlhf_qs.files.whole import read_json_lines, write_json_lines, write_whole
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.response import N_SUGGESTIONS
from openrlhf_qs.form.task import Task, read_task
from openrlhf_qs.models.engine import free_memory, load_engine, sample
from openrlhf_qs.world.click_models import CLICK_MODELS, draw_clicks, truth
from openrlhf_qs.world.language import (
    DOMAIN_OF_TOPIC,
    DOMAINS,
    INTENTS,
    OPENERS,
    TAILS,
    UNSEEN_TOPICS,
    VAGUE_QUESTIONS,
    facet,
)
from openrlhf_qs.world.users import Scene, attraction, draw_users, gold_utility, read_scene

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
Policy = Callable[[Sequence[list[Message]]], list[list[str] | None]]  # None where the policy wrote no suggestions

N_USERS = 5000
FIRST_DAY, N_DAYS = datetime(2025, 1, 1, tzinfo=UTC), 30
MAX_NEW_TOKENS = 128  # more than any policy of this world needs
SEEN_TOPICS = tuple(topic for topic in DOMAIN_OF_TOPIC if topic not in UNSEEN_TOPICS)
TOPICS = {"seen": SEEN_TOPICS, "unseen": tuple(topic for topic in DOMAIN_OF_TOPIC if topic in UNSEEN_TOPICS)}


def n_contexts_of(topics: Collection[str]) -> int:
    """How many different conversations there are about these topics."""
    n_questions = len(OPENERS) * sum(len(intent.questions) for intent in INTENTS.values())
    return n_questions * sum(len(DOMAINS[DOMAIN_OF_TOPIC[topic]].aspects) for topic in topics)


def contexts(n: int, seed: int, topics: Sequence[str] = SEEN_TOPICS) -> list[list[Message]]:
    """``n`` conversations about ``topics``, no question in them twice; ValueError where there are not so many.

    By default no topic of ``UNSEEN_TOPICS`` is among them: those are for a test on what no training saw.
    """
    if not 0 < n <= n_contexts_of(topics):
        raise ValueError(f"n_contexts must be from 1 to {n_contexts_of(topics)}, got {n}")
    rng = random.Random(seed)
    drawn: dict[str, list[Message]] = {}
    while len(drawn) < n:
        conversation = _draw_conversation(rng, topics)
        drawn.setdefault(conversation[0]["content"], conversation)
    return list(drawn.values())


def _draw_conversation(rng: random.Random, topics: Sequence[str]) -> list[Message]:
    topic = rng.choice(topics)
    aspect, other = rng.sample(DOMAINS[DOMAIN_OF_TOPIC[topic]].aspects, 2)
    intent = rng.choice(list(INTENTS.values()))
    question = f"{rng.choice(OPENERS).format(topic=topic)} {rng.choice(intent.questions).format(it=aspect)}"
    answer = rng.choice(intent.answers).format(topic=topic, aspect=aspect)
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"{answer} {rng.choice(TAILS).format(other=other)}"},
    ]


def cold_start_suggestions(conversation: Sequence[Message], rng: random.Random, n: int = N_SUGGESTIONS) -> list[str]:
    """``n`` suggestions of the mixed policy ``COLD_START``, in random order: a slot says nothing about quality.

    ValueError where the conversation is not one of this world (see :func:`contexts`).
    """
    scene = read_scene(conversation)
    if scene.topic is None or not scene.next or not scene.asked_aspects:
        raise ValueError(f"conversation {conversation!r} is not from the built-in world: give one from contexts()")
    kinds = rng.choices(list(COLD_START), COLD_START.values(), k=n)
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
        neighbour = rng.choice([other for other in domain.topics if other != topic and other in SEEN_TOPICS])
        return _question(rng, following, facet(neighbour, rng.choice(fresh)))
    if kind == "off_topic":
        elsewhere = rng.choice([other for other in SEEN_TOPICS if DOMAIN_OF_TOPIC[other] != scene.domain])
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
    path: str | Path,
    n_impressions: int,
    n_contexts: int,
    seed: int,
    ranker_noise: float | None = None,
    n_suggestions: int = N_SUGGESTIONS,
    clicks: str = "pbm",
    topics: Sequence[str] = SEEN_TOPICS,
    policy: Policy | None = None,
    policy_name: str = "cold_start_v1",
    n_rounds_before: int = 0,
) -> np.ndarray:
    """Show the suggestions of a policy to simulated users and write what they click.

    Args:
        path: JSON Lines, one impression a row, in the order of time; replaced in one go.
        n_impressions: rows. Each context is shown ``n_impressions / n_contexts`` times, or once more.
        n_contexts: different conversations, at most ``n_impressions``.
        seed: the same seed writes the same file.
        ranker_noise: None shows the suggestions in random order; else a ranker shows those first whose gold utility is
            highest, as it sees it: with Gaussian noise of this deviation, in log-odds.
        clicks: the click model (:mod:`openrlhf_qs.world.click_models`). What is true of these clicks is written beside
            the log, to :func:`truth_path`.
        topics: what the conversations are about.
        policy: what is suggested in each of the conversations given; None is the cold start. A conversation in which
            it wrote no suggestions is no impression.
        policy_name: what the rows say in ``policy``.
        n_rounds_before: logs of this seed that were written before: the conversations and the users are the same, the
            days later, who comes and clicks is drawn anew.

    Returns:
        The clicks, 0 or 1, ``[rows, n_suggestions]``.
    """
    if n_contexts > n_impressions:
        raise ValueError(
            f"n_contexts {n_contexts} is more than n_impressions {n_impressions}; show each at least once"
        )
    conversations = contexts(n_contexts, seed, topics)
    numbers = np.random.default_rng(seed)
    users = draw_users(numbers, N_USERS)
    if n_rounds_before:
        numbers = np.random.default_rng([seed, n_rounds_before])
    order = numbers.permutation(np.arange(n_impressions) % n_contexts)
    moments = np.sort(numbers.uniform(0, N_DAYS, n_impressions)) + N_DAYS * n_rounds_before
    asked = [conversations[context] for context in order]
    if policy is None:
        words = random.Random(seed)
        shown = [cold_start_suggestions(conversation, words, n_suggestions) for conversation in asked]
    else:
        shown = policy(asked)

    clicked, attractions, rows = [], [], []
    for row, (conversation, suggestions, day) in enumerate(zip(asked, shown, moments, strict=True)):
        if suggestions is None:
            continue
        if ranker_noise is not None:
            utility, _ = gold_utility([conversation] * len(suggestions), suggestions)
            seen = utility + numbers.normal(0, ranker_noise, len(suggestions))
            suggestions = [suggestions[place] for place in np.argsort(-seen)]
        user = int(numbers.integers(N_USERS))
        attractions.append(attraction(conversation, suggestions, users[user]))
        clicked.append(draw_clicks(clicks, attractions[-1], numbers))
        scene = read_scene(conversation)
        rows.append(
            {
                "impression_id": f"{f'round-{n_rounds_before}' if n_rounds_before else 'impression'}-{row:07d}",
                "timestamp": (FIRST_DAY + timedelta(days=day)).isoformat(timespec="seconds"),
                "user_id": f"user-{user:04d}",
                "policy": policy_name,
                "conversation": conversation,
                "suggestions": suggestions,
                "clicks": clicked[-1].astype(int).tolist(),
                "meta": {"topic": scene.topic, "domain": scene.domain},
            }
        )
    if not rows:
        raise ValueError(
            f"{policy_name} wrote no suggestions in any of {n_impressions} conversations: nothing is shown"
        )
    write_json_lines(path, rows)
    known = truth(clicks, np.array(attractions)) | {"ranker_noise": ranker_noise, "seed": seed}
    write_whole(truth_path(path), json.dumps(known, indent=1) + "\n")
    return np.array(clicked)


def as_served(folder: str, temperature: float, seed: int) -> Policy:
    """The policy in ``folder``: one sampled response a conversation, shown as it was written, in its order."""

    def policy(conversations: Sequence[list[Message]]) -> list[list[str] | None]:
        llm, task = load_engine(folder, seed), read_task(folder)
        prompts = list(map(task.messages, conversations))
        answers = sample(llm, prompts, MAX_NEW_TOKENS, temperature, progress="responses", max_len=task.max_len)
        free_memory(llm)
        read = [None if isinstance(one, str) else task.read(one[0].text, one[0].finish_reason) for one in answers]
        return [list(one.suggestions) if one is not None and one.well_formed else None for one in read]

    return policy


def as_written(log: str | Path) -> tuple[Policy, str]:
    """The suggestions of a log that nobody was shown yet, as ``openrlhf-qs cold-start`` writes one, and its policy's
    name. A conversation's rows take turns; one that the log does not have is shown nothing."""
    rows: dict[str, list[list[str]]] = {}
    name = ""
    for row in read_json_lines(log):
        rows.setdefault(conversation_key(row["conversation"]), []).append(row["suggestions"])
        name = name or row.get("policy") or Path(log).stem
    if not rows:
        raise ValueError(f"{log} has no suggestions to show; give the log that cold-start wrote")

    def policy(conversations: Sequence[list[Message]]) -> list[list[str] | None]:
        turns = {key: itertools.cycle(some) for key, some in rows.items()}
        return [next(turns.get(conversation_key(one), iter([None])), None) for one in conversations]

    return policy, name


def truth_path(log: str | Path) -> Path:
    """Where the truth about a log of this world stands: ``clicks.truth.json`` beside ``clicks.jsonl``."""
    return Path(log).with_suffix(".truth.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``openrlhf-qs world``."""
    parser.add_argument(
        "--out", type=Path, required=True, help="click log to write (JSON Lines); an existing file is replaced"
    )
    parser.add_argument(
        "--n_impressions",
        type=int,
        default=32_000,
        help="rows of the log (default 32000: some 9000 with a click)",
    )
    parser.add_argument(
        "--n_contexts",
        type=int,
        default=10_000,
        help="different conversations (default 10000: each is shown about three times, to different users)",
    )
    parser.add_argument("--n_suggestions", type=int, default=3, help="suggestions per impression, 1 to 8 (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same log (default 0)")
    parser.add_argument(
        "--ranker_noise",
        type=float,
        metavar="LOG_ODDS",
        help="show first what users like best, as seen by a ranker whose noise has this standard deviation "
        "(default: random order)",
    )
    parser.add_argument(
        "--clicks",
        choices=CLICK_MODELS,
        default="pbm",
        help="how users click: pbm examines each position with a fixed probability; cascade reads from the top and "
        "stops at the first click; trust clicks the top more readily (default pbm)",
    )
    parser.add_argument(
        "--topics",
        choices=TOPICS,
        default="seen",
        help=f"what users talk about: {len(TOPICS['seen'])} topics, or {len(TOPICS['unseen'])} others that no "
        "log of the first kind mentions, to test on what no training saw (default seen)",
    )

    parser.add_argument(
        "--policy",
        metavar="DIR",
        help="a later round: show the users what this policy writes, instead of a cold start",
    )
    parser.add_argument(
        "--shown",
        metavar="FILE",
        help="show the users the suggestions of this log, written by cold-start for conversations of the same "
        "seed, instead of this world's cold start",
    )
    parser.add_argument(
        "--temperature", type=float, help="with --policy: sampling temperature (default 1, for variety)"
    )
    parser.add_argument(
        "--round",
        type=int,
        metavar="N",
        help="with --policy: number of earlier logs of this seed, including the cold start's (default 1). The "
        "conversations and the users stay; the days are later",
    )


def run(args: argparse.Namespace) -> None:
    """Write the log and print how often its users click."""
    n, later = Task(args.n_suggestions).n, {}
    if args.policy and args.shown:
        raise ValueError("--policy and --shown: give the policy to sample from, or the log to show, not both")
    if args.shown:
        policy, name = as_written(args.shown)
        later = {"policy": policy, "policy_name": name}
    for flag in ("temperature", "round"):
        if getattr(args, flag) is not None and not args.policy:
            raise ValueError(
                f"--{flag} is for sampling from a policy, but there is no --policy: give one, or leave this out"
            )
    if args.policy:
        n_before = 1 if args.round is None else args.round
        temperature = 1.0 if args.temperature is None else args.temperature
        if n_before < 1:
            raise ValueError(f"--round {n_before}: give 1 or more; the cold start's log is round 0")
        if temperature < 0:
            raise ValueError(f"--temperature {temperature}: give 0 or more")
        n = read_task(args.policy).n
        later = {
            "policy": as_served(args.policy, temperature, args.seed + n_before),
            "policy_name": f"{Path(args.policy).name}_{n_before}",
            "n_rounds_before": n_before,
        }
    clicks = write_click_log(
        args.out,
        args.n_impressions,
        args.n_contexts,
        args.seed,
        args.ranker_noise,
        n,
        args.clicks,
        TOPICS[args.topics],
        **later,
    )
    table = Table("measure", "value", title=f"built-in world: {from_here(args.out)}")
    table.columns[1].justify = "right"
    table.add_row("impressions", str(len(clicks)))
    table.add_row("contexts", str(args.n_contexts))
    table.add_row("impressions with a click", f"{clicks.any(axis=1).mean():.1%}")
    for position, rate in enumerate(clicks.mean(axis=0), start=1):
        table.add_row(f"clicks in slot {position}", f"{rate:.1%}")
    print_table(table)
    print(f"what is true of these clicks: {from_here(truth_path(args.out))}")
