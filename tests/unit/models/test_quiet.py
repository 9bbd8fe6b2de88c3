"""Libraries do not speak between the lines of a command."""

import subprocess
import sys

CODE = """
import os
from openrlhf_qs.models.quiet import quiet_libraries
quiet_libraries()
import huggingface_hub.utils, transformers.utils.logging as logging
print(logging.is_progress_bar_enabled(), huggingface_hub.utils.are_progress_bars_disabled(), logging.get_verbosity())
"""


def test_bars_of_weights_and_notes_are_off_and_bars_of_downloads_are_on():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "40"]  # logging.ERROR
