r"""How a suggestion overlaps with its conversation: the few figures that say most of what users like, and what they
say beside a reward model.

Whether a suggestion takes up the question, names what only the answer named, or repeats what was said is learnt from a
thousand clicks, where words are learnt from many thousands. A backbone that is trained on clicks alone finds such
shares late. So :data:`FIGURES` are counted, gradient-boosted trees on them are fitted to the clicks
(:mod:`openrlhf_qs.garm.fit_wide`), and the sum of their leaves is added to the log-odds of a click. No word is in it,
so it holds in any language.

:func:`figures` counts in words, for a linear model (:mod:`openrlhf_qs.garm.baselines`), or in tokens, for a reward
model, which has no words: tokens that differ in case and blanks are then one, and those without a letter or digit are
none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence

import numpy as np

from openrlhf_qs.garm.crosses import turns

OVERLAPS = "overlaps"  # their name among the weights
NO_WORD = -1  # the form of a token without a letter or digit
FIGURES = (
    "words in the question",
    "words in the answer",
    "words in the answer alone",
    "words in earlier turns",
    "rare words in the question",
    "rare words in the answer",
    "rare words in the answer alone",
    "rare words nowhere in the conversation",
    "question's words in it",
    "rarest word in the question",
    "rarest word in the answer alone",
    "word pairs in the question",
    "word pairs in the answer",
    "words",
    "words above eight",
    "repeated words",
)


def figures(
    words: Sequence[Hashable],
    question: Sequence[Hashable],
    answer: Sequence[Hashable],
    earlier: Collection[Hashable],
    rarity: Callable[[Hashable], float],
) -> tuple[float, ...]:
    """``FIGURES`` of a suggestion: shares of its words, their rarity, and numbers of words.

    Args:
        words, question, answer: of the suggestion and of the last two turns, in their order.
        earlier: of all turns before.
        rarity: of a word; nats, the higher the rarer.
    """
    own, asked, answered = set(words), set(question), set(answer)
    n = max(len(words), 1)
    rare = [rarity(word) for word in words]
    in_question = [word in asked for word in words]
    in_answer = [word in answered for word in words]
    alone = [there and not before for there, before in zip(in_answer, in_question, strict=True)]
    in_earlier = [word in earlier for word in words]

    def rare_share(where: Sequence[bool]) -> float:
        return sum(r for r, there in zip(rare, where, strict=True) if there) / n

    def rarest(where: Sequence[bool]) -> float:
        return max((r for r, there in zip(rare, where, strict=True) if there), default=0.0)

    nowhere = [not any(where) for where in zip(in_question, in_answer, in_earlier, strict=True)]
    word_pairs = _word_pairs(words)
    return (
        sum(in_question) / n,
        sum(in_answer) / n,
        sum(alone) / n,
        sum(in_earlier) / n,
        rare_share(in_question),
        rare_share(in_answer),
        rare_share(alone),
        rare_share(nowhere),
        len(own & asked) / max(len(asked), 1),
        rarest(in_question),
        rarest(alone),
        len(word_pairs & _word_pairs(question)) / n,
        len(word_pairs & _word_pairs(answer)) / n,
        len(words),
        max(len(words) - 8, 0),
        len(words) - len(own),
    )


def _word_pairs(words: Sequence[Hashable]) -> set[tuple[Hashable, Hashable]]:
    return set(zip(words, words[1:], strict=False))


def token_forms(tokenizer) -> np.ndarray:
    """Of each token the number of the first token that is the same word, or ``NO_WORD``, int32 ``[tokens]``.

    A token that is a part of a character is a word of its own; one that marks a turn or its end is none.
    """
    forms, first = np.full(len(tokenizer), NO_WORD, dtype=np.int32), {}
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for number, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        text = "" if number in control else tokenizer.convert_tokens_to_string([token]).strip().casefold()
        if "\ufffd" in text:
            forms[number] = number
        elif any(map(str.isalnum, text)):
            forms[number] = first.setdefault(text, number)
    return forms


def turns_of(tokens: Sequence[int], turn_end_id: int, forms: np.ndarray) -> list[list[int]]:
    """The words of each turn of a text, as ``forms`` has them; the last turn is the suggestion, and there is one.

    Args:
        tokens: of the whole text, as :func:`openrlhf_qs.garm.reward_model.suggestion_ids` gives it.
        turn_end_id: the token that ends every turn.
    """
    said = turns(np.asarray(tokens, dtype=np.int64), turn_end_id)
    found = [forms[turn[turn != turn_end_id]] for turn in said]
    return [turn[turn != NO_WORD].tolist() for turn in found] or [[]]


def figures_of_turns(said: Sequence[Sequence[int]], rarity: np.ndarray) -> tuple[float, ...]:
    """:func:`figures` of the last of the turns; ``rarity`` by a word's number."""
    *before, words = said
    *rest, question, answer = [[], [], *before]
    earlier = {word for turn in rest for word in turn}
    return figures(words, question, answer, earlier, lambda word: float(rarity[word]))


def rarities(suggestions: Sequence[Sequence[int]], n_tokens: int) -> np.ndarray:
    """Of each word, minus the logarithm of the share of ``suggestions`` that have it, float32 ``[n_tokens]``, nats; of
    one that none has, as of one that a single one has."""
    counts = np.zeros(n_tokens)
    for words in suggestions:
        counts[list(set(words))] += 1
    return np.log(max(len(suggestions), 1) / np.maximum(counts, 1)).astype(np.float32)
