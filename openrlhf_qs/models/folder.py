"""Whether a folder holds a whole model: looked at before anything loads it, so that an error names the file.

What loads models says ``SafetensorError`` or ``Expecting value: line 1 column 1``, or takes random numbers for what is
not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openrlhf_qs.files.asked import is_path
from openrlhf_qs.files.fingerprint import broken
from openrlhf_qs.files.whole import share_as_usual, write_whole

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
AGAIN = "copy the model again, or make it again"


def check_model(path: str | Path, flag: str = "") -> None:
    """ValueError where a path, or a folder that is here, holds no whole model; a hub's name is left to who loads it.

    Args:
        flag: what named it, for the error.
    """
    path = str(path)
    where = f"{flag} {path}".strip()
    if not Path(path).is_dir():
        if is_path(path):
            raise ValueError(f"{where} does not exist; give a Hugging Face folder or name")
        return
    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"{where}: it has no config.json, so it is not a model; give a Hugging Face folder or name")
    read_config(path)
    check_weights(path)


def read_config(path: str | Path) -> dict[str, Any]:
    """``config.json`` of a model's folder. ValueError where it is missing, cut, or no object."""
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}; {AGAIN}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is a {type(config).__name__}, not an object with names and values; {AGAIN}")
    return config


def check_weights(path: str | Path) -> None:
    """ValueError where a folder has no file of weights, or one of them is missing or cut."""
    files = weight_files(path)
    if not files:
        raise ValueError(f"{path} has no weights ({', '.join(WEIGHTS)}); {AGAIN}")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is missing, which its index names; {AGAIN}")
        problem = broken(file)
        if problem:
            raise ValueError(f"{file} {problem}; {AGAIN}")


def make_usable(path: str | Path) -> None:
    """What a training leaves in a model's folder, as others use it.

    A policy's ``config.json`` says ``use_cache``, which training turned off: without it every token that transformers
    generates reads the whole text again. And the weights, which safetensors writes for their owner alone, may be read
    by whoever may read any other new file.
    """
    folder = Path(path)
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    if any(name.endswith("ForCausalLM") for name in config.get("architectures") or ()) and not config.get("use_cache"):
        write_whole(
            folder / "config.json", json.dumps(config | {"use_cache": True}, indent=2, ensure_ascii=False) + "\n"
        )
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.is_file() and not file.is_symlink():
            share_as_usual(file)


def weight_files(path: str | Path) -> list[Path]:
    """The files of weights in a folder, and those that an index there names."""
    folder = Path(path)
    files = {file for pattern in WEIGHTS for file in folder.glob(pattern) if file.name != "training_args.bin"}
    return sorted(files | set(_indexed(folder)))


def _indexed(folder: Path) -> Iterator[Path]:
    for index in folder.glob("*.index.json"):
        try:
            yield from {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} cannot be read as an index of weights; {AGAIN}") from None
