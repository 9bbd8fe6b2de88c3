"""No code in a model's folder or repository runs unasked.

A model may bring Python files of its own, named under ``auto_map`` in its ``config.json`` or
``tokenizer_config.json``. OpenRLHF passes ``trust_remote_code=True`` wherever it loads a model, so they would run as
whoever trains.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

from openrlhf_qs.host.patches import patch
from openrlhf_qs.host.settings import Settings

CONFIGS = ("config.json", "tokenizer_config.json")
REFUSAL = (
    "Python code of its own (auto_map), which would run on this machine: read it, then give "
    "--qs.trust_remote_code_enable, or use a model that transformers knows"
)


def named_in(file: Path) -> bool:
    """Whether a config names code; False where there is no such file, or none that can be read."""
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("auto_map"))
    except (OSError, ValueError, AttributeError):
        return False


@patch(
    "transformers.dynamic_module_utils",
    "resolve_trust_remote_code",
    "trust_remote_code model_name has_local_code has_remote_code error_message upstream_repo",
    wanted=lambda settings: not settings.trust_remote_code,
)
def remote_code(module: ModuleType, settings: Settings) -> None:
    """Every loader of transformers asks this function whether code that a model brings may run. Without this it runs,
    unasked, for a model of the hub too, whose files are not here when the flags are checked."""
    module.resolve_trust_remote_code = refuse


def refuse(
    trust_remote_code, model_name, has_local_code, has_remote_code, error_message=None, upstream_repo=None
) -> bool:
    """False: no code of the model runs. ValueError where there is no other code for it."""
    if has_remote_code:
        raise ValueError(f"{model_name} names {REFUSAL}")
    return False
