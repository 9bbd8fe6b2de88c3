"""``openrlhf-qs follow``: one line of progress from the output of a training run, all of it kept in a file.

OpenRLHF's processes print some thousand lines in a short run. What a person wants of them is where it stands; what a
developer wants is all of it, later. So: everything goes to ``--log``, the terminal shows the newest progress.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO

from rich.console import Console
from rich.text import Text

from openrlhf_qs.files.printable import printable

# tqdm: "Train step of epoch 0:  83%|████▎ | 38/46 [00:02<00:00, 14.71it/s, loss=0.548, acc=0.781]"
PROGRESS = re.compile(
    r"(Train step|Eval stage|Processed prompts|Adding requests|Map)"
    r"[^|\r]*\|[^|]*\|\s*(\d+)/(\d+) \[([^\]]*)"
)
STEP = re.compile(r"Global step (\d+): (\{.*\})")
ALARM = re.compile(r"(monitor \w+, step \d+: [^\x1b\r\n]*)")  # openrlhf_qs.reward.monitors.Alarm
NUMBER = r"(-?(?:[\d.]+(?:e[-+]?\d+)?|nan|inf))"
STEP_KEYS = ("reward", "kl", "malformed", "response_length")
SHOWN_KEYS = ("loss", "gpt_loss", "acc", "grad_norm")
SECONDS_BETWEEN_LINES = 5.0  # where the output is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", required=True, help="the word in front of the line")
    parser.add_argument("--log", required=True, metavar="FILE", help="gets everything, appended")
    parser.add_argument("--n_steps", type=int, default=0, help="GRPO steps in all, where they are known")


def run(args: argparse.Namespace) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    started = time.monotonic()
    shown_at, shown = 0.0, ""
    alarms: set[str] = set()
    with open(args.log, "ab") as log, console.status(Text(f"{args.stage}: starting")) as status:
        for line in _lines(sys.stdin.buffer, log):
            if line.startswith("log.txt is not written"):
                console.print(f"{args.stage}: {line}", style="yellow", soft_wrap=True)
            alarm = ALARM.search(line)
            if alarm and not any(alarm[1].startswith(one) for one in alarms):  # the error that stops a run repeats it
                alarms.add(alarm[1])
                console.print(f"{args.stage}: {alarm[1]}", style="yellow", soft_wrap=True)
            text = describe(line, args.n_steps)
            if text is None:
                continue
            now = time.monotonic()
            shown = f"{args.stage}: {text}  ({now - started:.0f} s)"
            if console.is_terminal:
                status.update(Text(shown))
            elif now - shown_at >= SECONDS_BETWEEN_LINES:
                console.print(shown)
                shown_at = now
    console.print(shown or f"{args.stage}: ended without a step  ({time.monotonic() - started:.0f} s)")


def describe(line: str, n_steps: int = 0) -> str | None:
    """What a line of output says of the progress, None where it says nothing."""
    step = STEP.search(line)
    if step:
        values = dict(re.findall(rf"'([\w/]+)': {NUMBER}", step[2]))
        numbers = "  ".join(f"{key} {float(values[key]):.3g}" for key in STEP_KEYS if key in values)
        return f"step {step[1]}{f' of {n_steps}' if n_steps else ''}  {numbers}"
    progress = PROGRESS.search(line)
    if progress:
        pairs = re.findall(rf"(\w+)={NUMBER}", progress[4])
        numbers = "  ".join(f"{key} {value}" for key, value in pairs if key in SHOWN_KEYS)
        return f"{progress[1].lower()} {progress[2]} of {progress[3]}  {numbers}".rstrip()
    return None


def _lines(stream: BinaryIO, log: BinaryIO) -> Iterator[str]:
    """Lines as they come, also those that a progress bar ends with a carriage return; each copied to ``log``."""
    rest = b""
    writes = True
    while chunk := stream.read1(65536):
        try:
            if writes:
                log.write(chunk)
                log.flush()
        except OSError as error:  # a full disk: what trains must not end because nobody reads it
            writes = False
            yield f"log.txt is not written any more: {error}"
        *lines, rest = re.split(rb"[\r\n]", rest + chunk)
        yield from (printable(line.decode(errors="replace")) for line in lines)
    yield printable(rest.decode(errors="replace"))
