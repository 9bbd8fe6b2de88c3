"""README, docs and changelog: what they name is there, and what they show works."""

from __future__ import annotations

import argparse
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from openrlhf_qs import cli, registry
from openrlhf_qs.clicks.click_log import REQUIRED, SCHEMA
from openrlhf_qs.evaluation.ab_test import load_judge
from openrlhf_qs.form.request import Request
from openrlhf_qs.host import run as host
from openrlhf_qs.host.bootstrap import all_patches
from openrlhf_qs.host.doctor import PACKAGES
from openrlhf_qs.registry import FILTERS, FUSIONS, JUDGES, KINDS, REWARD_MODELS, REWARDS, SFT_DATASETS
from openrlhf_qs.reward.fusion_data import FusionData
from openrlhf_qs.reward.offline import offline_batch

ROOT = Path(__file__).parents[2]
README, DOCS = ROOT / "README.md", ROOT / "docs"
HOST, PAPER, PLUGINS = DOCS / "HOST.md", DOCS / "PAPER.md", DOCS / "PLUGINS.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
CODE = [*(ROOT / "recipes").glob("*.sh"), *(ROOT / "openrlhf_qs").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
FILE = re.compile(r"(?<![\w/.])((?:recipes|docs|openrlhf_qs|plugins|tests)/[\w/]+\.(?:sh|md|py))\b")
VARIABLE = re.compile(r"(?:^|[\s`$])([A-Z][A-Z_]{2,})(?=[=`/\s]|$)", re.MULTILINE)
CONVERSATION = [{"role": "user", "content": "How do I bake bread?"}, {"role": "assistant", "content": "Use flour."}]

all_pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def in_code(page: Path) -> str:
    """All that stands in backticks and in blocks of shell commands."""
    spans = re.findall(r"(?<!`)`[^`\n]+`(?!`)", page.read_text())
    return "\n".join([*spans, *blocks(page, "bash")])


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def table(page: Path, head: str) -> dict[str, list[str]]:
    """Of the tables whose head begins with the cell ``head``: the first cell of a row, bare, to the others."""
    rows = {}
    for body in re.findall(rf"^\| {head} \|.*\n\|[ -|]*\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE):
        for line in body.splitlines():
            first, *others = (cell.strip() for cell in line.strip("| ").split(" | "))
            rows[first.strip("`")] = others
    return rows


@pytest.fixture
def load(tmp_path, monkeypatch):
    """``load(text, name)`` writes a plugin file and loads it; after the test what it registered is forgotten."""
    registry.load_plugins()
    for kind in KINDS.values():
        monkeypatch.setattr(kind, "_plugins", dict(kind._plugins))
    modules = []

    def load(text: str, name: str) -> Path:
        file = tmp_path / name
        file.write_text(text)
        registry.load_plugins([file])
        modules.append(f"openrlhf_qs_plugin_{file.stem}")
        return file

    yield load
    for module in modules:
        del sys.modules[module]


# What is named is there


@all_pages
def test_every_file_and_link_exists(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [file for file in FILE.findall(page.read_text()) if not (ROOT / file).is_file()]
    assert not missing


@all_pages
def test_a_link_into_a_page_leads_to_a_heading(page):
    """As GitHub names them: lower case, without punctuation, a hyphen for each blank."""
    for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        target = page.parent / file if file else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        names = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in names, f"{file}#{anchor}"


@all_pages
def test_every_subcommand_exists(page):
    named = set(re.findall(r"openrlhf-qs ([a-z][\w-]*)", in_code(page)))
    assert named <= {command.split()[0] for command in (*cli.STAGES, *cli.TOOLS)}  # a command may have two words


@all_pages
def test_every_variable_is_read_by_a_recipe_or_by_the_code(page):
    code = "\n".join(file.read_text() for file in CODE)
    named = set(VARIABLE.findall(in_code(page))) - {"PWD"}
    assert not [name for name in named if not re.search(rf"\b{name}\b", code)]


@all_pages
def test_every_flag_of_ours_exists(page):
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    for stage in host.ENTRY_POINTS:
        host.add_arguments(parser, stage)
    assert set(re.findall(r"--qs\.\w+", page.read_text())) <= parser._option_string_actions.keys()


@all_pages
def test_every_name_of_the_package_can_be_imported(page):
    for name in re.findall(r"`(openrlhf_qs(?:\.\w+)+)`", page.read_text()):
        assert pkgutil.resolve_name(name)


@all_pages
def test_every_option_of_a_plugin_exists(page):
    registry.load_plugins()
    plugins = {name: kind[name] for kind in KINDS.values() for name in kind}
    for name, option in re.findall(r'[`" ]([a-z_]+)\.([a-z_]+)(?=[=`])', in_code(page)):
        if name in plugins:
            assert option in registry.option_parameters(plugins[name]), f"{name}.{option}"


def test_every_recipe_and_stage_is_in_the_table_of_stages():
    named = {Path(recipe).stem for recipe in table(README, "recipe")}
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.sh")}
    others = {"ablate_rewards", "ablate_sft", "common", "garm_upworthy", "grpo_garm", "rgalign", "serve", "test"}
    assert named == recipes - others == {*cli.STAGES} - {"generate"}


def test_every_field_of_the_click_log_is_in_its_table():
    fields = table(README, "field")
    assert list(fields) == list(SCHEMA)
    optional = {name for name, (_, what) in fields.items() if what.startswith("optional")}
    assert optional == SCHEMA.keys() - set(REQUIRED)


TABLE_OF_PARTS = ("SFT_DATASET", "REWARD_MODEL", "OBJECTIVE", "REWARD", "FUSION", "JUDGE", "FILTER")


def test_every_built_in_plugin_is_in_the_table_of_parts():
    registry.load_plugins()
    kinds = dict(zip(TABLE_OF_PARTS, KINDS.values(), strict=True))
    parts = table(README, "variable")
    for variable, kind in kinds.items():
        built_in = {name for name in kind if registry.origin(kind[name]) == "built in"}
        assert set(re.findall(r"`(\w+)`", parts[variable][-1])) - {"none"} == built_in, variable


def test_every_patch_is_in_the_table_of_patches_with_its_device():
    described = {target: device for target, (device, *_) in table(HOST, "target").items()}
    assert described == {f"{one.module}.{one.target}": one.device for one in all_patches()}


def test_the_tested_versions_are_those_that_doctor_knows():
    for packages, (version,) in table(HOST, "package").items():
        assert PACKAGES[packages.split(",")[0]].startswith(f"=={version}"), packages


def test_the_readme_takes_five_minutes():
    prose = README.read_text().partition("## Files")[0]
    for what in (r"```.*?```", r"^\|.*?$"):  # code and tables are looked at, not read
        prose = re.sub(what, "", prose, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= 5 * 250  # words a minute


def test_every_page_is_in_the_index():
    index = set(re.findall(r"\]\((\w+\.(?:md|ipynb))\)", (DOCS / "README.md").read_text()))
    pages = {path.name for pattern in ("*.md", "*.ipynb") for path in DOCS.glob(pattern)}
    assert index == pages - {"README.md"}


# What is shown works


def test_the_reward_of_the_readme_has_ten_lines_and_scores_a_batch(load):
    (text,) = blocks(README, "python")
    assert len([line for line in text.splitlines() if line]) == 10
    load(text, "brevity.py")
    batch = offline_batch(
        [Request(CONVERSATION)] * 3,
        [
            "1. How long does it rise?\n2. Which flour is best?\n3. Can I bake it without a Dutch oven at all?",
            "1. Which flour is best?",
            "I cannot help with that.",
        ],
    )
    # words: 5, 4, 10, of which two are at most 8; 4, and two that are not there; none
    torch.testing.assert_close(REWARDS.create("brevity")(batch), torch.tensor([2 / 3, 1 / 3, 0.0]))
    torch.testing.assert_close(REWARDS.create("brevity", max_words="4")(batch), torch.tensor([1 / 3, 1 / 3, 0.0]))


def test_the_reward_of_the_readme_is_shown_by_the_command_beside_it(tmp_path):
    (tmp_path / "brevity.py").write_text(blocks(README, "python")[0])
    (command,) = re.findall(r"^openrlhf-qs (plugins --plugin brevity.py brevity)\b", in_code(README), re.MULTILINE)
    shown = subprocess.run(
        [sys.executable, "-m", "openrlhf_qs.cli", *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "brevity.max_words" in shown.stdout and "The share of the suggestions" in shown.stdout


@pytest.fixture
def example(load):
    """``example(kind)``: the section of PLUGINS.md on that kind is loaded, as a file."""

    def example(kind: str) -> Path:
        texts = dict(zip(KINDS, blocks(PLUGINS, "python"), strict=True))
        return load(texts[kind], f"{kind.replace(' ', '_')}_example.py")

    return example


def test_plugins_has_a_section_for_each_kind_in_the_order_of_the_way():
    assert re.findall(r"^## (.*)$", PLUGINS.read_text(), re.MULTILINE) == list(KINDS)


def test_the_example_of_an_sft_dataset_takes_what_was_clicked_often(example):
    example("sft dataset")
    n_clicked = {"a": 3, "b": 1, "c": 2, "d": 2}
    candidates = [{"text": text, "n_shown": 9, "n_clicked": n, "weight": 1.0} for text, n in n_clicked.items()]
    rows = [{"conversation": CONVERSATION, "candidates": candidates}]
    assert SFT_DATASETS.create("never_unclicked")(rows, 3) == [["a", "c", "d"]]
    assert SFT_DATASETS.create("never_unclicked", n_clicks=3)(rows, 3) == [None]


def test_the_example_of_a_reward_model_gives_deviations_and_a_loss_that_falls_with_the_difference(example):
    example("reward model")
    head = REWARD_MODELS.create("logistic")
    output = head.output(torch.randn(5, head.n_outputs, generator=torch.Generator().manual_seed(0)))
    assert output.shape == (5, 3) and (output[:, 1] > 0).all() and (output[:, 2] == 0).all()
    better, worse, one = torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 1.0]]), torch.ones(1)
    assert head.loss(better, worse, one, one) < head.loss(worse, better, one, one)
    torch.testing.assert_close(head.loss(better, worse, one, 0 * one), head.loss(worse, better, one, one))


def test_the_example_of_a_reward_takes_the_worst_suggestion(example):
    example("reward")
    batch = offline_batch(
        [Request(CONVERSATION)] * 2,
        ["1. How long?\n2. Which flour?\n3. What now?", "Sorry."],
        scorer=lambda conversations, suggestions: (np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.5, 0.5]), np.zeros(3)),
    )
    # 1 - 0.5, 2 - 2.5, 3 - 0.5: the second is the worst; without suggestions: -5
    torch.testing.assert_close(REWARDS.create("cautious")(batch), torch.tensor([-0.5, -5.0]))


def test_the_example_of_a_fusion_weighs_what_rises_with_clicks(example):
    example("fusion")
    one = np.ones(4)
    difference = np.stack([one, -one], axis=1)
    data = FusionData(["up", "down"], difference, one, np.arange(4), np.arange(4))
    assert FUSIONS.create("correlation")(data) == pytest.approx([1, 0])
    with pytest.raises(ValueError, match="none of down rises with clicks"):
        FUSIONS.create("correlation")(FusionData(["down"], difference[:, 1:], one, np.arange(4), np.arange(4)))


def test_the_example_of_a_judge_can_be_named_by_its_file(example):
    judge = load_judge(str(example("judge")))
    assert type(judge) is JUDGES["curious"]
    # 0.3 at the top, half of it in the second place, and no click for what is no question
    assert judge([CONVERSATION], [["Which flour?", "How long?", "Bread."]]) == [[0.3, 0.15, 0.0]]


def test_the_example_of_a_filter_says_what_cannot_be_done(example):
    example("filter")
    suggestions = ["Which hotel is near?", "Can you book it?", "Which book is best?"]
    said = ["", "nobody here can book", ""]
    assert FILTERS.create("answerable")(Request(CONVERSATION), suggestions) == said
    assert FILTERS.create("answerable", cannot="fly")(Request(CONVERSATION), suggestions) == [""] * 3


def test_the_page_of_plugins_lists_the_abilities_of_every_kind():
    listed = {kind: re.findall(r"`(\w+)`", cells[0]) for kind, cells in table(PLUGINS, "kind").items()}
    assert listed == {kind: list(one.abilities) for kind, one in KINDS.items()}
