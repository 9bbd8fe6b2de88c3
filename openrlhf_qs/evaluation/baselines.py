"""What a policy has to beat: the log's own favourites without any model, and the best of several samples.

In: the training rows ``data/sft.jsonl`` (``conversation``, and ``candidates`` with ``text``, ``n_shown``,
``n_clicked``), or several responses of the SFT policy to each conversation. Out: the suggestions of an arm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rapidfuzz import fuzz

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.text import words

N_NEIGHBOURS = 10  # logged conversations that speak of the same; 10 and 30 are alike on the built-in world, 80 is less
MAX_SHARE, MIN_LOGGED = 0.2, 50  # of the logged conversations, where there are so many: words of more say nothing
TOO_ALIKE = 90  # token_set_ratio of rapidfuzz, 0 to 100, from which two suggestions say the same


def most_clicked(
    rows: Sequence[Mapping[str, Any]], conversations: Sequence[Sequence[Message]], n: int
) -> list[list[str]]:
    """For each conversation the ``n`` suggestions with the most clicks under logged ones about the same.

    About the same are the ``N_NEIGHBOURS`` nearest by TF-IDF over their words, those aside that stand in a fifth of
    the logged conversations; the last turn of the user counts twice, and a click counts by how near its conversation
    is. Of two suggestions that say the same the first counts.

    Args:
        rows: logged conversations with their candidates; none of ``conversations`` may be among them.

    Returns:
        ``[len(conversations)]`` lists of at most ``n`` texts, the most clicked first.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer=words, sublinear_tf=True, max_df=MAX_SHARE if len(rows) >= MIN_LOGGED else 1.0)
    logged = vectors.fit_transform([_words(row["conversation"]) for row in rows])
    asked = vectors.transform([_words(conversation) for conversation in conversations])
    found = []
    for similarity in (asked @ logged.T).tocsr():
        clicks: dict[str, float] = defaultdict(float)
        for place in np.argsort(-similarity.data, kind="stable")[:N_NEIGHBOURS]:
            for one in rows[similarity.indices[place]]["candidates"]:
                clicks[one["text"]] += similarity.data[place] * one["n_clicked"]
        found.append(_different(sorted(clicks, key=lambda text: -clicks[text]), n))
    return found


def best_of(totals: Sequence[float], group: Sequence[int]) -> list[int]:
    """The row with the largest total of each group, in the order of the groups' first rows; a nan is the worst."""
    best: dict[int, int] = {}
    totals = np.nan_to_num(np.asarray(totals, dtype=float), nan=-np.inf)
    for row, number in enumerate(group):
        if number not in best or totals[row] > totals[best[number]]:
            best[number] = row
    return list(best.values())


def _words(conversation: Sequence[Message]) -> str:
    asked = [message["content"] for message in conversation if message["role"] == "user"]
    return " ".join([message["content"] for message in conversation] + asked[-1:])


def _different(texts: Sequence[str], n: int) -> list[str]:
    """The first ``n`` of which no two say the same."""
    kept: list[str] = []
    said: list[str] = []
    for text in texts:
        own = " ".join(words(text))
        if all(fuzz.token_set_ratio(own, other) < TOO_ALIKE for other in said):
            kept.append(text)
            said.append(own)
        if len(kept) == n:
            break
    return kept
