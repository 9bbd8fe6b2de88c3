"""A training in several processes: what the others are told, and that none outlives another that fails or ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

RANK_0 = """
import os, sys, time
from openrlhf_qs.host import ranks
ranks.COMMAND = [sys.executable, "-c", {other!r}]
with ranks.ranks(3, "sft", ["--train.seed", "7"]):
    {this}
print("went on")
"""
# Torch is imported by rank 0 alone: what the others find in the environment is looked at by hand.
SAYS_WHAT_IT_IS_TOLD = """
import os, socket, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "GLOO_SOCKET_IFNAME", "TORCHELASTIC_USE_AGENT_STORE")
with socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=20):
    told = [*(os.environ[name] for name in names), *sys.argv[1:]]
    os.write(1, (" ".join(told) + "\\n").encode())  # whole, where several print at once
"""
WAITS = "import os, time; os.write(1, f'{os.getpid()}\\n'.encode()); time.sleep(600)"


def rank_0(other: str, this: str = "pass") -> subprocess.Popen:
    code = RANK_0.format(other=other, this=this)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_others_run_the_same_command_and_find_rank_0_on_the_loopback_interface():
    first = rank_0(SAYS_WHAT_IT_IS_TOLD)
    said = sorted(first.communicate(timeout=120)[0].splitlines())
    told = "3 127.0.0.1 lo True sft --train.seed 7"
    assert said == [f"1 1 {told}", f"2 2 {told}", "went on"] and first.returncode == 0


def test_where_one_fails_all_end_at_once_and_its_words_are_the_last():
    fails = "import os, sys; os.write(2, b'openrlhf-qs sft: no memory\\n'); sys.exit(1)"
    started = time.monotonic()
    first = rank_0(fails, "time.sleep(600)")
    said = first.communicate(timeout=120)[0].splitlines()
    assert first.returncode == 1 and said[-1] == "openrlhf-qs sft: no memory" and time.monotonic() - started < 100


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_they_end_with_rank_0_in_whatever_way_it_ends(end):
    first = rank_0(WAITS, "time.sleep(600)")
    others = [int(first.stdout.readline()) for _ in range(2)]
    first.send_signal(end)
    first.wait(20)
    deadline = time.monotonic() + 30
    while any(map(is_there, others)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_there, others))


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
