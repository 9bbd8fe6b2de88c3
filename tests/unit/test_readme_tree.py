"""The file tree at the end of the README: every file is in it with a phrase, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOP = {"openrlhf_qs": "*.py", "plugins": "*.py", "recipes": "*.*", "docs": "*.*"}


def told() -> dict[str, str]:
    """Path to phrase, of what stands under the four folders whose files the tree names."""
    block = re.search(
        r"^## Files\n\n<details>.*?\n\n```\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )[1]
    folders: list[str] = []
    found = {}
    for line in block.splitlines():
        indent, name, phrase = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()
        folders = [*folders[: len(indent) // 2], name.rstrip("/")]
        found["/".join(folders)] = phrase
    return found


def test_every_file_is_in_the_tree_and_everything_in_the_tree_is_there():
    files = {
        str(path.relative_to(ROOT))
        for top, pattern in TOP.items()
        for path in (ROOT / top).rglob(pattern)
        if path.name != "__init__.py" and "templates" not in path.parts
    }
    named = told()
    missing = sorted(files - named.keys())
    gone = sorted(path for path in named if not (ROOT / path).exists())
    assert (missing, gone) == ([], [])


def test_every_line_of_the_tree_has_a_phrase_and_120_columns_hold_it():
    assert [path for path, phrase in told().items() if not phrase] == []
    assert max(map(len, (ROOT / "README.md").read_text().split("## Files")[1].splitlines())) < 120
