"""What the layers contract in pyproject.toml cannot say."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "openrlhf_qs"


def imported(file: Path) -> set[str]:
    """The modules that a file imports, anywhere in it; ``from a import b`` counts as ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_plugins_are_imported_by_nobody_but_the_registry_which_does_it_by_name():
    # plugins/ lies beside the package and is installed into it, where import-linter does not look
    importers = {
        str(file.relative_to(ROOT)): [
            name for name in sorted(imported(file)) if name.startswith(("openrlhf_qs.plugins", "plugins"))
        ]
        for file in PACKAGE.rglob("*.py")
        if PACKAGE / "benchmark" not in file.parents
    }
    assert {file: names for file, names in importers.items() if names} == {}
