"""Users of a small world talk to a served SFT policy over HTTP; what they click trains the next one, which is served.

The first server is killed the moment its last click was acknowledged. The tests stand in the order of the way, and
each needs the one before it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from openrlhf_qs.clicks.click_log import read_click_log

ROOT = Path(__file__).parents[2]
WORLDS = ROOT / "tests" / "worlds.py"
WORLD = "en"
N_CONVERSATIONS, N_EACH, N_USERS = 300, 3, 200
SMALL = {
    "SFT_BATCH": "16",
    "SFT_EPOCHS": "20",
    "GARM_EPOCHS": "2",
    "GARM_BATCH": "16",
    "SPREAD": "0",
    "RFT": "0",
    "STEPS": "4",
    "PROMPTS": "4",
    "N_SAMPLES": "4",
    "GRPO_MICRO_BATCH": "16",
    "TRAIN_BATCH": "16",
    "N_HELDOUT": "40",
    "N_SELECTION": "20",
    "TEMPERATURES": "1",
    "BEST_OF": "1",
    "JUDGE": "none",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """The variables of the first run; its log is of the users who will chat, shown suggestions of a mixed policy."""
    folder = tmp_path_factory.mktemp("live")
    log = folder / "mixed.jsonl"
    subprocess.run([sys.executable, str(WORLDS), WORLD, str(log), "1500", "300"], check=True)
    return os.environ | SMALL | {"RUN": str(folder / "first"), "CLICK_LOG": str(log), "VIRTUAL_ENV": sys.prefix}


@pytest.fixture(scope="module")
def clicked() -> dict[str, list[int]]:
    """What was acknowledged: impression to clicks."""
    return {}


def recipe(name: str, environment: dict[str, str]) -> str:
    result = subprocess.run(
        ["bash", str(ROOT / "recipes" / f"{name}.sh")], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def openrlhf_qs(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "openrlhf_qs.cli", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@contextmanager
def serving(environment: dict[str, str], log: Path):
    """``recipes/serve.sh``, from when it answers; its address and its process. It is killed, not ended."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    said = open(f"{log}.txt", "w+")
    server = subprocess.Popen(
        ["bash", str(ROOT / "recipes" / "serve.sh")],
        env=environment | {"SERVE_PORT": str(port), "LIVE_LOG": str(log)},
        stdout=said,
        stderr=said,
        start_new_session=True,
        cwd=ROOT,
    )
    try:
        deadline = time.monotonic() + 400
        while True:
            assert server.poll() is None and time.monotonic() < deadline, Path(said.name).read_text()[-3000:]
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                    break
            except httpx2.HTTPError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        said.close()


async def chats(address: str, clicked: dict[str, list[int]]) -> None:
    """Users of whom each is shown suggestions under several conversations, and clicks what suits them."""
    from worlds import SmallWorld, conversation  # here, for it registers a judge

    chances, rng = SmallWorld(), random.Random(3)
    at_once = asyncio.Semaphore(16)

    async def one(asking: httpx2.AsyncClient, conversation: list[dict[str, str]], user: int) -> None:
        async with at_once:
            ask = {"conversation": conversation, "user": f"user-{user}"}
            told = (await asking.post("/v1/suggestions", json=ask)).json()
            texts = [one["text"] for one in told["suggestions"]]
            clicks = [int(rng.random() < chance) for chance in chances([conversation], [texts])[0]]
            id = told["impression_id"]
            events = [{"impression_id": id, "kind": "clicked", "place": n} for n, click in enumerate(clicks) if click]
            if events:
                statuses = (await asking.post("/v1/events", json={"events": events})).json()["statuses"]
                assert statuses == ["accepted"] * len(events)
            if texts:
                clicked[id] = clicks

    async with httpx2.AsyncClient(base_url=address, timeout=60) as asking:
        drawn = [conversation(WORLD, rng) for _ in range(N_CONVERSATIONS)] * N_EACH
        await asyncio.gather(*(one(asking, some, rng.randrange(N_USERS)) for some in drawn))


@pytest.mark.parametrize("stage", ["data", "sft", "garm"])
def test_a_policy_and_a_reward_model_to_serve_it_with(environment, stage):
    recipe(stage, environment)


def test_a_policy_is_served_and_nothing_that_was_acknowledged_is_lost_when_it_is_killed(environment, clicked):
    live = Path(environment["RUN"]) / "live"
    with serving(environment | {"SERVED": "sft", "MIN_CLICK_CHANCE": "0"}, live) as address:
        asyncio.run(chats(address, clicked))
    assert len(clicked) > 0.7 * N_CONVERSATIONS * N_EACH and sum(map(sum, clicked.values())) > 50
    out = live.with_name("clicks.jsonl")
    assert "impressions" in openrlhf_qs("log", "export", str(live), "--out", str(out))
    openrlhf_qs("log", "check", str(out))
    log = read_click_log(out)
    assert dict(zip(log["impression_id"], log["clicks"].to_list(), strict=True)) == clicked
    assert set(log["policy"]) == {"first/sft"} and log["user_id"].n_unique() > N_USERS / 2
    meta = [json.loads(one) for one in log["meta"]]
    assert all(one["temperature"] == 0.7 and 0 < one["click_chance"] < 1 for one in meta)


@pytest.mark.timeout(2700)  # the whole way, in one call
def test_what_they_clicked_trains_the_next_policy(environment):
    first = Path(environment["RUN"])
    log = str(first / "clicks.jsonl")
    recipe("grpo_garm", environment | {"RUN": str(first.with_name("second")), "CLICK_LOG": log})
    assert (first.with_name("second") / "grpo" / "config.json").is_file()


def test_both_policies_are_served_as_arms_and_read_as_an_experiment(environment):
    first = Path(environment["RUN"])
    second, live = first.with_name("second"), first.with_name("arms")
    arms = {"ARM": f"old={first}/sft:.5 new={second}/grpo:.5", "RUN": str(second)}
    with serving(environment | arms, live) as address:
        asyncio.run(chats(address, {}))
    out = live.with_name("arms.jsonl")
    openrlhf_qs("log", "export", str(live), "--out", str(out))
    shown = read_click_log(out)
    assert shown.group_by("user_id").agg("policy")["policy"].list.n_unique().max() == 1
    assert set(shown["policy"]) == {"old", "new"}
    said = openrlhf_qs("ab", str(out))
    assert "old" in said and "new" in said
