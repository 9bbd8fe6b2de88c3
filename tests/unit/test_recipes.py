"""The recipes: what they would run, and that OpenRLHF, DeepSpeed and our own command line take every word of it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import itertools
import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openrlhf_qs import cli
from openrlhf_qs.host import run as host

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.sh"))
CLICK_LOG = str(Path(__file__).parent / "inputs.jsonl")  # any file that is there
OWN = {"CLICK_LOG": CLICK_LOG, "POLICY": "Qwen/Qwen3-4B", "GARM_BASE": "Qwen/Qwen3-1.7B"}
FORMS: dict[str, dict[str, str]] = {
    "cpu": {},
    "cpu, own clicks": {"CLICK_LOG": CLICK_LOG},
    "cpu, own plugin": {
        "PLUGIN": "brevity.py",
        "OPTION": "brevity.max_words=9 ood.threshold=2",
        "REWARD": "garm,ood,rules,brevity",
    },
    "cpu, baselines": {"SFT_DATASET": "raw", "REWARD_MODEL": "bradley_terry", "FUSION": "equal", "JUDGE": "none"},
    "cpu, distilled": {"DISTIL": "1"},
    "cpu, GRPO from SFT": {"RFT": "0"},
    "cpu, by meaning": {"EMBEDDER": "minilm"},
    "cpu, quick": {"CONFIG": str(ROOT / "recipes" / "quick.env")},
    "1 GPU": {"GPUS": "1", "POLICY": "Qwen/Qwen3-4B"},
    "8 GPUs": {"GPUS": "8", "POLICY": "Qwen/Qwen3-4B"},
    "8 GPUs, async": {"GPUS": "8", "POLICY": "Qwen/Qwen3-4B", "ASYNC": "1"},
    "8 GPUs, own models and clicks": {"GPUS": "8"} | OWN,
    "8 GPUs, distilled from a larger model": {"GPUS": "8", "DISTIL": "1", "TEACHER": "Qwen/Qwen3-8B"} | OWN,
    "2 nodes": {"GPUS": "8", "NODES": "2", "HOSTFILE": "hosts"} | OWN,
    "2 nodes, async": {"GPUS": "8", "NODES": "2", "HOSTFILE": "hosts", "ASYNC": "1"} | OWN,
}
STAGES = [
    "data",
    "lengths",
    "sft",
    "garm",
    "garm wide",
    "garm calibrate",
    "garm spread",
    "generate",
    "fusion",
    "rft",
    "sft",
    "grpo",
    "generate",
    "generate",
    "generate",
    "evaluate",
]
DEEPSPEED_MODULE = "openrlhf_qs.cli"


def bash(recipe: str, **variables: str) -> subprocess.CompletedProcess:
    """The recipe, in an environment of nothing but ``variables`` and the path; nothing is installed."""
    return subprocess.run(
        ["bash", ROOT / "recipes" / recipe],
        env={"PATH": os.environ["PATH"], "VIRTUAL_ENV": "/none"} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


NOT_CHECKED = "plugin names are not checked: there is no environment yet\n"


@functools.cache
def dry_run(form: str, recipe: str = "grpo_garm.sh") -> list[list[str]]:
    """The commands that the recipe prints, as words."""
    done = bash(recipe, DRY_RUN="1", RUN="runs/of_no_one", **FORMS[form])
    assert done.returncode == 0 and done.stderr in ("", NOT_CHECKED), done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def ours(command: list[str]) -> list[str]:
    """``command`` from our subcommand on, of one word or two, whatever launches it."""
    words = command[1 if command[0] == "openrlhf-qs" else command.index(DEEPSPEED_MODULE) + 1 :]
    return [" ".join(words[:2]), *words[2:]] if " ".join(words[:2]) in cli.TOOLS else words


def host_command(command: list[str]) -> tuple[str, list[str]]:
    """A training command as OpenRLHF gets it: the stage and the flags that are not ours."""
    stage, *words = ours(command)
    settings, rest = cli._parser(stage).parse_known_args([stage, *words])
    assert not [word for word in rest if word.startswith("--qs.")], rest
    return stage, rest


def training_commands(form: str) -> dict[str, list[str]]:
    """Folder that the model goes to, which is the stage or ``teacher``, to OpenRLHF's flags."""
    commands = (host_command(command)[1] for command in dry_run(form) if ours(command)[0] in host.ENTRY_POINTS)
    return {Path(argv[argv.index("--ckpt.output_dir") + 1]).name: argv for argv in commands}


# In a process of their own: OpenRLHF, imported once for all commands


class Stopped(Exception):
    """OpenRLHF has checked its arguments and would begin to work."""


seen: list[SimpleNamespace] = []  # the arguments, as OpenRLHF hands them to its training


def prepare_openrlhf() -> None:
    """Import OpenRLHF, and stop it where it would start processes or load a model."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from openrlhf_qs.host import flash_attn_stand_in

    flash_attn_stand_in.install()
    import openrlhf.trainer.ray
    import openrlhf.utils
    import ray

    def stop(*args: object, **kwargs: object) -> None:
        raise Stopped

    def strategy(args: SimpleNamespace) -> SimpleNamespace:
        seen.append(args)
        return SimpleNamespace(print=lambda *args: None, setup_distributed=stop)

    openrlhf.utils.get_strategy = strategy
    openrlhf.trainer.ray.create_vllm_engines = stop  # after the checks of how models share GPUs
    ray.is_initialized = lambda: True
    ray.get = lambda reference: None
    placement = importlib.import_module("ray.util.placement_group")  # a function of that name hides the module
    placement.placement_group = lambda *args, **kwargs: SimpleNamespace(ready=lambda: None)


def parse_as_openrlhf(stage: str, argv: list[str]) -> SimpleNamespace | str:
    """The arguments after OpenRLHF's entry point has parsed and checked them, or what it complained of."""
    seen.clear()
    sys.argv = [host.ENTRY_POINTS[stage], *argv]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module(host.ENTRY_POINTS[stage], run_name="__main__", alter_sys=True)
    except Stopped:
        return seen[0]
    except SystemExit:
        return said.getvalue()
    except AssertionError as error:
        return f"{error}"
    return "it stopped nowhere"


def parse_as_deepspeed(argv: list[str]) -> argparse.Namespace | str:
    """What DeepSpeed's launcher reads from its command line, or what it complained of."""
    from deepspeed.launcher.runner import parse_args

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse_args(argv)
    except SystemExit:
        return said.getvalue()


@pytest.fixture(scope="module")
def openrlhf() -> Iterator[Callable[..., Any]]:
    """``openrlhf(function, *args)``: the function's result in the process that has OpenRLHF."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=prepare_openrlhf) as process:
        yield lambda function, *args: process.submit(function, *args).result(timeout=120)


# The tests


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_valid_bash(recipe):
    assert subprocess.run(["bash", "-n", recipe], capture_output=True).stderr == b""


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.name != "common.sh"], ids=lambda path: path.name)
def test_the_help_of_a_recipe_fits_80_columns_and_loses_no_word(recipe):
    asked = f"source {ROOT / 'recipes' / 'common.sh'}; show_help"
    done = subprocess.run(["bash", "-c", asked, str(recipe)], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines and max(map(len, lines)) <= 80, done.stdout + done.stderr
    top = recipe.read_text().split("\n", 1)[1]
    said = [line[1:] for line in itertools.takewhile(lambda line: line.startswith("#"), top.splitlines())]
    words = set(" ".join(said).split())
    assert words - {"#"} == set(done.stdout.split()) - {"#", "\\"}


@pytest.mark.parametrize("name", ["sft", "serve"])
def test_the_help_of_a_stage_installs_nothing(name, tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "VIRTUAL_ENV": str(tmp_path / "venv")}
    command = ["bash", ROOT / "recipes" / f"{name}.sh", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("No environment yet"), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_that_is_named_exists(recipe):
    for name in re.findall(r"(?<!\$)\b([a-z_]+\.sh)\b", recipe.read_text()):
        assert (ROOT / "recipes" / name).is_file(), f"{recipe.name} names {name}"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_default_of_a_recipe_stands_before_those_that_all_share(recipe):
    """After them a value is there already, and the recipe's own default would never be taken."""
    default = r"\$\{([A-Z][A-Z0-9_]*):="
    shared = set(re.findall(default, (ROOT / "recipes" / "common.sh").read_text()))
    _, _, after = recipe.read_text().partition('/common.sh"\n')
    assert not shared & set(re.findall(default, after))


@pytest.mark.parametrize("form", FORMS)
def test_every_stage_prints_its_command_in_the_order_of_the_way(form):
    commands = dry_run(form)
    expected = list(STAGES)
    if "REWARD_MODEL" in FORMS[form]:  # of another head
        expected.remove("garm wide")
        expected.remove("garm spread")
    if "DISTIL" in FORMS[form]:
        expected[2:2] = ["sft", "distil"]
    if "RFT" in FORMS[form]:
        at = expected.index("rft")
        del expected[at : at + 2]
        del expected[-2]  # one policy less answers
    if "POLICY" not in FORMS[form]:
        expected.insert(1, "small-policy")
    if "CLICK_LOG" not in FORMS[form]:
        expected.insert(0, "world")
    assert [ours(command)[0] for command in commands] == expected
    launched = [command[0] for command in commands if ours(command)[0] in host.ENTRY_POINTS]
    n_before_grpo = 3 + ("DISTIL" in FORMS[form]) - ("RFT" in FORMS[form])
    launcher = "deepspeed" if "GPUS" in FORMS[form] else "openrlhf-qs"
    assert launched == [launcher] * n_before_grpo + ["openrlhf-qs"]


@pytest.mark.parametrize("stage", ["data", "sft", "garm", "fusion", "rft", "grpo", "evaluate"])
def test_a_stage_alone_prints_what_it_prints_within_the_whole_way(stage):
    whole = dry_run("8 GPUs")
    assert all(command in whole for command in dry_run("8 GPUs", f"{stage}.sh"))


def test_the_student_learns_from_what_the_teacher_would_suggest():
    form = "8 GPUs, distilled from a larger model"
    training = training_commands(form)
    (distil,) = (command for command in dry_run(form) if ours(command)[0] == "distil")
    options, teacher, student = (
        dict(zip(words, words[1:], strict=False)) for words in (ours(distil), training["teacher"], training["sft"])
    )
    assert teacher["--data.dataset"].endswith("/data/sft.jsonl")
    assert teacher["--model.model_name_or_path"] == "Qwen/Qwen3-8B"
    assert options["--teacher"] == teacher["--ckpt.output_dir"]
    assert student["--data.dataset"] == options["--out"]
    assert student["--model.model_name_or_path"] == "Qwen/Qwen3-4B"
    chosen = [words[words.index("--qs.sft_dataset") + 1] for words in map(ours, dry_run(form)) if words[0] == "sft"]
    assert chosen == ["single", "diverse", "diverse"]
    alone = dry_run(form, "distil.sh")
    assert [command for command in dry_run(form) if command in alone] == alone


def test_an_embedder_serves_the_assembly_and_the_comparison():
    sft, *_, evaluate = (words for words in dry_run("cpu, by meaning") if words[1] in ("sft", "evaluate"))
    assert sft[sft.index("--qs.option") + 1] == "diverse.embedder=minilm"
    assert evaluate[evaluate.index("--embedder") + 1] == "minilm"


def test_a_dry_run_touches_no_environment_and_writes_nothing(tmp_path):
    venv, run = tmp_path / "venv", tmp_path / "run"
    done = bash(
        "grpo_garm.sh", DRY_RUN="1", RUN=str(run), VIRTUAL_ENV=str(venv), PYTHON="/nonexistent", HOME=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_our_command_line_takes_what_the_recipes_give_it(form):
    for command in dry_run(form):
        name, *words = ours(command)
        if name not in host.ENTRY_POINTS:
            args, unknown = cli._parser(name).parse_known_args([name, *words])
            assert not unknown, f"openrlhf-qs {name} does not know {unknown}"


@pytest.mark.parametrize("form", FORMS)
def test_what_a_training_goes_on_from_is_apart_from_its_model(form):
    places = {
        argv[argv.index("--ckpt.output_dir") + 1]: argv[argv.index("--ckpt.path") + 1]
        for argv in dry_run(form)
        if "--ckpt.output_dir" in argv
    }
    run = Path(os.path.commonpath(places))
    assert {"sft", "garm", "grpo"} <= {Path(model).name for model in places}
    for model, path in places.items():
        assert Path(path) == run / "ckpt" / Path(model).relative_to(run)


@pytest.mark.parametrize("form", ["cpu", "8 GPUs"])
def test_a_server_takes_what_its_recipe_gives_it(form):
    (command,) = dry_run(form, "serve.sh")
    name, *words = ours(command)
    args = cli._parser(name).parse_args([name, *words])
    assert args.policy.endswith("/grpo") and args.log.endswith("/live") and args.host == "127.0.0.1"
    done = bash(
        "serve.sh", DRY_RUN="1", ARM="old=a/grpo:.9 new=b/grpo:.1", PLUGIN="mine.py", OPTION="too_wide.max_width=60"
    )
    name, *words = ours(shlex.split(done.stdout))
    args = cli._parser(name).parse_args([name, *words])
    assert args.arm == ["old=a/grpo:.9", "new=b/grpo:.1"] and args.policy is None
    assert args.plugin == ["mine.py"] and args.option == ["too_wide.max_width=60"]


def test_a_port_that_is_no_variable_of_the_server_is_answered():
    done = bash("serve.sh", DRY_RUN="1", PORT="9000")
    assert done.returncode == 1 and "SERVE_PORT=9000" in done.stderr
    assert "--port 9001" in bash("serve.sh", DRY_RUN="1", PORT="9000", SERVE_PORT="9001").stdout


@pytest.mark.parametrize("form", FORMS)
def test_openrlhf_takes_what_the_recipes_give_it(form, openrlhf):
    n_gpus = int(FORMS[form].get("GPUS", 1)) * int(FORMS[form].get("NODES", 1))
    for folder, argv in training_commands(form).items():
        stage = "sft" if folder in ("teacher", "rft") else folder
        args = openrlhf(parse_as_openrlhf, stage, argv)
        assert not isinstance(args, str), f"{folder}: {args}"
        n_processes = n_gpus if stage != "grpo" else args.actor.num_nodes * args.actor.num_gpus_per_node
        # DeepSpeed: batch = micro batch * accumulation steps * processes
        assert args.train.batch_size % (args.train.micro_batch_size * n_processes) == 0, stage


@pytest.mark.parametrize("form", [form for form in FORMS if "GPUS" in FORMS[form]])
def test_rollouts_and_training_fill_the_gpus_and_no_more(form, openrlhf):
    args = openrlhf(parse_as_openrlhf, "grpo", training_commands(form)["grpo"])
    n_train = args.actor.num_nodes * args.actor.num_gpus_per_node
    n_rollout = args.vllm.num_engines * args.vllm.tensor_parallel_size
    n_gpus = int(FORMS[form]["GPUS"]) * int(FORMS[form].get("NODES", 1))
    if args.train.async_enable:
        assert n_train + n_rollout == n_gpus
    else:
        assert n_train == n_rollout == n_gpus and args.train.colocate_all
    for model in (args.ref, args.reward):
        assert (model.num_nodes, model.num_gpus_per_node) == (args.actor.num_nodes, args.actor.num_gpus_per_node)


@pytest.mark.parametrize("stage", ["sft", "garm"])
def test_deepspeed_launches_our_command_line_on_every_node(stage, openrlhf):
    command = next(c for c in dry_run("2 nodes") if ours(c)[0] == stage)
    args = openrlhf(parse_as_deepspeed, command[1:])
    assert not isinstance(args, str), args
    assert (args.user_script, args.user_args) == (DEEPSPEED_MODULE, ours(command))
    assert (args.num_nodes, args.num_gpus, args.hostfile, args.module) == (2, 8, "hosts", True)


@pytest.mark.parametrize(("form", "stage_of_zero"), [("1 GPU", "2"), ("8 GPUs", "3")])
def test_weights_are_sharded_where_there_is_a_gpu_to_share_them_with(form, stage_of_zero):
    for stage in ("sft", "garm", "grpo"):
        argv = training_commands(form)[stage]
        assert argv[argv.index("--ds.zero_stage") + 1] == stage_of_zero


def test_a_training_on_gpus_is_told_a_port_that_no_other_run_has():
    found = {
        subprocess.run(
            ["bash", "-c", f"source {ROOT}/recipes/common.sh; PATH=$(dirname $(any_python)):$PATH; free_port"],
            env=os.environ | {"VIRTUAL_ENV": sys.prefix},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(3)
    }
    assert len(found) > 1 and all(1024 < int(port) < 65536 for port in found)


@pytest.mark.parametrize("stage", ["sft", "garm", "grpo"])
def test_a_flag_that_openrlhf_does_not_know_would_be_found(stage, openrlhf):
    argv = training_commands("8 GPUs")[stage]
    assert "unrecognized arguments: --ds.made_up" in openrlhf(parse_as_openrlhf, stage, [*argv, "--ds.made_up"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rollout.n_samples_per_prompt", "1"], "group_norm requires n_samples_per_prompt > 1"),
        (["--vllm.num_engines", "7"], "vllm_num_engines * vllm_tensor_parallel_size, got 8 and 7"),
        (["--ref.num_gpus_per_node", "4"], "must be the same when colocate actor and ref model"),
    ],
)
def test_flags_that_do_not_go_together_would_be_found(flags, said, openrlhf):
    argv = training_commands("8 GPUs")["grpo"]
    assert said in openrlhf(parse_as_openrlhf, "grpo", [*argv, *flags])


@pytest.mark.parametrize(
    "flags",
    [
        *(["--algo.advantage.estimator", name] for name in ("dr_grpo", "rloo", "reinforce_baseline", "reinforce")),
        ["--algo.advantage.estimator", "flash_reinforce"],
        ["--algo.advantage.estimator", "gae", "--critic.model_name_or_path", "runs/default/sft"],
        ["--algo.kl.use_loss", "--algo.kl.estimator", "k3"],
        [
            "--reward.remote_url",
            "f.py",
            "--algo.dynamic_filtering_enable",
            "--algo.dynamic_filtering_range",
            "0.1",
            "0.9",
        ],
    ],
    ids=lambda flags: " ".join(flags[:2]),
)
@pytest.mark.parametrize("form", ["8 GPUs", "8 GPUs, async"])
def test_openrlhf_takes_the_other_ways_to_train(form, flags, openrlhf):
    args = openrlhf(parse_as_openrlhf, "grpo", [*training_commands(form)["grpo"], *flags])
    assert not isinstance(args, str), args


@pytest.mark.parametrize("recipe", ["grpo_garm.sh", "data.sh", "test.sh"])
def test_a_missing_python_is_told_in_one_line_with_what_to_get(recipe, tmp_path):
    done = bash(recipe, VIRTUAL_ENV=str(tmp_path), PYTHON="/nonexistent", RUN=str(tmp_path / "run"))
    assert done.returncode == 1
    assert done.stderr == "Python 3.11 or newer is missing: apt-get install python3 python3-venv\n"


def test_a_python_that_is_too_old_is_told_in_one_line_with_what_to_get(tmp_path):
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.10" || exit 1\n')
    old.chmod(0o755)
    done = bash("grpo_garm.sh", VIRTUAL_ENV=str(tmp_path / "venv"), PYTHON=str(old), RUN=str(tmp_path / "run"))
    assert done.returncode == 1
    assert done.stderr == (
        "Python 3.8.10 is too old: install Python 3.11 or newer, or name one, as in PYTHON=python3.12\n"
    )


def test_more_than_one_node_without_a_hostfile_says_what_to_give():
    done = bash("sft.sh", DRY_RUN="1", GPUS="8", NODES="2", POLICY="Qwen/Qwen3-4B")
    assert done.returncode != 0
    assert "NODES above 1 needs HOSTFILE" in done.stderr


def test_the_upworthy_recipe_loads_trains_calibrates_and_evaluates(tmp_path):
    done = subprocess.run(
        ["bash", ROOT / "recipes" / "garm_upworthy.sh", tmp_path, "--adam.eps", "1e-7"],
        env={"PATH": os.environ["PATH"], "DRY_RUN": "1", "GARM_BASE": "minilm", "SEED": "3"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [command[1:3] if command[1] == "garm" else command[1:2] for command in commands] == [
        ["upworthy"],
        ["upworthy"],
        ["garm", "--data.dataset"],
        ["garm", "calibrate"],
        ["garm", "eval"],
    ]
    assert commands[2][-2:] == ["--adam.eps", "1e-7"]
    assert commands[2][commands[2].index("--train.seed") + 1] == "3"
    assert commands[2][3] == commands[0][commands[0].index("--out") + 1]  # what is written is what is trained on


@pytest.mark.parametrize(("n_rows", "epochs"), [(0, "4"), (100, "16"), (1060, "9"), (2160, "4"), (9000, "4")])
def test_a_policy_learns_a_short_log_in_more_epochs(tmp_path, n_rows, epochs):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sft.jsonl").write_text("{}\n" * n_rows)
    for variables, expected in (({}, epochs), ({"SFT_EPOCHS": "3"}, "3")):
        words = shlex.split(bash("sft.sh", DRY_RUN="1", RUN=str(tmp_path), **variables).stdout)
        assert words[words.index("--train.max_epochs") + 1] == expected


def test_the_upworthy_recipe_without_its_data_says_what_it_wants():
    done = bash("garm_upworthy.sh")
    assert done.returncode != 0 and "packages.train.csv.gz" in done.stderr


def test_each_policy_is_asked_once_at_all_temperatures_and_the_first_and_last_for_several_samples_at_the_second():
    done = bash("evaluate.sh", DRY_RUN="1", RUN="runs/of_no_one", TEMPERATURES="1 .5", BEST_OF="4", N_SELECTION="9")
    generate = [words for words in map(shlex.split, done.stdout.splitlines()) if words[1] == "generate"]
    assert [[Path(path).name for path in one[one.index("--out") + 1 :][:2]] for one in generate] == [
        ["selection.sft.jsonl", "responses.sft.jsonl"],
        ["selection.rft.jsonl", "responses.rft.jsonl"],
        ["selection.grpo.jsonl", "responses.grpo.jsonl"],
    ]
    for words, n_samples in zip(generate, ("1 4", "1 1", "1 4"), strict=True):
        said = " ".join(words)
        assert f"--temperature 1 .5 --n_samples {n_samples} --" in said and "--n_max 9 1000 --" in said
