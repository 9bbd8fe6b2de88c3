"""What a call of a recipe asks a stage to be made from, and how that differs from what it was made from.

Standard library alone, as everything that the recipes call before the environment is there.
"""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_qs.files.fingerprint import content_hash, print_of
from openrlhf_qs.files.stages import PATHS, STAGES, Variables

BY_DEFAULT = " by default"  # of a variable that the call does not name
# Flags that say where something is kept or how it is watched, not what is made.
KEEPING = ("--ckpt.", "--logger.", "--qs.monitor")
SECRETS = ("--logger.wandb.key",)  # flags whose value is written nowhere


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
    named = {name for variable in of_stage.plugins for name in values.get(variable, "").split(",") if name}
    names = {*named, *of_stage.fixed_plugins}
    return {
        "variables": {name: values[name] for name in of_stage.variables if name in values},
        "given": {name: remembered(name, values[name]) for name in given},
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


def remembered(name: str, value: str) -> str:
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
        {k: v for k, v in flag_values(one["flags"]).items() if not k.startswith(KEEPING)} for one in (asked, made)
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


def flag_values(words: Sequence[str]) -> dict[str, list[str]]:
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
