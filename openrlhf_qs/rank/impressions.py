"""What a ranker reads: the intents of a knowledge base, features as numbers, a zero-query log as arrays.

In: a click log (:mod:`openrlhf_qs.clicks.click_log`) with ``features`` in its rows and intents, by id or by text, as
``suggestions``; a knowledge base, JSON Lines of ``{"id", "text"}`` and, where there is one, ``"answer"``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.clicks.propensity import estimate_log
from openrlhf_qs.files.whole import json_lines, raise_problems, short
from openrlhf_qs.form.prompt import Message

N_BINS = 16  # of a number's quantiles
AT_ONCE = 50_000  # rows whose features are objects at one time
MOST_VALUES = 50_000  # different texts of one feature


@dataclass(frozen=True)
class Intents:
    """The knowledge base: ``ids`` and ``texts``, ``[n]`` each."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def numbers(self) -> dict[str, int]:
        """Id, and text, to the intent's number."""
        return {text: n for n, text in enumerate(self.texts)} | {key: n for n, key in enumerate(self.ids)}


def read_intents(path: str | Path) -> Intents:
    """The knowledge base in a file. ValueError names the lines without an id or a text, and those that stand twice."""
    seen: dict[str, int] = {}
    ids, texts, problems = [], [], []
    for number, row in enumerate(json_lines(path), start=1):
        key, text = row.get("id"), row.get("text")
        if not isinstance(key, str) or not key:
            problems.append(f"{path}:{number}: id {short(key)}; give it as text")
        elif not isinstance(text, str) or not text.strip() or len(text.strip().splitlines()) != 1:
            problems.append(f"{path}:{number}: intent {key!r} has the text {short(text)}; give one line of text")
        elif {key, text.strip()} & seen.keys():
            first = seen.get(key, seen.get(text.strip()))
            problems.append(f"{path}:{number}: the id or text of {key!r} is also in line {first}; drop one")
        else:
            seen |= dict.fromkeys((key, text.strip()), number)
            ids.append(key)
            texts.append(text.strip())
    raise_problems(problems)
    if len(ids) < 2:
        raise ValueError(f"{path} has {len(ids)} intents; give at least 2, to rank them")
    return Intents(tuple(ids), tuple(texts))


@dataclass(frozen=True)
class FeatureCodes:
    """Features to whole numbers, as they were in training; 0 is what was not there or is not known.

    Attributes:
        values: feature to its texts (also of booleans), or to the edges of a number's quantiles.
    """

    values: Mapping[str, Sequence[str] | Sequence[float]]

    @classmethod
    def of(cls, features: Sequence[Mapping[str, Any]]) -> FeatureCodes:
        """From the features of training. ValueError where one is text here and a number there, or neither."""
        by_name: dict[str, dict[Any, None]] = {}
        for row in features:
            for name, value in row.items():
                if value is not None:
                    by_name.setdefault(name, {})[_checked(name, value)] = None
        values: dict[str, Any] = {}
        for name, found in sorted(by_name.items()):
            kinds = {isinstance(value, str): value for value in found}
            if len(kinds) > 1:
                both = f"text in some rows ({short(kinds[True])}) and a number in others ({kinds[False]:g})"
                raise ValueError(f"feature {name!r} is {both}; give only one kind")
            if set(kinds) == {False}:
                edges = np.quantile([float(value) for value in found], np.linspace(0, 1, N_BINS + 1)[1:-1])
                values[name] = sorted(set(edges.tolist()))
            elif len(found) > MOST_VALUES:
                raise ValueError(f"feature {name!r} has {len(found):,} different texts (an id?); leave it out")
            else:
                values[name] = sorted(found)
        if not values:
            raise ValueError("no row has features; a zero-query log says what is known about a user, as {name: value}")
        return cls(values)

    @property
    def sizes(self) -> list[int]:
        """How many numbers each feature has, 0 among them."""
        return [len(known) + (1 if _is_text(known) else 2) for known in self.values.values()]

    def lines(self) -> list[list[str]]:
        """Of each feature the lines of its codes, as :func:`in_words` has them; empty for numbers, whose digits are no
        words that an intent could have, and for what is not known."""
        return [
            ["", *(f"{name}: {value}" for value in known)] if _is_text(known) else [""] * size
            for (name, known), size in zip(self.values.items(), self.sizes, strict=True)
        ]

    def line(self, feature: int, features: Mapping[str, Any]) -> str:
        """The line of one of them, by its place in ``values``, for a value that training need not have had."""
        name, known = list(self.values.items())[feature]
        value = features.get(name)
        return f"{name}: {_checked(name, value)}" if value is not None and _is_text(known) else ""

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """``[n, features]``, int32. What training did not have is left out; ValueError where a type is another."""
        starts = range(0, len(features), AT_ONCE)
        rows = range(len(features))
        parts = [self._coded([features[n] for n in rows[start : start + AT_ONCE]], start) for start in starts]
        return np.concatenate([np.zeros((0, len(self.values)), dtype=np.int32), *parts])

    def _coded(self, features: Sequence[Mapping[str, Any]], start: int) -> np.ndarray:
        codes = np.zeros((len(features), len(self.values)), dtype=np.int32)
        for column, (name, known) in enumerate(self.values.items()):
            of_rows = [row.get(name) for row in features]
            there = [n for n, value in enumerate(of_rows) if value is not None]
            checked = [_checked(name, of_rows[n]) for n in there]
            for n, value in zip(there, checked, strict=True):
                if isinstance(value, str) != _is_text(known):
                    found, was = (short(value), "numbers") if isinstance(value, str) else (f"{value:g}", "text")
                    what = f"feature {name!r} is {found}, but training had {was}; give the same kind"
                    raise ValueError(f"row {start + n + 1}: {what}")
            if _is_text(known):
                number = {value: n for n, value in enumerate(known, start=1)}
                codes[there, column] = [number.get(value, 0) for value in checked]
            elif there:
                codes[there, column] = 1 + np.searchsorted(known, checked, side="right")
        return codes


def _is_text(known: Sequence[Any]) -> bool:
    return bool(known) and isinstance(known[0], str)


def _checked(name: str, value: Any) -> str | float:
    if isinstance(value, bool | str):
        return str(value).strip()
    if isinstance(value, int | float) and np.isfinite(value):
        return float(value)
    raise ValueError(f"feature {name!r} is {short(value)}; give text, a number, true or false")


def in_words(features: Mapping[str, Any]) -> str:
    """Features as a language model reads them, a line each, in the order of their names."""
    return "\n".join(f"{name}: {value}" for name, value in sorted(features.items()) if value is not None)


def conversation_of(features: Mapping[str, Any]) -> list[Message]:
    """What a reasoner is asked about: the features as the user's turn."""
    return [{"role": "user", "content": in_words(features)}]


class JsonObjects(Sequence):
    """Objects kept as JSON text, each read when it is asked for: of a million features the half of the memory."""

    def __init__(self, texts: pl.Series) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row >= len(self.texts):  # what ends an iteration
            raise IndexError(row)
        return json.loads(self.texts[int(row)])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(json.loads, self.texts)

    def take(self, rows: np.ndarray) -> JsonObjects:
        """The objects of these rows."""
        return JsonObjects(self.texts[rows])


@dataclass(frozen=True)
class Impressions:
    """A zero-query log as arrays, in the order of time.

    Attributes:
        features: ``[n]``, each row's own.
        shown: ``[n, k]``, numbers of intents, from the top; -1 where fewer were shown.
        clicks: ``[n, k]``, 0 or 1.
        users: ``[n]``, hashes; a row without a user is a user of its own.
        times: ``[n]``, datetime64.
        examination: ``[k]``, how much each place is looked at, the first is 1.
        findings: what is to be said of that estimate.
    """

    features: Sequence[Mapping[str, Any]]
    shown: np.ndarray
    clicks: np.ndarray
    users: np.ndarray
    times: np.ndarray
    examination: np.ndarray
    findings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: np.ndarray) -> Impressions:
        """Some of the rows, by numbers or as a mask."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        features = (
            self.features.take(rows) if isinstance(self.features, JsonObjects) else [self.features[n] for n in rows]
        )
        shown, clicks, users, times = (of[rows] for of in (self.shown, self.clicks, self.users, self.times))
        return Impressions(features, shown, clicks, users, times, self.examination, self.findings)

    def by_time(self, heldout: float) -> tuple[Impressions, Impressions]:
        """The earlier rows, and the last ``heldout`` share of them. ValueError where one of them has no click."""
        if not 0 < heldout < 1:
            raise ValueError(f"heldout {heldout}: give a share between 0 and 1")
        cut = round(len(self) * (1 - heldout))
        parts = self[np.arange(cut)], self[np.arange(cut, len(self))]
        for part, name in zip(parts, ("before the cut", "after it"), strict=True):
            if not part.clicks.any():
                raise ValueError(f"no click {name} in {len(self)} rows: give a longer log or another --heldout")
        return parts

    def half(self, seed: int) -> np.ndarray:
        """``[n]``, bool: a half of the users, the same whatever else is in the log."""
        return np.array([hashlib.blake2b(f"{seed}:{user}".encode()).digest()[0] % 2 == 1 for user in self.users])


def read_impressions(
    log: str | Path | Sequence[str | Path], intents: Intents, propensity: str = "auto"
) -> Impressions:
    """A zero-query log.

    Args:
        intents: what was shown must be among them.
        propensity: a method of :data:`openrlhf_qs.clicks.propensity.METHODS`. Where the log says that some rows came
            from a policy ``shuffled``, which shows in random order, the estimate is from those.

    Raises:
        ValueError: the first 20 rows that show an intent that is not there, or have no features.
    """
    return impressions_of(read_click_log(log).sort("timestamp"), intents, propensity)


def impressions_of(rows: pl.DataFrame, intents: Intents, propensity: str = "auto") -> Impressions:
    """:func:`read_impressions` of rows that are read already, in the order of time."""
    number, problems = intents.numbers(), []
    n_places = int(rows["clicks"].list.len().max())
    shown = np.full((rows.height, n_places), -1, dtype=np.int32)
    clicks = np.zeros_like(shown, dtype=np.int8)
    for n, (key, text, suggestions, clicked) in enumerate(
        rows.select("impression_id", "features", "suggestions", "clicks").iter_rows()
    ):
        if not text or text == "{}":
            problems.append(f"impression {key!r} has no features; give what is known about the user")
        for place, intent in enumerate(suggestions):
            if intent not in number and intent.strip() not in number:
                problems.append(
                    f"impression {key!r} shows {short(intent)}, which is not an intent; add it or drop the row"
                )
                break
            shown[n, place] = number.get(intent, number.get(intent.strip()))
        clicks[n, : len(clicked)] = clicked
    raise_problems(problems)
    examination, findings = _examination(rows, propensity)
    users = rows["user_id"].fill_null(rows["impression_id"]).to_numpy()
    return Impressions(
        JsonObjects(rows["features"]), shown, clicks, users, rows["timestamp"].to_numpy(), examination, findings
    )


def _examination(rows: pl.DataFrame, method: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """How much each place is looked at. Features hardly ever come again, so shows are compared over all users; that
    is sound where the order does not depend on them."""
    shuffled = rows.filter(pl.col("policy") == "shuffled")
    some = shuffled if shuffled["clicks"].list.sum().sum() else rows
    with_context = some.with_columns(context=pl.lit(0, pl.UInt64)) if some is shuffled else some
    n_places = int(rows["clicks"].list.len().max())
    if some is shuffled and method == "auto":
        method = "ctr"  # exact where the order is random, and needs no model of how clicks come about
    found = estimate_log(with_context, method, n_places)
    return np.array(found.looks), tuple(found.findings)
