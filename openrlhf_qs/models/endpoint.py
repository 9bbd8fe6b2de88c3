"""An OpenAI-compatible chat endpoint: ask, ask again where that may help, say what is wrong where it does not.

Works with any server that speaks ``POST {base_url}/chat/completions``: vLLM, SGLang, llama.cpp, a hosted one.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from openrlhf_qs.form.prompt import Message

T = TypeVar("T")

PAUSE_S = 0.5  # before the first retry; doubled before each further one, and spread by a half
MAX_PAUSE_S = 60.0


class ChatEndpoint:
    """One model behind one endpoint; safe to ask from many threads.

    Args:
        base_url: up to and with the version, as in ``http://localhost:8000/v1``.
        model: the name the endpoint knows it by.
        api_key_env: environment variable with the API key; where it is not set, none is sent.
        timeout_s: seconds to wait for an answer, > 0.
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
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {base_url!r}: give it with http:// or https://")
        if timeout_s <= 0 or retries < 0:
            raise ValueError(f"timeout_s {timeout_s}, retries {retries}; give more than 0 and at least 0")
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model = model
        self.api_key = os.environ.get(api_key_env, "")
        self.timeout_s = timeout_s
        self.retries = retries

    def ask(self, messages: Sequence[Message], read: Callable[[str], T], **sampling: Any) -> T:
        """``read`` of the model's answer.

        Asked again, after a pause that doubles or that the server names, where the connection fails or times out, the
        server answers 408, 429 or 5xx, or ``read`` raises ValueError.

        Args:
            messages: as the chat endpoint takes them.
            read: makes of the answer's text what the caller wants; ValueError where it cannot.
            sampling: further fields of the request, as ``temperature`` or ``max_tokens``.

        Raises:
            ValueError: what was wrong with the last try, and how many there were.
        """
        for attempt in range(self.retries + 1):
            try:
                return read(self._request(messages, sampling))
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read(300).decode('utf-8', 'replace')!r}"
                if error.code < 500 and error.code not in (408, 429):  # asking again changes nothing
                    break
                wait_s = _named_pause(error)
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem, wait_s = str(error) or type(error).__name__, 0.0
            if attempt < self.retries:
                time.sleep(min(max(wait_s, PAUSE_S * 2**attempt * random.uniform(0.5, 1.5)), MAX_PAUSE_S))
        raise ValueError(f"gave up on {self.url} after try {attempt + 1} of {self.retries + 1}: {problem}")

    def _request(self, messages: Sequence[Message], sampling: dict[str, Any]) -> str:
        """The text of the model's answer."""
        body = {"model": self.model, "messages": list(messages), **sampling}
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
            answer = json.load(response)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise ValueError(f"no choices[0].message.content in {json.dumps(answer)[:200]}")
        return content


def _named_pause(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait, 0 where it names none."""
    value = error.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0
