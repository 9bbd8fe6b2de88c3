import argparse
import re
import subprocess
import sys

import pytest

from openrlhf_qs import list_plugins
from openrlhf_qs.list_plugins import option_descriptions, summary
from openrlhf_qs.registry import KINDS, load_plugins, option_parameters


def shown(capsys, monkeypatch, name=None, plugin=(), columns="200"):
    monkeypatch.setenv("COLUMNS", columns)
    list_plugins.run(argparse.Namespace(name=name, plugin=list(plugin), check=[], option=[]))
    return capsys.readouterr().out


class OneArgs:
    """First sentence, in one line.

    More of it: with a colon.

    Args:
        coef: reward units per nat,
            >= 0; see ``a: b``.
        threshold: nats.

    Returns:
        nothing: at all.
    """

    def __init__(self, coef: float = 0.1, threshold: float = 3.0) -> None: ...


class ArgsOfInit:
    def __init__(self, coef: float = 0.1) -> None:
        """
        Args:
            coef: of the init.
        """


def test_options_are_described_by_the_docstring_of_the_class_or_its_init():
    assert option_descriptions(OneArgs) == {"coef": "reward units per nat, >= 0; see ``a: b``.", "threshold": "nats."}
    assert option_descriptions(ArgsOfInit) == {"coef": "of the init."}
    assert option_descriptions(object) == {}


def test_the_summary_is_the_first_line():
    assert summary(OneArgs) == "First sentence, in one line."
    assert summary(ArgsOfInit) == ""


def test_every_built_in_plugin_says_what_it_does_and_describes_its_options():
    load_plugins()
    for kind in KINDS.values():
        for name, plugin in kind.items():
            assert summary(plugin).endswith((".", ":")), f"{kind.kind} {name}: no sentence in the first line"
            missing = set(option_parameters(plugin)) - set(option_descriptions(plugin))
            assert not missing, f"{kind.kind} {name}: {missing} not described under Args"


def test_the_list_shows_each_kind_with_its_names_and_sentences_in_80_columns(capsys, monkeypatch):
    out = shown(capsys, monkeypatch, columns="80")
    assert max(map(len, out.splitlines())) <= 80 and "``" not in out
    for kind in KINDS.values():
        of_kind = out.partition(f"{kind.kind}:\n")[2]
        for name, plugin in kind.items():
            assert f"  {name} " in of_kind or f"  {name}\n" in of_kind, f"{kind.kind} {name} is not listed"
            assert summary(plugin).replace("``", "") in " ".join(out.split()), name


def test_the_options_of_one_plugin_fit_80_columns(capsys, monkeypatch):
    out = shown(capsys, monkeypatch, "ood", columns="80")
    assert max(map(len, out.splitlines())) <= 80 and "``" not in out
    assert "  ood.slack  float, default 0.0\n    for constraint; nats per token above the" in out


def test_one_plugin_is_shown_with_its_options_and_what_it_is_called_with(capsys, monkeypatch):
    out = shown(capsys, monkeypatch, "gaussian")
    assert "gaussian  (reward model, built in)" in out
    assert "output(raw [batch, n_outputs])" in out  # rich would take [batch] for markup
    assert "'probit' | 'probit_logistic'" in out
    assert "gaussian.std_floor" in out and "0.1" in out and "float" in out
    assert "the smallest standard deviation" in out


def test_options_that_are_required_or_none_at_all_are_said_to_be(capsys, monkeypatch):
    assert "required" in shown(capsys, monkeypatch, "openai_endpoint")
    assert "no options" in shown(capsys, monkeypatch, "gate_malformed")


def test_an_unknown_name_lists_the_known(capsys, monkeypatch):
    with pytest.raises(ValueError, match="unknown plugin 'garn'; known: .*garm, garm_sigma"):
        shown(capsys, monkeypatch, "garn")


def test_a_plugin_file_is_listed_with_its_place(tmp_path, capsys, monkeypatch):
    for kind in KINDS.values():
        monkeypatch.setattr(kind, "_plugins", dict(kind._plugins))
    file = tmp_path / "p.py"
    file.write_text(
        "from openrlhf_qs.registry import REWARDS\n"
        "@REWARDS.register('listed_by_file')\n"
        "class Listed:\n"
        "    'Gives one number for [batch].'\n"
        "    def __call__(self, batch): ...\n"
    )
    out = shown(capsys, monkeypatch, "listed_by_file", [file])
    assert str(file) in out.replace("\n", "") and "Gives one number for [batch]." in out


@pytest.mark.parametrize("words", [(), ("gaussian",)])
def test_the_list_waits_for_nothing_heavy(words):
    code = f"import sys, openrlhf_qs.cli as cli; cli.main(['plugins', *{words}]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "softplus" in done.stdout if words else "bradley_terry" in done.stdout
    imported = set(done.stdout.splitlines()[-1].split())
    assert not {"torch", "scipy", "polars", "pyarrow", "sklearn", "transformers", "matplotlib"} & imported


@pytest.mark.parametrize(
    ("check", "option", "problem"),
    [
        ("reward=garm,grm", "", "unknown reward 'grm'; known: "),
        ("rewards=garm", "", "no kind 'rewards' of plugins; there are sft dataset, "),
        ("fusion=pareto", "ood.thresold=3", "reward 'ood' has no option 'thresold'"),
        ("fusion=pareto", "odd.threshold=3", "unknown plugin 'odd'"),
    ],
)
def test_what_a_run_names_wrongly_is_told_without_a_run(check, option, problem, capsys):
    asked = argparse.Namespace(name=None, plugin=[], check=[check], option=[option] if option else [])
    with pytest.raises(ValueError, match=re.escape(problem)):
        list_plugins.run(asked)
    right = argparse.Namespace(name=None, plugin=[], check=["reward=garm, ood"], option=["ood.threshold=3"])
    list_plugins.run(right)
    assert not capsys.readouterr().out
