"""``openrlhf-qs rank proposals``: which proposal of an assistant that speaks first is accepted, learned from people.

In: JSON Lines (also ``.gz``) ``{"context_id", "story", "events", "proposal", "accepted", "judges"}``: what a person
did at a computer, oldest first, what was proposed, and how many of the people asked would take it. Out: a folder that
``openrlhf-qs rank score`` reads.

A few hundred rows bear few numbers. Nine of a proposal are enough: how close its meaning is to what was done last,
last but one, and over the whole (a frozen sentence encoder), its length and how many of its words are new, and how
close it is to the other proposals. Each is taken as the difference to its context's mean, for the question is which of
a context's proposals is accepted; ridge regression on the share of people who did, centred in the same way. Chosen by
cross-validation on the training split (docs/RGALIGN.md has the figures); the chance of a majority is a logistic
regression on predictions for stories that were left out.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_qs.files.whole import read_json_lines, short, write_whole
from openrlhf_qs.form.text import words
from openrlhf_qs.models.embedder import embed, load_embedder

CONFIG, KIND = "ranker.json", "proposals"
NUMBERS = (
    *("log_length", "to_last", "to_last_2", "to_last_3", "to_last_5", "to_all"),
    *("to_others", "n_new_words", "share_in_last"),
)
PENALTY = 100.0  # of the ridge, on numbers of deviation 1
N_FOLDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="judged proposals, JSON Lines, also .gz")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--encoder", default="minilm", help="sentence-transformers model; default minilm")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")


def run(args: argparse.Namespace) -> None:
    rows = read_proposals(args.file, judged=True)
    model = train_proposals(rows, args.encoder, args.seed)
    write_whole(Path(args.out) / CONFIG, json.dumps(model, indent=1) + "\n")
    print(f"{args.out}: {len(rows):,} proposals; GAUC {model['cross_validated_gauc']:.3f} on held-out stories")


def read_proposals(path: str | Path, judged: bool = False) -> list[dict[str, Any]]:
    """The rows of a file. ValueError names the first that has no events or proposal, or, where it must, no verdict."""
    rows = read_json_lines(path)
    for number, row in enumerate(rows, start=1):
        events, proposal = row.get("events"), row.get("proposal")
        if not isinstance(events, list) or not events or not all(isinstance(one, str) for one in events):
            raise ValueError(
                f"{path}:{number}: events {short(events)}; give a list of texts, oldest first, at least one"
            )
        if not isinstance(proposal, str) or not proposal.strip():
            raise ValueError(f"{path}:{number}: proposal {short(proposal)}; give a text")
        context = row.get("context_id")
        if isinstance(context, bool) or not isinstance(context, str | int | None):
            raise ValueError(f"{path}:{number}: context_id {short(context)}; give a text, or leave it out")
        row["context_id"] = json.dumps(events) if context is None else str(context)
        if judged or "accepted" in row:
            accepted, judges = row.get("accepted"), row.get("judges")
            if (
                not isinstance(judges, int)
                or not isinstance(accepted, int)
                or not 0 <= accepted <= judges
                or not judges
            ):
                raise ValueError(
                    f"{path}:{number}: {short(accepted)} of {short(judges)} judges accept; give two whole numbers, as "
                    'in "accepted": 1, "judges": 3'
                )
    return rows


def train_proposals(rows: Sequence[Mapping[str, Any]], encoder: str = "minilm", seed: int = 0) -> dict[str, Any]:
    """The model as JSON: ``weights`` and ``deviations`` of ``NUMBERS``, ``line`` of the chance, and its own GAUC on
    stories that were left out. ValueError where no context has an accepted and a refused proposal."""
    contexts = [row["context_id"] for row in rows]
    share = np.array([row["accepted"] / row["judges"] for row in rows])
    accepted = share > 0.5
    stories = [row.get("story", row["context_id"]) for row in rows]
    numbers = centred(numbers_of(rows, encoder), contexts)
    deviations = np.where(numbers.std(0) > 1e-9, numbers.std(0), 1.0)
    x, y = numbers / deviations, centred(share[:, None], contexts)[:, 0]
    names = sorted(set(stories))
    fold_of = dict(zip(names, np.random.default_rng(seed).integers(N_FOLDS, size=len(names)), strict=True))
    fold = np.array([fold_of[story] for story in stories])
    left_out = np.zeros(len(rows))
    for number in range(N_FOLDS):
        left_out[fold == number] = x[fold == number] @ _ridge(x[fold != number], y[fold != number])
    gauc = context_auc(left_out, accepted, contexts)
    if np.isnan(gauc):
        raise ValueError("no context has both an accepted and a rejected proposal: there is nothing to compare")
    return {
        "kind": KIND,
        "encoder": encoder,
        "numbers": list(NUMBERS),
        "deviations": deviations.tolist(),
        "weights": _ridge(x, y).tolist(),
        "line": _logistic(left_out, accepted),
        "cross_validated_gauc": gauc,
    }


def score_proposals(model: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Score, comparable within a context, and the chance that the majority accepts; ``[n]`` each."""
    numbers = centred(numbers_of(rows, model["encoder"]), [row["context_id"] for row in rows])
    scores = numbers / np.array(model["deviations"]) @ np.array(model["weights"])
    slope, shift = model["line"]
    return scores, 1 / (1 + np.exp(-(slope * scores + shift)))


def numbers_of(rows: Sequence[Mapping[str, Any]], encoder: str) -> np.ndarray:
    """``[n, len(NUMBERS)]``; of each row it matters which others share its context."""
    texts = list(dict.fromkeys(text for row in rows for text in (row["proposal"], *row["events"])))
    place = {text: n for n, text in enumerate(texts)}
    vectors = embed(load_embedder(encoder), texts).astype(np.float32)
    by_context: dict[str, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        by_context[row["context_id"]].append(n)
    proposals = vectors[[place[row["proposal"]] for row in rows]]
    found = []
    for n, row in enumerate(rows):
        similar = vectors[[place[event] for event in row["events"]]] @ proposals[n]
        others = [other for other in by_context[row["context_id"]] if other != n]
        words, last = _words([row["proposal"]]), _words(row["events"][-1:])
        found.append(
            [
                np.log(len(row["proposal"])),
                *(similar[-k:].mean() for k in (1, 2, 3, 5)),
                similar.mean(),
                (proposals[others] @ proposals[n]).mean() if others else 0.0,
                len(words - _words(row["events"])),
                len(words & last) / max(len(words), 1),
            ]
        )
    return np.array(found)


def centred(values: np.ndarray, contexts: Sequence[str]) -> np.ndarray:
    """``[n, k]`` less the mean of each row's context."""
    _, number = np.unique(contexts, return_inverse=True)
    sums = np.zeros((number.max() + 1, values.shape[1]))
    np.add.at(sums, number, values)
    return values - (sums / np.bincount(number)[:, None])[number]


def context_auc(scores: np.ndarray, accepted: np.ndarray, contexts: Sequence[str]) -> float:
    """GAUC: the AUC within each context that has both, weighted by its proposals; nan where none has."""
    total, weight = 0.0, 0
    by_context: dict[str, list[int]] = defaultdict(list)
    for n, context in enumerate(contexts):
        by_context[context].append(n)
    for rows in by_context.values():
        good, bad = scores[rows][accepted[rows]], scores[rows][~accepted[rows]]
        if len(good) and len(bad):
            difference = good[:, None] - bad
            total += len(rows) * float(((difference > 0) + 0.5 * (difference == 0)).mean())
            weight += len(rows)
    return total / weight if weight else float("nan")


def _ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ y)


def _logistic(scores: np.ndarray, accepted: np.ndarray) -> list[float]:
    """Slope and shift of the log-odds in a score; hardly drawn to 0."""
    from sklearn.linear_model import LogisticRegression

    deviation = max(float(scores.std()), 1e-9)
    line = LogisticRegression(C=100.0).fit(scores[:, None] / deviation, accepted)
    return [float(line.coef_[0, 0]) / deviation, float(line.intercept_[0])]


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in words(text)}
