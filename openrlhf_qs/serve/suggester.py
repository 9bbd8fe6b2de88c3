"""What is shown under a conversation: sample, leave out, choose; it knows no HTTP.

Some responses of a policy are cut into suggestions. Those that filters refuse are left out, of the rest the reward
model and the policy's own probability choose the best that differ, by the very functions that choose what RFT teaches
(:mod:`openrlhf_qs.sft.assembly`). Where the best are not worth a user's look, nothing is shown. What was left out is
told with its reason, and so is how likely the policy was to write what is shown.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from openrlhf_qs.form.keys import text_key
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import suggestion_problem
from openrlhf_qs.form.task import MAX_SUGGESTIONS, Task
from openrlhf_qs.garm.preference_likelihood import click_log_odds
from openrlhf_qs.serve.policy import Response
from openrlhf_qs.sft import assembly
from openrlhf_qs.sft.candidates import log_quality, read_candidates

EXPONENTS = {"clicks": 0.0, "log_prob": 1.0, "garm": 1.0}  # as RFT chooses
NEAR_DUPLICATE, MAX_SIMILARITY = 0.9, 0.6  # cosine of trigrams, as in the SFT dataset `diverse`
MAX_SCORED = 256  # suggestions in one call of the reward model
MALFORMED, DUPLICATE, NEAR, NOT_NEEDED = "malformed", "duplicate", "near_duplicate", "not_among_the_best"


class Sampler(Protocol):
    """What the policy is to this module."""

    task: Task
    temperature: float
    model: str

    async def sample(self, conversation: Sequence[Message], n: int) -> list[Response] | str: ...

    async def check(self) -> None: ...

    def close(self) -> None: ...


Filter = Callable[[Request, Sequence[str]], list[str]]


@dataclass
class Candidate:
    """A suggestion that was sampled.

    Attributes:
        text: one line.
        log_prob: nats a token, at the temperature of sampling.
        sample: the number of the response that it is from, from 0.
        mean, std: the reward model's; None without one.
        reason: why it is not shown, one of a few words: of this module, or the name of a filter.
        why: the same as the filter says it.
        propensity: how likely it was, the candidates given, to stand in the place where it is shown; None where
            nothing is ever left to chance, or a whole response is, which has its own log-probability.
    """

    text: str
    log_prob: float
    sample: int
    mean: float | None = None
    std: float | None = None
    reason: str = ""
    why: str = ""
    propensity: float | None = None

    @property
    def click_chance(self) -> float | None:
        """Of an average user who looks at it, by a reward model of clicks."""
        if self.mean is None:
            return None
        return 1 / (1 + math.exp(-click_log_odds(self.mean, self.std)))


@dataclass
class Choice:
    """What was decided for one conversation.

    Attributes:
        shown: in their order; none where there is a ``reason``.
        left_out: the other candidates; of a malformed response one without text.
        reason: why nothing is shown, in a word; empty where something is.
        click_chance: that one or more of the best are clicked where all are looked at, by the reward model; None
            where that does not say it.
        log_prob: nats, of the response that is shown as it was written; None where what is shown is of several.
        n_sampled: responses.
        explored: what was drawn at random on purpose, and how likely, the candidates given, all that is shown was.
    """

    shown: list[Candidate] = field(default_factory=list)
    left_out: list[Candidate] = field(default_factory=list)
    reason: str = ""
    click_chance: float | None = None
    log_prob: float | None = None
    n_sampled: int = 0
    explored: dict[str, Any] | None = None

    @property
    def texts(self) -> list[str]:
        return [one.text for one in self.shown]


class BatchedScorer:
    """A reward model that many conversations ask at once: what waits while it works is scored together, in a thread of
    its own.

    Args:
        scorer: a :class:`~openrlhf_qs.garm.reward_model.SuggestionScorer`, or what is called as one.
    """

    def __init__(self, scorer: Callable) -> None:
        self.scorer = scorer
        self.of_clicks = scorer.link == "click"
        self._waiting: list[tuple[Sequence[Message], Sequence[str], asyncio.Future]] = []
        self._thread = ThreadPoolExecutor(1, "reward model")
        self._work: asyncio.Task | None = None

    async def __call__(self, conversation: Sequence[Message], texts: Sequence[str]) -> list[tuple[float, float]]:
        """Mean and standard deviation of each."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((conversation, texts, done))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._score_waiting())
        return await done

    async def _score_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, n = [], 0
            while self._waiting and (not batch or n + len(self._waiting[0][1]) <= MAX_SCORED):
                batch.append(self._waiting.pop(0))
                n += len(batch[-1][1])
            conversations = [conversation for conversation, texts, _ in batch for _ in texts]
            suggestions = [text for _, texts, _ in batch for text in texts]
            try:
                scores = await loop.run_in_executor(self._thread, self.scorer, conversations, suggestions)
                found = iter(zip(scores.mean.tolist(), scores.std.tolist(), strict=True))
                for _, texts, done in batch:
                    own = [next(found) for _ in texts]
                    if not done.done():  # whoever asked may have gone
                        done.set_result(own)
            except Exception as error:
                for _, _, done in batch:
                    if not done.done():
                        done.set_exception(error)

    def close(self) -> None:
        self._thread.shutdown()


class Suggester:
    """One policy with its filters, its reward model and its rules."""

    def __init__(
        self,
        policy: Sampler,
        filters: Mapping[str, Filter],
        scorer: BatchedScorer | None = None,
        n_samples: int = 4,
        take: Literal["suggestions", "responses"] = "suggestions",
        min_click_chance: float = 0.0,
        explore: float = 0.0,
        explore_by: Literal["order", "place", "response"] = "place",
        seed: int | None = None,
    ) -> None:
        """
        Args:
            filters: by their names, in the order that they are asked.
            n_samples: responses that are sampled, >= 1.
            take: the best suggestions of all responses, or the best response as it was written.
            min_click_chance: in [0, 1); nothing is shown below. Needs a reward model of clicks.
            explore: share of the answers, in [0, 1], in which something is left to chance.
            explore_by: the order of those shown; one place, which a random one of the other candidates gets; or all:
                the first response is shown as it was written.
            seed: of what is left to chance; None draws one.
        """
        if n_samples < 1:
            raise ValueError(f"n_samples {n_samples}: give 1 or more")
        if not 0 <= min_click_chance < 1:
            raise ValueError(f"min_click_chance {min_click_chance}: give 0 or more, below 1")
        if not 0 <= explore <= 1:
            raise ValueError(f"explore {explore}: give a share, 0 to 1")
        if min_click_chance and (scorer is None or not scorer.of_clicks):
            raise ValueError(
                f"min_click_chance {min_click_chance} needs a reward model that was trained on clicks "
                "(REWARD_MODEL=click_gaussian); give one with --reward_model, or leave this out"
            )
        self.policy, self.filters, self.scorer = policy, dict(filters), scorer
        self.n_samples, self.take, self.min_click_chance = n_samples, take, min_click_chance
        self.explore, self.explore_by = explore, explore_by
        self.random = random.Random(seed)

    async def __call__(self, request: Request, n: int | None = None) -> Choice:
        """What is shown under ``request``.

        Args:
            n: how many at most, 1 to ``MAX_SUGGESTIONS``; None: as many as the policy was trained to write.
        """
        n = self.policy.task.n if n is None else min(n, MAX_SUGGESTIONS)
        if not request.conversation:
            return Choice(reason="no_conversation")
        responses = await self.policy.sample(request.conversation, self.n_samples)
        if isinstance(responses, str):
            return Choice(reason="too_long")
        candidates = self._candidates(request, responses)
        open_ = [one for one in candidates if not one.reason]
        if self.scorer and open_:
            scores = await self.scorer(request.conversation, [one.text for one in open_])
            for one, score in zip(open_, scores, strict=True):
                one.mean, one.std = score
        drawn = bool(self.explore) and self.random.random() < self.explore
        if drawn and self.explore_by == "response" and (first := _as_written(candidates, 0, n)):
            explored = {"by": "response", "share": self.explore, "drawn": True}
            return self._choice(first, candidates, responses, explored)
        if self.take == "responses":
            shown = self._best_response(candidates, responses, n)
        else:
            shown = best_that_differ(candidates, n)
        return self._decided(shown, candidates, responses, drawn)

    def close(self) -> None:
        """End the policy's engine and the reward model's thread."""
        self.policy.close()
        if self.scorer is not None:
            self.scorer.close()

    def _candidates(self, request: Request, responses: Sequence[Response]) -> list[Candidate]:
        """All suggestions of all responses, with the reason where one must not be shown."""
        found: list[Candidate] = []
        for number, response in enumerate(responses):
            if response.problem:
                found.append(Candidate("", 0.0, number, reason=MALFORMED, why=response.problem))
            found += [
                Candidate(text, log_prob, number)
                for text, log_prob in zip(response.suggestions, response.log_probs, strict=True)
            ]
        for one in found:
            if not one.reason and (problem := suggestion_problem(one.text)):
                one.reason, one.why = MALFORMED, problem
        self._filter(request, [one for one in found if not one.reason])
        if self.take == "suggestions":
            first: dict[str, Candidate] = {}
            for one in sorted((one for one in found if not one.reason), key=lambda one: -one.log_prob):
                if first.setdefault(text_key(one.text), one) is not one:
                    one.reason = DUPLICATE
        return found

    def _filter(self, request: Request, candidates: Sequence[Candidate]) -> None:
        for name, check in self.filters.items():
            open_ = [one for one in candidates if not one.reason]
            reasons = check(request, [one.text for one in open_]) if open_ else []
            for one, why in zip(open_, reasons, strict=True):
                if why:
                    one.reason, one.why = name, why

    def _best_response(
        self, candidates: Sequence[Candidate], responses: Sequence[Response], n: int
    ) -> list[Candidate]:
        """The suggestions of the best response of which none is refused and no two say the same."""
        best, best_quality = [], -math.inf
        for number in range(len(responses)):
            own = _as_written(candidates, number, self.policy.task.n)
            if own and (quality := float(np.mean([_quality(one) for one in own]))) > best_quality:
                best, best_quality = own[:n], quality
        return best

    def _decided(
        self, shown: list[Candidate], candidates: Sequence[Candidate], responses: Sequence[Response], drawn: bool
    ) -> Choice:
        """The choice, with what is left to chance and with the rule for silence."""
        chance = self._click_chance(shown)
        if not shown:
            reason = "all_malformed" if all(one.reason == MALFORMED for one in candidates) else "all_filtered"
        elif chance is not None and chance < self.min_click_chance:
            reason, shown = "below_min_click_chance", []
        else:
            reason = ""
        explored = self._explored(shown, candidates, drawn)
        return self._choice(shown, candidates, responses, explored, reason, chance)

    def _choice(
        self,
        shown: list[Candidate],
        candidates: Sequence[Candidate],
        responses: Sequence[Response],
        explored: dict[str, Any] | None,
        reason: str = "",
        chance: float | None = None,
    ) -> Choice:
        for one in candidates:
            if not one.reason and not any(one is other for other in shown):
                one.reason = reason or NOT_NEEDED
        numbers = {one.sample for one in shown}
        whole = len(numbers) == 1 and [one.text for one in shown] == list(responses[min(numbers)].suggestions)
        return Choice(
            shown=shown,
            left_out=[one for one in candidates if one.reason],
            reason=reason,
            click_chance=chance,
            log_prob=responses[min(numbers)].log_prob if whole else None,
            n_sampled=len(responses),
            explored=explored,
        )

    def _click_chance(self, shown: Sequence[Candidate]) -> float | None:
        if not shown or self.scorer is None or not self.scorer.of_clicks:
            return None
        return 1 - math.prod(1 - one.click_chance for one in shown)

    def _explored(self, shown: list[Candidate], candidates: Sequence[Candidate], drawn: bool) -> dict[str, Any] | None:
        """Leave the order, or one place, to chance, in ``shown`` itself, where it was ``drawn``. Returns what is to be
        known of it afterwards, of the other answers too; None where nothing is ever left to chance."""
        if not self.explore:
            return None
        about = {"by": self.explore_by, "share": self.explore}
        if self.explore_by == "response" or not shown:
            return about | {"drawn": False}
        n, best = len(shown), list(shown)
        if self.explore_by == "order":
            order = self.random.sample(range(n), n) if drawn else list(range(n))
            shown[:] = [best[index] for index in order]
            for place, index in enumerate(order):
                shown[place].propensity = self.explore / n + (1 - self.explore) * (place == index)
            likely = self.explore / math.factorial(n) + (1 - self.explore) * (shown == best)
            return about | {"drawn": drawn, "propensity": likely} | ({"order": order} if drawn else {})
        others = [one for one in candidates if not one.reason and not any(one is other for other in shown)]
        share = self.explore if others else 0.0
        for one in shown:
            one.propensity = 1 - share / n
        if not drawn or not others:
            return about | {"drawn": False, "propensity": 1 - share, "n_candidates": len(others)}
        place, one = self.random.randrange(n), self.random.choice(others)
        instead_of, shown[place] = shown[place].text, one
        one.propensity = share / n / len(others)
        known = {"place": place, "n_candidates": len(others), "instead_of": instead_of}
        return about | {"drawn": True, "propensity": one.propensity} | known


def _as_written(candidates: Sequence[Candidate], number: int, n: int) -> list[Candidate]:
    """The suggestions of a response where none of them is refused, no two say the same, and there are at most ``n``;
    else none. That another response says the same is no reason."""
    own = [one for one in candidates if one.sample == number]
    alone = [replace(one, reason="" if one.reason in (DUPLICATE, NEAR) else one.reason) for one in own]
    if len(own) > n or any(one.reason for one in alone) or len(best_that_differ(alone, len(alone), 1.0)) < len(own):
        return []
    for one in own:
        one.reason = ""
    return own


def best_that_differ(
    candidates: Sequence[Candidate], n: int, max_similarity: float = MAX_SIMILARITY
) -> list[Candidate]:
    """The best ``n`` of those that are not left out and that can stand together, the best first; one that says in
    nearly the same words what a better one says is left out, with that reason."""
    open_ = [one for one in candidates if not one.reason]
    if not open_:
        return []
    rows = [{"candidates": [{"text": one.text, "log_prob": one.log_prob, "garm_mean": one.mean} for one in open_]}]
    quality = log_quality(read_candidates(rows), EXPONENTS)
    order = np.argsort(-quality, kind="stable")
    ranked, quality = [open_[index] for index in order], quality[order][None]
    valid = np.ones((1, len(ranked)), dtype=bool)
    keys = [text_key(one.text) for one in ranked]
    row, slot = np.zeros(len(ranked), dtype=np.int64), np.arange(len(ranked))
    similarity = assembly.trigram_cosine(keys, row, slot, valid.shape)
    for index in np.flatnonzero(assembly.repeats(similarity, valid, NEAR_DUPLICATE)[0] >= 0):
        ranked[index].reason = NEAR
        valid[0, index] = False
    ratio = np.exp(quality - quality[:, :1])
    taken = assembly.maximal_marginal_relevance(ratio, similarity, valid, n, 0.0, max_similarity)[0]
    return [ranked[index] for index in sorted(taken[taken >= 0])]


def _quality(one: Candidate) -> float:
    return EXPONENTS["log_prob"] * one.log_prob + EXPONENTS["garm"] * (one.mean or 0.0)
