r"""What a reward model has to beat on the same held-out pairs: a coin, two linear models fitted in seconds, and, where
the users are known, the Bayes rule.

In: the preferences that the reward model was trained on, and the pairs it is measured on. Out:
:math:`P(\text{chosen better})` of each pair by each baseline, and where the reward model loses to one.

- ``linear``: ridge logistic regression on the words of the two suggestions and on how they overlap with the
  conversation (:data:`OVERLAP`); nothing is learned of word order, and nothing by attention.
- ``bradley_terry``: one strength for each text of the log, with a ridge penalty (Bradley and Terry 1952): it knows
  what was popular and nothing else; a text it has not seen has strength 0.
- ``bayes_rule``: the probability that of the two one is clicked and the other is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from openrlhf_qs.clicks.preferences import Pairs, all_pairs, cluster_of
from openrlhf_qs.form.keys import text_key
from openrlhf_qs.form.text import words as words_of
from openrlhf_qs.garm.calibration import accuracy, expected_calibration_error, negative_log_likelihood
from openrlhf_qs.garm.overlap import FIGURES, figures
from openrlhf_qs.statistics import pair_regression
from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import cluster_bootstrap, in_words

C_GRID = (0.03, 0.1, 0.3, 1.0, 3.0)
N_FOLDS = 3
OVERLAP = (*FIGURES, "ends in a question mark")


def linear(train: Sequence[Mapping[str, Any]], train_pairs: Pairs, rows: Sequence[Mapping[str, Any]], pairs: Pairs):
    """P(chosen better) ``[n]`` of ``pairs`` of ``rows`` by the ridge model on words and overlaps."""
    counts: dict[str, int] = {}
    for row in train:
        for text in row["suggestions"]:
            for word in set(words_of(text)):
                counts[word] = counts.get(word, 0) + 1
    columns = {word: column for column, word in enumerate(sorted(counts))}
    n_texts = max(sum(len(row["suggestions"]) for row in train), 1)
    rarity = {word: np.log(n_texts / count) for word, count in counts.items()}
    unseen = np.log(n_texts)

    def features(rows: Sequence[Mapping[str, Any]]) -> sparse.csr_matrix:
        texts = [(row["conversation"], text) for row in rows for text in row["suggestions"]]
        place = [(n, columns[w]) for n, (_, text) in enumerate(texts) for w in set(words_of(text)) if w in columns]
        cells = np.array(place, dtype=int).reshape(-1, 2)
        words = sparse.csr_matrix((np.ones(len(cells)), tuple(cells.T)), shape=(len(texts), len(columns)))
        overlap = np.array([_overlap(conversation, text, rarity, unseen) for conversation, text in texts])
        return sparse.hstack([words, sparse.csr_matrix(overlap.reshape(-1, len(OVERLAP)))]).tocsr()

    of_train = features(train)
    scale = np.ones(of_train.shape[1])
    dense = of_train[:, -len(OVERLAP) :].toarray()
    scale[-len(OVERLAP) :] = 1 / np.maximum(dense.std(axis=0), 1e-6)  # words are 0 or 1 and stay so
    scaling = sparse.diags(scale)
    clusters = [cluster_of(train[row]) for row in train_pairs.row]
    coefficients = cross_validated(differences(of_train @ scaling, train, train_pairs), train_pairs, clusters)
    return _sigmoid(differences(features(rows) @ scaling, rows, pairs) @ coefficients)


def bradley_terry(
    train: Sequence[Mapping[str, Any]], train_pairs: Pairs, rows: Sequence[Mapping[str, Any]], pairs: Pairs
) -> np.ndarray:
    """P(chosen better) ``[n]`` of ``pairs`` of ``rows`` by a strength for each text of ``train``."""
    columns: dict[str, int] = {}
    for row in train:
        for text in row["suggestions"]:
            columns.setdefault(text_key(text), len(columns))

    def features(rows: Sequence[Mapping[str, Any]]) -> sparse.csr_matrix:
        keys = [text_key(text) for row in rows for text in row["suggestions"]]
        cells = np.array([(n, columns[key]) for n, key in enumerate(keys) if key in columns], dtype=int).reshape(-1, 2)
        return sparse.csr_matrix((np.ones(len(cells)), tuple(cells.T)), shape=(len(keys), len(columns)))

    clusters = [cluster_of(train[row]) for row in train_pairs.row]
    coefficients = cross_validated(differences(features(train), train, train_pairs), train_pairs, clusters)
    return _sigmoid(differences(features(rows), rows, pairs) @ coefficients)


def bayes_rule(chance: Callable, rows: Sequence[Mapping[str, Any]], pairs: Pairs) -> np.ndarray:
    r"""P(chosen better) ``[n]`` where the users are known: :math:`\frac{p_c(1-p_r)}{p_c(1-p_r)+p_r(1-p_c)}`.

    Args:
        chance: conversations ``[n]`` and suggestions ``[n][1]`` to the chance of a click ``[n]``, averaged over all
            users, where the suggestion stands alone. That a user who likes the one is likelier to like the other is
            left out.
    """
    conversations = [rows[row]["conversation"] for row in pairs.row]
    chosen, rejected = (
        np.array(
            chance(conversations, [[rows[row]["suggestions"][p]] for row, p in zip(pairs.row, places, strict=True)])
        )
        for places in (pairs.chosen, pairs.rejected)
    )
    wins, loses = chosen * (1 - rejected), rejected * (1 - chosen)
    both = wins + loses
    return np.where(both > 0, wins / np.where(both > 0, both, 1), 0.5)


def compare(
    probability: np.ndarray,
    weight: np.ndarray,
    clusters: Clusters,
    baselines: Mapping[str, np.ndarray],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The reward model against each baseline, on pairs whose better side is the chosen one.

    Args:
        probability: ``[n]``, the reward model's.
        weight: ``[n]``, > 0.
        clusters: ``[n]``, of the bootstrap.
        baselines: name to ``[n]``.

    Returns:
        Of each baseline ``accuracy``, ``nll``, ``ece``; ``accuracy_gain`` and ``nll_gain``, how much better the reward
        model is, with ``*_ci95``; ``loses``, whether the reward model is surely worse in one of them; ``sentence``.
    """
    found = {}
    for name, other in baselines.items():

        def gains(weight: np.ndarray, other: np.ndarray = other) -> list[float]:
            return [
                accuracy(probability, weight) - accuracy(other, weight),
                negative_log_likelihood(other, weight) - negative_log_likelihood(probability, weight),
            ]

        (gain, nll_gain), intervals = gains(weight), cluster_bootstrap(gains, weight, clusters, 300, seed)
        one = {
            "accuracy": accuracy(other, weight),
            "nll": negative_log_likelihood(other, weight),
            "ece": expected_calibration_error(other, weight),
            "accuracy_gain": gain,
            "accuracy_gain_ci95": intervals[0].tolist(),
            "nll_gain": nll_gain,
            "nll_gain_ci95": intervals[1].tolist(),
            "loses": bool(intervals[0][1] < 0 or intervals[1][1] < 0),
        }
        found[name] = one | {"sentence": _sentence(one)}
    return found


def fitted(
    train: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], pairs: Pairs, chance: Callable | None = None
) -> dict[str, np.ndarray]:
    """All baselines that can be had, each P(chosen better) ``[n]`` of ``pairs`` of ``rows``.

    Args:
        train: preferences that the reward model was trained on; none: no linear model.
        chance: as :func:`bayes_rule` takes it; None: no Bayes rule.
    """
    found = {"coin": np.full(len(pairs.row), 0.5)}
    train_pairs = all_pairs(train)
    if len(train_pairs.row):
        found["bradley_terry"] = bradley_terry(train, train_pairs, rows, pairs)
        found["linear"] = linear(train, train_pairs, rows, pairs)
    if chance is not None:
        found["bayes_rule"] = bayes_rule(chance, rows, pairs)
    return found


def _sentence(one: Mapping[str, Any]) -> str:
    """The reward model against a baseline, in words that turn with the sign."""
    points = in_words(
        100 * one["accuracy_gain"], [100 * end for end in one["accuracy_gain_ci95"]], spec=".1f", unit="points"
    )
    nll = in_words(-one["nll_gain"], [-end for end in one["nll_gain_ci95"]])
    return f"accuracy {points}, NLL {nll}."


def cross_validated(
    difference: np.ndarray | sparse.csr_matrix, pairs: Pairs, clusters: Sequence[str], grid: Sequence[float] = C_GRID
) -> np.ndarray:
    """Coefficients, the strength of the penalty, one of ``grid``, found by cross-validation over ``clusters``."""
    c = pair_regression.cross_validated_c(difference, pairs.weight, clusters, grid, N_FOLDS, pairs.label)
    return pair_regression.fit(difference, pairs.weight, c, pairs.label)


def differences(
    features: np.ndarray | sparse.csr_matrix, rows: Sequence[Mapping[str, Any]], pairs: Pairs
) -> np.ndarray | sparse.csr_matrix:
    """Features of the chosen minus those of the rejected, ``[n, k]``; ``features`` has a row for each suggestion."""
    start = np.cumsum([0] + [len(row["suggestions"]) for row in rows])
    first = start[pairs.row]
    return features[first + pairs.chosen] - features[first + pairs.rejected]


def _overlap(conversation: Sequence[Mapping[str, str]], text: str, rarity: Mapping[str, float], unseen: float):
    """The figures of ``OVERLAP``."""
    turns = {
        role: [words_of(message["content"]) for message in conversation if message["role"] == role]
        for role in ("user", "assistant")
    }
    question, answer = (turns[role][-1] if turns[role] else () for role in ("user", "assistant"))
    earlier = {word for role in turns.values() for turn in role[:-1] for word in turn}
    found = figures(words_of(text), question, answer, earlier, lambda word: rarity.get(word, unseen))
    return (*found, float(text.rstrip().endswith("?")))


def _sigmoid(margin: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -margin))
