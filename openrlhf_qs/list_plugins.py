"""``openrlhf-qs plugins``: what there is, from where, and with which options."""

from __future__ import annotations

import argparse
import inspect
import re

from rich.console import Console
from rich.table import Table

from openrlhf_qs.registry import KINDS, load_plugins, option_parameters, origin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="show the options of this plugin")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="registers plugins; repeatable"
    )


def run(args: argparse.Namespace) -> None:
    load_plugins(args.plugin)
    if args.name:
        _show_one(args.name)
        return
    table = Table("kind", "name", "origin", "what it does")
    for registry in KINDS.values():
        for name in registry:
            table.add_row(registry.kind, name, origin(registry[name]), summary(registry[name]))
    Console(markup=False).print(table)  # a shape such as [batch] is no markup


def _show_one(name: str) -> None:
    found = [registry for registry in KINDS.values() if name in registry]
    if not found:
        known = ", ".join(sorted(name for registry in KINDS.values() for name in registry))
        raise ValueError(f"unknown plugin {name!r}; known: {known}")
    console = Console(markup=False)
    for registry in found:
        plugin = registry[name]
        console.print(f"{name}  ({registry.kind}, {origin(plugin)})", style="bold")
        console.print(f"{summary(plugin)}\nA {registry.kind}: {registry.protocol}")
        for ability, one in registry.abilities.items():
            console.print(f"It may have {ability}: {one.what}")
        parameters = option_parameters(plugin)
        if not parameters:
            console.print("no options")
            continue
        described = option_descriptions(plugin)
        table = Table("option", "default", "type", "what it is")
        for option, parameter in parameters.items():
            default = "required" if parameter.default is parameter.empty else repr(parameter.default)
            annotation = getattr(parameter.annotation, "__name__", None) or str(parameter.annotation)
            if annotation == "Literal":
                annotation = " | ".join(map(repr, parameter.annotation.__args__))
            table.add_row(f"{name}.{option}", default, annotation, described.get(option, ""))
        console.print(table)


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
