"""What a patch of the host is, and the list of all there are.

A patch names the module and attribute it changes and the parameters it expects there. It is applied when that module
is first imported, so that a process which never imports it pays nothing. Where the attribute moved or takes other
parameters, the run stops with that sentence: a patch that misses in silence would train something else.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from types import ModuleType
from typing import Literal

import wrapt
from packaging.specifiers import SpecifierSet

from openrlhf_qs.host.settings import Settings

TESTED = SpecifierSet("==0.11.2")


@dataclass(frozen=True)
class Patch:
    """One change to the host.

    Attributes:
        module: it is applied when this module is imported.
        target: the attribute, dotted, inside the module.
        parameters: names the target must take, in order.
        device: ``cpu`` where only a host without a GPU needs it.
        wanted: whether the settings of a run ask for it.
        apply: makes the change; its docstring says why, and what breaks without it.
    """

    module: str
    target: str
    parameters: tuple[str, ...]
    device: Literal["any", "cpu"]
    wanted: Callable[[Settings], bool]
    apply: Callable[[ModuleType, Settings], None]

    @property
    def why(self) -> str:
        return " ".join((self.apply.__doc__ or "").split())

    def problem(self, module: ModuleType) -> str:
        """What does not fit in ``module``, empty where all is as expected."""
        where = f"{self.module}.{self.target}"
        try:
            target = reduce(getattr, self.target.split("."), module)
        except AttributeError:
            return f"{where} is gone"
        found = tuple(inspect.signature(target).parameters)
        if found != self.parameters:
            return f"{where} takes ({', '.join(found)}), not ({', '.join(self.parameters)})"
        return ""


PATCHES: list[Patch] = []  # of the modules imported so far; all are in bootstrap.all_patches


def patch(
    module: str,
    target: str,
    parameters: str,
    *,
    device: Literal["any", "cpu"] = "any",
    wanted: Callable[[Settings], bool] = lambda settings: True,
) -> Callable[[Callable[[ModuleType, Settings], None]], Callable[[ModuleType, Settings], None]]:
    """Decorator: add the function to :data:`PATCHES`. ``parameters`` are the target's, separated by spaces."""

    def add(apply: Callable[[ModuleType, Settings], None]) -> Callable[[ModuleType, Settings], None]:
        PATCHES.append(Patch(module, target, tuple(parameters.split()), device, wanted, apply))
        return apply

    return add


def apply_when_imported(patches: Iterable[Patch], settings: Settings) -> None:
    """Register those of ``patches`` that ``settings`` ask for; nothing is imported here."""
    for one in patches:
        if one.device in ("any", settings.device) and one.wanted(settings):
            wrapt.register_post_import_hook(_checked(one, settings), one.module)


def _checked(one: Patch, settings: Settings) -> Callable[[ModuleType], None]:
    def hook(module: ModuleType) -> None:
        problem = one.problem(module)
        if problem:
            raise RuntimeError(
                f"{problem} in OpenRLHF {openrlhf_version()}: openrlhf-qs was tested with {TESTED}; "
                "install that version"
            )
        one.apply(module, settings)

    return hook


def openrlhf_version() -> str:
    """The installed version. ValueError where there is none."""
    try:
        return importlib.metadata.version("openrlhf")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError("OpenRLHF is not installed: see `Install` in the README") from None
