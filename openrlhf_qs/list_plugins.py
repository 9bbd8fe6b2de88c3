"""``openrlhf-qs plugins``: lists plugins, their origin and options, or checks that those a run names exist."""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
from collections.abc import Sequence

from openrlhf_qs.registry import (
    BUILT_IN,
    KINDS,
    add_plugin_arguments,
    all_names,
    check_options,
    load_plugins,
    option_parameters,
    origin,
    parse_options,
    unknown,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="show the options of this plugin")
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="KIND=NAME,NAME",
        help="print nothing, and fail if one of these does not exist or an --option does not fit; repeatable",
    )
    add_plugin_arguments(parser, options="of a plugin in --check")


def run(args: argparse.Namespace) -> None:
    load_plugins(args.plugin)
    if args.check or args.option:
        check(args.check, args.option)
        return
    if args.name:
        _show_one(args.name)
        return
    for registry in KINDS.values():
        print(f"{registry.kind}:")
        for name in registry:
            place = origin(registry[name])
            of = "" if place == BUILT_IN else f" ({place})"
            _print_under(f"  {name}", f"{summary(registry[name])}{of}", 20)
    print()
    _print_under(
        "",
        "built in, unless a file or package is named in brackets; openrlhf-qs plugins NAME shows the options of one",
        0,
    )


def check(named: Sequence[str], options: Sequence[str]) -> None:
    """ValueError if a plugin of ``KIND=NAME,NAME`` is not registered, or no plugin has an option."""
    for one in named:
        kind, _, names = one.partition("=")
        if kind not in KINDS:
            raise ValueError(f"--check {one}: there is no kind {kind!r} of plugins; there are {', '.join(KINDS)}")
        for name in names.split(","):
            KINDS[kind][name.strip()]
    check_options(parse_options(options))


def _show_one(name: str) -> None:
    found = [registry for registry in KINDS.values() if name in registry]
    if not found:
        raise ValueError(unknown("plugin", name, all_names()))
    for registry in found:
        plugin = registry[name]
        print(f"{name}  ({registry.kind}, {origin(plugin)})")
        for text in (summary(plugin), f"Every {registry.kind} is {registry.protocol}."):
            _print_under("", text, 0)
        for ability, one in registry.abilities.items():
            _print_under("", f"It may have {ability}: {one.what}", 2)
        parameters = option_parameters(plugin)
        print("options:" if parameters else "no options")
        described = option_descriptions(plugin)
        for option, parameter in parameters.items():
            default = "required" if parameter.default is parameter.empty else f"default {parameter.default!r}"
            annotation = getattr(parameter.annotation, "__name__", None) or str(parameter.annotation)
            if annotation == "Literal":
                annotation = " | ".join(map(repr, parameter.annotation.__args__))
            _print_under(f"  {name}.{option}", f"{annotation}, {default}", len(name) + len(option) + 5)
            if text := described.get(option):
                _print_under("    ", text, 4)


def _print_under(first: str, text: str, indent: int) -> None:
    """``first``, then ``text`` from column ``indent`` on, wrapped to the width of the terminal."""
    width = shutil.get_terminal_size().columns
    text = text.replace("``", "")  # as docstrings mark what is code
    if len(first) >= indent and first.strip():  # too long to stand beside it
        print(first)
        first = ""
    indents = {"initial_indent": first.ljust(indent), "subsequent_indent": " " * indent}
    print(textwrap.fill(text, width, **indents, break_long_words=False, break_on_hyphens=False))


def summary(plugin: type) -> str:
    """The first sentence of the docstring, in one line."""
    return (inspect.getdoc(plugin) or "").partition("\n")[0]


def option_descriptions(plugin: type) -> dict[str, str]:
    """Option to text, from the ``Args:`` of the docstring of the class or its ``__init__``."""
    descriptions: dict[str, str] = {}
    for doc in (inspect.getdoc(plugin) or "", inspect.getdoc(plugin.__init__) or ""):
        _, found, text = doc.partition("Args:\n")
        section = re.split(r"\n(?=\S)", text)[0] if found else ""
        for entry in re.split(r"\n(?= {4}\w)", "\n" + section):
            name, colon, description = entry.strip().partition(":")
            if colon:
                descriptions[name] = " ".join(description.split())
    return descriptions
