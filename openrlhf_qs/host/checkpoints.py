"""DeepSpeed's checkpoints of a run: which are whole, and from which one training goes on.

``--ckpt.path`` holds a folder for each model of GRPO, ``_actor`` and maybe ``_critic``; in SFT and reward-model
training it is itself that folder. In it stand ``global_stepN`` and ``latest``, which names one of them and is written
last. OpenRLHF removes old folders before it writes a new one, so a run that is killed meanwhile can leave a ``latest``
that names a folder which is gone, or a folder that is not whole; OpenRLHF then stops with an AssertionError.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

from openrlhf_qs.files.whole import write_whole

STEP = re.compile(r"global_step(\d+)")


def settle(path: Path) -> int:
    """Let ``latest`` name the newest checkpoint that every model has whole, and remove what is newer or is not whole.

    Says so where it changes anything.

    Args:
        path: OpenRLHF's ``--ckpt.path``.

    Returns:
        The step that training goes on from, 0 where there is none.
    """
    folders = [folder for folder in (path / "_actor", path / "_critic") if folder.is_dir()] or [path]
    step = max(set.intersection(*(set(whole_steps(folder)) for folder in folders)), default=0)
    for folder in folders:
        named = latest(folder)
        dropped = [one for one in steps(folder) if one > step or one not in whole_steps(folder)]
        for one in dropped:
            shutil.rmtree(folder / f"global_step{one}")
        if not step:
            (folder / "latest").unlink(missing_ok=True)
            if folder.name in ("_actor", "_critic"):  # OpenRLHF takes the folder itself for a checkpoint
                shutil.rmtree(folder)
        elif named != step:
            write_whole(folder / "latest", f"global_step{step}")
        if dropped or named != (step or None):
            way = f"continuing from step {step}" if step else "starting from the beginning"
            what = f"step {', '.join(map(str, dropped))} is" if dropped else f"step {named}, the last one it names, is"
            print(f"{folder}: the checkpoint of {what} not whole: {way}", flush=True)
    return step


def whole_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints are whole, oldest first.

    Whole is one that has as many files as the fullest, each a whole archive, as torch writes them, and that is no
    newer than ``latest``, for a process may not have begun to write its part of a newer one.
    """
    if not (folder / "latest").is_file():
        return []
    newest = latest(folder)  # None: the run was killed while it wrote this file, after all others
    files = {step: list((folder / f"global_step{step}").glob("*.pt")) for step in steps(folder)}
    n_files = max(map(len, files.values()), default=0)
    return [
        step
        for step, parts in files.items()
        if 0 < n_files == len(parts) and (newest is None or step <= newest) and all(map(zipfile.is_zipfile, parts))
    ]


def steps(folder: Path) -> list[int]:
    """The steps of which there is a folder, oldest first."""
    found = [STEP.fullmatch(one.name) for one in folder.glob("global_step*") if one.is_dir()]
    return sorted(int(match[1]) for match in found if match)


def latest(folder: Path) -> int | None:
    """The step that ``latest`` names, None where it names none."""
    file = folder / "latest"
    match = STEP.fullmatch(file.read_text(encoding="utf-8", errors="replace").strip()) if file.is_file() else None
    return int(match[1]) if match else None
