"""Three suggestions to the text of one response, and back.

The policy answers with a numbered list, one suggestion a line::

    1. How long does sourdough need to rise?
    2. Which flour is best for a first loaf?
    3. Can I bake it without a Dutch oven?

:func:`parse_response` is the one reader of that form: rewards, judges and reports all see the same suggestions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

N_SUGGESTIONS = 3
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)  # of a model that thinks before it answers
_NUMBERED_LINE = re.compile(r"([1-9][0-9]?)[.)][ \t]*(.*)", re.ASCII)


@dataclass(frozen=True)
class ParsedResponse:
    """What was read from a response.

    Attributes:
        suggestions: the non-empty texts in the order of their lines, at most ``N_SUGGESTIONS``; numbers stripped.
        problem: why the response is malformed, in a few words; empty where it is well formed.
    """

    suggestions: tuple[str, ...]
    problem: str

    @property
    def well_formed(self) -> bool:
        return not self.problem


def format_response(suggestions: Sequence[str]) -> str:
    """The response that holds ``suggestions``, a numbered line each. ValueError where one has no text or two lines."""
    for suggestion in suggestions:
        if not suggestion.strip() or len(suggestion.splitlines()) != 1:
            raise ValueError(f"suggestion {suggestion!r} is empty or has a line break; give one line of text")
    return "\n".join(f"{n}. {suggestion.strip()}" for n, suggestion in enumerate(suggestions, start=1))


def parse_response(text: str) -> ParsedResponse:
    """Read the suggestions out of ``text``; never raises.

    Well formed are exactly ``N_SUGGESTIONS`` lines, numbered 1, 2, 3 with ASCII digits and a dot or bracket, each with
    a letter in it, and nothing else but blank lines. What a model thought before it answered is no part of the
    answer: templates such as Qwen3's put an empty ``<think>`` block before what the policy learns to write. All else
    is malformed, and read like this:

    - A line that is not numbered so ("One. ...", "- ...", "١. ...", a greeting) is no suggestion.
    - A numbered line is one, whatever its number and however far it is indented, so the items of a nested list are.
    - A numbered line without a letter is none.
    - Of more than ``N_SUGGESTIONS`` suggestions the first ones count; of fewer, those that are there.
    """
    numbers, suggestions, problem = [], [], ""
    for line in filter(None, map(str.strip, _THOUGHTS.sub("", text).splitlines())):
        match = _NUMBERED_LINE.fullmatch(line)
        if match is None:
            problem = problem or f"a line without a number: {line[:40]!r}"
            continue
        numbers.append(int(match[1]))
        suggestion = match[2].strip()
        if any(character.isalpha() for character in suggestion):
            suggestions.append(suggestion)
        else:
            problem = problem or f"number {match[1]} has no text"
    if not problem and numbers != list(range(1, N_SUGGESTIONS + 1)):
        problem = f"numbers {numbers} instead of 1 to {N_SUGGESTIONS}"
    return ParsedResponse(tuple(suggestions[:N_SUGGESTIONS]), problem)
