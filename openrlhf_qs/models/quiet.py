"""What libraries print of themselves does not stand between the lines that a user is to read.

For the commands that work in the terminal; a training's output goes to its ``log.txt``, all of it.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType

import wrapt


def quiet_libraries() -> None:
    """From now on: no bar for each file of weights, no notes on what is deprecated, no word on which accelerator was
    found. Errors are said, and so is how far a download is."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    wrapt.register_post_import_hook(_without_bars, "transformers.utils.logging")
    wrapt.register_post_import_hook(_errors_alone, "deepspeed.utils.logging")


def _without_bars(module: ModuleType) -> None:
    module.disable_progress_bar()  # which turns those of downloads off, too
    module.hf_hub_utils.enable_progress_bars()


def _errors_alone(module: ModuleType) -> None:
    module.logger.setLevel(logging.ERROR)
