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
    with pytest.raises(ValueError, match="^unknown reward 'brvity'; known: .*, required; did you mean brevity\\?$"):
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
        (
            "brevity",
            {"coeff": "1"},
            "has no option 'coeff'; its options: coef, unit, n_max; did you mean coef",
        ),
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
    with pytest.raises(ValueError) as error:
        load_plugins([file])
    assert str(error.value) == (
        f"plugin file {file} cannot be loaded: No module named 'a_module_that_is_not_there' "
        f"(ModuleNotFoundError at {file}:1)"
    )
    file.write_text(MADE_UP_REWARD)
    load_plugins([file])
    assert "made_up" in registry.REWARDS


@pytest.mark.parametrize(
    ("source", "what", "where"),
    [
        ("x = 1\nprint('a'\n", "'(' was never closed", "(SyntaxError at {}:2)"),
        ("if True:\nx = 1\n", "expected an indented block after 'if'", "(IndentationError at {}:2)"),
        ("x = 1\n\ny = x.y\n", "'int' object has no attribute 'y'", "(AttributeError at {}:3)"),
        ("raise RuntimeError('two\\nlines')\n", "two lines", "(RuntimeError at {}:1)"),
        ("assert False", "", "(AssertionError at {}:1)"),
        # the line of theirs, not of the registry
        (MADE_UP_REWARD.replace("made_up", "a name"), "'a name': choose another name", "(ValueError at {}:3)"),
    ],
)
def test_a_plugin_file_that_cannot_be_loaded_is_told_by_message_type_and_line(tmp_path, source, what, where):
    file = tmp_path / "broken.py"
    file.write_text(source)
    with pytest.raises(ValueError) as error:
        load_plugins([file])
    said = str(error.value).removeprefix(f"plugin file {file} cannot be loaded: ")
    assert what in said and said.endswith(where.format(file)) and "\n" not in said


def test_a_plugin_file_that_ends_the_process_is_an_error_and_no_success(tmp_path):
    (tmp_path / "ends.py").write_text("import sys; sys.exit(0)")
    with pytest.raises(ValueError, match=r"plugin file .*ends.py cannot be loaded: 0 \(SystemExit at .*ends.py:1\)$"):
        load_plugins([tmp_path / "ends.py"])


def test_an_entry_point_that_fails_names_the_package(monkeypatch):
    def load():
        raise ImportError("no module named torchx")

    broken = SimpleNamespace(name="extra_rewards", dist=SimpleNamespace(name="acme-rewards"), load=load)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [broken] if group == "openrlhf_qs.plugins" else []
    )
    message = "plugin 'extra_rewards' of package 'acme-rewards' cannot be loaded: .*torchx.*; fix or uninstall it"
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
    with pytest.raises(ValueError, match="does not have the form NAME.OPTION=VALUE"):
        parse_options([setting])


# What a plugin may have


def plugin(**attributes):
    """A class with ``__call__`` and ``attributes``, of the package that this test belongs to."""
    return type("Plugin", (), {"__module__": __name__, "__call__": lambda self, batch: None} | attributes)


def test_a_plugin_has_every_ability_of_its_kind_with_its_default(no_trace):
    registry.REWARDS.register("plain_in_this_test")(plugin())
    made = registry.REWARDS.create("plain_in_this_test")
    assert (made.needs, made.gate, made.calibrate) == ((), False, None)
    assert registry.REWARD_MODELS["gaussian"].n_members == 1


def test_what_a_reward_may_need_is_what_the_composite_knows_to_ask_for():
    from openrlhf_qs.reward.composite import NEEDS

    assert not registry.REWARDS.abilities["needs"].problem(tuple(NEEDS))


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("reward", {"need": ("reference",)}, "nothing reads its attribute 'need'; .*: needs, gate, calibrate"),
        ("reward", {"gates": True}, "nothing reads its attribute 'gates'; those that are read: needs, gate, calib"),
        ("reward", {"is_gate": True}, "nothing reads its attribute 'is_gate'"),
        ("reward", {"calibrat": lambda self, batch: {}}, "nothing reads its attribute 'calibrat'"),
        ("reward", {"needs": "reference"}, "needs = 'reference': .*tuple; it is a tuple of what it reads"),
        ("reward", {"needs": ("refrence",)}, "needs = .*: input should be 'reward_model' or 'reference'"),
        (
            "reward",
            {"gate": 1},
            "gate = 1: input should be a valid boolean; it is True if it has no weight and returns 1",
        ),
        ("fusion", {"wants_hack": True}, "nothing reads its attribute 'wants_hack'; .*: wants_hacked, report"),
        ("sft dataset", {"reports": {}}, "nothing reads its attribute 'reports'; .*: report"),
        ("judge", {"needs": ("reference",)}, "nothing reads its attribute 'needs'; those that are read: limits"),
        ("reward model", {"output": len}, "has no method loss; every reward model is an object with output"),
        ("reward", {"rate": 2}, "nothing reads its attribute 'rate'"),
    ],
)
def test_what_nothing_reads_is_an_error_that_says_what_there_is(no_trace, kind, attributes, message):
    with pytest.raises(ValueError, match=f"^{kind} 'p'.*{message}") as error:
        KINDS[kind].register("p")(plugin(**attributes))
    assert "\n" not in str(error.value) and "p" not in KINDS[kind]


def test_what_is_the_plugins_own_is_left_alone(no_trace):
    class Made:
        MAX_WORDS = 8
        _cache: dict = {}
        coef = 0.5  # an option, as a dataclass has it

        def __init__(self, coef: float = 0.5) -> None:
            self.whatever = coef

        @property
        def gated(self):
            return False

        def navigate(self): ...

        def __call__(self, batch): ...

    registry.REWARDS.register("made_in_this_test")(Made)
    assert registry.REWARDS.create("made_in_this_test", coef="2").whatever == 2


def test_attributes_of_a_base_class_from_elsewhere_are_none_of_our_business(no_trace):
    class Base:
        training = True

    Base.__module__ = "torch.nn"
    registry.REWARDS.register("nn_in_this_test")(type("P", (Base,), dict(vars(plugin()))))


def test_a_function_is_told_to_be_a_class():
    with pytest.raises(
        ValueError, match=r"reward 'brevity' is <function .*; register a class, whose instance is called"
    ):
        registry.REWARDS.register("brevity")(lambda batch: 0)


def test_a_class_that_cannot_be_called_is_none(no_trace):
    class NoCall:
        def call(self, batch): ...

    with pytest.raises(
        ValueError, match="reward 'p' has no method __call__; every reward is called with a RolloutBatch"
    ):
        registry.REWARDS.register("p")(NoCall)


def test_a_head_without_a_number_of_outputs_is_refused_when_it_is_made(no_trace):
    class Head:
        def output(self, raw): ...

        def loss(self, *numbers): ...

    registry.REWARD_MODELS.register("p")(Head)
    with pytest.raises(
        ValueError, match="reward model 'p': n_outputs is missing: every reward model has it; it is how"
    ):
        registry.REWARD_MODELS.create("p")
    Head.n_outputs = 0
    with pytest.raises(ValueError, match="reward model 'p': n_outputs = 0: .*greater than 0"):
        registry.REWARD_MODELS.create("p")


def test_one_name_is_one_plugin_over_all_kinds(no_trace):
    with pytest.raises(
        ValueError, match=r"judge 'ood': there is a reward with that name, and ood.OPTION would belong to both"
    ):
        registry.JUDGES.register("ood")(plugin())


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a,b", "a=b", "a/b", "gate"])
def test_a_name_that_a_flag_or_a_log_would_read_otherwise_is_refused(name):
    with pytest.raises(ValueError, match="choose another name, without spaces, dots, commas, = or /, and not gate"):
        registry.REWARDS.register(name)(plugin())
