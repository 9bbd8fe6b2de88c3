"""From suggestions to the text of a response, and back.

The policy answers with a numbered list, one suggestion per line::

    1. How long does sourdough need to rise?
    2. Which flour is best for a first loaf?
    3. Can I bake it without a Dutch oven?

:func:`parse_response` is the only parser of that form, so rewards, judges and reports all see the same suggestions and
the same responses as malformed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from openrlhf_qs.form.keys import INVISIBLE

N_SUGGESTIONS = 3  # per response, unless a run says otherwise
CUT = "cut at the token limit"
# What a model thought, in the forms that models use: <think>, <seed:think>, <thinking time="3">, [THINK], ◁think▷,
# <|START_THINKING|>, gpt-oss's channels, with and without their control tokens, and Gemma's; or a turn of its own.
_TAG = (
    r"(?:\w+[:_])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad|(?:inner_)?monologue)"
    r"(?:_\w+)?"
)
_OPENING = re.compile(
    rf"<{_TAG}(?:\s[^<>]*)?>|\[{_TAG}\]|◁{_TAG}▷|<\|(?:begin_of_|start_)?{_TAG}\|>"
    rf"|<\|channel\|>(?:analysis|commentary)\b|<\|channel>{_TAG}\b|<\|im_start\|>{_TAG}\b",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    rf"</{_TAG}\s*>|\[/{_TAG}\]|◁/{_TAG}▷|<\|(?:end_of_|end_|/){_TAG}\|>"
    r"|<\|channel\|>final[^<]*<\|message\|>|(?s:\Aanalysis.*?assistantfinal)|<channel\|>|<\|im_start\|>assistant\s",
    re.IGNORECASE,
)
_BLANK = re.compile(r"\s*")
# What may enclose a whole answer: control tokens, a code fence, a tag such as <answer>.
_AT_ITS_ENDS = re.compile(r"\A\s*(?:<\|\w+\|>\s*)+|(?:\s*<\|\w+\|>)+\s*\Z")
_FRAMED = re.compile(r"\s*(?:```\w*\n(?P<fenced>.*?)```|<(\w+)>(?P<tagged>.*)</\2>)\s*", re.DOTALL)
# Also invisible: control characters, joiners that join nothing, and the sign that makes a digit a keycap.
_INVISIBLE = f"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f{INVISIBLE}\u200c\u200d\u20e3"
_AROUND = re.compile(rf"\A[\s{_INVISIBLE}]+|[\s{_INVISIBLE}]+\Z")
_UNSEEN, _ASCII_UNSEEN = re.compile(rf"[\s{_INVISIBLE}]"), "".join(map(chr, (*range(33), 127)))
_NUMBERED_LINE = re.compile(rf"([1-9][0-9]?)[{_INVISIBLE}]*(?:[.)、．）]|(?<=\u20e3))[ \t{_INVISIBLE}]*(.*)", re.ASCII)
# Signs that a model puts around a whole text. They would be shown, and sent as the user's next message.
_PAIRS = [
    *((sign, sign) for sign in ("```", "``", "**", "__", "~~", "==", "*", "_", "`", '"', "'", "＂", "”")),
    *("[]", "()", "{}", "“”", "„“", "„”", "≪≫", "﹁﹂", "‘’", "‚‘", "«»", "»«", "‹›", "❝❞", "❛❜", "〝〟"),
    *("「」", "『』", "《》", "〈〉", "【】", "（）"),
]
_TAGGED = re.compile(r"<(\w+)(?: [^<>]*)?>(.*)</\1>")
_ENDS = {">", *(pair[1][-1] for pair in _PAIRS)}  # the last character of a text enclosed in such signs
_ITEM_SIGNS = "-*+>•‣◦▪●○■□–—·→⇒➜➤➔►▶▸◆◇◻◼◽◾★☆✓✔✅☐☑❖✦✧"  # followed by a space
# Markup left inside or at one end. Signs of code do not count: **kwargs, __init__, List<String>, a <div>, 2 * 3 * 4.
_MARKUP = re.compile(
    r"\*\*\S.*\S\*\*|^\*\*|\*\*$|(?<![\w*])\*[^\s*](?:[^*]*[^\s*])?\*(?![\w*])"  # bold, italic
    r"|(?<!\w)__(?![a-z0-9_]+__\b)(?=\S)|~~|^==|==$|```|^`[^`]*$|^[^`]*`$"
    r"|<\w+(?: [^<>]*)?/?>(?=[^\W\d_])|(?<=\S)(?:</\w+>|<(?:br|hr|p) ?/?>)|<\||\[/\w+\]"  # tags, control tokens
    r"|\]\(|^\[.*\]\[|&(?:[a-z]+|#\w+);|\\[a-z]+\{"  # links, entities, TeX
    rf"|^#{{1,6}} |^[{re.escape(_ITEM_SIGNS)}] (?!\d)"  # headings, items
    r"|^\[[ xX]?\] |^\||\|$"  # boxes, tables
)
# Without one of these there is no thought, frame or control token, and no markup. They are searched for first: most
# texts have none, and searching for a set of characters takes a tenth of the time.
_SIGN_OF_MORE = re.compile(r"[<\[◁`]")
_SIGN_OF_MARKUP = re.compile(r"[*_~=`<\]&\\#|]")


@dataclass(frozen=True)
class ParsedResponse:
    """What was read from a response.

    Attributes:
        suggestions: the non-empty texts in the order of their lines, at most ``n``; numbers stripped.
        problem: why the response is malformed, in a few words; empty if it is well formed.
        n: the number asked for, or shown.
    """

    suggestions: tuple[str, ...]
    problem: str
    n: int

    @property
    def well_formed(self) -> bool:
        return not self.problem


def suggestion_problem(text: str) -> str:
    """Why ``text`` cannot be a suggestion, in two words; empty if it can.

    A suggestion is one line of complete characters with at least one letter, and without markup once anything that
    encloses all of it is removed.
    """
    if not any(map(str.isalpha, text)):
        return "no letter"
    if len(text.strip().splitlines()) != 1:
        return "line break"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "broken character"  # half of a surrogate pair: valid JSON, but no text
    if text[:1] not in _ITEM_SIGNS and not _SIGN_OF_MARKUP.search(text):
        return ""
    return "markup" if _MARKUP.search(text) and _MARKUP.search(unwrapped(text)) else ""


def format_response(suggestions: Sequence[str]) -> str:
    """The response with ``suggestions`` as numbered lines. ValueError if one is empty or has several lines."""
    for suggestion in suggestions:
        if len(suggestion.strip().splitlines()) != 1:
            raise ValueError(f"suggestion {suggestion!r} is empty or has a line break; give one line of text")
    return "\n".join(f"{n}. {suggestion.strip()}" for n, suggestion in enumerate(suggestions, start=1))


def response_regex(n: int) -> str:
    """A regular expression of well-formed responses of ``n`` questions, for constrained decoding."""
    return r"\n".join(rf"{number}\. [^\n?？؟]{{8,120}}[?？؟]" for number in range(1, n + 1))


def parse_response(text: str, n: int = N_SUGGESTIONS, finish_reason: str = "stop") -> ParsedResponse:
    """Read the suggestions from ``text``; never raises.

    A well-formed response has exactly ``n`` lines, numbered 1, 2, 3 and so on with ASCII digits and a dot, a bracket
    or the Chinese comma, each with at least one letter, and nothing else but blank lines, and it is not cut off at the
    token limit. Everything else is malformed, and read as follows:

    - A line that is not numbered like this ("One. ...", "- ...", "١. ...", a greeting) is not a suggestion.
    - A numbered line is one, whatever its number and indentation, and so are the items of a nested list.
    - A numbered line without a letter is not.
    - If there are more than ``n`` suggestions, the first ones count; if there are fewer, those that exist.

    What a model thought is not part of the answer: everything before the last closing tag of a thought is dropped, and
    everything after an opening one that was never closed. So are control tokens, a code fence and a tag around the
    whole answer. Invisible characters do not hide a number. Quotes, emphasis and tags around a whole suggestion are
    removed; a suggestion with such signs inside it, or at one end only, is malformed, because they would be shown.

    Args:
        n: the number asked for.
        finish_reason: ``length`` if the response was cut off at the token limit.
    """
    numbers, suggestions, problem = [], [], CUT if finish_reason == "length" else ""
    for line in filter(None, map(_bare, _answer(text).splitlines())):
        match = _NUMBERED_LINE.fullmatch(line)
        if match is None:
            problem = problem or f"a line without a number: {line[:40]!r}"
            continue
        numbers.append(int(match[1]))
        suggestion = unwrapped(match[2])
        found = suggestion_problem(suggestion)
        problem = problem or (found and f"{found} in number {match[1]}: {suggestion[:40]!r}")
        if found != "no letter":
            suggestions.append(suggestion)
    if not problem and numbers != list(range(1, n + 1)):
        problem = f"numbers {numbers} instead of 1 to {n}"
    return ParsedResponse(tuple(suggestions[:n]), problem, n)


def parse_text(text: str, n: int = 1, finish_reason: str = "stop") -> ParsedResponse:
    """The same for an answer that is one suggestion and nothing else."""
    suggestion = unwrapped(_answer(text))
    found = suggestion_problem(suggestion)
    there = () if found in ("no letter", "line break") else (suggestion,)
    return ParsedResponse(there, CUT if finish_reason == "length" else found, n)


def unwrapped(text: str) -> str:
    """``text`` without white space, invisible characters, quotes, emphasis and tags around all of it."""
    text = _bare(text)
    while text[-1:] in _ENDS:
        tagged = _TAGGED.fullmatch(text)
        inner = tagged[2] if tagged else next(filter(None, (_inside(text, *pair) for pair in _PAIRS)), "")
        if not any(map(str.isalpha, inner)):
            break
        text = _bare(inner)
    return text


def _inside(text: str, opening: str, closing: str) -> str:
    """The text between the two signs if they enclose all of ``text`` and do not occur inside it; else empty."""
    inner = text[len(opening) : -len(closing)]
    whole = text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing)
    return "" if not whole or opening in inner or closing in inner else inner


def _bare(text: str) -> str:
    """``text`` without white space and invisible characters at both ends."""
    if text.isascii():
        return text.strip(_ASCII_UNSEEN)
    at_an_end = _UNSEEN.match(text) or _UNSEEN.match(text, len(text) - 1)
    return _AROUND.sub("", text) if at_an_end else text


def end_of_thought(text: str, start: int) -> int:
    """Where a thought ends that begins at ``start`` of ``text``, white space aside; ``start`` if none begins there.

    One that is never closed goes on to the end of ``text``, unless its tag could be a heading: ``[Analysis]``.
    """
    opening = _OPENING.match(text, _BLANK.match(text, start).end())
    if opening is None:
        return start
    if closing := _CLOSING.search(text, opening.end()):
        return closing.end()
    return start if opening[0].startswith("[") else len(text)


def _answer(text: str) -> str:
    """``text`` after what the model thought, without anything that encloses all of it."""
    if text[:1] not in "Aa" and not _SIGN_OF_MORE.search(text):
        return text
    closings = list(_CLOSING.finditer(text))
    text = text[closings[-1].end() :] if closings else text
    opening = _OPENING.search(text)
    text = _AT_ITS_ENDS.sub("", text[: opening.start()] if opening else text)
    framed = _FRAMED.fullmatch(text)
    inner = (framed["fenced"] or framed["tagged"] or "") if framed else ""
    return inner if "\n" in inner else text
