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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

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
    words, pauses, n_capitals = _words(text)
    stems = [_stem(word) for word in words]
    slots: list[tuple[str, str] | None] = [None] * len(words)  # the topic or aspect that a word is part of
    named: list[tuple[str, str]] = []
    spoken: list[str] = []  # the words, with IT for each name
    kinds: list[str | None] = []
    place = 0
    while place < len(words):
        if place in pauses:
            spoken.append(PAUSE)
            kinds.append(None)
        for length in (2, 1):  # the longest name wins: "battery storage", "sight reading"
            name = words[place : place + length]
            if name in _NAMES:
                break
        else:
            spoken.append(words[place])
            kinds.append(None)
            place += 1
            continue
        slot, length = _NAMES[name], len(name)
        if not (kinds and kinds[-1] not in (None, slot[0])):  # "sourdough resting" is one name, not two
            spoken.append(DOING if length == 1 and name[0].endswith("ing") else IT)
            kinds.append(slot[0])
        else:
            spoken[-1], kinds[-1] = IT, _ASPECT + _TOPIC
        named.append(slot)
        slots[place : place + length] = [slot] * length
        place += length
    named += _other_names(words, stems, slots, domain)

    topics, aspects = ([name for kind, name in named if kind == wanted] for wanted in (_TOPIC, _ASPECT))
    plain = [word for word, slot in zip(words, slots, strict=True) if slot is None and word not in _SMALL_WORDS]
    faults = english.n_faults(spoken) + n_capitals
    return Reading(
        words=words,
        topics=frozenset(topics),
        aspects=frozenset(aspects),
        intents=_intents(stems, slots),
        n_repeats=sum(len(said) - len(set(said)) for said in (plain, topics, aspects)),
        n_faults=faults,
        fault_share=faults / max(len(spoken) - 1, 1),
        finished=english.is_finished(spoken),
    )


def _words(text: str) -> tuple[tuple[str, ...], set[int], int]:
    """The words in lower case, the places before which a comma or the like stands, and how many stray capitals."""
    words: list[str] = []
    pauses: set[int] = set()
    end = 0
    text = _spelt_out(text)
    for found in _WORD.finditer(text):
        if words and _PAUSE.search(text, end, found.start()):
            pauses.add(len(words))
        words.append(found[0])
        end = found.end()
    return tuple(word.lower() for word in words), pauses, english.n_stray_capitals(words, {0, *pauses})


def sentences(text: str) -> list[str]:
    """The sentences of a text, without what ends them."""
    return [sentence for sentence in _SENTENCE.split(text) if sentence.strip()]


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


def _other_names(
    words: Sequence[str], stems: Sequence[str], slots: list[tuple[str, str] | None], domain: str | None
) -> list[tuple[str, str]]:
    """What is named by another name, an inflection, or in another order; marks the words in ``slots``."""
    names = _OTHER_NAMES[domain if domain in _OTHER_NAMES else None]
    named: list[tuple[str, str]] = []

    def take(slot: tuple[str, str], places: Sequence[int]) -> None:
        for place in places:
            slots[place] = slot
        named.append(slot)

    for length in range(min(_MAX_NAME, len(words)), 1, -1):
        for place in range(len(words) - length + 1):
            slot = names.in_a_row.get(tuple(stems[place : place + length]))
            if slot is not None and not any(slots[place : place + length]):
                take(slot, range(place, place + length))
    for place, stem in enumerate(stems):
        for other, slot in names.apart.get(stem, ()):
            near = range(max(0, place - _MAX_GAP - 1), min(len(stems), place + _MAX_GAP + 2))
            there = next((at for at in near if stems[at] == other and slots[at] is None), None)
            if there is not None and slots[place] is None:
                take(slot, (place, there))
    for place, word in enumerate(words):
        slot = names.in_a_row.get((stems[place],))
        if slot is None or slots[place]:
            continue
        # An inflection: "how much time" is no ``timing``, and "the rest of it" no ``resting``.
        if word in names.words or not (stems[place] in _CUES or (place and words[place - 1] == "the")):
            take(slot, (place,))
    return named


def _intents(stems: Sequence[str], slots: Sequence[tuple[str, str] | None]) -> frozenset[str]:
    """The intents whose cues stand in the text; of two overlapping cues the longer one counts."""
    tokens: list[str] = []
    for stem, slot in zip(stems, slots, strict=True):
        if slot is None:
            tokens.append(stem)
        elif tokens[-1:] != [IT]:
            tokens.append(IT)
    tokens.append("$")
    found = []
    for place, token in enumerate(tokens):
        for cue, rank, intent in _CUES.get(token, ()):
            positions = _match(cue, tokens, place)
            if positions is not None:
                found.append((-len(positions), place, rank, intent, positions))
    used: set[int] = set()
    counted = []
    for _, place, rank, intent, positions in sorted(found, key=lambda hit: hit[:2]):
        if not used.intersection(positions):
            used.update(positions)
            counted.append((rank, place, intent))
    if not counted:
        return frozenset()
    best = min(counted)
    return frozenset(intent for rank, _, intent in counted if rank == 0) if best[0] == 0 else frozenset({best[2]})


def _match(cue: tuple[str, ...], tokens: list[str], place: int) -> list[int] | None:
    """The positions of the cue's words from ``place`` on; None where it does not stand there."""
    positions, gap = [], 0
    for stem in cue:
        if stem == "*":
            gap = _MAX_GAP
            continue
        there = next((at for at in range(place, min(place + gap + 1, len(tokens))) if tokens[at] == stem), None)
        if there is None:
            return None
        positions.append(there)
        place, gap = there + 1, 0
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
        in_a_row: ``(kind, name)`` by the stems of a name.
        apart: for names of two words, by the stem of the first: that of the second, and ``(kind, name)``.
        words: the names of one word, as they are written.
    """

    in_a_row: dict[tuple[str, ...], tuple[str, str]]
    apart: dict[str, list[tuple[str, tuple[str, str]]]]
    words: frozenset[str]


def _names_of(named: list[tuple[str, str, str]]) -> _Names:
    """From ``(kind, name, one way to call it)``."""
    apart: dict[str, list[tuple[str, tuple[str, str]]]] = {}
    for kind, name, called in named:
        first, *others = _stems(called)
        if len(others) == 1:
            for second in (*others, *_SAME_STEM.get(others[0], ())):
                apart.setdefault(first, []).append((second, (kind, name)))
    return _Names(
        {_stems(called): (kind, name) for kind, name, called in named},
        apart,
        frozenset(called.lower() for _, _, called in named if " " not in called),
    )


_MAX_NAME = 4  # words of the longest name
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

_CUES: dict[str, list[tuple[tuple[str, ...], int, str]]] = {}
for _intent, _meant in INTENTS.items():
    for _rank, _phrases_of_rank in enumerate(_meant.cues):
        for _phrase in _phrases_of_rank:
            _cue = _stems(_phrase)
            _CUES.setdefault(_cue[0], []).append((_cue, _rank, _intent))
