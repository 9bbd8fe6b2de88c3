"""The recipes called twice, at once, with something else, and killed: with a stand-in for ``openrlhf-qs`` that trains
nothing, so that what is tested is the recipes' own part."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openrlhf_qs.files.record import durations, read_record
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.stages import STAGES

ROOT = Path(__file__).parents[2]
WAY = ["data", "sft", "garm", "fusion", "rft", "grpo", "evaluate"]
STAND_IN = r"""#!/usr/bin/env bash
value() { local flag=$1; shift; while [ $# -gt 1 ]; do [ "$1" != "$flag" ] || echo "$2"; shift; done; }
model() {
   mkdir -p "$1"
   printf '\x02\0\0\0\0\0\0\0{}' > "$1/model.safetensors"
   for name in config tokenizer_config; do echo '{}' > "$1/$name.json"; done
}
case "$1" in follow | plugins) ;; *) echo "$*" >> "$CALLS" ;; esac
case "$1 ${2:-}" in
   "plugins "*)
      [ ! -e "$CALLS.checked" ] || echo "$*" >> "$CALLS.checked"
      [ ! -e "$CALLS.unknown" ] || { echo "openrlhf-qs plugins: unknown reward" >&2; exit 2; } ;;
   "follow "*) exec cat >> "$(value --log "$@")" ;;
   "garm wide" | "garm calibrate" | "garm spread") ;;
   "generate "*)
      for word in "$@"; do
         case $word in --out) out=1 ;; --*) out=0 ;; *.jsonl) [ "${out:-0}" = 0 ] || echo '{}' > "$word" ;; esac
      done ;;
   "world "* | "fusion "* | "distil "* | "rft "*) echo "{\"made_by\": \"$*\"}" > "$(value --out "$@")" ;;
   "data "*)
      out=$(value --out "$@")
      for name in sft preferences fusion heldout; do echo '{}' > "$out/$name.jsonl"; done
      printf '{}\n%.0s' {1..200} > "$out/prompts.jsonl"
      echo '{}' > "$out/log.json" ;;
   "lengths "*) for name in lengths.json max_new_tokens; do echo 40 > "$(value --data "$@")/$name"; done ;;
   "small-policy "*) model "$(value --out "$@")" ;;
   "evaluate "*)
      out=$(value --run "$@")/report
      echo '{}' > "$out/metrics.json"
      echo '<html>' > "$out/report.html" ;;
   *)
      out=$(value --ckpt.output_dir "$@")
      [ -n "$out" ] || exit 0   # --help
      if [ -e "$CALLS.fails" ]; then cat "$CALLS.fails"; exit 1; fi
      [ ! -e "$CALLS.nothing" ] && [[ $* != *check_enable* ]] || exit 0
      if [ -e "$CALLS.slow" ]; then touch "$CALLS.started"; for _ in {1..600}; do sleep 0.1; done; fi
      mkdir -p "$out" "$(value --ckpt.path "$@")" && model "$out" ;;
esac
"""


class Recipes:
    """Recipes in an environment whose ``openrlhf-qs`` is the stand-in. ``calls()`` is what they had it do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, RunFolder(folder / "run")
        venv = folder / "venv"
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)
        (venv / "bin" / "openrlhf-qs").write_text(STAND_IN)
        (venv / "bin" / "openrlhf-qs").chmod(0o755)
        stamp = subprocess.run(["cksum"], stdin=open(ROOT / "pyproject.toml"), capture_output=True, text=True).stdout
        for form in ("cpu", "gpu"):
            (venv / f".openrlhf-qs.{form}").write_text(stamp.rstrip("\n"))
        self.environment = {
            **{"PATH": os.environ["PATH"], "HOME": str(folder), "VIRTUAL_ENV": str(venv)},
            **{"RUN": str(self.run.path), "CALLS": str(folder / "calls")},
        }

    def __call__(self, name: str, *flags: str, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(**self.command(name, *flags, **variables), capture_output=True, text=True, timeout=120)

    def start(self, name: str, *flags: str, **variables: str) -> subprocess.Popen:
        command = self.command(name, *flags, **variables)
        return subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

    def command(self, name: str, *flags: str, **variables: str) -> dict:
        words = ["bash", str(ROOT / "recipes" / f"{name}.sh"), *flags]
        return {"args": words, "env": self.environment | variables, "cwd": self.folder}

    def calls(self) -> list[str]:
        """The stand-in's calls since the last time."""
        file = Path(self.environment["CALLS"])
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    def slow_training(self, name: str = "sft") -> subprocess.Popen:
        """The recipe, started, in the midst of a training that takes a minute."""
        slow, started = (Path(self.environment["CALLS"] + end) for end in (".slow", ".started"))
        slow.touch()
        process = self.start(name)
        wait_until(started.exists)
        slow.unlink()
        started.unlink()
        return process


def wait_until(arrived, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not arrived():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def trainings_of(run: RunFolder) -> list[int]:
    """Processes of stand-ins that train for this run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "openrlhf-qs" in words and str(run.sft) in words and "follow" not in words:
            found.append(int(process.name))
    return found


@pytest.fixture
def recipes(tmp_path) -> Recipes:
    return Recipes(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Recipes:
    """A whole run, finished. The tests that take it leave it as it is."""
    recipes = Recipes(tmp_path_factory.mktemp("whole"))
    done = recipes("grpo_garm")
    assert done.returncode == 0, done.stdout + done.stderr
    recipes.calls()
    return recipes


def test_every_folder_of_a_model_has_its_card(whole):
    for folder in ("data/policy", "sft", "garm", "rft", "grpo"):
        assert "## How to use it" in (whole.run.path / folder / "README.md").read_text(), folder


def test_a_second_call_does_nothing(whole):
    done = whole("grpo_garm")
    assert done.returncode == 0 and done.stdout.count("already done") == 7 and whole.calls() == []


CHANGED = {
    "SEED": "7",
    "N_SUGGESTIONS": "5",
    "PROMPT_TEMPLATE": "mine.jsonl",
    "N_IMPRESSIONS": "9",
    "N_CONTEXTS": "9",
    "CLICK_LOG": "mine.jsonl",
    "POLICY": "Qwen/Qwen3-4B",
    "GARM_BASE": "Qwen/Qwen3-4B",
    "SFT_DATASET": "raw",
    "REWARD_MODEL": "bradley_terry",
    "REWARD": "garm,ood",
    "FUSION": "equal",
    "JUDGE": "none",
    "EMBEDDER": "minilm",
    "OPTION": "ood.threshold=2",
    "PLUGIN": "mine.py",
    "MAX_LEN": "99",
    "MAX_NEW_TOKENS": "9",
    "GPUS": "8",
    "SFT_LR": "9",
    "SFT_EPOCHS": "9",
    "SFT_BATCH": "9",
    "SFT_MICRO_BATCH": "9",
    "GARM_LR": "9",
    "GARM_EPOCHS": "9",
    "GARM_BATCH": "9",
    "GARM_DROPOUT": "9",
    "GARM_MICRO_BATCH": "9",
    "CALIBRATE": "no",
    "NORMALISATION": "group",
    "N_SAMPLED": "9",
    "KL_COEF": "9",
    "GRPO_LR": "9",
    "STEPS": "9",
    "PROMPTS": "9",
    "N_SAMPLES": "9",
    "TRAIN_BATCH": "9",
    "GRPO_MICRO_BATCH": "9",
    "N_HELDOUT": "9",
    "OBJECTIVE": "pairs",
    "WIDE": "0",
    "REFUSED_ROLES": "drop",
    "SPREAD": "0",
    "GRPO_TEMPERATURE": "9",
    "CREDIT": "response",
    "TEMPERATURES": "9",
    "N_SELECTION": "9",
    "BEST_OF": "9",
    "RFT": "0",
    "RFT_LR": "9",
    "RFT_EPOCHS": "9",
    "RFT_BATCH": "9",
    "RFT_MICRO_BATCH": "9",
    "N_RFT": "9",
    "RFT_SAMPLES": "9",
    "RFT_TEMPERATURE": "9",
    "DISTIL": "1",
}
# Which make no other product: where it is written, how it is watched, what is printed; and those of other recipes.
NOT_COUNTED = {
    "RUN",
    "DRY_RUN",
    "AGAIN",
    "HOSTFILE",
    "MODEL_CACHE",
    "MONITOR",
    "SFT_SAVE_STEPS",
    "GARM_SAVE_STEPS",
    "RFT_SAVE_STEPS",
    "GRPO_SAVE_STEPS",
}
SERVING = {
    "SERVED",
    "ARM",
    "SERVE_SAMPLES",
    "FILTER",
    "MIN_CLICK_CHANCE",
    "EXPLORE",
    "UPSTREAM",
    "UPSTREAM_MODEL",
    "LIVE_LOG",
    "LISTEN",
    "SERVE_PORT",
    "KEY_FILE",
}
OTHER_FORMS = {"NODES", "ASYNC", "TEACHER", "N_CANDIDATES", "DATA_DIR", "SEEDS", "ARMS", "GOLD"}
OF_RGALIGN = {
    *("INTENTS", "N_VISITS", "N_ASKED", "ENCODER", "ROUNDS", "ALIGN", "CONTROLS", "QUERY_TOKENS"),
    *("DPO_LR", "DPO_BETA", "QUERY_SAMPLES", "QUERY_ENCODER", "INFO_NCE", "RANK_WORKERS"),
}
OF_ANOTHER_SFT = ("TEACHER_", "REASON_", "ALIGN_")


def counted(stage: str) -> set[str]:
    """The variables that the record of a stage has."""
    return {*STAGES[stage].variables, *STAGES[stage].files, *STAGES[stage].plugins}


def test_every_variable_of_the_recipes_is_changed_below():
    texts = "\n".join(path.read_text() for path in (ROOT / "recipes").glob("*.sh"))
    found = re.findall(r"\$\{([A-Z][A-Z0-9_]*):=", texts)
    named = {name for name in found if not name.startswith(OF_ANOTHER_SFT)}
    assert named - {"PYTHON"} == CHANGED.keys() | NOT_COUNTED | OTHER_FORMS | OF_RGALIGN | SERVING
    assert CHANGED.keys() - {"OPTION", "PLUGIN"} <= set.union(*map(counted, STAGES))


def stops(whole: Recipes, recipe: str, name: str) -> None:
    """The finished run's ``recipe``, called with another value of ``name``, does nothing and says what differs."""
    (whole.folder / "mine.py").write_text('@REWARDS.register("garm")\nclass Mine: ...\n')
    (whole.folder / "mine.jsonl").write_text("{}\n")
    more = {"GARM_BASE": "Qwen/Qwen3-4B"} if name == "GPUS" else {}  # which GPUS wants, and SFT does not read
    before = whole.run.record.read_bytes()
    done = whole(recipe, **{name: CHANGED[name]}, **more)
    assert done.returncode == 1, done.stdout
    said = done.stderr.splitlines()
    assert f"{name}=" in said[0] and ", made with " in said[0], done.stderr
    assert "RUN=runs/other keeps both · AGAIN=1 redoes" in said[1]
    assert whole.run.record.read_bytes() == before and whole.calls() == []


@pytest.mark.parametrize("name", [name for name in CHANGED if name != "DISTIL"])
def test_a_stage_that_is_asked_for_otherwise_stops_and_says_what_differs(whole, name):
    of_a_plugin = {"OPTION": "fusion", "PLUGIN": "fusion"}  # `garm` and `ood` are parts of the reward
    stops(whole, of_a_plugin.get(name) or next(stage for stage in WAY if name in counted(stage)), name)


@pytest.mark.parametrize("name", ["CLICK_LOG", "SFT_LR", "GARM_LR", "PLUGIN", "STEPS", "JUDGE"])
def test_the_whole_way_stops_at_the_first_stage_that_is_asked_for_otherwise(whole, name):
    stops(whole, "grpo_garm", name)


def test_a_teacher_that_the_run_does_not_have_is_not_trained_beside_what_is_there(whole):
    done = whole("grpo_garm", DISTIL="1")
    assert done.returncode == 1 and "is not what this call asks for: DISTIL=1, made with DISTIL=0" in done.stderr
    assert whole.calls() == [] and "distil" not in read_record(whole.run)


@pytest.mark.parametrize("stage", WAY)
def test_what_does_not_count_for_a_stage_changes_nothing_of_its_command(whole, stage):
    """DRY_RUN shows what variables change: all that the stage's record leaves out at once must change nothing."""
    apart = {"GPUS", "OPTION", "PLUGIN", "CLICK_LOG"}  # another form; counted where a plugin of the stage has it
    others = {name: value for name, value in CHANGED.items() if name not in counted(stage) | apart}
    given = {"DRY_RUN": "1", "GRPO_TEMPERATURE": "1"}  # counted itself; its default depends on RFT
    assert others and whole(stage, **given | others).stdout == whole(stage, **given).stdout


# A variable with a later stage that does not read it, but goes on from one that did.
OF_EARLIER = {"N_CONTEXTS": "sft", "SFT_LR": "evaluate", "GARM_LR": "rft", "POLICY": "evaluate", "CLICK_LOG": "grpo"}
OF_EARLIER |= {"STEPS": "evaluate", "NORMALISATION": "grpo", "N_RFT": "grpo", "N_SUGGESTIONS": "fusion"}
# Plugins, and what they are given: the weights were learned with them.
OF_EARLIER |= {"OPTION": "grpo", "PLUGIN": "grpo", "REWARD_MODEL": "fusion"}


@pytest.mark.parametrize(("name", "stage"), OF_EARLIER.items())
def test_a_stage_that_goes_on_from_one_made_otherwise_stops_and_says_how_to_make_that_anew(whole, name, stage):
    (whole.folder / "mine.py").write_text('@REWARDS.register("garm")\nclass Mine: ...\n')
    (whole.folder / "mine.jsonl").write_text("{}\n")
    before = whole.run.record.read_bytes()
    call = whole(stage, **{name: CHANGED[name]})
    assert call.returncode == 1 and whole.calls() == [] and whole.run.record.read_bytes() == before
    assert f"{stage} builds on " in call.stderr
    assert f", which was made with other settings; requested: {name}=" in call.stderr
    assert "AGAIN=1 bash recipes/" in call.stderr and len(call.stderr.splitlines()) == 1


def test_weights_that_were_learned_with_other_options_train_no_policy(recipes):
    for stage in ("data", "sft", "garm", "fusion", "rft"):
        assert recipes(stage).returncode == 0
    call = recipes("grpo", OPTION="ood.threshold=2")
    assert call.returncode == 1 and "grpo builds on fusion, which was made with other settings" in call.stderr
    assert not recipes.run.grpo.path.exists()


def test_a_stage_may_have_a_seed_of_its_own_and_what_was_read_may_be_gone(recipes):
    (recipes.folder / "mine.jsonl").write_text("{}\n")
    assert recipes("grpo_garm", CLICK_LOG="mine.jsonl").returncode == 0
    (recipes.folder / "mine.jsonl").unlink()
    done = recipes("grpo", SEED="7", AGAIN="1")
    assert done.returncode == 0, done.stderr
    assert recipes("evaluate").returncode == 0


def test_a_seed_of_one_stage_makes_no_other_stage_anew(whole):
    copy = {"RUN": str(whole.folder / "seeded")}
    shutil.copytree(whole.run.path, copy["RUN"])
    assert whole("grpo", SEED="7", AGAIN="1", **copy).returncode == 0
    done = whole("grpo_garm", **copy)
    whole.calls()
    assert done.returncode == 0 and done.stdout.count("already done") == 6, done.stderr
    variables = (Path(copy["RUN"]) / "variables.env").read_text().splitlines()
    assert [line for line in variables if line.startswith("SEED=")] == ["SEED=0"]


@pytest.mark.parametrize("name", ["CLICK_LOG", "PLUGIN", "POLICY"])
def test_a_file_that_is_not_there_is_an_error_even_where_all_is_done(whole, name):
    done = whole("grpo_garm", **{name: "./nowhere"})
    assert done.returncode == 1 and "./nowhere does not exist" in done.stderr


def test_fewer_prompts_than_all_steps_take_are_used_again(recipes):
    assert recipes("grpo_garm", STEPS="5").returncode == 0
    call = next(call for call in recipes.calls() if call.startswith("grpo "))
    assert "--train.num_episodes 2 --data.max_samples 192" in call  # three steps of 64, twice, where there are 200
    too_few = recipes("grpo", AGAIN="1", PROMPTS="500")
    assert too_few.returncode == 1 and "has 200 prompts, and a step takes 500: give PROMPTS=200" in too_few.stderr


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("CLICK_LOG", "nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("CLICK_LOG", ".", ". is a folder; name its files, as in ./*.jsonl"),
        ("POLICY", "./nowhere", "./nowhere does not exist"),
        ("POLICY", "models/of/mine", "models/of/mine does not exist"),  # no hub's name
        ("POLICY", "venv/mine", "venv/mine does not exist"),  # below a folder that is here
    ],
)
def test_a_file_that_is_not_there_is_told_in_a_dry_run_as_in_a_real_one(recipes, name, value, what):
    for variables in ({}, {"DRY_RUN": "1"}):
        done = recipes("grpo_garm", **{name: value}, **variables)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"data: {name}={value}: {what}\n"
    assert recipes.calls() == []


def test_a_hub_s_name_passes_a_dry_run_and_one_without_python_looks_for_nothing(recipes):
    assert recipes("data", DRY_RUN="1", POLICY="Qwen/Qwen3-4B").returncode == 0
    python = {"VIRTUAL_ENV": str(recipes.folder / "none"), "PYTHON": "/nonexistent"}
    assert recipes("data", DRY_RUN="1", POLICY="./nowhere", **python).returncode == 0


def test_again_makes_anew_what_differs_and_all_after_it_and_nothing_before(recipes):
    recipes("grpo_garm")
    recipes.calls()
    done = recipes("grpo_garm", AGAIN="1", GARM_LR="9e-4")
    assert done.returncode == 0, done.stderr
    made = [re.match(r"(garm (?:wide|calibrate|spread)|[a-z-]+)", call)[1] for call in recipes.calls()]
    assert made == [
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
    # killed on the way, the same call would find all of it as asked
    assert recipes("grpo_garm", AGAIN="1", GARM_LR="9e-4").stdout.count("already done") == 7
    # a stage alone is made anew though nothing differs, and so is what builds on it, with what the run was given
    recipes.calls()
    assert recipes("garm", AGAIN="1").returncode == 0
    assert "--adam.lr 9e-4" in recipes.calls()[0]
    assert set(durations(recipes.run)) == {"data", "sft", "garm"} and not recipes.run.grpo.path.exists()


def test_another_reward_in_a_copy_keeps_what_does_not_read_it(whole):
    """RFT reads the reward model, not the weights of the parts."""
    said = whole("grpo_garm", REWARD="garm,rules").stderr
    assert "AGAIN=1 redoes fusion and everything that builds on it: grpo, evaluate" in said
    shutil.copytree(whole.run.path, whole.folder / "other")
    (whole.folder / "constant.py").write_text(
        "import torch\n"
        "from openrlhf_qs.registry import REWARDS\n"
        '@REWARDS.register("constant")\n'
        "class Constant:\n"
        '    """The same for all."""\n'
        "    def __call__(self, batch):\n"
        "        return torch.zeros(len(batch.responses))\n"
    )
    whole.calls()
    asked = {"REWARD": "garm,constant", "PLUGIN": "constant.py", "RUN": str(whole.folder / "other")}
    done = whole("grpo_garm", AGAIN="1", **asked)
    assert re.findall("^(.+): done", done.stdout, re.MULTILINE) == ["fusion", "grpo", "evaluate"], done.stderr
    assert [call.split()[0] for call in whole.calls()][2:] == ["grpo", "generate", "generate", "generate", "evaluate"]


def test_what_a_call_does_not_name_is_as_the_run_was_made(recipes):
    (recipes.folder / "mine.jsonl").write_text("{}\n")
    recipes("data", CLICK_LOG="mine.jsonl", SEED="3")
    assert recipes("grpo_garm").returncode == 0
    calls = recipes.calls()
    assert not [call for call in calls if call.startswith("world")]
    assert [call for call in calls if call.startswith("sft")][0].count("--train.seed 3") == 1
    assert "--judge none" in calls[-1], "real conversations are not judged by simulated users"


@pytest.mark.parametrize("flag", ["--help", "--qs.check_enable"])
def test_a_call_that_asks_or_checks_makes_no_stage(recipes, flag):
    recipes("data")
    done = recipes("sft", flag)
    assert done.returncode == 0 and "done" not in done.stdout
    assert set(durations(recipes.run)) == {"data"}
    assert recipes("sft").returncode == 0 and "sft" in durations(recipes.run)


def test_a_training_that_ends_well_and_makes_nothing_is_not_done(recipes):
    recipes("data")
    Path(recipes.environment["CALLS"] + ".nothing").touch()  # as a plugin that calls sys.exit(0)
    done = recipes("sft")
    assert done.returncode == 1 and "sft wrote no " in done.stderr and "it is not done" in done.stderr
    assert "sft" not in durations(recipes.run)


def test_a_training_that_fails_says_why_in_one_line_and_keeps_the_rest_in_its_log(recipes):
    recipes("data")
    fails = Path(f"{recipes.environment['CALLS']}.fails")
    fails.write_text("Traceback (most recent call last):\n  File ...\nopenrlhf-qs sft: an earlier reason\n")
    assert "sft failed: an earlier reason. Full output: " in recipes("sft").stderr
    fails.write_text(
        "Traceback (most recent call last):\n  File ...\nopenrlhf-qs sft: no room (RuntimeError at x.py:3)\n"
    )
    done = recipes("sft")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "sft failed: no room (RuntimeError at x.py:3). Full output: " in done.stderr
    assert (recipes.run.sft / "log.txt").read_text().count("Traceback") == 2
    fails.write_text("it was killed\n")  # and could not say why: no reason of an earlier call is shown
    assert "it was killed" in recipes("sft").stderr and "an earlier reason" not in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_recipe_that_is_ended_ends_its_training(recipes, sent):
    recipes("data")
    process = recipes.slow_training()
    assert trainings_of(recipes.run)
    process.send_signal(sent)  # to the recipe alone, not to its group
    process.wait(timeout=60)
    wait_until(lambda: not trainings_of(recipes.run), seconds=30)
    assert read_record(recipes.run)["sft"]["state"] == "begun"
    assert recipes("sft").returncode == 0


def test_the_whole_way_that_is_ended_ends_the_training_of_its_stage(recipes):
    process = recipes.slow_training("grpo_garm")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    wait_until(lambda: not trainings_of(recipes.run), seconds=30)


def test_a_second_call_beside_the_first_is_refused_and_names_it(recipes):
    recipes("data")
    first = recipes.slow_training()
    for second in [recipes.start(name) for name in ("sft", "grpo_garm")]:  # each waits some seconds for the lock
        said = second.communicate(timeout=60)[0].decode()
        assert second.returncode == 1
        assert re.search(
            rf"another call is working in {recipes.run.path}: wait for it, end it with kill .*\b{first.pid}\b", said
        )
    assert recipes("data", RUN=str(recipes.folder / "other")).returncode == 0, "another RUN goes on beside it"
    first.terminate()
    first.wait(timeout=60)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LR": "1"}, "LR was one variable for several stages; each now has its own:"),
        ({"STPES": "4"}, "STPES is not a variable of the recipes: did you mean STEPS?"),
        ({"SFT_LRR": "4"}, "SFT_LRR is not a variable of the recipes: did you mean SFT_LR?"),
        ({"GARM_STEPS": "4"}, "GARM_STEPS is not a variable of the recipes; there are"),
        ({"GPUS": "all"}, "GPUS=all: give a whole number, as in GPUS=8"),
        ({"GPUS": "0,1"}, "GPUS=0,1: give a whole number, as in GPUS=8"),
        ({"GPUS": "8"}, "GPUS=8 without POLICY would train a random policy of two million parameters"),
        ({"RUN": "runs/a,b"}, "a comma, @, bracket, brace"),
        ({"RUN": "runs/[/b]"}, "a comma, @, bracket, brace"),
        ({"RUN": "runs/a@1"}, "a comma, @, bracket, brace"),
        ({"AGAIN": "yes"}, "AGAIN=yes: give 1, or nothing"),
        ({"DRY_RUN": "yes"}, "DRY_RUN=yes: give 1 or 0"),
        ({"RFT": "no"}, "RFT=no: give 1 or 0"),
        ({"WIDE": "true"}, "WIDE=true: give 1 or 0"),
        ({"STEPS": "many"}, "STEPS=many: give a whole number above 0, as in STEPS=8"),
        ({"STEPS": "0"}, "STEPS=0: give a whole number above 0, as in STEPS=8"),
        ({"N_RFT": "2k"}, "N_RFT=2k: give a whole number above 0, as in N_RFT=100"),
        ({"N_HELDOUT": "00"}, "N_HELDOUT=00: give a whole number above 0"),
        ({"N_SUGGESTIONS": "9"}, "N_SUGGESTIONS=9: give 1 to 8"),
        ({"PROMPT_TEMPLATE": "not_there.txt"}, "PROMPT_TEMPLATE=not_there.txt is not a file"),
        ({"TEMPERATURES": "1 hot"}, 'TEMPERATURES=1 hot: give numbers above 0, as in "1 .7 .5"'),
        ({"TEMPERATURES": "1 0"}, "TEMPERATURES=1 0: give numbers above 0"),
        ({"GRPO_TEMPERATURE": "0.0"}, "GRPO_TEMPERATURE=0.0: give a number above 0"),
        ({"NODES": "2"}, "NODES=2 with GPUS=0: several nodes need GPUs"),
        ({"ASYNC": "1"}, "ASYNC=1 needs at least 2 GPUs per node"),
        ({"SFT_EPOCHS": "1.5"}, "SFT_EPOCHS=1.5: give a whole number"),
        ({"GARM_LR": "1e-"}, "GARM_LR=1e-: give a number, as in 0.1 or 1e-4"),
        ({"GRPO_TEMPERATURE": "-1"}, "GRPO_TEMPERATURE=-1: give a number"),
        ({"CREDIT": "token"}, "CREDIT=token: give suggestion or response"),
        ({"MONITOR": "on"}, "MONITOR=on: give warn, stop or off"),
        ({"CALIBRATE": "hard"}, "CALIBRATE=hard: give soft, significant or no"),
    ],
)
def test_what_would_be_ignored_or_misread_is_one_line(recipes, variables, said):
    done = recipes("data", **variables)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert recipes.calls() == []


def test_values_that_can_be_used_pass(recipes):
    given = {"TEMPERATURES": " 1 .7 0.5 1.", "N_ASKED": "0", "GRPO_TEMPERATURE": ".05", "STEPS": "08"}
    assert recipes("data", **given).returncode == 0


def test_variables_of_other_programs_are_let_be(recipes):
    others = {
        "PATH_INFO": "x",
        "LANG": "C",
        "TERM": "dumb",
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
        "GPG_KEY": "x",
    }
    assert recipes("data", **others).returncode == 0


@pytest.mark.parametrize("word", ["--help", "-h", "--adam.lr"])
def test_flags_of_the_whole_way_are_answered(recipes, word):
    done = recipes("grpo_garm", word)
    if word == "--adam.lr":
        assert done.returncode == 1 and "grpo_garm.sh takes no flags (found --adam.lr)" in done.stderr
    else:
        assert done.returncode == 0 and "CLICK_LOG=clicks.jsonl" in done.stdout
    assert recipes.calls() == []


def test_the_cpu_form_hides_the_gpus_and_says_so(recipes):
    nvidia_smi = recipes.folder / "venv" / "bin" / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho GPU 0\n")
    nvidia_smi.chmod(0o755)
    path = f"{nvidia_smi.parent}:{recipes.environment['PATH']}"
    done = recipes("grpo_garm", PATH=path)
    assert "CPU setup: this machine's GPUs stay idle" in done.stdout
    calls = recipes.calls()
    for stage in ("sft", "garm", "rft", "grpo"):
        (call,) = (call for call in calls if f"--ckpt.output_dir {recipes.run.stage(stage)} " in call)
        assert "--qs.device cpu" in call
    assert 'export CUDA_VISIBLE_DEVICES=""' in (ROOT / "recipes" / "common.sh").read_text()


def test_variables_come_from_a_file_and_a_call_goes_before_it(recipes):
    config = recipes.folder / "mine.env"
    config.write_text(f"SEED=7\nSTEPS=9\nOPTION=ood.threshold=3\nRUN={recipes.folder / 'elsewhere'}\n")
    assert recipes("data", CONFIG=str(config), STEPS="5").returncode == 0
    given = read_record(recipes.run)["data"]["given"]
    assert given["SEED"] == "7" and given["STEPS"] == "5" and given["OPTION"] == "ood.threshold=3"
    assert not (recipes.folder / "elsewhere").exists()  # the call names RUN
    config.write_text("STPES=9\n")
    wrong = recipes("data", CONFIG=str(config))
    assert wrong.returncode == 1 and "mine.env:1: STPES is not a variable of the recipes: STEPS?" in wrong.stderr


def test_a_run_is_made_again_from_the_file_that_it_leaves(recipes):
    assert recipes("data", SEED="7", N_CONTEXTS="50").returncode == 0
    assert recipes("sft", SFT_LR="3e-3").returncode == 0
    other = RunFolder(recipes.folder / "other")
    for stage in ("data", "sft"):
        called = recipes(stage, CONFIG=str(recipes.run.variables), RUN=str(other.path))
        assert called.returncode == 0, called.stderr
    for stage in ("data", "sft"):
        assert read_record(other)[stage]["variables"] == read_record(recipes.run)[stage]["variables"]
    assert read_record(other)["sft"]["variables"]["SFT_LR"] == "3e-3"


def test_a_path_with_a_blank_is_one_log(recipes):
    log = recipes.folder / "my clicks.jsonl"
    log.write_text("{}\n")
    assert recipes("data", CLICK_LOG=str(log)).returncode == 0
    assert f"--log {log} --out" in recipes.calls()[0]
    assert json.loads(recipes.run.record.read_text())["stages"]["data"]["files"]["CLICK_LOG"].keys() == {str(log)}


def test_a_set_up_that_was_killed_in_its_first_seconds_begins_again(tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copytree(ROOT / "recipes", checkout / "recipes")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    without_pip = checkout / ".venv" / "bin" / "python"  # killed before it had one
    without_pip.write_text("#!/bin/sh\nexit 1\n")
    without_pip.chmod(0o755)
    asked = tmp_path / "asked"
    python = tmp_path / "python3"
    python.write_text(
        f'#!/bin/sh\n[ "$1" != -m ] || {{ echo "$@" >> {asked}; exit 9; }}\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "HOME": str(tmp_path)}
    subprocess.run(["bash", str(checkout / "recipes" / "test.sh")], env=environment, capture_output=True)
    assert asked.read_text().splitlines() == [f"-m venv --clear {checkout}/.venv"]


@pytest.mark.parametrize("value", ["1e-4", ".5", "2.", "3", "1.5E+1"])
def test_a_number_may_be_written_in_any_usual_way(recipes, value):
    done = recipes("data", GARM_LR=value)
    assert done.returncode == 0, done.stderr


def test_what_the_whole_way_names_is_checked_at_its_beginning_in_a_dry_run_too(recipes):
    log = Path(recipes.environment["CALLS"] + ".checked")
    log.touch()
    mine = recipes.folder / "users.py"
    mine.write_text("")
    for judge, said in (("built_in_wrld", "--check judge=built_in_wrld"), (str(mine), f"--plugin {mine}")):
        for variables in ({}, {"DRY_RUN": "1"}):
            run = str(recipes.folder / f"run {judge.replace('/', '')}")
            recipes("data", JUDGE=judge, OBJECTIVE="clickz", RUN=run, **variables)
            (checked,) = log.read_text().splitlines()
            assert said in checked and "--check objective=clickz" in checked and "--check fusion=" in checked
            log.write_text("")


def test_a_plugin_that_is_not_there_is_told_before_anything_is_made(recipes):
    unknown = Path(recipes.environment["CALLS"] + ".unknown")
    unknown.touch()
    failed = recipes("grpo_garm", REWARD="garm,grm")
    assert failed.returncode and "unknown reward" in failed.stderr
    assert not recipes.calls()
    unknown.unlink()
    assert recipes("grpo_garm", REWARD="garm").returncode == 0
