import errno
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from openrlhf_qs import __version__, cli
from openrlhf_qs.host import checks
from openrlhf_qs.host import run as host
from openrlhf_qs.host.arguments import host_arguments

ROOT = Path(__file__).parents[2]

NAMED = ["--model.model_name_or_path", "org/model", "--data.dataset", "org/set"]  # on the hub, which nobody asks

WAY = ["data", "distil", "sft", "garm", "fusion", "rft", "grpo", "generate", "evaluate"]


@pytest.fixture
def handed_over(monkeypatch):
    """Stage, settings and flags that OpenRLHF would have got."""
    calls = []
    monkeypatch.setattr(checks, "openrlhf_version", lambda: "0.11.2")
    monkeypatch.setattr(host, "run", lambda *call: calls.append(call))
    return calls


def test_help_shows_the_stages_in_the_order_of_the_way(capsys):
    cli.main(["--help"])
    shown = capsys.readouterr().out
    places = [shown.index(f"\n  {name} ") for name in WAY]
    assert places == sorted(places)
    assert all(name in shown for name in cli.TOOLS)


def test_a_reader_that_has_enough_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "openrlhf_qs.cli", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, b"")


def test_help_waits_for_no_heavy_import():
    code = "import sys, openrlhf_qs.cli as cli; cli.main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = done.stdout.splitlines()[-1].split()
    assert not {"torch", "polars", "transformers", "ray", "numpy", "pydantic", "rich", "wrapt"} & set(imported)


def test_help_of_no_command_waits_for_torch_or_matplotlib():
    code = (
        "import sys, openrlhf_qs.cli as cli\n"
        "for command in cli.COMMANDS: cli._parser(command).format_help()\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "matplotlib", "sklearn", "ray", "vllm"} & set(done.stdout.split())


@pytest.mark.parametrize("command", [*cli.STAGES, *cli.TOOLS])
def test_every_command_explains_each_of_its_flags(command):
    parser = cli._parser(command)
    one = parser._subparsers._group_actions[0].choices[command]
    assert one.format_help()
    flags = [action for action in one._actions if action.option_strings and action.dest != "help"]
    for action in flags:
        assert action.help or action.dest in ("out", "seed"), f"{command} {action.option_strings} has no help"


def test_every_command_has_the_two_functions():
    for command, (module, what) in {**cli.STAGES, **cli.TOOLS}.items():
        assert what
        assert bool(module) != (command in host.ENTRY_POINTS)
        if module:
            assert callable(cli._module(command).add_arguments) and callable(cli._module(command).run)


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sfl"], "there is no command 'sfl'; did you mean 'sft'?"),
        (["garm", "eva", "pairs.jsonl"], "there is no command 'garm eva'; did you mean 'garm eval'?"),
        (["log", "chek"], "did you mean 'log check'?"),
        (["zzz"], "there is no command 'zzz'; openrlhf-qs --help lists them"),
        (["sft", "runs/default"], "there is no command 'sft runs/default'; did you mean 'sft'?"),
        (["rank", "foo"], "there is no command 'rank foo'; did you mean 'rank score'?"),
        (["world", "zero"], "there is no command 'world zero'; did you mean 'world zero-query'?"),
        (["train"], "there is no command 'train'; did you mean 'sft' or 'garm' or 'grpo' or 'rank' or 'dpo'?"),
        (["--verison"], "there is no flag '--verison'; did you mean '--version'?"),
        (["--seed", "sft"], "there is no flag '--seed'; openrlhf-qs --help lists the commands"),
        (["plugins", "--al"], "unknown arguments: --al\n"),
        (["log", "check", "a.jsonl", "--engin=ray"], "unknown arguments: --engin=ray; did you mean '--engine'?"),
    ],
)
def test_a_wrong_command_line_is_status_2(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_command_alone_prints_its_help_in_groups(capsys):
    cli.main([])
    shown = capsys.readouterr().out
    assert [shown.index(f"\n{group}:") for group in cli.GROUPS] == sorted(shown.index(f"\n{g}:") for g in cli.GROUPS)
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("family", ["benchmark", "log", "reward"])
def test_the_first_word_of_a_family_alone_lists_it(capsys, monkeypatch, family):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        cli.main([family])
    shown = capsys.readouterr().err
    assert stop.value.code == 2
    assert all(f"  {name}  " in shown for name in cli.TOOLS if name.startswith(f"{family} "))
    assert max(map(len, shown.splitlines())) <= 80


def test_assemble_says_why_it_assembles_no_single_suggestions(tmp_path, capsys):
    candidate = {"text": "Why?", "n_shown": 2, "n_clicked": 1, "weight": 0.5}
    row = {"conversation": [{"role": "user", "content": "Hello"}], "candidates": [candidate]}
    (tmp_path / "sft.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(SystemExit) as stop:
        cli.main(["assemble", str(tmp_path / "sft.jsonl"), "--out", str(tmp_path / "out"), "--sft_dataset", "single"])
    assert stop.value.code == 2
    assert "suggestions one by one, as `single` for the teacher" in capsys.readouterr().err


def test_a_mistake_of_the_user_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plugins", "garn"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("openrlhf-qs plugins: unknown plugin 'garn'; known: ")


def test_a_fault_of_the_machine_is_one_line_with_what_to_do(monkeypatch, capsys):
    def full(args):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/default/data/sft.jsonl")

    monkeypatch.setattr("openrlhf_qs.list_plugins.run", full)
    with pytest.raises(SystemExit) as stop:
        cli.main(["plugins"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert "No space left on device: 'runs/default/data/sft.jsonl': make room and call again" in said


def test_a_model_that_is_neither_here_nor_to_be_had_is_told_as_that(monkeypatch, capsys):
    def missing(args):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files,\nand couldn't find them")

    monkeypatch.setattr("openrlhf_qs.list_plugins.run", missing)
    with pytest.raises(SystemExit):
        cli.main(["plugins"])
    said = capsys.readouterr().err
    assert said.startswith("openrlhf-qs plugins: no such folder here, and the hub cannot be") and said.count("\n") == 1


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tiny_log, tmp_path):
    code = (  # no file may grow beyond 5,000 bytes, as on a disk that is nearly full
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); from openrlhf_qs.cli import main; "
        f"main(['data', '--log', {str(tiny_log)!r}, '--out', {str(tmp_path / 'out')!r}])"
    )
    called = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert called.returncode == 2 and "Traceback" not in called.stderr
    assert re.search(r"File too large: '\S+/out/\S+': make room and call again", called.stderr)
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_flags_of_openrlhf_pass_through_in_their_order(handed_over):
    flags = [
        *NAMED,
        "--train.max_epochs",
        "2",
        "--ckpt.save_steps",
        "-1",
        "--adam.lr",
        "1e-5",
        "--adam.betas",
        "0.9",
        "0.95",
    ]
    cli.main(["sft", *flags[:6], "--qs.device", "cpu", *flags[6:], "--qs.sft_dataset", "raw"])
    ((stage, settings, host_argv),) = handed_over
    assert (stage, settings.stage.sft_dataset, settings.device) == ("sft", "raw", "cpu")
    assert host_argv == flags


def test_a_flag_of_ours_is_never_guessed_from_its_beginning(handed_over, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["sft", "--qs.sft_data", "raw"])
    assert stop.value.code == 2 and not handed_over
    assert "unknown flags --qs.sft_data" in capsys.readouterr().err


def test_a_check_stops_before_anything_starts_and_says_that_all_is_well(handed_over, capsys):
    cli.main(["sft", *NAMED, "--qs.device", "cpu", "--qs.check_enable"])
    assert handed_over == [] and "sft: ok, flags (including OpenRLHF's)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:  # a flag of OpenRLHF's, misspelt
        cli.main(["sft", *NAMED, "--train.max_epoch_s", "2", "--qs.device", "cpu", "--qs.check_enable"])
    assert stop.value.code == 2 and "--train.max_epoch_s" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_example_of_every_command_is_a_command_line_that_it_takes(command, handed_over):
    about = cli.HELP[command]
    argv = shlex.split(about.example)[1:]
    if " " in command:
        argv = [" ".join(argv[:2]), *argv[2:]]
    assert argv[0] == command
    _, rest = cli._parser(command).parse_known_args(argv)
    if command in cli.OPENRLHF:
        host_arguments(command, rest)  # ValueError for a flag that OpenRLHF does not know
    else:
        assert not rest
    assert (ROOT / "docs" / about.page).is_file()


def test_the_help_of_a_command_says_what_it_reads_and_writes_with_an_example_of_80_columns(capsys):
    with pytest.raises(SystemExit):
        cli.main(["garm", "--help"])
    shown = capsys.readouterr().out
    assert "  reads   preferences (data/preferences.jsonl), and a backbone" in shown
    example = shown.partition("example:\n")[2].partition("\n\n")[0].splitlines()
    assert len(example) > 1 and max(map(len, example)) <= 80 and all(line.endswith("\\") for line in example[:-1])
    assert "openrlhf-qs garm --help-all" in shown and "more: docs/GARM.md" in shown


@pytest.mark.parametrize("command", sorted(cli.HELP))
def test_the_help_of_every_command_fits_80_columns_and_ends_with_its_example_and_its_page(
    command, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    example = shown.rpartition("example:\n")[2].strip()
    assert example.startswith("openrlhf-qs") and example.endswith(f"more: docs/{cli.HELP[command].page}")


def test_the_parts_of_the_reward_stand_in_the_help_of_grpo(capsys):
    with pytest.raises(SystemExit):
        cli.main(["grpo", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "there are diversity, garm, garm_sigma, gate_malformed" in shown


def test_help_all_has_the_flags_of_openrlhf_without_its_imports(capsys):
    before = set(sys.modules)
    for stage, flag in (("sft", "--data.input_key"), ("garm", "--train.max_epochs"), ("grpo", "--algo.kl.init_coef")):
        cli.main([stage, "--help-all"])
        shown = capsys.readouterr().out
        assert flag in shown and "--qs.device" in shown
    assert not {"flash_attn", "deepspeed", "vllm"} & (set(sys.modules) - before)


def test_an_error_of_the_run_itself_keeps_its_traceback(monkeypatch, handed_over):
    def fail(*call):
        raise ValueError("somewhere in OpenRLHF")

    monkeypatch.setattr(host, "run", fail)
    with pytest.raises(ValueError, match="somewhere in OpenRLHF"):
        cli.main(["sft", *NAMED, "--qs.device", "cpu"])


def test_a_training_without_flags_is_one_line(handed_over, capsys):
    for stage in ("sft", "garm"):
        with pytest.raises(SystemExit) as stop:
            cli.main([stage, "--qs.device", "cpu"])
        assert stop.value.code == 2 and not handed_over
        said = "--model.model_name_or_path is missing: give a Hugging Face folder or name"
        assert capsys.readouterr().err == f"openrlhf-qs {stage}: {said}\n"


def test_a_stage_gets_its_arguments(monkeypatch):
    seen = []
    module = SimpleNamespace(add_arguments=lambda parser: parser.add_argument("--log"), run=seen.append)
    monkeypatch.setattr(cli, "_module", lambda command: module)
    cli.main(["data", "--log", "clicks.jsonl"])
    assert seen[0].command == "data" and seen[0].log == "clicks.jsonl"
