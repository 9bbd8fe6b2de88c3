"""An OpenAI-compatible chat endpoint: ask, ask again where that may help, say what is wrong where it does not.

Works with any server that speaks ``POST {base_url}/chat/completions``: vLLM, SGLang, llama.cpp, a hosted one. The
server is not trusted: an answer has a time and a size that it may take, no redirect is followed, which would take the
key to another host, and what it says is shown as a quoted literal.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from openrlhf_qs.form.prompt import Message

T = TypeVar("T")

PAUSE_S = 0.5  # before the first retry; doubled before each further one, and spread by a half
MAX_PAUSE_S = 60.0
MAX_BYTES = 10_000_000  # of an answer


class NoAnswer(ValueError):
    """What was wrong with one try; ``again``: whether asking again may help, after ``wait_s`` seconds."""

    def __init__(self, problem: str, again: bool = True, wait_s: float = 0.0) -> None:
        super().__init__(problem)
        self.again, self.wait_s = again, wait_s


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None  # urllib then raises the 3xx as an HTTPError


class ChatEndpoint:
    """One model behind one endpoint; safe to ask from many threads.

    Args:
        base_url: up to and with the version, as in ``http://localhost:8000/v1``.
        model: the name the endpoint knows it by.
        api_key_env: environment variable with the API key; where it is not set, none is sent.
        timeout_s: seconds that a whole answer may take, > 0.
        retries: further tries after an answer that failed or cannot be read, >= 0.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str = "OPENAI_API_KEY",
        timeout_s: float = 60.0,
        retries: int = 3,
    ) -> None:
        shown = _without_secrets(base_url)
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {shown!r}: give it with http:// or https://")
        if "@" in urllib.parse.urlsplit(base_url).netloc:
            raise ValueError(f"endpoint {shown}: no user name or password in the address; the key is in {api_key_env}")
        if timeout_s <= 0 or retries < 0:
            raise ValueError(f"timeout_s {timeout_s}, retries {retries}; give more than 0 and at least 0")
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.shown = _without_secrets(self.url)
        self.model = model
        self.api_key = os.environ.get(api_key_env, "")
        self.timeout_s = timeout_s
        self.retries = retries
        self.opener = urllib.request.build_opener(NoRedirect)

    def ask(self, messages: Sequence[Message], read: Callable[[str], T], **sampling: Any) -> T:
        """``read`` of the model's answer.

        Asked again, after a pause that doubles or that the server names, where the connection fails or breaks off, the
        answer takes too long, the server answers 408, 429 or 5xx, or ``read`` raises ValueError.

        Args:
            messages: as the chat endpoint takes them.
            read: makes of the answer's text what the caller wants; ValueError where it cannot.
            sampling: further fields of the request, as ``temperature`` or ``max_tokens``.

        Raises:
            ValueError: what was wrong with the last try, and how many there were.
        """
        for attempt in range(self.retries + 1):
            try:
                return read(self._within_time(messages, sampling))
            except NoAnswer as error:
                problem, again, wait_s = str(error), error.again, error.wait_s
            except ValueError as error:
                problem, again, wait_s = str(error), True, 0.0
            except RecursionError:  # json, of what is nested too deep
                problem, again, wait_s = "the answer is nested too deep", True, 0.0
            if not again:
                break
            if attempt < self.retries:
                time.sleep(min(max(wait_s, PAUSE_S * 2**attempt * random.uniform(0.5, 1.5)), MAX_PAUSE_S))
        raise ValueError(f"gave up on {self.shown} after try {attempt + 1} of {self.retries + 1}: {problem}")

    def _within_time(self, messages: Sequence[Message], sampling: dict[str, Any]) -> str:
        """The text of the answer. NoAnswer after ``timeout_s``, whatever the server does: a socket's own time-out
        begins anew with every byte."""
        done: queue.Queue[str | Exception] = queue.Queue()

        def work() -> None:
            try:
                done.put(self._request(messages, sampling, time.monotonic() + self.timeout_s))
            except Exception as error:  # raised in the thread that asked
                done.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            answer = done.get(timeout=self.timeout_s)
        except queue.Empty:
            raise NoAnswer(f"no whole answer within {self.timeout_s:g} s") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _request(self, messages: Sequence[Message], sampling: dict[str, Any], deadline: float) -> str:
        body = {"model": self.model, "messages": list(messages), **sampling}
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with self.opener.open(request, timeout=self.timeout_s) as response:
                answer = json.loads(_limited(response, deadline))
        except urllib.error.HTTPError as error:
            raise _refused(error, deadline) from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(str(error) or type(error).__name__) from None
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise NoAnswer(f"no choices[0].message.content in {json.dumps(answer)[:200]}")
        return content


def _limited(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body, at most ``MAX_BYTES`` of it, until the deadline. NoAnswer where it is larger, later, or breaks off."""
    body = bytearray()
    while chunk := response.read1(65536):
        body += chunk
        if len(body) > MAX_BYTES:
            raise NoAnswer(f"an answer of more than {MAX_BYTES:,} bytes", again=False)
        if time.monotonic() > deadline:
            raise NoAnswer("no whole answer in time")
    if response.length:
        raise NoAnswer(f"the answer broke off after {len(body)} bytes")
    return bytes(body)


def _refused(error: urllib.error.HTTPError, deadline: float) -> NoAnswer:
    """What an HTTP status says; asking again helps where the server is busy."""
    if 300 <= error.code < 400:
        host = urllib.parse.urlsplit(error.headers.get("Location", "")).netloc
        return NoAnswer(f"HTTP {error.code}: a redirect to {host!r} is not followed; give that address", again=False)
    try:
        said = repr(error.read(300).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException) as broken:
        said = f"then {type(broken).__name__}"
    value = error.headers.get("Retry-After", "")
    again = error.code >= 500 or error.code in (408, 429)
    return NoAnswer(f"HTTP {error.code}: {said}", again, float(value) if value.isdecimal() else 0.0)


def _without_secrets(url: str) -> str:
    """``url`` without user, password and query."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
