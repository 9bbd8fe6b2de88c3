"""How a text is read in the built-in world: the topics, aspects and intents it names, and how good its English is.

In: any text, whoever wrote it. Out: a :class:`Reading`. Meaning is read by rules that know no wording of the log:

- **Topics and aspects** by their name anywhere; within the conversation's own domain also by another name ("rising"
  for ``resting``), by any inflection ("prune" for ``pruning``) and, for names of two words, in any order with up to
  three words between ("plan a trip" for ``trip planning``).
- **Intents** by cues: words and phrases in three ranks (:class:`openrlhf_qs.world.language.Intent`).
- **English** by :mod:`openrlhf_qs.world.english`, to which every topic and aspect is one word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import snowballstemmer

from openrlhf_qs.world import english
from openrlhf_qs.world.english import DOING, IT, PAUSE
from openrlhf_qs.world.language import DOMAINS, INTENTS

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_PAUSE = re.compile(r"[,;:.?!()–—]")
_SENTENCE = re.compile(r"[.?!\n]+")
_CONTRACTIONS = (
    (re.compile(r"[’‘]"), "'"),
    (re.compile(r"\b(what|how|who|where|when|why|it|that|there|here|let)'s\b", re.I), r"\1 is"),
    (re.compile(r"\b(wo|ca)n't\b", re.I), lambda found: {"wo": "will", "ca": "can"}[found[1].lower()] + " not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"'m\b"), " am"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'ve\b"), " have"),
    (re.compile(r"'ll\b"), " will"),
    (re.compile(r"'d\b"), " would"),
    (re.compile(r"'s\b"), ""),
)
_TOPIC, _ASPECT = "topic", "aspect"
_Slot = tuple[str, str]  # _TOPIC or _ASPECT, and the name in the log
_MAX_GAP = 3  # words between the two words of a name, and for a ``*`` of a cue
# Words that a good sentence may hold twice: "the best of the tools", "trends in tipping in Peru".
_SMALL_WORDS = (
    english.DETERMINERS | english.PREPOSITIONS | english.AUXILIARIES | english.SUBJECTS | english.CONJUNCTIONS
) | english.QUESTION_WORDS


@dataclass(frozen=True)
class Reading:
    """What a text says.

    Attributes:
        words: its words, lower case, contractions spelt out, without punctuation.
        topics, aspects, intents: those it names, each once.
        n_repeats: words, topics and aspects that it says again, small words aside.
        n_faults: places that are no English; ``fault_share`` of its word pairs.
        finished: whether it ends as an English question or phrase can end; false for a text that is cut off.
    """

    words: tuple[str, ...]
    topics: frozenset[str]
    aspects: frozenset[str]
    intents: frozenset[str]
    n_repeats: int
    n_faults: int
    fault_share: float
    finished: bool


@lru_cache(maxsize=1 << 17)
def read(text: str, domain: str | None = None) -> Reading:
    """Read any text, whoever wrote it; never raises.

    Args:
        domain: what the conversation is about; its topics and aspects are understood under other names too. None: by
            their name in the log alone, and topics by their other names.
    """
    written, meant = _written(text), what_is_named(text, domain)
    faults = english.n_faults(written.spoken) + written.n_capitals
    plain = [word for word, slot in zip(written.words, meant.slots, strict=True) if slot is None]
    said = ([word for word in plain if word not in _SMALL_WORDS], meant.topics, meant.aspects)
    return Reading(
        words=written.words,
        topics=frozenset(meant.topics),
        aspects=frozenset(meant.aspects),
        intents=_intents(written.stems, meant.slots),
        n_repeats=sum(len(named) - len(set(named)) for named in said),
        n_faults=faults,
        fault_share=faults / max(len(written.spoken) - 1, 1),
        finished=english.is_finished(written.spoken),
    )


class Named(NamedTuple):
    """What a text names, whatever its English: ``topics`` and ``aspects`` as often as they are named, and ``slots``,
    for each word the topic or aspect that it is part of."""

    topics: tuple[str, ...]
    aspects: tuple[str, ...]
    slots: tuple[_Slot | None, ...]


def what_is_named(text: str, domain: str | None = None) -> Named:
    """The topics and aspects of :func:`read`, without the rest: most of what a conversation is read for."""
    written = _written(text)
    slots = list(written.slots)
    named = [*written.named, *_other_names(written, slots, domain)]
    return Named(
        tuple(name for kind, name in named if kind == _TOPIC),
        tuple(name for kind, name in named if kind == _ASPECT),
        tuple(slots),
    )


def what_is_asked(text: str, domain: str | None = None) -> frozenset[str]:
    """The intents of the last sentence that asks for something."""
    for sentence in reversed(_SENTENCE.split(text)):
        found = _intents(_written(sentence).stems, what_is_named(sentence, domain).slots)
        if found:
            return found
    return frozenset()


class _Written(NamedTuple):
    """A text before it is understood.

    Attributes:
        words, stems: in lower case, contractions spelt out.
        named, slots: topics and aspects by their name in the log, and for each word the one that it is part of.
        spoken: the words with ``IT`` for each name, as :mod:`openrlhf_qs.world.english` takes them.
        n_capitals: stray ones.
    """

    words: tuple[str, ...]
    stems: tuple[str, ...]
    named: tuple[_Slot, ...]
    slots: tuple[_Slot | None, ...]
    spoken: tuple[str, ...]
    n_capitals: int


@lru_cache(maxsize=1 << 17)
def _written(text: str) -> _Written:
    words, pauses, n_capitals = _words(text)
    slots: list[_Slot | None] = []
    named: list[_Slot] = []
    spoken: list[str] = []
    last: str | None = None  # the kind of the name that was just spoken
    place = 0
    while place < len(words):
        if place in pauses:
            spoken.append(PAUSE)
            last = None
        name = words[place : place + 2]  # the longest name wins: "battery storage", "sight reading"
        slot = _NAMES.get(name)
        if slot is None:
            name = words[place : place + 1]
            slot = _NAMES.get(name)
        if slot is None:
            spoken.append(words[place])
            slots.append(None)
            last = None
            place += 1
            continue
        if last in (None, slot[0], _TOPIC + _ASPECT):
            spoken.append(DOING if len(name) == 1 and name[0].endswith("ing") else IT)
            last = slot[0]
        else:  # "sourdough resting" is one name, not two
            spoken[-1], last = IT, _TOPIC + _ASPECT
        named.append(slot)
        slots += [slot] * len(name)
        place += len(name)
    stems = tuple(map(_stem, words))
    return _Written(words, stems, tuple(named), tuple(slots), tuple(spoken), n_capitals)


def _words(text: str) -> tuple[tuple[str, ...], set[int], int]:
    """The words in lower case, the places before which a comma or the like stands, and how many stray capitals."""
    text = _spelt_out(text)
    pauses: set[int] = set()
    if _PAUSE.search(text.rstrip("?.! ")) is None:
        words = _WORD.findall(text)
    else:
        words, end = [], 0
        for found in _WORD.finditer(text):
            start = found.start()
            if words and start > end + 1 and _PAUSE.search(text, end, start):
                pauses.add(len(words))
            words.append(found[0])
            end = found.end()
    return tuple(word.lower() for word in words), pauses, english.n_stray_capitals(words, {0, *pauses})


def _spelt_out(text: str) -> str:
    if "'" in text or "’" in text or "‘" in text:
        for pattern, plain in _CONTRACTIONS:
            text = pattern.sub(plain, text)
    return text


_STEMMER = snowballstemmer.stemmer("english")


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return _STEMMER.stemWord(word)


def _stems(phrase: str) -> tuple[str, ...]:
    return tuple(word if word in (IT, "*", "$") else _stem(word) for word in phrase.lower().split())


def _other_names(written: _Written, slots: list[_Slot | None], domain: str | None) -> list[_Slot]:
    """What is named by another name, an inflection, or in another order; marks the words in ``slots``."""
    names = _OTHER_NAMES[domain if domain in _OTHER_NAMES else None]
    words, stems = written.words, written.stems
    named: list[_Slot] = []

    def take(slot: _Slot, places: Collection[int]) -> None:
        for place in places:
            slots[place] = slot
        named.append(slot)

    starts = [(place, names.in_a_row[stem]) for place, stem in enumerate(stems) if stem in names.in_a_row]
    found = [
        (-len(name), place, slot)
        for place, possible in starts
        for name, slot in possible
        if len(name) > 1 and stems[place : place + len(name)] == name
    ]
    for minus_length, place, slot in sorted(found):  # the longest first
        if not any(slots[place : place - minus_length]):
            take(slot, range(place, place - minus_length))
    for place, stem in enumerate(stems):
        for other, slot in names.apart.get(stem, ()):
            if other not in stems or slots[place] is not None:
                continue
            near = range(max(0, place - _MAX_GAP - 1), min(len(stems), place + _MAX_GAP + 2))
            there = next((at for at in near if stems[at] == other and slots[at] is None), None)
            if there is not None:
                take(slot, (place, there))
    for place, possible in starts:
        slot = next((slot for name, slot in possible if len(name) == 1), None)
        if slot is None or slots[place]:
            continue
        # An inflection: "how much time" is no ``timing``, and "the rest of it" no ``resting``.
        is_cue = stems[place] in _CUES or stems[place] in _CUE_WORDS
        if words[place] in names.words or not (is_cue or (place and words[place - 1] == "the")):
            take(slot, (place,))
    return named


def _intents(stems: Sequence[str], slots: Sequence[_Slot | None]) -> frozenset[str]:
    """The intents whose cues stand in the text; of two overlapping cues the longer one counts."""
    tokens: list[str] = []
    for stem, slot in zip(stems, slots, strict=True):
        if slot is None:
            tokens.append(stem)
        elif tokens[-1:] != [IT]:
            tokens.append(IT)
    tokens.append("$")
    used: set[int] = set()
    counted: list[tuple[int, int, str]] = []
    present = set(tokens)
    found = [
        (-len(positions), place, rank, intent, positions)
        for place, token in enumerate(tokens)
        for cue, rank, intent in _CUES.get(token, ())
        if cue[-1] in present and (positions := _match(cue, tokens, place))
    ]
    for _, place, rank, intent, positions in sorted(found):
        if used.isdisjoint(positions):
            used.update(positions)
            counted.append((rank, place, intent))
    for place, token in enumerate(tokens):
        if place not in used:
            counted += [(rank, place, intent) for rank, intent in _CUE_WORDS.get(token, ())]
    if not counted:
        return frozenset()
    best = min(counted)
    return frozenset(intent for rank, _, intent in counted if rank == 0) if best[0] == 0 else frozenset({best[2]})


def _match(cue: tuple[str, ...], tokens: Sequence[str], place: int) -> list[int] | None:
    """The positions of the cue's words from ``place`` on; None where it does not stand there."""
    positions, gap = [], 0
    for stem in cue:
        if stem == "*":
            gap = _MAX_GAP
            continue
        last = min(place + gap, len(tokens) - 1)
        while place <= last and tokens[place] != stem:
            place += 1
        if place > last:
            return None
        positions.append(place)
        place, gap = place + 1, 0
    return positions


# The same names again, in the form they are looked up in.
_NAMES = {
    **{tuple(name.lower().split()): (_ASPECT, name) for domain in DOMAINS.values() for name in domain.aspects},
    **{tuple(name.lower().split()): (_TOPIC, name) for domain in DOMAINS.values() for name in domain.topics},
}
# A name of two words whose second says little is also told by the first and a verb: "choose a pan" for "pan choice".
_SAME_STEM = {"choic": ("choos", "pick", "select"), "control": ("reduc", "limit", "manag"), "care": ("look",)}


@dataclass(frozen=True)
class _Names:
    """How the topics and aspects of a domain may be named.

    Attributes:
        in_a_row: by the first stem of a name: all of its stems, and ``(kind, name)``.
        apart: for names of two words, by the stem of the first: that of the second, and ``(kind, name)``.
        words: the names of one word, as they are written.
    """

    in_a_row: dict[str, list[tuple[tuple[str, ...], _Slot]]]
    apart: dict[str, list[tuple[str, _Slot]]]
    words: frozenset[str]


def _names_of(named: list[tuple[str, str, str]]) -> _Names:
    """From ``(kind, name, one way to call it)``."""
    apart: dict[str, list[tuple[str, _Slot]]] = {}
    in_a_row: dict[str, list[tuple[tuple[str, ...], _Slot]]] = {}
    for kind, name, called in named:
        first, *others = _stems(called)
        in_a_row.setdefault(first, []).append(((first, *others), (kind, name)))
        if len(others) == 1:
            for second in (*others, *_SAME_STEM.get(others[0], ())):
                apart.setdefault(first, []).append((second, (kind, name)))
    return _Names(in_a_row, apart, frozenset(called.lower() for _, _, called in named if " " not in called))


_OTHER_NAMES: dict[str | None, _Names] = {
    name: _names_of(
        [
            (kind, thing, called)
            for kind, things in ((_ASPECT, domain.aspect_names), (_TOPIC, domain.topic_names))
            for thing, others in things.items()
            for called in (thing, *others)
        ]
    )
    for name, domain in DOMAINS.items()
}
_OTHER_NAMES[None] = _names_of(
    [
        (_TOPIC, topic, called)
        for domain in DOMAINS.values()
        for topic, others in domain.topic_names.items()
        for called in others
    ]
)

# Cues by their first stem: phrases, and single words.
_CUES: dict[str, list[tuple[tuple[str, ...], int, str]]] = {}
_CUE_WORDS: dict[str, list[tuple[int, str]]] = {}
for _intent, _meant in INTENTS.items():
    for _rank, _phrases_of_rank in enumerate(_meant.cues):
        for _phrase in _phrases_of_rank:
            _cue = _stems(_phrase)
            if len(_cue) == 1:
                _CUE_WORDS.setdefault(_cue[0], []).append((_rank, _intent))
            else:
                _CUES.setdefault(_cue[0], []).append((_cue, _rank, _intent))
