"""The server under Ray Serve: two replicas write one log, and are replaced under load without a lost request."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from openrlhf_qs.serve import on_ray
from openrlhf_qs.serve.live_log import read_log


def test_replicas_share_a_log_and_are_replaced_without_a_lost_request(tmp_path):
    try:
        on_ray.check_protobuf()
    except ValueError as error:
        pytest.skip(str(error))
    command = [sys.executable, str(Path(__file__).parent / "replaced_on_ray.py"), str(tmp_path / "live")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    answered = json.loads(ended.stdout.splitlines()[-1])
    first = [told["suggestions"][0]["text"] for told in answered]
    assert {text.partition(",")[0] for text in first} == {"old", "new"} and first[-1].startswith("new")
    assert len({text for text in first if text.startswith("old")}) == 2, "both replicas answer"
    logged = {impression.id: [event.kind for event in events] for impression, events in read_log(tmp_path / "live")}
    assert logged == {told["impression_id"]: ["clicked"] for told in answered}
