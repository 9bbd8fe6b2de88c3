import importlib.metadata
import sys
from types import SimpleNamespace
from typing import Literal

import pytest

from openrlhf_qs import registry
from openrlhf_qs.registry import KINDS, Registry, load_plugins, option_parameters, origin, parse_options

MADE_UP_REWARD = """\
from openrlhf_qs.registry import REWARDS

@REWARDS.register("made_up")
class MadeUp:
    def __call__(self, batch): ...
"""


class Brevity:
    def __init__(self, coef: float = 0.01, unit: Literal["words", "letters"] = "words", n_max: int | None = None):
        self.options = coef, unit, n_max


class Required:
    def __init__(self, name: str, strict_enable: bool = False) -> None:
        self.options = name, strict_enable


@pytest.fixture
def rewards():
    """A registry with two rewards in it."""
    one = Registry("reward", "called with a batch")
    one.register("brevity")(Brevity)
    one.register("required")(Required)
    return one


@pytest.fixture
def no_trace(monkeypatch):
    """What a test registers or imports as a plugin file is forgotten after it."""
    for kind in KINDS.values():
        monkeypatch.setattr(kind, "_plugins", dict(kind._plugins))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("openrlhf_qs_plugin_"):
            del sys.modules[name]


def test_a_registered_class_is_found_by_its_name_and_names_are_sorted(rewards):
    assert rewards["brevity"] is Brevity
    assert "brevity" in rewards and "other" not in rewards
    assert list(rewards) == ["brevity", "required"] and len(rewards) == 2


def test_register_returns_the_class_unchanged():
    assert Registry("reward", "").register("brevity")(Brevity) is Brevity


def test_a_taken_name_names_both_classes(rewards):
    with pytest.raises(ValueError, match=r"reward 'brevity' is taken by .*\.Brevity; give .*\.Required another name"):
        rewards.register("brevity")(Required)
    assert rewards["brevity"] is Brevity


def test_the_same_class_of_a_reloaded_module_is_no_second_plugin(rewards):
    again = type("Brevity", (), {"__module__": Brevity.__module__})
    rewards.register("brevity")(again)
    assert rewards["brevity"] is again


def test_an_unknown_name_lists_the_known(rewards):
    with pytest.raises(ValueError, match="^unknown reward 'brvity'; known: brevity, required$"):
        rewards["brvity"]
    with pytest.raises(ValueError, match="^unknown fusion 'x'; known: none$"):
        Registry("fusion", "")["x"]


def test_options_become_what_their_annotations_say(rewards):
    assert rewards.create("brevity", coef="0.1", unit="letters", n_max="7").options == (0.1, "letters", 7)
    assert rewards.create("brevity").options == (0.01, "words", None)


def test_an_option_may_be_called_name(rewards):
    assert rewards.create("required", name="x", strict_enable="true").options == ("x", True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("brevity", {"coeff": "1"}, "reward 'brevity' has no option 'coeff'; its options: coef, unit, n_max"),
        ("brevity", {"coef": "much"}, "brevity.coef = 'much': .*number"),
        ("brevity", {"unit": "lines"}, "brevity.unit = 'lines': input should be 'words' or 'letters'"),
        ("brevity", {"n_max": "1.5"}, "brevity.n_max = '1.5': .*integer"),
        ("required", {}, "^reward 'required' needs the option required.name$"),
    ],
)
def test_a_wrong_option_is_one_sentence(rewards, name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        rewards.create(name, **options)
    assert "\n" not in str(error.value)


def test_a_plugin_without_init_has_no_options(rewards):
    class Plain:
        pass

    rewards.register("plain")(Plain)
    assert option_parameters(Plain) == {}
    with pytest.raises(ValueError, match="has no option 'coef'; its options: none"):
        rewards.create("plain", coef="1")


def test_built_in_plugins_of_every_kind_are_loaded():
    load_plugins()
    assert all(len(kind) for kind in KINDS.values())
    assert origin(KINDS["reward"]["ood"]) == "built in"


def test_every_option_of_every_built_in_plugin_is_typed_and_has_a_default_or_is_required():
    load_plugins()
    for kind in KINDS.values():
        for name, plugin in kind.items():
            for option in option_parameters(plugin).values():
                assert option.annotation is not option.empty, f"{kind.kind} {name}: {option.name} has no type"
                assert option.kind is option.POSITIONAL_OR_KEYWORD, f"{kind.kind} {name}: {option}"


def test_a_plugin_file_registers_and_may_be_loaded_twice(tmp_path, no_trace):
    file = tmp_path / "my_rewards.py"
    file.write_text(MADE_UP_REWARD)
    load_plugins([file])
    first = registry.REWARDS["made_up"]
    load_plugins([file])
    assert registry.REWARDS["made_up"] is first
    assert origin(first) == str(file)


def test_two_plugin_files_of_one_name_are_refused(tmp_path, no_trace):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text("")
    with pytest.raises(ValueError, match=r"two plugin files are named same.py: .*a/same.py and .*b/same.py"):
        load_plugins([tmp_path / "a" / "same.py", tmp_path / "b" / "same.py"])


def test_a_missing_plugin_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"plugin file .*nowhere.py does not exist"):
        load_plugins([tmp_path / "nowhere.py"])


def test_a_broken_plugin_file_is_named_with_its_error_and_can_be_mended(tmp_path, no_trace):
    file = tmp_path / "breaks.py"
    file.write_text("import a_module_that_is_not_there")
    with pytest.raises(ValueError, match=r"plugin file .*breaks.py cannot be loaded: .*a_module_that_is_not_there"):
        load_plugins([file])
    file.write_text(MADE_UP_REWARD)
    load_plugins([file])
    assert "made_up" in registry.REWARDS


def test_an_entry_point_that_fails_names_the_package(monkeypatch):
    def load():
        raise ImportError("no module named torchx")

    broken = SimpleNamespace(name="extra_rewards", dist=SimpleNamespace(name="acme-rewards"), load=load)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [broken] if group == "openrlhf_qs.plugins" else []
    )
    message = "plugin 'extra_rewards' of package 'acme-rewards' cannot be loaded: .*torchx.*; mend or uninstall it"
    with pytest.raises(ValueError, match=message):
        load_plugins()


def test_settings_of_several_plugins_are_sorted_by_plugin():
    assert parse_options(["ood.coef=0.2", "rules.min_words=3", "ood.threshold=3"]) == {
        "ood": {"coef": "0.2", "threshold": "3"},
        "rules": {"min_words": "3"},
    }
    assert parse_options(["openai_endpoint.base_url=http://h:1/v1?a=b"]) == {
        "openai_endpoint": {"base_url": "http://h:1/v1?a=b"}
    }


@pytest.mark.parametrize("setting", ["ood", "ood=1", "ood.threshold", ".threshold=1", "ood.=1", "=", ""])
def test_a_setting_of_another_form_is_refused(setting):
    with pytest.raises(ValueError, match="is not of the form NAME.OPTION=VALUE"):
        parse_options([setting])
