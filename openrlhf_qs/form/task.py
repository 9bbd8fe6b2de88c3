"""What a policy is asked for and how its answer is read: the prompt, the parser, and the number of texts to write.

A task is stored with the policy that was trained for it, as ``task.json`` in its folder, so that callers of the policy
ask and read as in training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Literal

from openrlhf_qs.files.whole import write_whole
from openrlhf_qs.form.prompt import Message, plain
from openrlhf_qs.form.response import N_SUGGESTIONS, ParsedResponse, format_response, parse_response, parse_text

FILE = "task.json"
MAX_SUGGESTIONS = 8
RESPONSE_TOKENS = 64  # per answer, by default; the stage data determines from the log how many are needed
TEMPLATE = "Suggest $number short questions the user may ask next, numbered 1 to $n."
ONE = "Suggest one short question the user may ask next, numbered 1."
TEACHER_TEMPLATE = "Suggest one short question the user may ask next."
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True)
class Task:
    """What is asked for under a conversation.

    Attributes:
        n: number of texts in an answer, 1 to ``MAX_SUGGESTIONS``.
        template: the instruction, in any language, which is the last user turn; ``$n`` in it stands for the number and
            ``$number`` for its English word. Empty: the English one above.
        form: ``list``, numbered lines; ``text``, one line of text and nothing else, only for ``n`` = 1.
        max_len: maximum tokens of a prompt with its answer in training; 0: as many as the model accepts.
    """

    n: int = N_SUGGESTIONS
    template: str = ""
    form: Literal["list", "text"] = "list"
    max_len: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or not 1 <= self.n <= MAX_SUGGESTIONS:
            raise ValueError(f"n_suggestions {self.n}: give 1 to {MAX_SUGGESTIONS}")
        if self.form == "text" and self.n != 1:
            raise ValueError(f"n_suggestions {self.n} as one text: give 1")
        if not isinstance(self.max_len, int) or self.max_len < 0:
            raise ValueError(f"max_len {self.max_len!r}: give tokens, or 0 for the model's own length")

    @property
    def instruction(self) -> str:
        """The last user turn."""
        default = TEACHER_TEMPLATE if self.form == "text" else ONE if self.n == 1 else TEMPLATE
        return Template(self.template or default).safe_substitute(in_words(self.n))

    def room(self, model_len: int) -> int:
        """Maximum tokens of a prompt with its answer, for a model that accepts ``model_len``."""
        return min(self.max_len or model_len, model_len)

    def messages(self, conversation: Sequence[Message]) -> list[Message]:
        """The policy's prompt: the conversation, then the instruction."""
        return plain([*conversation, {"role": "user", "content": self.instruction}])

    def read(self, text: str, finish_reason: str = "stop", n: int | None = None) -> ParsedResponse:
        """The suggestions in an answer; never raises.

        Args:
            finish_reason: as in vLLM and the OpenAI API; ``length``: the answer was cut off at the token limit.
            n: expected number of texts if it differs from the task's, as for what a log showed.
        """
        read = parse_text if self.form == "text" else parse_response
        return read(text, self.n if n is None else n, finish_reason)

    def write(self, suggestions: Sequence[str]) -> str:
        """The answer that consists of ``suggestions``."""
        return suggestions[0].strip() if self.form == "text" else format_response(suggestions)


def in_words(n: int) -> dict[str, str]:
    """The values for ``n`` in a template: ``$n``, ``$number`` in English, ``$list``, that many numbered lines."""
    lines = "\n".join(f"{line}. …" for line in range(1, n + 1))
    return {"n": str(n), "number": NUMBERS[n - 1], "list": lines}


SUGGEST = Task()
TEACHER = Task(1, form="text")


def add_task_arguments(parser: argparse.ArgumentParser, prefix: str = "--") -> None:
    """Adds the flags that define a task; :func:`task_of` reads them."""
    parser.add_argument(
        f"{prefix}n_suggestions",
        type=int,
        default=N_SUGGESTIONS,
        help=f"suggestions per response, 1 to {MAX_SUGGESTIONS}; default {N_SUGGESTIONS}",
    )
    parser.add_argument(
        f"{prefix}prompt_template",
        default="",
        metavar="FILE",
        help="text file with the instruction, in any language; $n in it stands for the number; default: the "
        "English one in openrlhf_qs/form/task.py",
    )


def task_of(args: argparse.Namespace, prefix: str = "") -> Task:
    """The task that these flags define. ValueError if the task is invalid or the file does not exist."""
    flags = vars(args)
    return Task(flags[f"{prefix}n_suggestions"], read_template(flags[f"{prefix}prompt_template"]))


def read_task(folder: str | Path) -> Task:
    """The task that a policy was trained for; the default one if its folder has none, or is not a folder."""
    file = Path(folder) / FILE
    if not file.is_file():
        return Task()
    try:
        return Task(**json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a task: {error}; train the policy again, or remove the file") from None


def write_task(folder: str | Path, task: Task) -> None:
    """Write the task that a policy was trained for into its folder."""
    write_whole(Path(folder) / FILE, json.dumps(asdict(task), ensure_ascii=False) + "\n")


def read_template(path: str) -> str:
    """The instruction in a file, in any language; empty if ``path`` is. ValueError if there is none."""
    if not path:
        return ""
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompt_template {path} cannot be read: {error}; give a text file in UTF-8") from None
    if not text:
        raise ValueError(f"--prompt_template {path} is empty; give an instruction such as: {TEMPLATE}")
    return text
