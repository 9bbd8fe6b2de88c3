"""The one entry into every process of a run: the driver, Ray's workers, and vLLM's engine.

The driver calls :func:`install` itself, Ray calls it as ``worker_process_setup_hook``, vLLM by the entry point
``vllm.general_plugins`` (no Ray hook reaches its engine process). It does nothing where the settings are not set, so
vLLM and Ray work as ever in an environment that merely has this package installed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openrlhf_qs.host.patches import Patch


@functools.cache
def install() -> None:
    """Prepare this process: patches are registered, each is applied when its module is imported."""
    from openrlhf_qs.host.settings import Settings

    settings = Settings.from_environment()
    if settings is None:
        return
    from openrlhf_qs.host import cpu, flash_attn_stand_in
    from openrlhf_qs.host.patches import apply_when_imported

    if settings.device == "cpu":
        cpu.keep_freed_memory()
    flash_attn_stand_in.install()
    apply_when_imported(all_patches(), settings)


def all_patches() -> list[Patch]:
    """Every patch there is: the modules that register them are imported."""
    from openrlhf_qs.host import cpu, leavings, operators, remote_code, seams  # noqa: F401
    from openrlhf_qs.host.patches import PATCHES

    return PATCHES
