"""One place knows where models run: nobody else asks torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from openrlhf_qs.models.device import LARGE, dtype_on_cpu, gpu_names, n_gpus, pick_device

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


@pytest.mark.parametrize(
    ("size", "kept_in", "has_units", "wanted"),
    [
        (LARGE + 1, "bfloat16", True, "bfloat16"),
        (LARGE + 1, "bfloat16", False, "float32"),
        (LARGE + 1, "float32", True, "float32"),
        (LARGE, "bfloat16", True, "float32"),
    ],
)
def test_a_large_model_reads_in_bfloat16_where_the_processor_has_units_for_it(
    tmp_path, monkeypatch, size, kept_in, has_units, wanted
):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_units)
    (tmp_path / "config.json").write_text(json.dumps({"dtype": kept_in}))
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(size)  # a hole: no disk is taken
    assert dtype_on_cpu(tmp_path) == getattr(torch, wanted)


def test_a_name_of_a_hub_has_no_folder_and_is_read_in_float32():
    torch = pytest.importorskip("torch")
    assert dtype_on_cpu("Qwen/Qwen3-0.6B") == torch.float32
