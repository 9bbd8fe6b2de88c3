"""OpenRLHF's arguments without its imports, held against its own entry points."""

import re
import subprocess
import sys

import pytest

from openrlhf_qs.host import arguments
from openrlhf_qs.host.arguments import ENTRY_POINTS, host_arguments, host_parser


def test_abbreviations_equal_signs_and_repetitions_are_read_as_openrlhf_reads_them():
    args = host_arguments("grpo", ["--algo.kl.init", "0.5", "--data.label=a", "--data.label_key", "b"])
    assert args.algo.kl.init_coef == 0.5 and args.data.label_key == "b"
    assert args.algo.advantage.estimator == "gae" and args.ckpt.save_steps == -1  # its defaults


@pytest.mark.parametrize("stage", ENTRY_POINTS)
def test_every_flag_of_the_file_is_there(stage):
    file = arguments.host_folder() / "cli" / f"{ENTRY_POINTS[stage].rpartition('.')[2]}.py"
    known = host_parser(stage)._option_string_actions
    named = re.findall(r'add_argument\(\s*"(--[\w.]+)"', file.read_text())
    assert len(named) > 20 and set(named) <= known.keys()


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from openrlhf_qs.host.arguments import host_arguments; host_arguments('grpo', []);"
        "print({'torch', 'ray', 'deepspeed', 'transformers', 'vllm', 'openrlhf'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_entry_point_of_another_form_is_named(tmp_path, monkeypatch):
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "train_sft.py").write_text("def main():\n    args = parser.parse_args()\n")
    monkeypatch.setattr(arguments, "host_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="train_sft.py does not parse arguments where .*: install a tested version"):
        host_arguments("sft", [])
