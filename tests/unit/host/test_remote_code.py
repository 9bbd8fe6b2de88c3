"""No code in a model's folder runs unasked."""

import json
import os
import subprocess
import sys

import pytest

from openrlhf_qs.host.settings import VARIABLE, Settings

CODE = """
import pathlib
from transformers import PretrainedConfig
pathlib.Path(__file__).with_name("RAN").write_text("")
class Config(PretrainedConfig):
    model_type = "made_up"
"""
LOAD = """
import sys
from openrlhf_qs.host.bootstrap import install
install()
from transformers import AutoConfig
try:
    print(type(AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__)  # as OpenRLHF calls it
except ValueError as error:
    print(error)
"""


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "code.py").write_text(CODE)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "made_up", "auto_map": {"AutoConfig": "code.Config"}})
    )
    return folder


def load(model, tmp_path, settings):
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    env |= settings.to_environment() | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", LOAD, model], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip(), bool(list(tmp_path.rglob("RAN")))


def test_code_of_a_model_does_not_run_where_openrlhf_trusts_it(model, tmp_path):
    said, ran = load(model, tmp_path, Settings("cpu"))
    assert "names Python code of its own (auto_map)" in said and "--qs.trust_remote_code_enable" in said
    assert not ran


def test_who_asks_for_it_gets_it(model, tmp_path):
    assert load(model, tmp_path, Settings("cpu", trust_remote_code=True)) == ("Config", True)
