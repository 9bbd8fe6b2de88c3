"""SFT datasets: which of a conversation's candidates the policy first learns to write.

In: all rows of the SFT set, ``{"conversation", "candidates": [{"text", ...}]}`` (see
:mod:`openrlhf_qs.sft.candidates`). Out: for each row as many suggestions as a response has, or ``None`` to drop it.
``diverse`` is the one to use, ``raw`` the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from openrlhf_qs.form.keys import text_key
from openrlhf_qs.form.language import (
    in_language_of,
    in_users_language,
    is_mostly_of,
    users_language,
    users_texts,
    vocabularies,
)
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.response import N_SUGGESTIONS, suggestion_problem
from openrlhf_qs.form.topic import on_topic
from openrlhf_qs.models.embedder import embed, load_embedder
from openrlhf_qs.registry import SFT_DATASETS
from openrlhf_qs.sft import assembly
from openrlhf_qs.sft.candidates import Ledger, log_quality, read_candidates

PROGRESS = Console(stderr=True)
MAX_SIMILARITY_BY_TRIGRAMS, MAX_SIMILARITY_BY_MEANING = 0.6, 0.85  # measured, see docs/ASSEMBLY.md
MIN_BOILERPLATE_ROWS = 20  # under fewer rows than these nothing is boilerplate, however small the file


@SFT_DATASETS.register("diverse")
class Diverse:
    """Good suggestions that differ from each other.

    A candidate is dropped if it cannot be read as one suggestion, is clearly in another language or script than the
    user's last message, repeats a better one of its row (the same except for case, punctuation and white space, or a
    near-duplicate by ``near_duplicate``), or occurs under too many conversations to be about any of them and is no
    better here than the others (``boilerplate``). From the rest, the requested number is selected, better ones first.
    A row is dropped if too few can be combined, or if it was shown and nothing was clicked.

    Args:
        method: ``mmr``, greedy maximal marginal relevance, or ``dpp``, the greedy maximum of a determinantal point
            process.
        diversity: in [0, 1]; 0 takes the best that may be combined, 1 considers differences only.
        max_similarity: in [0, 1]; two suggestions more similar than this are never combined. None is 0.6 by trigrams,
            0.85 by meaning if there is an embedder.
        min_quality: in [0, 1]; candidates whose quality is below this share of the row's best are dropped.
        near_duplicate: cosine of character trigrams in (0, 1] from which two texts of a row count as one.
        boilerplate: share of all conversations, in (0, 1], and at least 20 of them: texts under more of them are
            dropped, except those that users here, or the reward model, like better than the row's average; without
            clicks and reward model, except those that take up a word of the conversation. A row keeps as many as are
            needed.
        boilerplate_similarity: Jaccard index of trigrams in (0, 1] from which two texts of the corpus count as one.
        embedder: folder or hub name of a sentence-transformers model, or minilm; it recognises two wordings of one
            question. Empty: trigrams are compared, without a model.
        clicks: exponent of the click rate in the quality.
        log_prob: exponent of the teacher's per-token probability in the quality.
        garm: exponent of the reward model's ``exp(mean)`` in the quality.
        max_chars: a longer text is not a suggestion.
        max_candidates: number of a row's best candidates that are considered.
        seed: for MinHash; nothing else is random.
    """

    def __init__(
        self,
        method: Literal["mmr", "dpp"] = "mmr",
        diversity: float = 0.0,
        max_similarity: float | None = None,
        min_quality: float = 0.0,
        near_duplicate: float = 0.9,
        boilerplate: float = 0.01,
        boilerplate_similarity: float = 0.9,
        embedder: str = "",
        clicks: float = 1.0,
        log_prob: float = 1.0,
        garm: float = 1.0,
        max_chars: int = 200,
        max_candidates: int = 64,
        seed: int = 0,
    ) -> None:
        if max_similarity is None:
            max_similarity = MAX_SIMILARITY_BY_MEANING if embedder else MAX_SIMILARITY_BY_TRIGRAMS
        shares = {
            "diversity": diversity,
            "max_similarity": max_similarity,
            "min_quality": min_quality,
            "near_duplicate": near_duplicate,
            "boilerplate": boilerplate,
            "boilerplate_similarity": boilerplate_similarity,
        }
        for option, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"diverse.{option} must be in [0, 1], got {value}")
        for option, value in {"max_chars": max_chars, "max_candidates": max_candidates}.items():
            if value < 1:
                raise ValueError(f"diverse.{option} must be at least 1, got {value}")
        self.select = assembly.SELECTIONS[method]
        self.diversity, self.max_similarity, self.min_quality = diversity, max_similarity, min_quality
        self.near_duplicate = near_duplicate
        self.boilerplate, self.boilerplate_similarity = boilerplate, boilerplate_similarity
        self.embedder = embedder
        self.exponents = {"clicks": clicks, "log_prob": log_prob, "garm": garm}
        self.max_chars, self.max_candidates = max_chars, max_candidates
        self.seed = seed
        self.report: dict[str, Any] = {}

    def __call__(self, rows: Sequence[Mapping[str, Any]], n: int = N_SUGGESTIONS) -> list[list[str] | None]:
        """One answer of ``n`` texts a row, in their order; ``report`` then says what became of every candidate."""
        ledger = Ledger(read_candidates(rows))
        quality = log_quality(ledger.candidates, self.exponents)
        keys = self._drop_unreadable(ledger)
        key = _numbered(keys)
        self._drop_duplicates(ledger, quality, key)
        self._drop_other_languages(ledger, rows)
        self._drop_boilerplate(ledger, rows, keys, key, quality, n)
        order = self._drop_worse(ledger, quality)
        vectors = self._embedded(ledger, key[order], order)
        self._drop_rows_without_click(ledger)

        answers: list[list[str] | None] = []
        row = ledger.candidates.row[order]
        starts = range(0, len(rows), assembly.MAX_ROWS)
        for first in track(starts, f"choosing {n} of each row", console=PROGRESS):
            n_rows = min(assembly.MAX_ROWS, len(rows) - first)
            part = slice(*np.searchsorted(row, (first, first + n_rows)))
            place = _padded(order[part], row[part] - first, n_rows, n)
            lexical = assembly.trigram_cosine([keys[i] for i in order[part]], *np.nonzero(place >= 0), place.shape)
            self._drop_near_duplicates(ledger, place, lexical)
            similarity = lexical
            if vectors is not None:
                similarity = assembly.cosine(vectors[np.where(place >= 0, key[place], 0)].astype(np.float32))
            answers += self._choose(ledger, slice(first, first + n_rows), place, quality, similarity, n)
        self.report = ledger.report()
        return answers

    def _drop_unreadable(self, ledger: Ledger) -> list[str]:
        """Out go texts that are no suggestion. Returns ``[n]``, the normalised texts; empty of those that are out."""
        keys: list[str] = []
        problems: dict[str, list[int]] = {}
        for index, text in enumerate(track(ledger.candidates.texts, "reading the candidates", console=PROGRESS)):
            problem = "too long" if len(text) > self.max_chars else suggestion_problem(text)
            keys.append("" if problem else text_key(text))
            if problem:
                problems.setdefault(problem, []).append(index)
        for problem, which in problems.items():
            ledger.mark(which, problem)
        return keys

    def _drop_duplicates(self, ledger: Ledger, quality: NDArray, key: NDArray) -> None:
        """Out goes what a candidate of the same row says that is as good or better."""
        which, row = ledger.open(), ledger.candidates.row
        which = which[np.lexsort((-quality[which], key[which], row[which]))]
        new = np.ones(len(which), dtype=bool)
        new[1:] = (np.diff(row[which]) != 0) | (np.diff(key[which]) != 0)
        best = which[np.maximum.accumulate(np.where(new, np.arange(len(which)), 0))]
        ledger.mark(which[~new], "duplicate", best[~new])

    def _drop_boilerplate(
        self,
        ledger: Ledger,
        rows: Sequence[Mapping[str, Any]],
        keys: Sequence[str],
        key: NDArray,
        quality: NDArray,
        n: int,
    ) -> None:
        """Out goes what stands, in nearly the same words, under more rows than the option allows, and is not for this
        one; of a row that would have fewer than ``n`` left the best stay."""
        which, n_rows, row = ledger.open(), ledger.candidates.n_rows, ledger.candidates.row
        limit = max(self.boilerplate * n_rows, MIN_BOILERPLATE_ROWS)
        if n_rows <= limit:
            return
        _, first, number, count = np.unique(key[which], return_index=True, return_inverse=True, return_counts=True)
        by_count = np.argsort(-count, kind="stable")
        texts = [keys[index] for index in which[first[by_count]]]
        leader = np.empty_like(by_count)
        leader[by_count] = by_count[assembly.nearly_equal(texts, self.boilerplate_similarity, self.seed)]
        group = leader[number]
        places = np.unique(group * n_rows + row[which])
        n_rows_of_group = np.bincount(places // n_rows, minlength=len(count))
        common = which[n_rows_of_group[group] > limit]
        common = common[~self._is_for_its_row(ledger, rows, common)]
        n_kept = np.bincount(row[which], minlength=n_rows) - np.bincount(row[common], minlength=n_rows)
        common = common[np.lexsort((-quality[common], row[common]))]
        rank = np.arange(len(common)) - np.searchsorted(row[common], row[common])
        ledger.mark(common[rank >= n - n_kept[row[common]]], "boilerplate")

    def _is_for_its_row(self, ledger: Ledger, rows: Sequence[Mapping[str, Any]], which: NDArray) -> NDArray[np.bool_]:
        """Of candidates that stand in many rows: whether users, or the reward model that stands for them, like them
        better than the average of this one; where neither was asked, whether they take up a word of its conversation.
        """
        exponents = {"clicks": 1.0, "garm": 1.0, "log_prob": 0.0}  # a teacher finds likely what fits everywhere
        numbers, row = ledger.candidates.numbers, ledger.candidates.row
        asked = ~np.isnan(ledger.candidates.click_rate) | ~np.isnan(numbers["garm_mean"])
        if not asked.any():
            texts = ledger.candidates.texts
            found = [on_topic(rows[row[index]].get("conversation") or (), texts[index]) for index in which.tolist()]
            return np.array(found, dtype=bool)
        quality = log_quality(ledger.candidates, exponents)
        open_ = ledger.open()
        n_open = np.bincount(row[open_], minlength=ledger.candidates.n_rows)
        average = np.bincount(row[open_], quality[open_], minlength=ledger.candidates.n_rows) / np.maximum(n_open, 1)
        return quality[which] > average[row[which]] + 1e-9

    def _drop_other_languages(self, ledger: Ledger, rows: Sequence[Mapping[str, Any]]) -> None:
        """Out goes what no user of that conversation asked to read."""
        which, texts, row = ledger.open(), ledger.candidates.texts, ledger.candidates.row
        said = [users_texts(one.get("conversation") or ()) for one in rows]
        known = vocabularies(said)
        theirs = [known.get(users_language(texts), frozenset()) for texts in said]
        other = [
            index
            for index in track(which.tolist(), "telling the languages", console=PROGRESS)
            if not is_mostly_of(texts[index], theirs[row[index]])  # else it surely is in theirs, and that is fast
            and not in_language_of(said[row[index]], texts[index])
        ]
        ledger.mark(other, "another language")

    def _drop_worse(self, ledger: Ledger, quality: NDArray) -> NDArray[np.int64]:
        """Out goes what is far worse than the best of its row, or after those that are looked at.

        Returns:
            The indices of those still in, row by row, the best first; of equal ones that which was given first.
        """
        which, row = ledger.open(), ledger.candidates.row
        which = which[np.lexsort((-quality[which], row[which]))]
        first = np.searchsorted(row[which], row[which])
        worse = np.exp(quality[which] - quality[which[first]]) < self.min_quality
        ledger.mark(which[worse], "low quality", which[first[worse]])
        ledger.mark(which[np.arange(len(which)) - first >= self.max_candidates], "after max_candidates")
        return which[ledger.reason[which] == 0]

    def _embedded(self, ledger: Ledger, key: NDArray, order: NDArray) -> NDArray[np.float16] | None:
        """``[keys, dim]``: a vector for each text still in, all embedded in one go; None without an embedder."""
        if not self.embedder:
            return None
        distinct, first = np.unique(key, return_index=True)
        model = load_embedder(self.embedder)
        found = embed(model, [ledger.candidates.texts[index] for index in order[first]])
        vectors = np.zeros((distinct.max(initial=0) + 1, found.shape[1]), dtype=found.dtype)
        vectors[distinct] = found
        return vectors

    def _drop_rows_without_click(self, ledger: Ledger) -> None:
        numbers, row, n_rows = ledger.candidates.numbers, ledger.candidates.row, ledger.candidates.n_rows
        scored = ~(np.isnan(numbers["log_prob"]) & np.isnan(numbers["garm_mean"]))
        counts = (scored, np.nan_to_num(numbers["n_shown"]), np.nan_to_num(numbers["n_clicked"]))
        n_scored, n_shown, n_clicked = (np.bincount(row, count, minlength=n_rows) for count in counts)
        ledger.rows[(n_scored == 0) & (n_shown > 0) & (n_clicked == 0)] = "no click"

    def _drop_near_duplicates(self, ledger: Ledger, place: NDArray, similarity: NDArray) -> None:
        """Out goes, of ``place`` too, what says in nearly the same words what a better one of its row says."""
        of = assembly.repeats(similarity, place >= 0, self.near_duplicate)
        row, slot = np.nonzero(of >= 0)
        ledger.mark(place[row, slot], "near duplicate", place[row, of[row, slot]])
        place[row, slot] = -1

    def _choose(
        self, ledger: Ledger, rows: slice, place: NDArray, quality: NDArray, similarity: NDArray, n: int
    ) -> list[list[str] | None]:
        """The answers of ``rows``, and in the ledger why there is none."""
        valid = place >= 0
        ratio = np.where(valid, np.exp(quality[place] - quality[place[:, :1]]), 0)
        taken = self.select(ratio, similarity, valid, n, self.diversity, self.max_similarity)
        taken.sort(axis=1)  # slots are in the order of quality
        verdict = ledger.rows[rows]
        verdict[(verdict == "") & (valid.sum(1) < n)] = f"fewer than {n} candidates"
        verdict[(verdict == "") & (taken[:, 0] < 0)] = f"fewer than {n} that differ"
        verdict[verdict == ""] = "assembled"
        chosen = np.take_along_axis(place, taken, axis=1)
        ledger.mark(chosen[verdict == "assembled"].ravel(), "chosen")
        texts = ledger.candidates.texts
        return [
            [texts[index].strip() for index in some] if why == "assembled" else None
            for some, why in zip(chosen.tolist(), verdict, strict=True)
        ]


@SFT_DATASETS.register("raw")
class Raw:
    """The suggestions with the most clicks, ties by impressions; rows with too few are dropped.

    Skips what cannot be read as one suggestion or is in another language. For rows from a click log.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]], n: int = N_SUGGESTIONS) -> list[list[str] | None]:
        return [self._best(row["candidates"], row.get("conversation") or (), n) for row in rows]

    def _best(
        self, candidates: Sequence[Mapping[str, Any]], conversation: Sequence[Message], n: int
    ) -> list[str] | None:
        if any("n_clicked" not in candidate for candidate in candidates):
            raise ValueError("raw: a candidate has no n_clicked; raw needs rows from a click log; use diverse")
        readable = [
            c for c in candidates if not suggestion_problem(c["text"]) and in_users_language(conversation, c["text"])
        ]
        ranked = sorted(readable, key=lambda c: (c["n_clicked"], c["n_shown"]), reverse=True)
        return [c["text"].strip() for c in ranked[:n]] if len(ranked) >= n else None


def _numbered(keys: Sequence[str]) -> NDArray[np.int64]:
    """Equal numbers for equal texts, from 0 in the order they are first seen."""
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int64, len(keys))


def _padded(indices: NDArray, row: NDArray, n_rows: int, n: int) -> NDArray[np.int64]:
    """``[n_rows, slots]``, ``n`` slots or more: the indices of each row from the left, -1 behind them; ``row``
    ascends."""
    slot = np.arange(len(row)) - np.searchsorted(row, row)
    place = np.full((n_rows, max(slot.max(initial=0) + 1, n)), -1)
    place[row, slot] = indices
    return place
