"""Who may ask, how much and how fast, before any of it is read by the application.

An ASGI middleware. It reads the whole body first, within a size and a time, so that a slow or endless one costs a
socket and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openrlhf_qs.serve.forms import refusal

OPEN = ("/", "/healthz")  # without a key: a page that asks for one, and a word
LOCAL = ("localhost", "127.0.0.1", "[::1]")
MAX_CLIENTS = 10_000  # whose rates are remembered


@dataclass(frozen=True)
class Limits:
    """What a client may do.

    Attributes:
        body_bytes: of a request.
        body_s: seconds that a body may take to arrive.
        rate: requests a second for each client, on average; 0: any number.
        burst: requests that may come at once.
    """

    body_bytes: int = 262_144
    body_s: float = 10.0
    rate: float = 0.0
    burst: int = 40


class Gate:
    """The middleware. Keys are compared in constant time, and neither logged nor told.

    Args:
        keys: any of which opens; none: whoever reaches the server may ask, from this machine's own names alone.
        refused: called with a word for each request that is refused.
    """

    def __init__(self, app, keys: Sequence[str] = (), limits: Limits = Limits(), refused: Callable = print) -> None:  # noqa: B008
        self.app, self.limits, self.refused = app, limits, refused
        self.digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self.rates: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client to tokens and time

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._problem(scope, headers)
        if problem is None:
            body = await self._body(receive, headers)
            if isinstance(body, bytes):
                await self.app(scope, _replayed(body, receive), send)
                return
            problem = body
        status, reason, message = problem
        if reason:
            self.refused(reason)
            await _answer(send, status, reason, message)

    def _problem(self, scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        # Without a key a page of another site, opened on this machine, could ask by a name that leads here.
        if not self.digests and host.rpartition(":")[0] not in LOCAL and host not in LOCAL:
            return 421, "host", "this server answers only to localhost; start it with --key_file to open it"
        origin = headers.get("origin", "")
        if origin and origin.partition("://")[2] != host:
            return 403, "origin", "pages of other sites may not ask; ask from their server"
        if scope["path"] not in OPEN and self.digests and not self._has_key(headers):
            return 401, "key", "give a key: Authorization: Bearer KEY"
        if scope["path"] not in OPEN and not self._in_rate(scope, headers):
            return 429, "rate", f"more than {self.limits.rate:g} requests per second; ask again in a second"
        return None

    def _has_key(self, headers: dict[str, str]) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1")).digest() if scheme.lower() == "bearer" else b""
        return any([hmac.compare_digest(given, one) for one in self.digests])  # a list: all are looked at

    def _in_rate(self, scope, headers: dict[str, str]) -> bool:
        """A bucket of tokens for each key, or each address where there are no keys."""
        if not self.limits.rate:
            return True
        who = headers.get("authorization") if self.digests else (scope.get("client") or ("",))[0]
        now = time.monotonic()
        tokens, then = self.rates.pop(who, (float(self.limits.burst), now))
        tokens = min(self.limits.burst, tokens + (now - then) * self.limits.rate)
        self.rates[who] = (tokens - (tokens >= 1), now)
        if len(self.rates) > MAX_CLIENTS:
            self.rates.popitem(last=False)
        return tokens >= 1

    async def _body(self, receive, headers: dict[str, str]) -> bytes | tuple[int, str, str]:
        """The body, or what is wrong with it; without a reason where the client has gone."""
        too_large = (413, "body", f"a body of more than {self.limits.body_bytes} bytes")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.limits.body_bytes:
            return too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return 0, "", ""
                    body += message.get("body", b"")
                    if len(body) > self.limits.body_bytes:
                        return too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            return 408, "slow", f"the body took more than {self.limits.body_s:g} s"


def _replayed(body: bytes, receive):
    """``receive`` of an application that gets the body in one piece, then waits for the client to go."""
    given = False

    async def again():
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send, status: int, reason: str, message: str) -> None:
    body = json.dumps(refusal(reason, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")] if status in (408, 413) else []  # the rest of the body is not wanted
    headers += [(b"retry-after", b"1")] if status == 429 else []
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
