"""The server under Ray Serve: two replicas write one log, and are replaced under load without a lost request."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import httpx2
import pytest

from openrlhf_qs.models import own_ray
from openrlhf_qs.serve import on_ray
from openrlhf_qs.serve.live_log import read_log

LEARN = [{"role": "user", "content": "How do I learn Turkish?"}, {"role": "assistant", "content": "Read a lot."}]


@pytest.fixture
def deploy(tmp_path, monkeypatch):
    """``deploy(text)``: two replicas of a policy that begins its first suggestion with that text."""
    try:
        on_ray.check_protobuf()
    except ValueError as error:
        pytest.skip(str(error))
    own_ray.prepare_environment(loopback=True)  # before Ray is imported, which reads it then
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "unit" / "serve")
    import fakes
    from ray import cloudpickle, serve

    cloudpickle.register_pickle_by_value(fakes)  # a replica knows nothing of the tests
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    on_ray.start(2, "127.0.0.1", port)
    folder = str(tmp_path / "live")

    def start(text: str) -> str:
        def build():
            texts = [f"{text}, from process {os.getpid()}?", *fakes.TURKISH[1:]]
            application, _ = fakes.app(folder, policy=fakes.FakePolicy(0.02, fakes.response(texts)))
            return application

        on_ray.deploy(build, (2, 2))
        return f"http://127.0.0.1:{port}"

    yield start
    serve.shutdown()
    import ray

    ray.shutdown()
    cloudpickle.unregister_pickle_by_value(fakes)
    sys.modules.pop("fakes")


def test_replicas_share_a_log_and_are_replaced_without_a_lost_request(deploy, tmp_path):
    address = deploy("old")
    answered: list[dict] = []

    async def ask_until(replaced: asyncio.Event) -> None:
        async with httpx2.AsyncClient(base_url=address, timeout=60) as asking:
            while not replaced.is_set():
                answer = await asking.post("/v1/suggestions", json={"conversation": LEARN})
                assert answer.status_code == 200, answer.text
                told = answer.json()
                event = {"impression_id": told["impression_id"], "kind": "clicked", "place": 0}
                statuses = (await asking.post("/v1/events", json={"events": [event]})).json()["statuses"]
                assert statuses == ["accepted"]  # whichever replica it came to
                answered.append(told)

    async def run() -> None:
        replaced = asyncio.Event()
        asking = [asyncio.create_task(ask_until(replaced)) for _ in range(4)]
        await asyncio.sleep(1)
        await asyncio.to_thread(deploy, "new")
        await asyncio.sleep(1)
        replaced.set()
        await asyncio.gather(*asking)

    asyncio.run(run())
    first = [told["suggestions"][0]["text"] for told in answered]
    assert {text.partition(",")[0] for text in first} == {"old", "new"} and first[-1].startswith("new")
    assert len({text for text in first if text.startswith("old")}) == 2, "both replicas answer"
    logged = {impression.id: [event.kind for event in events] for impression, events in read_log(tmp_path / "live")}
    assert logged == {told["impression_id"]: ["clicked"] for told in answered}
