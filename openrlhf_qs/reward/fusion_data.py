"""What weights are learned from: pairs that differ in a click, hacked responses, and samples.

Of two suggestions of one impression, one was clicked and the other not; or of two impressions of one conversation. The
former were shown to one user at one time, so whatever a conversation or a user does to clicks cancels out, and they
show what each suggestion's own words are worth, where an impression has the average of several.

All parts are in deviations of the samples to one prompt, which is how far GRPO sees a part differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from openrlhf_qs.form.task import MAX_SUGGESTIONS
from openrlhf_qs.form.text import words

if TYPE_CHECKING:
    import polars as pl

    from openrlhf_qs.clicks.preferences import Pairs

MIN_PAIRS = 50  # with fewer pairs within conversations, pairs across conversations of one topic are taken
N_ACROSS = 8  # of these, for each clicked impression


@dataclass(frozen=True)
class FusionData:
    """What a fusion plugin is called with; ``k`` is the number of parts.

    Attributes:
        names: ``[k]``, the parts.
        difference: ``[pairs, k]``, parts of what was clicked minus those of what was not: of suggestions what each
            would make of a part if all of a response were like it, of impressions the parts themselves.
        weight: ``[pairs]``, > 0, what a pair counts.
        conversation: ``[pairs]``, number of the conversation of the clicked one, all its turns alike: pairs of one are
            not independent.
        topic: ``[pairs]``, number of the conversation's topic.
        clean_minus_hacked: by the kind of hack ``[m, variants, k]``, parts of a response of the SFT policy minus those
            of what was made of it.
        stopped: by the kind of hack ``[m, variants]``, bool: a gate stops it.
        samples: ``[c, n, k]``, parts of n samples of the SFT policy for each of c conversations.
        valid: ``[c, n]``, bool: the sample is well formed.
        diversity: ``[c, n]``, how different its suggestions are.
        passed: ``[c, n]``, bool: no gate stops the sample.
        other: ``[pairs]``, number of the conversation of the one that was not clicked; None where it is the same.
        users: ``[pairs]`` each, who saw the clicked one, and who the other; None where nobody knows.
    """

    names: list[str]
    difference: np.ndarray
    weight: np.ndarray
    conversation: np.ndarray
    topic: np.ndarray
    clean_minus_hacked: Mapping[str, np.ndarray] = field(default_factory=dict)
    stopped: Mapping[str, np.ndarray] = field(default_factory=dict)
    samples: np.ndarray | None = None
    valid: np.ndarray | None = None
    diversity: np.ndarray | None = None
    passed: np.ndarray | None = None
    other: np.ndarray | None = None
    users: tuple[Sequence[str | None], Sequence[str | None]] | None = None

    def pairs(self, rows: np.ndarray) -> FusionData:
        """The same with the pairs at ``rows`` alone."""
        fields = ("difference", "weight", "conversation", "topic", *(["other"] if self.other is not None else []))
        users = self.users and tuple(np.asarray(side, dtype=object)[rows] for side in self.users)
        return replace(self, **{name: getattr(self, name)[rows] for name in fields}, users=users)


def suggestion_pairs(log: pl.DataFrame, places: Mapping[str, Sequence[float]], readable: np.ndarray) -> Pairs:
    """Pairs of a clicked and another suggestion of one impression, weighed as the reward model's are; their average is
    1. Rows that showed more suggestions than a policy can be asked for are left out.

    Args:
        log: a click log of n rows.
        places: what :func:`openrlhf_qs.clicks.preferences.preferences` takes of each place, by name.
        readable: ``[n]``, bool: what was shown can be read as that many suggestions; other rows are left out.
    """
    import polars as pl

    from openrlhf_qs.clicks.preferences import Pairs, all_pairs, pair_places, preference_rows, preferences

    few = pl.col("suggestions").list.len() <= MAX_SUGGESTIONS
    kept = log.with_row_index("number").filter(few, pl.Series(readable))
    if pair_places(kept, "all").is_empty():
        return Pairs(*np.zeros((3, 0), dtype=int), *np.zeros((2, 0)))
    table = preferences(kept, **places)
    pairs = all_pairs(list(preference_rows(table)))
    return pairs._replace(row=kept["number"].to_numpy()[pairs.row])


def impression_pairs(
    conversation: Sequence[int], clicks: Sequence[float], topic: Sequence[int], seed: int = 0, n_others: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Pairs of a clicked impression and one of the same conversation without a click.

    Both had the same conversation, so what it does to clicks cancels out. Both had the same positions: of the clicked
    one, each click counts by the inverse of its place's examination, whose expectation is how attractive the
    suggestions are, wherever they stood. Logs where conversations hardly come again have no such pairs; then
    impressions without a click are taken from conversations of the same topic, and what a conversation does to clicks
    is in the pairs.

    Args:
        conversation, topic: ``[n]``, a number each.
        clicks: ``[n]``, the sum of the inverse propensities of an impression's clicks; 0 for none.
        n_others: pairs of suggestions that there are; where they are enough none is taken across conversations.

    Returns:
        Of each pair the row of the clicked one, of the other, and the weight: ``clicks``, shared out over the pairs of
        the clicked one; their average is 1. And whether pairs are across conversations. No pair where all impressions
        have a click, or none has.
    """
    conversation, clicks = np.asarray(conversation), np.asarray(clicks, dtype=float)
    if not (clicks > 0).any() or (clicks > 0).all() and not n_others:
        return np.empty(0, dtype=int), np.empty(0, dtype=int), np.empty(0), False
    others: dict[int, list[int]] = {}
    for row in np.flatnonzero(clicks == 0):
        others.setdefault(conversation[row], []).append(row)
    clicked = np.flatnonzero(clicks > 0)
    partners = [others.get(conversation[row], []) for row in clicked]
    across = sum(map(len, partners)) + n_others < MIN_PAIRS and not (clicks > 0).all()
    if across:
        random, topic, without = np.random.default_rng(seed), np.asarray(topic), np.flatnonzero(clicks == 0)
        of_topic = {one: without[topic[without] == one] for one in np.unique(topic)}
        of_topic = {one: rows if len(rows) else without for one, rows in of_topic.items()}
        partners = [
            random.choice(of_topic[topic[row]], min(N_ACROSS, len(of_topic[topic[row]])), replace=False)
            for row in clicked
        ]
    n = np.array(list(map(len, partners)))
    chosen = np.repeat(clicked, n)
    rejected = np.array([row for rows in partners for row in rows], dtype=int)
    weight = np.repeat(clicks[clicked] / np.maximum(n, 1), n)
    return chosen, rejected, weight / weight.mean() if len(weight) else weight, across


def topics(texts: Sequence[str], n_topics: int, seed: int = 0) -> np.ndarray:
    """A topic for each text, ``[n]``: k-means on TF-IDF; as many topics as there are different texts, at most."""
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    n_topics = min(n_topics, len(set(texts)))
    vectors = TfidfVectorizer(analyzer=words, max_df=0.5 if len(texts) > 2 else 1.0, max_features=2000)
    try:
        matrix = vectors.fit_transform(texts)
    except ValueError:  # nothing but words that stand everywhere
        return np.zeros(len(texts), dtype=int)
    return KMeans(n_topics, n_init=3, random_state=seed).fit_predict(matrix)
