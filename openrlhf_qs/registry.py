"""The registry: one dict for each kind of plugin, from name to class.

A plugin is a plain class; its ``__init__`` parameters are its options, typed and with defaults::

    from openrlhf_qs.registry import REWARDS

    @REWARDS.register("brevity")
    class Brevity:
        \"\"\"Take reward away for long suggestions: ``-coef * words``.\"\"\"
        def __init__(self, coef: float = 0.01) -> None: ...
        def __call__(self, batch): ...

What else the package reads from plugins of a kind, their *abilities* (``needs``, ``gate``, ...), is listed in the
kind's registry below. Abilities are attributes or methods of the class; :meth:`Registry.register` adds missing ones
with their defaults, and rejects attributes that look like an ability but are none.

A plugin comes from this package, from an entry point of the group ``openrlhf_qs.plugins`` (its value is a module that
registers on import), or from a Python file named on the command line. :func:`load_plugins` imports all of them, once.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, PositiveInt, StrictBool, ValidationError, create_model

ENTRY_POINT_GROUP = "openrlhf_qs.plugins"


REQUIRED = object()  # the default of an ability that has no default
NAME = re.compile(r"[^\s.,=/]+")  # NAME.OPTION=VALUE, names in a list with commas, reward/NAME in a log


@dataclass(frozen=True)
class Ability:
    """An attribute or method of a plugin that the package reads, on the class or the instance.

    Attributes:
        type: its type, for pydantic.
        what: one line for plugin authors.
        default: for plugins without it; ``REQUIRED`` if each must have it, at the latest after ``__init__``.
        is_method: whether it is called.
    """

    type: Any
    what: str
    default: Any = REQUIRED
    is_method: bool = False

    def problem(self, value: Any) -> str:
        """Why ``value`` is not valid for this ability; empty if it is."""
        config = ConfigDict(arbitrary_types_allowed=True)
        try:
            create_model("ability", __config__=config, value=(self.type, ...))(value=value)
        except ValidationError as error:
            return error.errors()[0]["msg"].lower()
        return ""


class Registry(Mapping[str, type]):
    """The plugins of one kind. ``registry[name]`` is the class; an unknown name is a ValueError that lists all."""

    def __init__(
        self,
        kind: str,
        protocol: str,
        methods: Sequence[str] = (),
        abilities: Mapping[str, Ability] | None = None,
        reserved: Sequence[str] = (),
    ) -> None:
        """
        Args:
            kind: the name of the kind, such as ``reward``.
            protocol: one line: what a plugin is called with and what it returns.
            methods: those that each plugin must have, such as ``__call__``.
            abilities: by name.
            reserved: names that mean something else.
        """
        self.kind = kind
        self.protocol = protocol
        self.methods = methods
        self.abilities = dict(abilities or {})
        self.reserved = reserved
        self._plugins: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator: make the class known as ``name``.

        ValueError if another class has that name, in any kind, or if the class is not a plugin of this kind.
        """

        def add(plugin: type) -> type:
            self._check_class(name, plugin)
            known = self._plugins.get(name)
            # The same class seen twice is a reload of its module, not a second plugin.
            if known is not None and (known.__module__, known.__qualname__) != (
                plugin.__module__,
                plugin.__qualname__,
            ):
                raise ValueError(
                    f"{self.kind} {name!r} is taken by {known.__module__}.{known.__qualname__}; "
                    f"give {plugin.__module__}.{plugin.__qualname__} another name"
                )
            for other in KINDS.values():
                if name in other and other is not self and self in KINDS.values():
                    raise ValueError(
                        f"{self.kind} {name!r}: there is a {other.kind} with that name, and {name}.OPTION would "
                        f"belong to both; give {plugin.__module__}.{plugin.__qualname__} another name"
                    )
            for ability, one in self.abilities.items():
                if one.default is not REQUIRED and not hasattr(plugin, ability):
                    setattr(plugin, ability, one.default)
            self._plugins[name] = plugin
            return plugin

        return add

    def _check_class(self, name: str, plugin: Any) -> None:
        """ValueError if ``plugin`` does not fit the kind, or has what looks like an ability but is none."""
        where = f"{self.kind} {name!r}"
        if not NAME.fullmatch(name) or name in self.reserved:
            taken = " or ".join(self.reserved) or "empty"
            raise ValueError(f"{where}: choose another name, without spaces, dots, commas, = or /, and not {taken}")
        if not isinstance(plugin, type):
            raise ValueError(f"{where} is {plugin!r}; register a class, whose instance is {self.protocol}")
        for method in self.methods:
            if not any(method in vars(one) for one in plugin.__mro__):  # a class itself can be called
                raise ValueError(f"{where} has no method {method}; every {self.kind} is {self.protocol}")
        for ability, one in self.abilities.items():
            value = getattr(plugin, ability, REQUIRED)
            problem = "" if value is REQUIRED or isinstance(value, property) else one.problem(value)
            if problem:
                raise ValueError(f"{where}: {ability} = {value!r}: {problem}; it is {one.what}")
        for attribute in self._unknown(plugin):
            raise ValueError(
                f"{where}: nothing reads its attribute {attribute!r}; those that are read: "
                f"{', '.join(self.abilities) or 'none'}; begin the plugin's own names with _, or use capitals"
            )

    def _unknown(self, plugin: type) -> Iterator[str]:
        """Attributes, from classes of the plugin's own package, that are neither abilities nor options nor private."""
        package = plugin.__module__.partition(".")[0]
        options = inspect.signature(plugin).parameters if plugin.__init__ is not object.__init__ else {}
        methods = [*self.methods, *(ability for ability, one in self.abilities.items() if one.is_method)]
        for one in plugin.__mro__:
            for attribute, value in vars(one).items() if one.__module__.partition(".")[0] == package else ():
                if (
                    attribute.startswith("_")
                    or attribute.isupper()
                    or attribute in {*self.abilities, *methods, *options}
                ):
                    continue
                # A method may be the plugin's own, unless its name is nearly one of ours.
                if not hasattr(value, "__get__") or get_close_matches(attribute, methods, cutoff=0.8):
                    yield attribute

    def create(self, name: str, /, **options: Any) -> Any:
        """An instance of ``name`` with ``options``, converted to the annotated types (``"0.1"`` to ``0.1``)."""
        plugin = self[name](**self.check_options(name, options))
        for ability, one in self.abilities.items():
            value = getattr(plugin, ability, REQUIRED)
            problem = f"every {self.kind} has it" if value is REQUIRED else one.problem(value)
            if problem:
                found = "is missing" if value is REQUIRED else f"= {value!r}"
                raise ValueError(f"{self.kind} {name!r}: {ability} {found}: {problem}; it is {one.what}")
        return plugin

    def check_options(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """``options`` converted to the types of the plugin's ``__init__``. ValueError names option, value, choices."""
        parameters = option_parameters(self[name])
        for option in options:
            if option not in parameters:
                known = ", ".join(parameters) or "none"
                meant = did_you_mean(option, parameters)
                raise ValueError(f"{self.kind} {name!r} has no option {option!r}; its options: {known}{meant}")
        fields = {
            p.name: (Any if p.annotation is p.empty else p.annotation, ... if p.default is p.empty else p.default)
            for p in parameters.values()
        }
        model = create_model(f"{name}_options", __config__=ConfigDict(arbitrary_types_allowed=True), **fields)
        try:
            checked = model(**options)
        except ValidationError as error:
            first = error.errors()[0]
            option = ".".join(map(str, first["loc"]))
            if first["type"] == "missing":
                raise ValueError(f"{self.kind} {name!r} needs the option {name}.{option}") from None
            raise ValueError(f"{name}.{option} = {first['input']!r}: {first['msg'].lower()}") from None
        return {option: getattr(checked, option) for option in options}

    def __getitem__(self, name: str) -> type:
        if name not in self._plugins:
            raise ValueError(unknown(self.kind, name, self._plugins))
        return self._plugins[name]

    def __contains__(self, name: object) -> bool:
        return name in self._plugins

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._plugins))

    def __len__(self) -> int:
        return len(self._plugins)


REPORT = Ability(Mapping[str, Any], "a dict to write next to the result, available after the call", {})

REWARD_MODELS = Registry(
    "reward model",
    "an object with output(raw [batch, n_outputs]) to mean, std and epistemic std [batch, 3], "
    "and loss(chosen_raw, rejected_raw [pairs, n_outputs], weight, label [pairs]) to one number",
    methods=("output", "loss"),
    abilities={
        "n_outputs": Ability(PositiveInt, "how many numbers it reads from the last hidden state"),
        "n_members": Ability(PositiveInt, "how many heads its ensemble has", 1),
        "link": Ability(
            str, "the likelihood of openrlhf_qs.garm.preference_likelihood that its numbers mean", "probit"
        ),
        "mean_outputs": Ability(
            slice | None, "a slice: which outputs are means, which `garm calibrate` rescales", None
        ),
        "click_log_odds": Ability(
            Callable | None,
            "a method, called with raw, that returns the members' log-odds of a click at full examination "
            "[batch, n_members], for objectives that learn from clicks",
            None,
            is_method=True,
        ),
        "objective": Ability(str, "the objective it is trained with by default", "pairs"),
    },
)
OBJECTIVES = Registry(
    "objective",
    "called with a head, its outputs [suggestions, n_outputs] and an ImpressionBatch, and returns one number, nats",
    methods=("__call__",),
    abilities={
        "whole_lists": Ability(StrictBool, "whether it also reads impressions without a pair", True),
        "of_clicks": Ability(StrictBool, "whether it calls the head's click_log_odds", False),
    },
)
REWARDS = Registry(
    "reward",
    "called with a RolloutBatch and returns one number per response: Tensor [batch], higher is better",
    methods=("__call__",),
    abilities={
        "needs": Ability(
            tuple[Literal["reward_model", "reference"], ...], "a tuple of what it reads: reward_model, reference", ()
        ),
        "gate": Ability(
            StrictBool, "True if it has no weight and returns 1 for responses that may pass and 0 for others", False
        ),
        "calibrate": Ability(
            Callable | None,
            "a method, called with the SFT policy's RolloutBatch, that returns options to keep",
            None,
            is_method=True,
        ),
        "measure": Ability(
            Callable | None,
            "a method, called with all clicked suggestions of the log, that returns options to keep",
            None,
            is_method=True,
        ),
        "credit": Ability(
            Callable | None,
            "a method, called with a RolloutBatch, that returns each suggestion's contribution: Tensor [batch, n]",
            None,
            is_method=True,
        ),
        "adapt": Ability(
            Callable | None,
            "a method, called with the RolloutBatch of every training step, that returns a new multiplier of the "
            "reward, or None",
            None,
            is_method=True,
        ),
    },
    reserved=("gate",),  # a share of the reward's variance
)
FUSIONS = Registry(
    "fusion",
    "called with openrlhf_qs.reward.fusion_data.FusionData and returns one weight per reward: a list that sums to 1",
    methods=("__call__",),
    abilities={
        "wants_hacked": Ability(StrictBool, "True if it reads the parts of hacked responses", False),
        "report": REPORT,
    },
)
SFT_DATASETS = Registry(
    "sft dataset",
    "called with all SFT rows (conversation, candidates) [n] and the number of suggestions per response, and returns "
    "that many suggestions, or None, for each row [n]",
    methods=("__call__",),
    abilities={
        "report": REPORT,
        "single": Ability(bool, "True if each text is a response of its own, as for a teacher", False),
    },
)
JUDGES = Registry(
    "judge",
    "called with conversations [n] and suggestions [n][k], and returns click probabilities [n][k]",
    methods=("__call__",),
    abilities={
        "limits": Ability(
            Callable | None,
            "a method, called with conversations [n] and the number of suggestions k, that returns more arms of the "
            "A/B test that bound any policy, such as ceiling: name to suggestions [n][k]",
            None,
            is_method=True,
        ),
        "chance_of_a_click": Ability(
            Callable | None,
            "a method, called with conversations [n] and suggestions [n][k], that returns the probability [n] of at "
            "least one click, averaged over all users, without draws",
            None,
            is_method=True,
        ),
    },
    reserved=("none",),
)

FILTERS = Registry(
    "filter",
    "called with an openrlhf_qs.form.request.Request and suggestions [n], and returns for each the reason not to show "
    "it, or an empty string: list of str [n]",
    methods=("__call__",),
)

KINDS: dict[str, Registry] = {
    r.kind: r for r in (SFT_DATASETS, REWARD_MODELS, OBJECTIVES, REWARDS, FUSIONS, JUDGES, FILTERS)
}


def all_names() -> list[str]:
    """The plugins of all kinds."""
    return sorted(name for kind in KINDS.values() for name in kind)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The error text for an unknown name: the known ones, and what may be meant."""
    known = sorted(known)
    return f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}{did_you_mean(name, known)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error text about an unknown name; empty if no known name is similar."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def add_plugin_arguments(
    parser: argparse.ArgumentParser, registers: str = "plugins", options: str = "of a plugin"
) -> None:
    """``--plugin`` and ``--option``, for :func:`load_plugins` and :func:`parse_options`; ``options`` says of what."""
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help=f"file that registers {registers}; repeatable"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME.OPTION=VALUE", help=f"option {options}; repeatable"
    )


def load_plugins(files: Sequence[str | Path] = ()) -> None:
    """Import the built-in plugins, those of installed packages, and ``files``; safe to call again.

    A plugin that cannot be imported is an error that names it; otherwise training would go on without the reward.
    """
    built_in = importlib.import_module("openrlhf_qs.plugins")  # by name: this module lies below all others
    for module in pkgutil.walk_packages(built_in.__path__, f"{built_in.__name__}."):
        importlib.import_module(module.name)
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry_point.load()
        except Exception as error:
            origin = entry_point.dist.name if entry_point.dist else "?"
            raise ValueError(
                f"plugin {entry_point.name!r} of package {origin!r} cannot be loaded: {_in_words(error)}; fix or "
                "uninstall it"
            ) from error
    for file in files:
        _import_file(Path(file).resolve())


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"plugin file {path} does not exist")
    module_name = f"openrlhf_qs_plugin_{path.stem}"
    loaded = sys.modules.get(module_name)
    if loaded is not None:
        if getattr(loaded, "__file__", None) != str(path):
            raise ValueError(f"two plugin files are named {path.name}: {loaded.__file__} and {path}; rename one")
        return
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # sys.exit(0) would end the stage as if it were done
        del sys.modules[module_name]
        raise ValueError(f"plugin file {path} cannot be loaded: {_in_words(error, str(path))}") from error


def _in_words(error: BaseException, file: str = "") -> str:
    """What kept a plugin from being loaded, of what type, and where: a syntax error's own place, else the last line of
    ``file`` that was run, or of all files where it has none."""
    if isinstance(error, SyntaxError):
        what, place = error.msg, (error.filename or file, error.lineno)
    else:
        frames = traceback.extract_tb(error.__traceback__)
        last = ([frame for frame in frames if frame.filename == file] or frames)[-1]
        what, place = str(error), (last.filename, last.lineno)
    where = ":".join(str(part) for part in place if part)
    return f"{' '.join(what.split())} ({type(error).__name__} at {where})".strip()


def option_parameters(plugin: type) -> dict[str, inspect.Parameter]:
    """The options of a plugin: the parameters of its ``__init__``, in order, annotations resolved."""
    if plugin.__init__ is object.__init__:
        return {}
    parameters = dict(inspect.signature(plugin.__init__, eval_str=True).parameters)
    parameters.pop("self")
    return parameters


BUILT_IN = "built in"


def origin(plugin: type) -> str:
    """Where a plugin comes from: ``built in``, the name of an installed package, or a file."""
    if plugin.__module__.startswith("openrlhf_qs.plugins."):
        return BUILT_IN
    if plugin.__module__.startswith("openrlhf_qs_plugin_"):
        return sys.modules[plugin.__module__].__file__
    return plugin.__module__.partition(".")[0]


def parse_options(settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """``["ood.coef=0.2", "ood.threshold=3"]`` to ``{"ood": {"coef": "0.2", "threshold": "3"}}``."""
    options: dict[str, dict[str, str]] = {}
    for setting in settings:
        target, equals, value = setting.partition("=")
        name, dot, option = target.partition(".")
        if not (equals and dot and name and option):
            raise ValueError(f"option {setting!r} does not have the form NAME.OPTION=VALUE, as in ood.coef=0.2")
        options.setdefault(name, {})[option] = value
    return options


def check_options(options: Mapping[str, Mapping[str, str]]) -> None:
    """ValueError if an option belongs to no registered plugin, or has the wrong type."""
    for name, values in options.items():
        kinds = [kind for kind in KINDS.values() if name in kind]
        if not kinds:
            raise ValueError(f"option {name}.…: {unknown('plugin', name, all_names())}")
        kinds[0].check_options(name, values)
