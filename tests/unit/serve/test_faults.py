"""Everything goes wrong at once, and what was acknowledged is there, once, and nothing else is heard of it.

A real server and real sockets; the policy is one that fails, hangs and talks nonsense on purpose.
``python tests/unit/serve/test_faults.py 10000 DIR`` does the same at length and says what it saw.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import httpx2
import psutil
import uvicorn
from fakes import OTHERS, FakePolicy, app, filters, response, scorer

from openrlhf_qs.serve.gate import Limits
from openrlhf_qs.serve.live_log import read_log
from openrlhf_qs.serve.serve import HTTP
from openrlhf_qs.serve.service import Rules
from openrlhf_qs.serve.upstream import Upstream

IN_FLIGHT = 16
LEARN = [{"role": "user", "content": "How do I learn Turkish?"}, {"role": "assistant", "content": "Read a lot."}]


class BadPolicy(FakePolicy):
    """Of a hundred answers three raise, two hang, five are malformed."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng

    async def sample(self, conversation, n):
        drawn = self.rng.random()
        if drawn < 0.03:
            raise RuntimeError("the engine said no")
        await asyncio.sleep(5.0 if drawn < 0.05 else self.rng.random() / 200)
        return [response(problem="cut")] * n if drawn < 0.1 else [response(), response(OTHERS)][:n]


async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An upstream that hangs, breaks off in the middle, or streams."""
    try:
        await reader.readuntil(b"\r\n\r\n")
        drawn = random.random()
        if drawn < 0.3:
            await asyncio.sleep(5)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            writer.write(b"9\r\ndata: 1\n\n\r\n")
            await writer.drain()
        if drawn > 0.6:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass  # whoever asked has gone, or this server goes
    finally:
        writer.close()


async def load(folder: Path, n: int, seed: int = 0) -> dict:
    """``n`` requests, of which half go wrong somewhere; what was seen."""
    rng = random.Random(seed)
    other = await asyncio.start_server(upstream, "127.0.0.1", 0)
    to = Upstream(f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}/v1", read_s=1.0)
    application, service = app(
        folder,
        to,
        limits=Limits(body_bytes=20_000, body_s=1.0),
        policy=BadPolicy(rng),
        scorer=scorer(),
        rules=Rules(answer_s=2.0),
    )
    service.arms[0].suggester.filters = filters("asked_before", "users_language")
    how = {**HTTP, "log_level": "critical", "lifespan": "off", "timeout_keep_alive": 300}
    server = uvicorn.Server(uvicorn.Config(application, port=0, **how))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    seen: Counter[str] = Counter()
    shown: dict[str, list[int]] = {}
    memory: list[int] = []
    at_once = asyncio.Semaphore(IN_FLIGHT)

    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300) as asking:

        async def ordinary(number: int) -> None:
            ask = {"conversation": LEARN, "user": f"u{number % 50}", "request_id": f"r{number}"}
            told = (await asking.post("/v1/suggestions", json=ask)).json()
            if rng.random() < 0.3:  # the answer got lost on its way, so it is asked for again
                again = (await asking.post("/v1/suggestions", json=ask)).json()
                assert again["impression_id"] == told["impression_id"] and again["suggestions"] == told["suggestions"]
            seen[told["reason"] or "shown"] += 1
            shown[told["impression_id"]] = [0] * len(told["suggestions"])
            if told["suggestions"] and rng.random() < 0.5:
                place = rng.randrange(len(told["suggestions"]))
                event = {"impression_id": told["impression_id"], "kind": "clicked", "place": place}
                for _ in range(rng.choice([1, 1, 2])):
                    answer = await asking.post("/v1/events", json={"events": [event]})
                    assert answer.json()["statuses"][0] in ("accepted", "duplicate")
                shown[told["impression_id"]][place] = 1

        async def malformed(number: int) -> None:
            body = rng.choice([b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"x" * 30_000, b"[" * 15_000])
            path = rng.choice(["/v1/suggestions", "/v1/events", "/v1/chat/completions"])
            answer = await asking.post(path, content=body)
            assert 400 <= answer.status_code < 500, answer.status_code
            seen[f"malformed, {answer.status_code}"] += 1

        async def handed_on(number: int) -> None:
            body = {"model": "big", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
            try:
                answer = await asking.post("/v1/chat/completions", json=body)
                assert answer.status_code in (200, 502, 504)
                seen[f"upstream, {answer.status_code}"] += 1
            except httpx2.HTTPError:
                seen["upstream, broken off"] += 1

        async def gone(number: int) -> None:
            """Sends all, half or nothing of a request, and goes, at once or after a while."""
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = json.dumps({"conversation": LEARN}).encode()
            head = "POST /v1/suggestions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            sent = head.encode() + body
            writer.write(sent[: rng.choice([0, 20, len(sent) - 10, len(sent)])])
            await writer.drain()
            await asyncio.sleep(rng.choice([0, 0, 0.01, 0.3]))
            writer.close()
            seen["gone"] += 1

        async def one(number: int) -> None:
            async with at_once:
                await rng.choices([ordinary, malformed, handed_on, gone], [50, 20, 15, 15])[0](number)
            if number % max(n // 20, 1) == 0:
                memory.append(psutil.Process().memory_info().rss >> 20)

        began = time.monotonic()
        await asyncio.gather(*map(one, range(n)))
        seconds = time.monotonic() - began
        assert (await asking.get("/healthz")).status_code == 200
        metrics = (await asking.get("/metrics")).text
    server.should_exit = True
    await serving
    other.close()
    service.close()
    await to.close()
    assert service.n_in_flight == 0
    return {"seen": dict(seen), "shown": shown, "memory": memory, "seconds": seconds, "metrics": metrics}


def check(folder: Path, found: dict) -> int:
    """That the log has what was acknowledged, and of each impression one row. Returns the number of rows."""
    logged = {}
    for impression, events in read_log(folder):
        assert impression.id not in logged
        logged[impression.id] = [
            int(any(one.place == place for one in events)) for place in range(len(impression.suggestions))
        ]
        assert len({(one.kind, one.place) for one in events}) == len(events)
    for id, clicks in found["shown"].items():
        assert logged[id] == clicks
    return len(logged)


def test_whatever_goes_wrong_what_was_acknowledged_is_in_the_log_once(tmp_path):
    found = asyncio.run(load(tmp_path, 400))
    check(tmp_path, found)
    seen = found["seen"]
    assert seen["shown"] > 100 and seen["failed"] + seen["too_slow"] > 2 and seen["gone"] > 20
    assert seen["upstream, 504"] > 5 and seen["upstream, 200"] > 5
    assert not [name for name in seen if name.endswith(", 500")]


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    result = asyncio.run(load(folder, int(sys.argv[1])))
    print(f"{check(folder, result):,} rows, {len(result['shown']):,} acknowledged, {result['seconds']:.0f} s")
    print(json.dumps(result["seen"], indent=1, sort_keys=True))
    print("MiB resident, in twenty steps:", *result["memory"])
