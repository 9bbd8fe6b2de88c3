"""OpenRLHF's arguments as its own entry points parse them, without their imports.

An entry point builds its parser at the end of its file, after imports that take ten seconds. Here the statements that
build it are taken out of the file and run alone: what is checked is what OpenRLHF will see, abbreviated flags
(``--algo.kl.init 0``), ``--flag=value`` and defaults included.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import runpy
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

ENTRY_POINTS = {
    "sft": "openrlhf.cli.train_sft",
    "garm": "openrlhf.cli.train_rm",
    "dpo": "openrlhf.cli.train_dpo",
    "grpo": "openrlhf.cli.train_ppo_ray",
}


def host_arguments(stage: str, argv: Sequence[str]) -> SimpleNamespace:
    """What the entry point of ``stage`` makes of ``argv``: ``args.algo.kl.init_coef`` and so on.

    ValueError where it does not take ``argv``, or where the installed file has no such parser.
    """
    parser = host_parser(stage)

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; every flag: openrlhf-qs {stage} --help-all")

    parser.error = refuse
    hierarchize = runpy.run_path(str(host_folder() / "utils" / "config.py"))["hierarchize"]
    return hierarchize(parser.parse_args(list(argv)))


def host_parser(stage: str) -> argparse.ArgumentParser:
    """The parser of the stage's entry point: the statements of its ``__main__`` up to ``parser.parse_args()``."""
    module = ENTRY_POINTS[stage]
    file = host_folder() / "cli" / f"{module.rpartition('.')[2]}.py"
    *_, main = ast.parse(file.read_text(encoding="utf-8")).body
    body = main.body if isinstance(main, ast.If) and ast.unparse(main.test) == "__name__ == '__main__'" else []
    for n, statement in enumerate(body):
        if ast.unparse(statement) == "args = parser.parse_args()":
            names = {"argparse": argparse, "datetime": datetime}
            exec(compile(ast.Module(body[:n], type_ignores=[]), file, "exec"), names)
            return names["parser"]
    raise ValueError(f"{file} does not parse arguments where openrlhf-qs expects it: install a tested version")


def host_folder() -> Path:
    """The folder of the installed package; nothing of it is imported. ValueError where there is none."""
    found = importlib.util.find_spec("openrlhf")
    if found is None:
        raise ValueError("OpenRLHF is not installed: see `Install` in the README")
    return Path(found.submodule_search_locations[0])
