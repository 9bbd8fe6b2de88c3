"""One answer after another: which arm, what is shown, what is kept, which message was a click. It knows no HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from openrlhf_qs.form.keys import root_key
from openrlhf_qs.form.prompt import Message, last_question
from openrlhf_qs.form.request import Request
from openrlhf_qs.serve.arms import Arm, arm_of
from openrlhf_qs.serve.forms import same_text
from openrlhf_qs.serve.live_log import Event, Impression, LiveLog, Status
from openrlhf_qs.serve.metrics import Metrics
from openrlhf_qs.serve.suggester import Candidate, Choice

LOGGER = logging.getLogger(__name__)
MAX_LEFT_OUT = 64  # of an answer, that are written down


@dataclass(frozen=True)
class Rules:
    """How long and how many.

    Attributes:
        answer_s: that suggestions may take; then nothing is shown.
        max_in_flight: requests that are worked on at once; more are shown nothing.
        next_message_s: in which the next message of a chat can be a click.
    """

    answer_s: float = 20.0
    max_in_flight: int = 64
    next_message_s: float = 1800.0


@dataclass(frozen=True)
class Whose:
    """Whom an answer is for, as the chat names them; empty where it does not.

    Attributes:
        id: of the request; the same one again, for the same conversation, gets the same answer.
    """

    user: str = ""
    chat: str = ""
    id: str = ""


class Service:
    """Answers requests by one of the arms and keeps what was answered."""

    def __init__(self, arms: Sequence[Arm], log: LiveLog, metrics: Metrics, rules: Rules = Rules()) -> None:  # noqa: B008
        self.arms, self.log, self.metrics, self.rules = list(arms), log, metrics, rules
        self.n_in_flight = 0

    async def suggest(
        self,
        request: Request,
        whose: Whose,
        n: int | None = None,
        source: str = "api",
        gone: Callable[[], Awaitable[bool]] | None = None,
    ) -> tuple[Impression, Choice]:
        """What is shown, after it is on disk. Never raises: what goes wrong is an answer without suggestions, with its
        reason, and counted.

        Args:
            n: how many at most.
            source: who asked, for ``meta``.
            gone: whether whoever asked has gone meanwhile; nobody is shown anything then, and nothing is kept.
        """
        began, id = time.monotonic(), self._id(whose, request.conversation)
        arm = arm_of(self.arms, whose.user or whose.chat or root_key(request.conversation), self.log.salt)
        found = await self._found(id) if whose.id else None
        if found is not None:
            return found, _as_shown(found)
        choice = await self._chosen(arm, request, n)
        impression = self._impression(id, request, whose, arm, choice, source, time.monotonic() - began)
        if gone is not None and await gone():
            self.metrics.silent.labels(arm.name, "gone").inc()
            return impression, choice
        try:
            before = await self.log.add(impression)
        except Exception as error:  # what is not on disk is not shown
            _report(error)
            choice = Choice(reason="not_logged")
            before, impression.suggestions = None, []
        if before is not None:
            return before, _as_shown(before)
        self._count(arm.name, choice, time.monotonic() - began)
        return impression, choice

    async def _chosen(self, arm: Arm, request: Request, n: int | None) -> Choice:
        if self.n_in_flight >= self.rules.max_in_flight:
            return Choice(reason="busy")
        self.n_in_flight += 1
        try:
            async with asyncio.timeout(self.rules.answer_s):
                return await arm.suggester(request, n)
        except TimeoutError:
            return Choice(reason="too_slow")
        except Exception as error:
            _report(error)
            return Choice(reason="failed")
        finally:
            self.n_in_flight -= 1

    async def warm_up(self) -> None:
        """Ask each arm once, so that the first user does not wait for what is only loaded when it is used. What that
        raises is an error: nobody would be answered."""
        texts = ("How do I begin with Turkish?", "Learn ten words a day.")
        messages: list[Message] = [
            {"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)
        ]
        for arm in self.arms:
            await arm.suggester(Request(messages))

    def close(self) -> None:
        """Write what waits, end the engines."""
        self.log.close()
        for arm in self.arms:
            arm.suggester.close()

    async def events(self, events: Sequence[Event]) -> list[Status]:
        """Keep events. OSError or sqlite3.Error where they cannot be written: they are not acknowledged then."""
        statuses = await self.log.add_events(events)
        for event, status in zip(events, statuses, strict=True):
            self.metrics.events.labels(event.kind, status).inc()
            if event.kind == "clicked" and status == "accepted":
                found = await self.log.find(event.impression)
                self.metrics.click(found.policy if found else "unknown")
        return statuses

    async def next_message(self, conversation: Sequence[Message], whose: Whose) -> Status | None:
        """Join the last message of a chat with what was suggested before it: it is a click where it is one of those
        texts. None where there was nothing, or it is too long ago."""
        user_turns = [n for n, message in enumerate(conversation) if message["role"] == "user"]
        if not user_turns:
            return None
        before = self._chat(conversation[: user_turns[-1]], whose)
        found = await self.log.last_of_chat(before) if before else None
        if found is None or time.time() - found.at > self.rules.next_message_s:
            return None
        said = _said_after(conversation, found.conversation)
        if said is None:
            return None
        texts = [same_text(text) for text in found.suggestions]
        place = texts.index(said) if said in texts else -1
        kind = "clicked" if place >= 0 else "passed"
        return (await self.events([Event(found.id, kind, place, source="next_message")]))[0]

    def _id(self, whose: Whose, conversation: Sequence[Message]) -> str:
        """Of a request that has one, a number that nobody else can have or guess; under another conversation it is
        another one, for what stands under that was not asked for here."""
        if not whose.id:
            return uuid.uuid4().hex
        asked = json.dumps(["request", whose.user, whose.chat, whose.id, list(conversation)])
        return self.log.pseudonym(asked)

    def _chat(self, conversation: Sequence[Message], whose: Whose) -> str | None:
        """The pseudonym of a chat; of one without a name that of its last question and the first line of the answer,
        which the next request has in it too: what stands at the end of a transcript may be of the task."""
        if whose.chat:
            return self.log.pseudonym(f"chat\n{whose.chat}")
        turns = [message for message in conversation if message["role"] != "system"][-2:]
        if [message["role"] for message in turns] != ["user", "assistant"]:
            return None
        question, answer = (one["content"].strip() for one in turns)
        return self.log.pseudonym(
            "\n".join(("turn", whose.user, same_text(question), same_text(answer.split("\n")[0])))
        )

    async def _found(self, id: str) -> Impression | None:
        try:
            return await self.log.find(id)
        except Exception as error:
            _report(error)
            return None

    def _impression(
        self, id: str, request: Request, whose: Whose, arm: Arm, choice: Choice, source: str, seconds: float
    ) -> Impression:
        policy = arm.suggester.policy
        meta = {
            "temperature": policy.temperature,
            "model": policy.model,
            "n_sampled": choice.n_sampled,
            "source": source,
            "seconds": round(seconds, 4),
            "shown": [_numbers(one) for one in choice.shown],
            "left_out": [{"text": one.text, "reason": one.reason} for one in choice.left_out[:MAX_LEFT_OUT]],
        }
        known = {"reason": choice.reason, "click_chance": choice.click_chance, "explore": choice.explored}
        meta |= {name: value for name, value in known.items() if value not in (None, "")}
        meta |= {"features": dict(request.features)} if request.features else {}
        return Impression(
            id=id,
            conversation=request.conversation,
            suggestions=choice.texts,
            policy=arm.name,
            log_prob=None if choice.log_prob is None else min(choice.log_prob, 0.0),
            user=self.log.pseudonym(whose.user) if whose.user else None,
            chat=self._chat(request.conversation, whose),
            meta=meta,
        )

    def _count(self, policy: str, choice: Choice, seconds: float) -> None:
        self.metrics.seconds.labels(policy).observe(seconds)
        for one in choice.left_out:
            self.metrics.left_out.labels(policy, one.reason).inc()
        if choice.shown and not choice.reason:
            self.metrics.impression(policy, len(choice.shown))
        else:
            self.metrics.silent.labels(policy, choice.reason).inc()


def _said_after(conversation: Sequence[Message], before: Sequence[Message]) -> str | None:
    """The user's message after the last one of ``before``; None where there is none yet."""
    texts = [same_text(message["content"]) for message in conversation if message["role"] == "user"]
    last = same_text(last_question(before))
    if last in texts:
        after = texts[len(texts) - texts[::-1].index(last) :]
        return after[0] if after else None
    return texts[-1]


def _as_shown(impression: Impression) -> Choice:
    """What was decided when it was shown, as far as the log has it."""
    numbers = impression.meta.get("shown", [])
    shown = [
        Candidate(text, one["log_prob"], one["sample"], one.get("mean"), one.get("std"))
        for text, one in zip(impression.suggestions, numbers, strict=False)
    ]
    return Choice(shown=shown, reason=impression.meta.get("reason", ""), n_sampled=impression.meta.get("n_sampled", 0))


def _numbers(one: Candidate) -> dict[str, float | int]:
    numbers = {"sample": one.sample, "log_prob": round(one.log_prob, 6)}
    numbers |= {} if one.propensity is None else {"propensity": one.propensity}
    return numbers if one.mean is None else numbers | {"mean": round(one.mean, 6), "std": round(one.std, 6)}


def _report(error: Exception) -> None:
    """Where it went wrong, without a word of what anybody wrote: messages of errors may quote it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(
        f"{frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in frames[::-1][:6]
    )
    LOGGER.error("no suggestions: %s in %s", type(error).__name__, where)
