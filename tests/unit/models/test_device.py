"""One place knows where models run: nobody else asks torch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openrlhf_qs.models.device import gpu_names, n_gpus, pick_device

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("there", [False, True])
def test_auto_is_the_gpu_where_there_is_one_and_what_is_asked_for_stays(monkeypatch, there):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda n: f"GPU {n}")
    assert pick_device() == ("cuda" if there else "cpu")
    assert (pick_device("cpu"), pick_device("cuda")) == ("cpu", "cuda")
    assert gpu_names() == (["GPU 0", "GPU 1"] if there else []) and n_gpus() == 2 * there


def test_nobody_else_asks_torch_for_gpus():
    asks = re.compile(r"cuda\.(is_available|device_count|get_device_name)\(")
    files = [*ROOT.glob("openrlhf_qs/**/*.py"), *ROOT.glob("plugins/**/*.py")]
    assert [file.name for file in files if asks.search(file.read_text())] == ["device.py"]
