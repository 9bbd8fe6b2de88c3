"""Suggestions to the text of one response, and back.

The policy answers with a numbered list, one suggestion a line::

    1. How long does sourdough need to rise?
    2. Which flour is best for a first loaf?
    3. Can I bake it without a Dutch oven?

:func:`parse_response` is the one reader of that form: rewards, judges and reports all see the same suggestions, and to
all of them the same responses are malformed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

N_SUGGESTIONS = 3  # of a response, where a run does not say otherwise
CUT = "cut at the token limit"
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)  # of a model that thinks before it answers
_NUMBERED_LINE = re.compile(r"([1-9][0-9]?)[.)][ \t]*(.*)", re.ASCII)


@dataclass(frozen=True)
class ParsedResponse:
    """What was read from a response.

    Attributes:
        suggestions: the non-empty texts in the order of their lines, at most ``n``; numbers stripped.
        problem: why the response is malformed, in a few words; empty where it is well formed.
        n: how many were asked for, or shown.
    """

    suggestions: tuple[str, ...]
    problem: str
    n: int

    @property
    def well_formed(self) -> bool:
        return not self.problem


def format_response(suggestions: Sequence[str]) -> str:
    """The response that holds ``suggestions``, a numbered line each. ValueError where one has no text or two lines."""
    for suggestion in suggestions:
        if not suggestion.strip() or len(suggestion.splitlines()) != 1:
            raise ValueError(f"suggestion {suggestion!r} is empty or has a line break; give one line of text")
    return "\n".join(f"{n}. {suggestion.strip()}" for n, suggestion in enumerate(suggestions, start=1))


def parse_response(text: str, n: int = N_SUGGESTIONS, finish_reason: str = "stop") -> ParsedResponse:
    """Read the suggestions out of ``text``; never raises.

    Well formed are exactly ``n`` lines, numbered 1, 2, 3 and so on with ASCII digits and a dot or bracket, each with a
    letter in it, and nothing else but blank lines, not cut at the token limit. What a model thought before it answered
    is no part of the answer: templates such as Qwen3's put an empty ``<think>`` block before what the policy learns to
    write. All else is malformed, and read like this:

    - A line that is not numbered so ("One. ...", "- ...", "١. ...", a greeting) is no suggestion.
    - A numbered line is one, whatever its number and however far it is indented, so the items of a nested list are.
    - A numbered line without a letter is none.
    - Of more than ``n`` suggestions the first ones count; of fewer, those that are there.

    Args:
        n: how many were asked for.
        finish_reason: ``length`` where the response was cut at the token limit.
    """
    numbers, suggestions, problem = [], [], CUT if finish_reason == "length" else ""
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
    if not problem and numbers != list(range(1, n + 1)):
        problem = f"numbers {numbers} instead of 1 to {n}"
    return ParsedResponse(tuple(suggestions[:n]), problem, n)


def parse_text(text: str, n: int = 1, finish_reason: str = "stop") -> ParsedResponse:
    """The same where the answer is one suggestion and nothing else: one line with a letter in it."""
    suggestion = _THOUGHTS.sub("", text).strip()
    problem = CUT if finish_reason == "length" else ""
    if len(suggestion.splitlines()) != 1 or not any(map(str.isalpha, suggestion)):
        return ParsedResponse((), problem or "not one line of text with a letter in it", n)
    return ParsedResponse((suggestion,), problem, n)
