"""The notebook and the page on the API: their code runs, on a small run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from openrlhf_qs.files.whole import write_json_lines

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def run(tmp_path, tiny_log, write_small_garm):
    """A run folder with held-out impressions, a reward model and metrics."""
    run = tmp_path / "runs" / "default"
    (run / "data").mkdir(parents=True)
    rows = [json.loads(line) for line in Path(tiny_log).read_text().splitlines()]
    write_json_lines(run / "data" / "heldout.jsonl", rows)
    write_small_garm("click_gaussian").rename(run / "garm")
    (run / "report").mkdir()
    (run / "report" / "report.html").write_text("<html>")
    (run / "report" / "metrics.json").write_text(json.dumps({"judge": "none", "contexts": {"compared": 5}}))
    return run


def test_the_cells_of_the_notebook_run_from_top_to_bottom(run, monkeypatch, capsys):
    notebook, shown = json.loads((DOCS / "tour.ipynb").read_text()), []
    display = ModuleType("IPython.display")
    display.IFrame = lambda path, **how: shown.append(path)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("RUN", str(run))
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            assert not cell["outputs"] and cell["execution_count"] is None  # none of this machine is kept
    out = capsys.readouterr().out
    assert "CTR per suggestion" in out and "What is the capital of France?" in out and "No judge" in out
    assert len(names["mean"]) == 5 and 0.5 <= float(names["probability"]) <= 1
    assert shown and shown[0].endswith("report.html")


def test_the_code_of_the_page_on_the_api_runs(run, monkeypatch):
    from openrlhf_qs import registry

    registry.load_plugins()
    for kind in registry.KINDS.values():
        monkeypatch.setattr(kind, "_plugins", dict(kind._plugins))
    monkeypatch.chdir(run.parents[1])
    names: dict = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / "API.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert names["mean"].shape == (2,) and (names["std"] > 0).all()
    from openrlhf_qs.form.request import Request
    from openrlhf_qs.reward.offline import offline_batch

    batch = offline_batch([Request(names["conversation"])], [f"1. Why?\n2. How?\n3. {'x' * 70}?"])
    assert names["Short"]()(batch).tolist() == pytest.approx([2 / 3])
