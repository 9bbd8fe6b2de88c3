"""How good the English of a short text is, by rules that do not know what the world says.

In: the words of a text, with ``<it>`` for a topic or an aspect. Out: how many faults stand in it, and whether it ends
as an English question or phrase can end. No wording of the world is known here. What is known:

- **Word order, from general English.** ``symspellpy`` carries counts of 82,834 words and 242,342 word pairs (from
  Google's n-grams). Where two words are so frequent that chance alone would make them meet more often than the rarest
  listed pair (``LEAST_SEEN``), and they stand side by side less than ``RARE`` times as often as by chance, English
  avoids the pair: "the are", "need what". Pairs of rarer words prove nothing by being absent.
- **Parts of speech**, of the closed classes by lists, of other words by their company in those counts: a verb has been
  seen behind "to" or "can", a noun or an adjective behind "the" or "of". A subject takes a verb, a determiner none, no
  preposition stands before another or before an auxiliary, no question word in the middle.
- **Stammering**: the same word twice in a row. **Strange words**: in no list and nothing of the world.
- **Capitals**: none on a small word in the middle of a sentence, unless every word has one.
- **Ends.** No sentence ends with a determiner, a conjunction or a subject; a question with "does", "can", "should" has
  a subject and a verb behind it ("How long does it usually" has none); a question word alone asks nothing ("Which
  mistakes with it").

This is a rule of thumb: it finds most, not all, of what is shuffled or cut off (docs/WORLD.md has the shares).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from importlib.resources import files

IT = "<it>"  # a topic, an aspect, or an aspect of a topic
DOING = "<doing>"  # one whose name is a gerund, as in "tuning a guitar"
PAUSE = "<,>"  # a comma, or whatever parts two clauses

LEAST_SEEN = 6.4e6  # count of the rarest pair in the list
N_WORDS = 1.0e12  # the size of the corpus that the counts are of
RARE = 0.1
FREQUENT = 2e7  # from this count on, what a word was never seen behind says something about it

DETERMINERS = frozenset("a an the my your our their his its every each this these those some any no".split())
PREPOSITIONS = frozenset(
    """of in on at for with without about from into to by as than over under between during before after against
    through behind beyond per like""".split()
)
MODALS = frozenset("can could should would will may might must".split())
DOES, IS, HAS = (
    frozenset("do does did".split()),
    frozenset("is are was were am".split()),
    frozenset("has have had".split()),
)
INVERTED = MODALS | DOES
AUXILIARIES = INVERTED | IS | HAS
PRONOUNS = frozenset("i you we they he she".split())
SUBJECTS = PRONOUNS | frozenset("it one people someone anyone everyone".split())
QUESTION_WORDS = frozenset("what which who whose how why where".split())
CONJUNCTIONS = frozenset("and or but nor".split())
ADVERBS = frozenset(
    """really usually often only just also simply well quickly slowly first then still even ever never always again
    sometimes properly safely actually most so too very more less better best long much not right soon now today
    exactly""".split()
)
CLOSED = DETERMINERS | PREPOSITIONS | AUXILIARIES | SUBJECTS | QUESTION_WORDS | CONJUNCTIONS | ADVERBS
# What may come before a question word inside of a sentence: "tell me how", "of which", "and what".
BEFORE_QUESTION_WORDS = CONJUNCTIONS | frozenset(
    """me know tell explain show understand see learn find decide describe say wonder hear share compare idea clear
    remember matter of about on for""".split()
)
NEVER_FIRST = CONJUNCTIONS | frozenset("of than".split())
NEVER_LAST = (
    (DETERMINERS - frozenset("this these those some any his".split()))
    | CONJUNCTIONS
    | PRONOUNS - {"you"}
    | AUXILIARIES - DOES
    | frozenset("of than as into per between against during to what which who whose".split())
)
# Prepositions that may stand together, and question words that need no verb ("How to begin?", "Why not rye bread?").
ARTICLES = frozenset("a an the my your our their".split())
TAKES_PERSON = frozenset("tell help give show teach let thank".split())
TOGETHER = frozenset(
    [("on", "to"), ("in", "to"), ("on", "with"), ("from", "under"), ("as", "to"), ("as", "for"), ("like", "for")]
)
WITHOUT_VERB = frozenset([("what", "about"), ("how", "about"), ("why", "not"), *((w, "to") for w in QUESTION_WORDS)])
VERBS_STAND_BEHIND = ("to", "can", "will", "not", "i", "you", "we", "they")
NOUNS_STAND_BEHIND = ("the", "a", "an", "of", "my", "your", "very", "more", "for", "good")


def n_faults(words: Sequence[str]) -> int:
    """How many places are no English: word pairs, strange words, a first word that starts nothing. >= 0."""
    if not words:
        return 0
    faults = int(words[0] in NEVER_FIRST) + sum(map(is_strange, words))
    if len(words) > 1:  # "What in it", "Is with it", "Can simply it"
        first, second = words[:2]
        faults += first in QUESTION_WORDS and second in PREPOSITIONS and (first, second) not in WITHOUT_VERB
        faults += first in AUXILIARIES and (second in PREPOSITIONS or second in ADVERBS)
    asked = words[0] in AUXILIARIES or words[0] in QUESTION_WORDS or words[0] == "when"
    for place, (before, word, after) in enumerate(zip(words, words[1:], words[2:], strict=False)):
        if word in PRONOUNS:
            # A subject behind a noun begins a clause, "mistakes I should avoid", and that needs its verb.
            noun = before in (IT, DOING) or (_is_open(before) and before not in TAKES_PERSON)
            faults += noun and (after in PREPOSITIONS or after in DETERMINERS)
        elif word in QUESTION_WORDS:  # "In which order", but no "repair in which"
            faults += place > 0 and before in PREPOSITIONS
            asked = True
        elif word == PAUSE:
            asked = True
        elif word in INVERTED and not asked:  # "resting can you" where nothing asks before it
            faults += after in PRONOUNS or after in (IT, DOING)
    return faults + sum(map(is_avoided, words, words[1:]))


def n_stray_capitals(written: Sequence[str], first: Collection[int]) -> int:
    """Small words with a capital where no sentence begins: "begin with How yoga".

    Args:
        written: words as they are written.
        first: the places where a sentence or a clause begins.
    """
    capitals = [place for place, word in enumerate(written) if word[:1].isupper()]
    if len(capitals) == len(written):  # a headline
        return 0
    return sum(place not in first and written[place] != "I" and written[place].lower() in CLOSED for place in capitals)


def is_finished(words: Sequence[str]) -> bool:
    """Whether the text ends as an English question or phrase can end; False for what is cut off."""
    if PAUSE in words:
        words = words[len(words) - list(reversed(words)).index(PAUSE) :]
    words = _without_attributes([IT if word == DOING else word for word in words])
    if not words or words[-1] in NEVER_LAST or (words[-1] in ADVERBS and words[-2:-1] and words[-2] in AUXILIARIES):
        return False
    asks = words[0] in QUESTION_WORDS
    if words[-1] in PREPOSITIONS:  # "What is it good for?", but "how" and "why" leave no object open
        return (
            words[0] in ("what", "which", "who", "whose") and len(words) > 3 and words[-2] not in PREPOSITIONS | {IT}
        )
    if asks and tuple(words[:2]) in WITHOUT_VERB:
        return len(words) > 2
    auxiliary = next((place for place, word in enumerate(words) if word in AUXILIARIES), None)
    if auxiliary is None:
        if not asks:
            return True
        # "Who teaches it?", "Which book covers it?"; "Which mistakes with it" has no verb
        subject_asks = words[0] in ("what", "who") and len(words) > 1 and _is_open(words[1])
        return sum(map(_is_open, words)) >= 2 or (subject_asks and (len(words) == 2 or words[2] == IT))
    after = [word for word in words[auxiliary + 1 :] if word not in ADVERBS and word not in DETERMINERS]
    if words[auxiliary] in IS | HAS:
        if auxiliary == 0 or words[0] in ("how", "why") and auxiliary == 1:  # "Is it", "Why is it": is it what?
            return len(words) - auxiliary - 1 >= 2
        return True
    if auxiliary and not asks:  # a statement, or a clause before the verb
        return True
    if auxiliary == 1 and words[0] in ("what", "which", "who") and after[:1] and _is_open(after[0]):
        return True  # "What can help?" needs no other subject
    return len(after) >= 2 and (after[1] not in PREPOSITIONS | CONJUNCTIONS or len(after) >= 4)


def _without_attributes(words: Sequence[str]) -> list[str]:
    """``IT in IT`` is one thing: "tipping in Peru"."""
    whole: list[str] = []
    for word in words:
        if word == IT and len(whole) >= 2 and whole[-1] in PREPOSITIONS and whole[-2] == IT:
            whole.pop()
        else:
            whole.append(word)
    return whole


@lru_cache(maxsize=1 << 17)
def is_avoided(first: str, second: str) -> bool:
    """Whether English avoids to let ``second`` follow ``first``."""
    if PAUSE in (first, second):
        return False
    if first == second:
        return True
    if second == "not":
        return first not in AUXILIARIES | SUBJECTS | {IT, "why", "if", "or"}
    if second in QUESTION_WORDS:
        return first not in BEFORE_QUESTION_WORDS and not (first in PREPOSITIONS and second in ("what", "which"))
    if first in PREPOSITIONS:
        if second in PREPOSITIONS:
            return (first, second) not in TOGETHER
        if second in AUXILIARIES or second in PRONOUNS - {"you"} or second == "there":
            return True
    if first in DETERMINERS:
        if first in ("a", "an") and second[0] not in "hu<" and (first == "an") != (second[0] in "aeio"):
            return second != "one"
        if first in ARTICLES and second in AUXILIARIES | PREPOSITIONS | PRONOUNS | CONJUNCTIONS | DETERMINERS:
            return True
    if first in MODALS | {"does", "did"} and second in PREPOSITIONS or first in IS and second == "of":
        return True
    if first == "me" and second in AUXILIARIES:
        return True
    if first == DOING:
        return second in SUBJECTS
    second = IT if second == DOING else second
    if first == IT:  # "is it a habit", "it every day", but no "sourdough the"
        return second in SUBJECTS or second in DETERMINERS - {"a", "an", "each", "every", "this", "these"}
    if second == IT:
        return first in PRONOUNS or first == "me"
    counts, pairs = _counts()
    by_chance = counts.get(first, 0) * counts.get(second, 0) / N_WORDS
    if by_chance > LEAST_SEEN:
        return pairs.get((first, second), 0.0) < RARE * by_chance
    if (first, second) in pairs:
        return False
    if first in DETERMINERS:
        return second in AUXILIARIES | PREPOSITIONS | PRONOUNS | CONJUNCTIONS or not _was_seen(
            NOUNS_STAND_BEHIND, second
        )
    if first in PRONOUNS:
        return not _was_seen(VERBS_STAND_BEHIND, second)
    return False


def _was_seen(before: Sequence[str], word: str) -> bool:
    """Whether ``word`` was seen behind one of ``before``; True where it is too rare to tell."""
    counts, pairs = _counts()
    return counts.get(word, 0) < FREQUENT or any((other, word) in pairs for other in before)


def _is_open(word: str) -> bool:
    return word != IT and word not in CLOSED


@lru_cache(maxsize=1 << 16)
def is_strange(word: str) -> bool:
    """Whether no list of English words has it; a number is not strange."""
    if word in (IT, DOING, PAUSE) or word.isdecimal():
        return False
    listed = _counts()[0]
    # Not every plural is listed, nor both spellings of "colour".
    spelt = (word, word.removesuffix("s"))
    return not any(form in listed or form.replace("or", "our") in listed for form in spelt)


@lru_cache(maxsize=1)
def _counts() -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Counts of words and of word pairs in general English."""
    folder = files("symspellpy")
    words, pairs = {}, {}
    for line in (folder / "frequency_dictionary_en_82_765.txt").read_text("utf-8-sig").splitlines():
        word, count = line.split()
        words[word] = float(count)
    for line in (folder / "frequency_bigramdictionary_en_243_342.txt").read_text("utf-8-sig").splitlines():
        first, second, count = line.split()
        pairs[first, second] = float(count)
    return words, pairs
