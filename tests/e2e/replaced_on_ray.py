"""Two replicas under Ray Serve, replaced under load: a process of its own, since Ray reads its environment when it is
imported. Prints the answers as JSON.

    python replaced_on_ray.py LOG_FOLDER
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path

import httpx2

from openrlhf_qs.models import own_ray
from openrlhf_qs.serve import on_ray

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "serve"))
import fakes

LEARN = [{"role": "user", "content": "How do I learn Turkish?"}, {"role": "assistant", "content": "Read a lot."}]


def deploy(text: str, folder: str) -> None:
    """Two replicas of a policy that begins its first suggestion with ``text``."""

    def build():
        texts = [f"{text}, from process {os.getpid()}?", *fakes.TURKISH[1:]]
        application, _ = fakes.app(folder, policy=fakes.FakePolicy(0.02, fakes.response(texts)))
        return application

    on_ray.deploy(build, (2, 2))


async def ask_until(replaced: asyncio.Event, address: str, answered: list[dict]) -> None:
    async with httpx2.AsyncClient(base_url=address, timeout=60) as asking:
        while not replaced.is_set():
            answer = await asking.post("/v1/suggestions", json={"conversation": LEARN})
            assert answer.status_code == 200, answer.text
            told = answer.json()
            event = {"impression_id": told["impression_id"], "kind": "clicked", "place": 0}
            statuses = (await asking.post("/v1/events", json={"events": [event]})).json()["statuses"]
            assert statuses == ["accepted"]  # whichever replica it came to
            answered.append(told)


async def replace_under_load(address: str, folder: str) -> list[dict]:
    replaced, answered = asyncio.Event(), []
    asking = [asyncio.create_task(ask_until(replaced, address, answered)) for _ in range(4)]
    await asyncio.sleep(1)
    await asyncio.to_thread(deploy, "new", folder)
    await asyncio.sleep(1)
    replaced.set()
    await asyncio.gather(*asking)
    return answered


def main(folder: str) -> None:
    own_ray.prepare_environment(loopback=True)
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(fakes)  # a replica knows nothing of the tests
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    on_ray.start(2, "127.0.0.1", port)
    deploy("old", folder)
    answered = asyncio.run(replace_under_load(f"http://127.0.0.1:{port}", folder))
    print(json.dumps(answered))


if __name__ == "__main__":
    main(sys.argv[1])
