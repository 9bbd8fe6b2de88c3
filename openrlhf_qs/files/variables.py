"""The variables of the recipes in a file, for ``CONFIG=FILE bash recipes/grpo_garm.sh``, and what a run used as one.

A line each, ``NAME=value`` up to its end, maybe in quotes; lines that begin with ``#`` are for people. Nothing in it
is run. The recipes call this module with whatever Python there is: standard library alone::

    python -m openrlhf_qs.files.variables FILE NAME...      # of the variables there are
"""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_variables(path: str | Path, known: Iterable[str]) -> dict[str, str]:
    """Name to value. ValueError, with the line, for what is no line of this form, or no variable of the recipes."""
    known, values = list(known), {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(
            f"CONFIG={path} cannot be read ({why}): give a text file with one NAME=value per line"
        ) from None
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name:
            raise ValueError(f"{path}:{number}: {line!r} is not a variable; give NAME=value, as in STEPS=100")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"{path}:{number}: {name} is not a variable of the recipes"
                + (f": {near[0]}?" if near else "; recipes/common.sh and each stage's recipe have them")
            )
        if name in values:
            raise ValueError(f"{path}:{number}: {name} is set twice; keep one")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[name] = value
    return values


def as_file(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """What the stages of a run used, as :func:`read_variables` reads it: a variable stands with the first stage that
    it counts for.

    Args:
        stages: entries of ``run.json``, in their order; those without variables are passed over.
    """
    lines = ["# CONFIG=THIS_FILE RUN=runs/other bash recipes/grpo_garm.sh repeats this run."]
    told: set[str] = set()
    for stage, entry in stages.items():
        used = {**entry.get("variables", {}), **entry.get("given", {})}
        new = {name: value for name, value in used.items() if name not in told and "\n" not in value}
        if new:
            told |= new.keys()
            lines += ["", f"# {stage}", *(f"{name}={value}" for name, value in new.items())]
        if entry.get("flags"):
            lines.append(f"# and its flags: bash recipes/{stage}.sh {shlex.join(entry['flags'])}")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    path, *known = sys.argv[1:] if argv is None else argv
    try:
        for name, value in read_variables(path, known).items():
            print(f"{name}={shlex.quote(value)}")
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
