"""What is not ours to answer is handed on to another OpenAI-compatible server, byte for byte, streams too."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from typing import Any

CONNECT_S, READ_S = 10.0, 300.0  # between two pieces of an answer; a model may think for long
# Of this hop alone, or ours: never handed on.
HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
HOP |= {"upgrade", "host", "content-length", "authorization", "cookie", "origin", "referer", "expect"}


class Upstream:
    """One server.

    Args:
        base_url: up to and with the version, as in ``http://localhost:8000/v1``.
        model: what it is asked for where the chat asked for one of ours; empty: the same name.
        api_key: sent to it, in the place of the key that opens this server.
        read_s: seconds without a byte of an answer after which it is given up.
    """

    def __init__(self, base_url: str, model: str = "", api_key: str = "", read_s: float = READ_S) -> None:
        import httpx2

        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise ValueError(
                f"--upstream {base_url.rpartition('@')[2]}: give http:// or "
                "https://, without user name or password, up to and including the version, as in http://localhost:8000/v1"
            )
        self.base_url, self.model, self.api_key = base_url.rstrip("/"), model, api_key
        self.client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(read_s, connect=CONNECT_S),
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=None),
        )

    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], AsyncIterator[bytes]]:
        """Status, headers and body of its answer, as it comes. httpx2's errors where there is none."""
        request = self.client.build_request("POST", f"{self.base_url}{path}", content=body, headers=self._own(headers))
        answer = await self.client.send(request, stream=True)

        async def pieces() -> AsyncIterator[bytes]:
            try:
                async for piece in answer.aiter_raw():
                    yield piece
            finally:
                await answer.aclose()

        return answer.status_code, _without_hop(answer.headers), pieces()

    async def models(self) -> list[dict[str, Any]]:
        """What it lists; nothing where it does not answer in a few seconds."""
        import httpx2

        try:
            answer = await self.client.get(f"{self.base_url}/models", headers=self._own({}), timeout=5.0)
            listed = answer.json()["data"]
        except (httpx2.HTTPError, ValueError, KeyError, TypeError):
            return []
        return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []

    def renamed(self, body: dict[str, Any]) -> bytes:
        """The body with the upstream's model in the place of ours."""
        return json.dumps(body | ({"model": self.model} if self.model else {})).encode()

    def _own(self, headers: Mapping[str, str]) -> dict[str, str]:
        own = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return _without_hop(headers) | own

    async def close(self) -> None:
        await self.client.aclose()


def _without_hop(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower() not in HOP}
