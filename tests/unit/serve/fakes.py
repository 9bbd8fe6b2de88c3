"""A policy and a reward model without weights, and a server of them: what stands around vLLM is what is tested."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from openrlhf_qs.form.task import Task
from openrlhf_qs.registry import FILTERS, load_plugins
from openrlhf_qs.serve.app import build_app
from openrlhf_qs.serve.arms import Arm
from openrlhf_qs.serve.live_log import LiveLog
from openrlhf_qs.serve.metrics import Metrics
from openrlhf_qs.serve.policy import Response
from openrlhf_qs.serve.service import Rules, Service
from openrlhf_qs.serve.suggester import BatchedScorer, Suggester

TURKISH = ("How do I begin with Turkish?", "What does a Turkish course cost?", "Which mistakes are common in Turkish?")
OTHERS = ("Who teaches Turkish grammar?", "How long does Turkish take?", "Which books help with spelling?")


def response(texts: Sequence[str] = TURKISH, log_prob: float = -6.0, problem: str = "") -> Response:
    """Three suggestions, each with a third of the log-probability a token."""
    return Response(
        () if problem else tuple(texts), problem, log_prob, (log_prob / 3,) * (0 if problem else len(texts))
    )


class FakePolicy:
    """Writes what it is given, in turn; an exception is raised, a number slept."""

    task = Task()
    temperature = 0.7
    model = "fake"

    def __init__(self, *responses) -> None:
        self.responses = list(responses) or [response(), response(OTHERS)]
        self.asked: list = []
        self.closed = False

    async def sample(self, conversation, n):
        self.asked.append(conversation)
        found = [self.responses[number % len(self.responses)] for number in range(n)]
        for one in found:
            if isinstance(one, Exception):
                raise one
            if isinstance(one, str):
                return one
            if isinstance(one, float):
                await asyncio.sleep(one)
        return [one for one in found if isinstance(one, Response)]

    async def check(self) -> None:
        if any(isinstance(one, Exception) for one in self.responses):
            raise RuntimeError

    def close(self) -> None:
        self.closed = True


def scorer(means: dict[str, float] | None = None, link: str = "click") -> BatchedScorer:
    """The mean of each text, 0 where none is given; a deviation of 1."""

    def score(conversations, suggestions):
        mean = np.array([(means or {}).get(text, 0.0) for text in suggestions])
        return SimpleNamespace(mean=mean, std=np.ones(len(mean)))

    score.link = link
    return BatchedScorer(score)


def filters(*names: str, **options):
    load_plugins()
    return {name: FILTERS.create(name, **options.get(name, {})) for name in names}


def service(folder, policy=None, rules: Rules | None = None, arms: Sequence[Arm] = (), **how) -> Service:
    made = [*arms] or [Arm("fake", 1.0, Suggester(policy or FakePolicy(), filters(), n_samples=2, **how))]
    return Service(made, LiveLog(folder), Metrics(), rules or Rules())


def app(folder, upstream=None, keys=(), limits=None, **how):
    one = service(folder, **how)
    return (build_app(one, upstream, keys, limits) if limits else build_app(one, upstream, keys)), one
