"""An OpenAI-compatible chat endpoint: ask, ask again where that may help, say what is wrong where it does not.

Works with any server that speaks ``POST {base_url}/chat/completions``: vLLM, SGLang, llama.cpp, a hosted one. The
requests are the ``openai`` client's. What it does not know of is here, for the server is not trusted: an answer has a
time and a size that it may take, no redirect is followed, which would take the key to another host, the organisation
and the project of a hosted account are not told to others, and what a server says is shown as a quoted literal. The
client's own retries are off: an answer that is there and cannot be read is asked for again too.
"""

from __future__ import annotations

import json
import os
import queue
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from openrlhf_qs.form.prompt import Message

T = TypeVar("T")

PAUSE_S = 0.5  # before the first retry; doubled before each further one, and spread by a half
MAX_PAUSE_S = 60.0
MAX_BYTES = 10_000_000  # of an answer
UNSENT = ("OpenAI-Organization", "OpenAI-Project")  # headers that the client would take from the environment


class NoAnswer(ValueError):
    """What was wrong with one try; ``again``: whether asking again may help, after ``wait_s`` seconds."""

    def __init__(self, problem: str, again: bool = True, wait_s: float = 0.0) -> None:
        super().__init__(problem)
        self.again, self.wait_s = again, wait_s


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
            raise ValueError(f"endpoint {shown}: give it without user name and password; the key is in {api_key_env}")
        if timeout_s <= 0 or retries < 0:
            raise ValueError(f"timeout_s {timeout_s}, retries {retries}; give more than 0 and at least 0")
        self.shown = shown.rstrip("/")
        self.model = model
        self.timeout_s = timeout_s
        self.retries = retries
        self.api_key = os.environ.get(api_key_env, "")
        self.client = _client(base_url, self.api_key, timeout_s)

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
            raise NoAnswer(f"no complete answer within {self.timeout_s:g} s") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _request(self, messages: Sequence[Message], sampling: dict[str, Any], deadline: float) -> str:
        import httpx2
        import openai

        create = self.client.chat.completions.with_streaming_response.create  # the body is ours to read
        unsent = UNSENT if self.api_key else ("Authorization", *UNSENT)
        # Not compressed: a small answer could else become a large one in memory.
        headers = dict.fromkeys(unsent, openai.Omit()) | {"Accept-Encoding": "identity"}
        body = {"model": self.model, "messages": list(messages), "extra_body": sampling}
        try:
            with create(**body, extra_headers=headers) as response:
                answer = json.loads(_limited(response.http_response.iter_raw(), deadline))
        except (openai.APITimeoutError, httpx2.TimeoutException):
            raise NoAnswer(f"no complete answer within {self.timeout_s:g} s") from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            raise NoAnswer(str(cause) or type(cause).__name__) from None
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise NoAnswer(f"no choices[0].message.content in {json.dumps(answer)[:200]}")
        return content


def _client(base_url: str, api_key: str, timeout_s: float) -> Any:
    """The client of ``openai`` that sends ``api_key`` alone, to that address alone, once."""
    import httpx2
    import openai  # half a second, which a list of plugins need not wait for

    parts = urllib.parse.urlsplit(base_url)
    try:
        return openai.OpenAI(
            base_url=urllib.parse.urlunsplit(parts._replace(query="", fragment="")),
            api_key=api_key or "none",
            default_query=dict(urllib.parse.parse_qsl(parts.query)),
            timeout=timeout_s,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [_check_status]}),
        )
    except httpx2.InvalidURL as error:
        raise ValueError(f"endpoint {_without_secrets(base_url)!r}: {error}") from None


def _limited(chunks: Iterator[bytes], deadline: float) -> bytes:
    """The body, at most ``MAX_BYTES`` of it, until the deadline. NoAnswer where it is larger or later."""
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > MAX_BYTES:
            raise NoAnswer(f"an answer of more than {MAX_BYTES:,} bytes", again=False)
        if time.monotonic() > deadline:
            raise NoAnswer("no complete answer in time")
    return bytes(body)


def _check_status(response: Any) -> None:
    """What an HTTP status says, before the client reads what comes with it, however long; asking again helps where the
    server is busy."""
    status = response.status_code
    if status < 300:
        return
    if status < 400:
        host = urllib.parse.urlsplit(response.headers.get("Location", "")).netloc
        raise NoAnswer(f"HTTP {status}: a redirect to {host!r} is not followed; give that address", again=False)
    import httpx2

    try:
        said = repr(next(response.iter_raw(300), b"").decode("utf-8", "replace"))
    except httpx2.HTTPError as broken:
        said = f"then {type(broken).__name__}"
    value = response.headers.get("Retry-After", "")
    again = status >= 500 or status in (408, 429)
    raise NoAnswer(f"HTTP {status}: {said}", again, float(value) if value.isdecimal() else 0.0)


def _without_secrets(url: str) -> str:
    """``url`` without user, password and query."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
