"""The HTTP side of a server: a thin FastAPI application over :class:`openrlhf_qs.serve.service.Service`.

Nothing here decides what is shown or what is a click. Errors and metrics hold no word of what a user wrote.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sqlite3
from collections.abc import Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, Literal

import httpx2
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException

from openrlhf_qs import __version__
from openrlhf_qs.form.request import Request as Conversation
from openrlhf_qs.form.task import MAX_SUGGESTIONS
from openrlhf_qs.serve.demo import demo_answer
from openrlhf_qs.serve.forms import (
    DEMO,
    MODELS,
    Asked,
    as_messages,
    completion,
    completion_events,
    in_form,
    read_asked,
    refusal,
    text_of,
)
from openrlhf_qs.serve.gate import Gate, Limits
from openrlhf_qs.serve.live_log import Event
from openrlhf_qs.serve.service import Service, Whose
from openrlhf_qs.serve.suggester import Candidate
from openrlhf_qs.serve.upstream import Upstream

# null is what clients send where they know nothing
Short = Annotated[str, BeforeValidator(lambda value: "" if value is None else value), Field(max_length=512)]
IMPRESSION = "X-Impression-Id"  # of an answer in a chat's own form, for those who can send events


class Ask(BaseModel):
    """What suggestions are asked for."""

    model_config = ConfigDict(extra="forbid")

    conversation: list[dict[str, Any]] = Field(
        description="oldest message first: role (system, user, assistant) and content, as in OpenAI's chat API"
    )
    n: int | None = Field(None, ge=1, le=MAX_SUGGESTIONS, description="maximum number; default: as in training")
    user: Short = Field("", description="the user; kept as a pseudonym, and decides the arm")
    chat: Short = Field("", description="the chat; kept as a pseudonym")
    language: Short = Field(
        "",
        pattern=r"^([A-Za-z]{2}([-_].*)?)?$",
        description="ISO 639-1, as in de or pt-BR; default: that of the user's last message",
    )
    request_id: Short = Field("", description="the same one, user, chat and conversation again: the same answer")
    explain: bool = Field(False, description="also return what was left out, and why")


class Suggestion(BaseModel):
    """One suggestion; ``mean`` and ``std`` are the reward model's, ``log_prob`` nats a token."""

    text: str
    mean: float | None = None
    std: float | None = None
    log_prob: float | None = None
    reason: str = Field("", description="why it is not shown")


class Answer(BaseModel):
    """What is shown; nothing where there is a reason."""

    impression_id: str
    suggestions: list[Suggestion]
    policy: str
    reason: str = ""
    click_chance: float | None = Field(None, description="probability of one or more clicks if all are looked at")
    left_out: list[Suggestion] | None = None


class OneEvent(BaseModel):
    """What became of an impression."""

    model_config = ConfigDict(extra="forbid")

    impression_id: Short
    kind: Literal["shown", "clicked", "dismissed"]
    place: int = Field(
        -1, ge=-(2**31), lt=2**31, description="of the suggestion, from 0; -1, for shown and dismissed: all of them"
    )
    event_id: Short = Field("", description="an event with a known id changes nothing")


class Events(BaseModel):
    """Several, which are kept all or none."""

    model_config = ConfigDict(extra="forbid")

    events: list[OneEvent] = Field(max_length=256)


class Refusal(BaseModel):
    """In words, and as one that a program can tell."""

    message: str
    type: str
    code: str


class Refused(BaseModel):
    """Every error, as OpenAI's API has them."""

    error: Refusal


class Statuses(BaseModel):
    """For each event, in their order."""

    statuses: list[Literal["accepted", "duplicate", "late", "unknown", "no_such_place"]]


def build_app(
    service: Service,
    upstream: Upstream | None = None,
    keys: Sequence[str] = (),
    limits: Limits = Limits(),  # noqa: B008
) -> FastAPI:
    """The ASGI application.

    Args:
        keys: see :class:`~openrlhf_qs.serve.gate.Gate`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        await service.warm_up()
        yield
        if upstream is not None:
            await upstream.close()
        service.close()

    app = FastAPI(
        title="openrlhf-qs",
        version=__version__,
        description="Follow-up suggestions",
        lifespan=lifespan,
        responses={422: {"model": Refused, "description": "What is wrong with the request"}},
    )
    page, policy_of_page = _page()

    async def check() -> None:
        """Raise where an engine is dead."""
        for arm in service.arms:
            await arm.suggester.policy.check()

    app.state.check = check

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        """Where the body is wrong, without the body."""
        service.metrics.refused.labels("invalid").inc()
        return _error(422, "invalid", "; ".join(_wrong(one, request) for one in error.errors()[:5]))

    @app.exception_handler(HTTPException)
    async def no_such_thing(request: Request, error: HTTPException) -> JSONResponse:
        """A path or a method that is not there, or bytes that are no text: in the same form as every other error."""
        code = {404: "not_found", 405: "method"}.get(error.status_code, "invalid")
        service.metrics.refused.labels(code).inc()
        message = "the body is not JSON in UTF-8" if error.status_code == 400 else str(error.detail)
        return JSONResponse(refusal(code, message), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        """A fault of ours, in that form too; the traceback is logged."""
        service.metrics.refused.labels("fault").inc()
        return _error(500, "fault", "internal error; the server's log says where")

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy_of_page, "X-Frame-Options": "SAMEORIGIN"})

    @app.head("/healthz", include_in_schema=False)  # as monitors ask
    @app.get("/healthz", summary="Whether the engines are alive")
    async def healthz() -> JSONResponse:
        try:
            await check()
        except Exception:
            return JSONResponse({"status": "engine dead"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/v1/suggestions", summary="Suggestions under a conversation")
    async def suggestions(ask: Ask, asking: Request) -> Answer:
        features = {"language": ask.language} if ask.language else {}
        request = Conversation(as_messages(ask.conversation), text_of(ask.user) or None, features)
        whose = Whose(text_of(ask.user), text_of(ask.chat), text_of(ask.request_id))
        impression, choice = await service.suggest(request, whose, ask.n, gone=asking.is_disconnected)
        return Answer(
            impression_id=impression.id,
            suggestions=[_told(one) for one in choice.shown],
            policy=impression.policy,
            reason=choice.reason,
            click_chance=choice.click_chance,
            left_out=[_told(one) for one in choice.left_out] if ask.explain else None,
        )

    @app.post("/v1/events", summary="Shown, clicked, dismissed", response_model=Statuses)
    async def events(sent: Events) -> Any:
        found = [Event(text_of(one.impression_id), one.kind, one.place, text_of(one.event_id)) for one in sent.events]
        try:
            return Statuses(statuses=await service.events(found))
        except (OSError, sqlite3.Error):
            return _error(503, "not_logged", "the log cannot be written; send the events again")

    @app.get("/v1/models", summary="OpenAI's list of models")
    async def models() -> dict[str, Any]:
        own = [*MODELS, *([DEMO] if upstream is None else [])]
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "openrlhf-qs"} for name in own]
        return {"object": "list", "data": [*listed, *(await upstream.models() if upstream else [])]}

    @app.post("/v1/chat/completions", summary="OpenAI's chat API: follow-up tasks are answered, others passed on")
    async def chat_completions(request: Request) -> Response:
        raw = await request.body()
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            service.metrics.refused.labels("invalid").inc()
            return _error(400, "invalid", "the body is not a JSON object")
        asked = read_asked(body, request.headers)
        whose = Whose(asked.user, asked.chat, text_of(request.headers.get("idempotency-key")))
        if asked.form or not asked.task:  # the task of another kind is no message of the user
            await _joined(service, asked, whose)
        if asked.form:
            return await _follow_ups(service, asked, whose, request)
        if upstream is not None:
            sent = upstream.renamed(body) if asked.model in MODELS else raw
            return await _handed_on(service, upstream, sent, request)
        if asked.model == DEMO:
            return _completed(demo_answer(asked.conversation), asked)
        service.metrics.refused.labels("no_upstream").inc()
        return _error(
            404, "no_upstream", "this is not a follow-up task, and there is no --upstream server for other tasks"
        )

    app.add_middleware(
        Gate, keys=keys, limits=limits, refused=lambda reason: service.metrics.refused.labels(reason).inc()
    )
    return app


def _wrong(one: dict[str, Any], request: Request) -> str:
    """One thing that is wrong with a body, without its words."""
    place = ".".join(str(part) for part in one["loc"][1:])
    if one["type"] == "json_invalid":
        return "the body is not JSON"
    if not place and "json" not in request.headers.get("content-type", "").lower():
        return "give the header Content-Type: application/json"
    return f"{place or 'the body'}: {one['msg']}"


async def _joined(service: Service, asked: Asked, whose: Whose) -> None:
    try:
        await service.next_message(asked.conversation, whose)
    except (OSError, sqlite3.Error):  # the chat goes on all the same
        service.metrics.refused.labels("not_logged").inc()


async def _follow_ups(service: Service, asked: Asked, whose: Whose, asking: Request) -> Response:
    request = Conversation(asked.conversation, asked.user or None)
    impression, choice = await service.suggest(request, whose, source=asked.form, gone=asking.is_disconnected)
    return _completed(in_form(choice.texts, asked.form, asked.schema), asked, {IMPRESSION: impression.id})


async def _handed_on(service: Service, upstream: Upstream, body: bytes, request: Request) -> Response:
    try:
        status, headers, pieces = await upstream.post("/chat/completions", body, request.headers)
    except httpx2.TimeoutException:
        service.metrics.upstream.labels("timeout").inc()
        return _error(504, "upstream", "the upstream server did not answer in time")
    except httpx2.HTTPError:
        service.metrics.upstream.labels("unreachable").inc()
        return _error(502, "upstream", "the upstream server cannot be reached")
    service.metrics.upstream.labels(f"{status // 100}xx").inc()
    return StreamingResponse(_until_broken(pieces), status, headers)


async def _until_broken(pieces):
    """The upstream's answer as far as it goes; one that breaks off is cut short, as it would be without us."""
    try:
        async for piece in pieces:
            yield piece
    except httpx2.HTTPError:
        return


def _completed(text: str, asked: Asked, headers: dict[str, str] | None = None) -> Response:
    if asked.stream:
        return StreamingResponse(completion_events(text, asked.model), media_type="text/event-stream", headers=headers)
    return JSONResponse(completion(text, asked.model), headers=headers)


def _told(one: Candidate) -> Suggestion:
    return Suggestion(text=one.text, mean=one.mean, std=one.std, log_prob=one.log_prob, reason=one.reason)


def _error(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse(refusal(code, message), status)


def _page() -> tuple[str, str]:
    """The page, and a policy under which no other script, style or host has a part in it."""
    html = files("openrlhf_qs.serve").joinpath("templates/page.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts
        )

    return html, (
        f"default-src 'none'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
        f"script-src {hashes('script')}; style-src {hashes('style')}"
    )
