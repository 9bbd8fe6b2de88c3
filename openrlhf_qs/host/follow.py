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
from typing import BinaryIO, NamedTuple

from rich.console import Console
from rich.text import Text

from openrlhf_qs.files.printable import printable

# tqdm: "Train step of epoch 0:  83%|████▎ | 38/46 [00:02<00:00, 14.71it/s, loss=0.548, acc=0.781]"
BAR = r"[^|\r]*\|[^|]*\|\s*(\d+)/(\d+) \[([^\]]*)"
TRAINING = re.compile(r"Train step of epoch (\d+):" + BAR)
EPOCHS = re.compile(r"Train epoch:" + BAR)
OTHERS = {
    re.compile(r"Eval stage" + BAR): "evaluation",
    re.compile(r"Processed prompts" + BAR): "responses",
    re.compile(r"responses([^|\r]*):" + BAR): "responses{}:",  # openrlhf_qs.models.engine.sample
    re.compile(r"Map" + BAR): "reading rows",
}
STEP = re.compile(r"Global step (\d+): (\{.*\})")
ALARM = re.compile(r"(monitor \w+, step \d+: [^\x1b\r\n]*)")  # openrlhf_qs.reward.monitors.Alarm
NUMBER = r"(-?(?:[\d.]+(?:e[-+]?\d+)?|nan|inf))"
STEP_KEYS = {"reward": "reward", "kl": "kl", "malformed": "malformed", "response_length": "tokens"}
STEP_FORMATS = {"malformed": ".1%"}
SHOWN_KEYS = {"loss": "loss", "gpt_loss": "loss", "acc": "acc"}
SECONDS_BETWEEN_LINES = 5.0  # where the output is no terminal
WIDTH = 79  # of a line, at most


class Place(NamedTuple):
    """Where a run stands: in words, its numbers, and how many of all its steps are done, where that is known."""

    words: str
    numbers: tuple[str, ...] = ()
    done: int = 0
    n_steps: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", required=True, help="name at the beginning of the line")
    parser.add_argument("--log", required=True, metavar="FILE", help="file to which everything is appended")
    parser.add_argument("--n_steps", type=int, default=0, help="total number of GRPO steps, if known")


def run(args: argparse.Namespace) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    progress = Progress(args.stage, args.n_steps)
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
            text = progress.take(line, time.monotonic())
            if text is None:
                continue
            shown = text
            if console.is_terminal:
                status.update(Text(shown))
            elif time.monotonic() - shown_at >= SECONDS_BETWEEN_LINES:
                console.print(shown, soft_wrap=True)
                shown_at = time.monotonic()
    console.print(shown or progress.line(Place("ended without a step"), time.monotonic()), soft_wrap=True)


class Progress:
    """One line of at most ``WIDTH`` letters: where a run stands, its numbers, how long it has run and what is left."""

    def __init__(self, stage: str, n_steps: int = 0) -> None:
        """
        Args:
            n_steps: of GRPO, 0 where they are not known.
        """
        self.stage, self.n_steps = stage, n_steps
        self.n_epochs_left = 0  # of this call: a resumed training counts them anew
        self.first_epoch: int | None = None
        self.started = time.monotonic()
        self.seen: dict[str, tuple[int, float, int]] = {}  # kind to the first that was seen, when, and the last

    def take(self, line: str, now: float) -> str | None:
        """The line to show after ``line`` of output, None where it says nothing of progress."""
        if epochs := EPOCHS.search(line):
            self.n_epochs_left = int(epochs[2])
        if self.first_epoch is None and (step := TRAINING.search(line)):
            self.first_epoch = int(step[1])
        place = describe(line, self.n_steps, self.n_epochs_left, self.first_epoch or 0)
        return None if place is None else self.line(place, now)

    def line(self, place: Place, now: float) -> str:
        times = duration(now - self.started)
        if place.n_steps:
            kind = place.words.split(maxsplit=1)[0]  # responses are no measure of steps
            first, began, last = self.seen.get(kind, (place.done, now, place.done))
            if place.done < last:  # they are counted anew
                first, began = place.done, now
            self.seen[kind] = first, began, place.done
            done, since = place.done - first, now - began
            if done > 0:
                times += f", {duration(since / done * (place.n_steps - place.done))} left"
        numbers = list(place.numbers)
        while True:
            text = "  ".join([f"{self.stage}: {place.words}", *numbers, f"({times})"])
            if len(text) <= WIDTH or not numbers:
                return text[:WIDTH]
            numbers.pop()


def describe(line: str, n_steps: int = 0, n_epochs_left: int = 0, first_epoch: int = 0) -> Place | None:
    """What a line of output says of the progress, None where it says nothing.

    Args:
        n_steps: of GRPO; 0 where they are not known.
        n_epochs_left, first_epoch: of a training, which may go on in the middle; 0 where they are not known.
    """
    if step := STEP.search(line):
        values = dict(re.findall(rf"'([\w/]+)': {NUMBER}", step[2]))
        numbers = tuple(
            f"{name} {float(values[key]):{STEP_FORMATS.get(name, '.3g')}}"
            for key, name in STEP_KEYS.items()
            if key in values
        )
        return Place(f"step {step[1]}{f' of {n_steps}' if n_steps else ''}", numbers, int(step[1]), n_steps)
    if step := TRAINING.search(line):
        epoch, done, total = int(step[1]), int(step[2]), int(step[3])
        pairs = re.findall(rf"(\w+)={NUMBER}", step[4])
        numbers = tuple(f"{SHOWN_KEYS[key]} {float(value):.3g}" for key, value in pairs if key in SHOWN_KEYS)
        of = f" of {first_epoch + n_epochs_left}" if n_epochs_left else ""
        words = f"epoch {epoch + 1}{of}, step {done} of {total}"
        return Place(words, numbers, (epoch - first_epoch) * total + done, n_epochs_left * total)
    for pattern, words in OTHERS.items():
        if found := pattern.search(line):
            *whose, done, total, _ = found.groups()
            return Place(f"{words.format(*whose)} {done} of {total}", (), int(done), int(total))
    return None


def duration(seconds: float) -> str:
    """As a clock has it: ``4 s``, ``3:05``, ``1:02:03``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


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
            yield f"log.txt is no longer written: {error}"
        *lines, rest = re.split(rb"[\r\n]", rest + chunk)
        yield from (printable(line.decode(errors="replace")) for line in lines)
    yield printable(rest.decode(errors="replace"))
