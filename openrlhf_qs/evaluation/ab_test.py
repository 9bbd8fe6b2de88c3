"""The A/B test: simulated users see every arm's suggestions under the same conversations and click or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openrlhf_qs.evaluation.arms import AT, LAST_POLICY, on_same_conversations
from openrlhf_qs.form.keys import conversation_key, root_key
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.registry import JUDGES, check_options, load_plugins, origin, parse_options
from openrlhf_qs.reward.judged import Judge, click_probabilities
from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import cluster_half_width, ratio_of_means


@dataclass(frozen=True)
class ArmResult:
    """How one arm did in the A/B test.

    Attributes:
        ctr: mean probability of at least one click over all users, from the judge's probabilities, without draws.
        ci95: its interval, clustered by conversation and by the user who had it: the users of one context see the same
            suggestions, and the turns of one conversation, or the conversations of one user, are similar.
        n_users, n_contexts: users are spread evenly over contexts.
        slot_ctr: mean probability of a click at each position, top first.
        context_ctr: ``[n_contexts]``, ``ctr`` of each context.
        clusters: ``[n_contexts]``, which conversation each context is a turn of, by
            :func:`openrlhf_qs.form.keys.root_key`, and, where it is known, whose.
        clicks: ``[n_contexts, users of a context, n_slots]``, drawn, for callers that need individual choices.
    """

    ctr: float
    ci95: tuple[float, float]
    n_users: int
    n_contexts: int
    slot_ctr: list[float]
    context_ctr: np.ndarray
    clusters: Clusters
    clicks: np.ndarray


class Lift(NamedTuple):
    """``ctr / ctr of the other arm - 1`` and its 95 % interval."""

    value: float
    ci95: tuple[float, float]


def run_ab_test(
    arms: Mapping[str, Sequence[tuple]],
    judge: Judge,
    n_users: int = 20_000,
    seed: int = 0,
    owners: Mapping[str, str | None] | None = None,
) -> dict[str, ArmResult]:
    """Show every arm's suggestions to simulated users under the same conversations.

    Args:
        arms: name to rows that begin with (conversation, suggestions); if an arm has a conversation twice, the first
            row counts, and conversations that are not in every arm are left out.
        judge: called once per arm, each row one fresh user; returns click probabilities.
        n_users: minimum number of users per arm.
        seed: of the clicks. An arm's clicks do not depend on the other arms.
        owners: the user who had each conversation, by :func:`openrlhf_qs.form.keys.conversation_key`, where known.

    Returns:
        The result of each arm. ValueError if fewer than two conversations are left or the judge's answer is invalid.
    """
    if n_users < 1:
        raise ValueError(f"n_users = {n_users}: give at least 1")
    arms = on_same_conversations(arms)
    conversations = [row[0] for row in next(iter(arms.values()))]
    clusters = conversation_clusters(conversations, owners)
    n_contexts = len(conversations)
    if clusters.n_clusters < 2:
        raise ValueError(f"{clusters.n_clusters} conversation is in every arm; an interval needs at least 2")
    users_per_context = math.ceil(n_users / n_contexts)
    results = {}
    for name, rows in arms.items():
        users = [row for row in rows for _ in range(users_per_context)]
        probability = click_probabilities(judge, [u[0] for u in users], [u[1] for u in users], where=f"arm {name}")
        rng = np.random.default_rng([seed, *name.encode()])
        clicks = rng.random(probability.shape) < probability  # [n_users, n_slots]
        chance = 1 - (1 - probability).prod(axis=1)  # of a click, given the user
        context_ctr = chance.reshape(n_contexts, users_per_context).mean(axis=1)
        ctr = float(context_ctr.mean())
        half = cluster_half_width(context_ctr, clusters)
        results[name] = ArmResult(
            ctr=ctr,
            ci95=(max(ctr - half, 0.0), min(ctr + half, 1.0)),
            n_users=len(users),
            n_contexts=n_contexts,
            slot_ctr=probability.mean(axis=0).tolist(),
            context_ctr=context_ctr,
            clusters=clusters,
            clicks=clicks.reshape(n_contexts, users_per_context, -1),
        )
    return results


def conversation_clusters(
    conversations: Sequence[list[Message]], owners: Mapping[str, str | None] | None = None
) -> Clusters:
    """By the conversation that each is a turn of, and by the user who had it; ``owners`` as in :func:`run_ab_test`."""
    roots = [root_key(conversation) for conversation in conversations]
    if not owners:
        return Clusters.of(roots)
    return Clusters.of(roots, [owners.get(conversation_key(conversation)) for conversation in conversations])


def relative_lift(arm: ArmResult, over: ArmResult) -> Lift | None:
    """How much higher ``arm``'s CTR is, relative to that of ``over``. None if nobody clicks in one of them, or all
    clicks come from one conversation: there is no interval then. The arms share their contexts, so what makes one
    easy for both cancels out (:func:`openrlhf_qs.statistics.intervals.ratio_of_means`).
    """
    clicked = (arm.context_ctr > 0) | (over.context_ctr > 0)
    if arm.ctr == 0 or over.ctr == 0 or arm.clusters[clicked].n_clusters < 2:
        return None
    ratio, half = ratio_of_means(arm.context_ctr, over.context_ctr, arm.clusters)
    return Lift(ratio - 1, (ratio - 1 - half, ratio - 1 + half))


def load_judge(judge: str, settings: Sequence[str] = ()) -> Judge | None:
    """The judge of that name, or from that Python file, with its options; None for ``none``.

    ValueError if a file registers no judge or several, or if an option belongs to no plugin and would be ignored.
    """
    options = parse_options(settings)
    name = judge
    if judge == "none":
        name = ""
    elif judge.endswith(".py"):
        file = Path(judge).resolve()
        load_plugins([file])
        names = [name for name in JUDGES if origin(JUDGES[name]) == str(file)]
        if len(names) != 1:
            raise ValueError(f"--judge {judge}: it registers {len(names)} judges {names}; register exactly one")
        name = names[0]
    else:
        load_plugins()
    check_options(options)  # one list of options serves all stages: those of other plugins are well formed too
    return JUDGES.create(name, **options.get(name, {})) if name else None


def ab_metrics(results: Mapping[str, ArmResult], quality: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``ab``, ``lift``, ``lift_ci95`` and ``verdict`` of metrics.json.

    Lifts compare policies as served, and the other baselines; arms at other temperatures have none. The verdict puts
    those of the last policy into words, or all of them if there is none.
    """
    metrics: dict[str, Any] = {"ab": {}, "lift": {}, "lift_ci95": {}}
    for name, result in results.items():
        metrics["ab"][name] = {
            "ctr": result.ctr,
            "ci95": list(result.ci95),
            "malformed": quality[name]["malformed"],
            "n_users": result.n_users,
            "n_contexts": result.n_contexts,
            "slot_ctr": result.slot_ctr,
        }
    sentences = []
    names = [name for name in results if AT not in name]
    for position, name in enumerate(names):
        for other in names[:position]:
            lift = relative_lift(results[name], results[other])
            metrics["lift"][f"{name}_over_{other}"] = lift and lift.value
            metrics["lift_ci95"][f"{name}_over_{other}"] = lift and list(lift.ci95)
            if LAST_POLICY in (name, other) or LAST_POLICY not in names:
                sentences.append(compare(name, results[name], other, results[other]))
    metrics["verdict"] = " ".join(sentences)
    return metrics


def compare(name: str, arm: ArmResult, other: str, over: ArmResult) -> str:
    """One sentence: who beats whom, by how much, and whether the intervals of the two CTRs overlap."""
    rates = f"CTR {arm.ctr:.1%} against {over.ctr:.1%}"
    lift = relative_lift(arm, over)
    if lift is None:
        return f"{name} cannot be compared with {other}, because fewer than two conversations have clicks: {rates}."
    low, high = lift.ci95
    apart = arm.ci95[0] > over.ci95[1] or arm.ci95[1] < over.ci95[0]
    word = "beats" if low > 0 else "loses to" if high < 0 else "does not differ clearly from"
    return (
        f"{name} {word} {other}: {rates}, lift {lift.value:+.1%} (95 % interval {low:+.1%} to {high:+.1%}), "
        f"the two intervals {'do not overlap' if apart else 'overlap'}."
    )
