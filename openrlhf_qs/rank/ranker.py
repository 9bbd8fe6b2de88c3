r"""The ranker: two towers, features and intent, and with queries a third one.

    ranker = with_queries(train_ranker(impressions, intents), impressions, queries)   # openrlhf_qs.rank.fit
    ranker.save("runs/rgalign/rank")
    scores = Ranker.load("runs/rgalign/rank").scores(features, intents, queries)      # [n, intents], log-odds

The score of an intent is ``z . u + b`` and what the two look-ups below add: ``z`` of its text and, where training knew
it, of its id; ``u`` of the features. All intents of a user are scored by one matrix product. Texts are vectors of a
frozen encoder (:mod:`openrlhf_qs.rank.encoder`); the third tower may have one of its own, as the reasoner.

**A text looks itself up** in the knowledge base: :math:`e_i` is ``exp(SHARPNESS cos(text, intent))``, over its mean
for the intents of training: how many times likelier than the average one it is meant.

- The features in words, a line each ("last order: studio kettle"). A line adds :math:`a_{fi}\cos+b_{fi}\log(1+e_i)`,
  with weights of its feature f and, by a linear map of z, of the intent: an intent to return something is looked for
  in what was bought, one about prices in what was searched. An article or an intent that training did not have is
  found by its words.
- The queries of a user, several draws of a reasoner, whose :math:`e_i` is averaged first: a distribution over
  intents, which also says what comes second. They add :math:`a_i\cos+b_i\log(1+\bar e_i)+z\cdot(q+B(u*q))`, and
  :math:`q` is a linear map of the mean z under :math:`\bar e`.

**The third tower is learned on top of the two**, which stay as they are without a query, and from nothing: queries
that are worth nothing change no score, and rankers of different queries differ by these alone. Learned together
with the others it spoilt them (docs/RGALIGN.md has the figures), and it takes seconds so.

What is learned from a log, and how: :mod:`openrlhf_qs.rank.fit`.

Plain torch, because the whole is eighty lines of it and the loss is none that a library of recommenders has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from openrlhf_qs.files.whole import replacing, write_whole
from openrlhf_qs.rank.encoder import WORDS, Encoder, Vectors
from openrlhf_qs.rank.impressions import FeatureCodes, Intents

CONFIG, WEIGHTS = "ranker.json", "ranker.safetensors"
SHARPNESS = 30.0  # of a look-up, a cosine of 1
ENCODERS = ("encoder", "query_encoder")  # the settings that name one
LINES_AT_ONCE = 4096  # whose vectors are in memory at one time


class Lines(NamedTuple):
    """Different lines of features, looked up in a knowledge base; no weight of the ranker is in it.

    Attributes:
        alike: ``[t, intents]``, cosines.
        more: ``[t, intents]``, log(1 + e) of the module; both are 0 for a line without a word.
        of_feature: ``[t]``, which feature's each is.
    """

    alike: Tensor
    more: Tensor
    of_feature: Tensor

    def of(self, numbers: Tensor) -> tuple[Lines, Tensor]:
        """Those of some users alone, and which of them each user has, both ``[batch, features]``."""
        is_there = torch.zeros(len(self.of_feature), dtype=torch.bool)
        is_there[numbers] = True
        return Lines(*(of[is_there] for of in self)), (is_there.cumsum(0) - 1)[numbers]

    def __add__(self, others: Lines) -> Lines:
        return Lines(*(torch.cat(pair) for pair in zip(self, others, strict=True)))


class Base(NamedTuple):
    """A knowledge base as the ranker reads it.

    Attributes:
        ids: ``[intents]``, :meth:`Ranker.intent_ids`.
        texts: ``[intents, encoder.dim]``.
        beside: ``[intents, query_encoder.dim]``, the same texts as queries are read.
        lines: those of every value that training had, by their number in ``Ranker.features``; None without words.
    """

    ids: Tensor
    texts: Tensor
    beside: Tensor
    lines: Lines | None


class Queries(NamedTuple):
    """The queries of some users.

    Attributes:
        vectors: ``[t, query_encoder.dim]``, of the different texts.
        share: ``[batch, t]``, of each among a user's own; all 0 for who has none.
    """

    vectors: Tensor
    share: Tensor


class Scores(NamedTuple):
    """What the ranker says of each intent, ``[batch, intents]``.

    Attributes:
        all: log-odds of a click on what is looked at.
        of_query: the part ``z . q``, of the queries alone, in the space that the intents have for the ranker; None
            without queries.
    """

    all: Tensor
    of_query: Tensor | None


class Ranker(nn.Module):
    """See the module.

    Args:
        encoder: of texts, by name: :class:`Encoder`.
        words: whether the features' words look themselves up; without, these are the plain two towers.
        query_encoder: of the queries, and of the intents that they are compared with; empty: ``encoder``.
    """

    def __init__(
        self,
        codes: FeatureCodes,
        intents: Intents,
        encoder: str = WORDS,
        words: bool = True,
        dim: int = 64,
        seed: int = 0,
        query_encoder: str = "",
    ) -> None:
        super().__init__()
        self.codes, self.intents, self.words = codes, intents, words
        self.encoder = self.query_encoder = Encoder(encoder, intents.texts)
        self.asked_last: tuple[Intents, Base] | None = None
        self.settings = {"encoder": encoder, "words": words, "dim": dim, "seed": seed}
        sizes = codes.sizes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.register_buffer("offsets", torch.tensor([0, *np.cumsum(sizes)[:-1]]), persistent=False)
            self.features = nn.Embedding(sum(sizes), 16)
            self.user = nn.Sequential(
                *(nn.Dropout(0.1), nn.Linear(16 * len(sizes), 256), nn.ReLU()),
                *(nn.Dropout(0.3), nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.3)),
            )
            self.user_out = nn.Linear(128, dim)
            self.ids = nn.Embedding(len(intents) + 1, dim, padding_idx=0)
            self.ids_bias = nn.Embedding(len(intents) + 1, 1, padding_idx=0)
            self.text = nn.Linear(self.encoder.dim, dim)
            self.text_bias = nn.Linear(self.encoder.dim, 1)
            self.line_words = nn.Linear(dim, len(sizes))
            self.line_intent = nn.Linear(dim, len(sizes))
            nn.init.normal_(self.features.weight, std=0.1)
            for table in (self.ids, self.ids_bias):
                nn.init.normal_(table.weight, std=0.05)
                with torch.no_grad():
                    table.weight[0] = 0
            for layer, bias in ((self.line_words, 0.3), (self.line_intent, 0.15)):
                nn.init.zeros_(layer.weight)
                nn.init.constant_(layer.bias, bias)
            self.third = nn.ModuleDict(
                {name: nn.Linear(dim, 1) for name in ("words", "intent")}
                | {name: nn.Linear(dim, dim, bias=False) for name in ("meant", "both")}
            )
            self.forget_queries(query_encoder)
            self.scale = nn.Parameter(torch.tensor([1.0, 0.0]), requires_grad=False)  # of the log-odds, by calibration

    @torch.no_grad()
    def forget_queries(self, query_encoder: str = "") -> None:
        """The third tower as it is before any query: it adds nothing. Those to come are read by ``query_encoder``."""
        for weights in self.third.parameters():
            weights.zero_()
        same = query_encoder in ("", self.encoder.name)
        self.query_encoder = self.encoder if same else Encoder(query_encoder, self.intents.texts)
        self.settings["query_encoder"] = "" if same else query_encoder
        self.asked_last = None
        self.__dict__.pop("known_beside", None)

    def intent_ids(self, intents: Intents) -> Tensor:
        """``[n]``: 0 for an intent that training did not have, or had with another text."""
        number = {pair: n for n, pair in enumerate(zip(self.intents.ids, self.intents.texts, strict=True), start=1)}
        return torch.tensor([number.get(pair, 0) for pair in zip(intents.ids, intents.texts, strict=True)])

    def base(self, intents: Intents) -> Base:
        """A knowledge base, looked up once: the last one is kept."""
        if self.asked_last is None or self.asked_last[0] != intents:
            texts, beside = self.known_texts, self.known_beside
            if intents != self.intents:
                texts = self.encoder(intents.texts)
                beside = texts if self.query_encoder is self.encoder else self.query_encoder(intents.texts)
            lines = self.looked_up(*self.known_lines, texts) if self.words else None
            self.asked_last = intents, Base(self.intent_ids(intents), texts, beside, lines)
        return self.asked_last[1]

    def forward(
        self,
        codes: Tensor,
        base: Base,
        lines: tuple[Lines, Tensor] | None = None,
        queries: Queries | None = None,
        ids: Tensor | None = None,
        learned: Tensor | None = None,
    ) -> Scores:
        """How each intent of ``base`` suits each user.

        Args:
            codes: ``[batch, features]``.
            lines: of :meth:`lines`.
            ids: ``[intents]``, in place of those of ``base``: training hides some.
            learned: ``[intents, encoder.dim]``, in place of their texts, but not for what looks itself up.
        """
        ids, texts = base.ids if ids is None else ids, base.texts
        learned = texts if learned is None else learned
        u = self.user_out(self.user(self.features(codes + self.offsets).flatten(1)))
        z = self.text(learned) + self.ids(ids)
        scores = (self.text_bias(learned) + self.ids_bias(ids)).squeeze(-1).expand(len(codes), -1)
        if lines is not None:
            (alike, more, of_feature), numbers = lines
            of_words, of_intent = self.line_words(z).T[of_feature], self.line_intent(z).T[of_feature]
            near = of_words * 4 * alike + of_intent * more
            scores = scores + nn.functional.embedding_bag(numbers, near, mode="sum")
        if queries is None:
            return Scores(u @ z.T + scores, None)
        known = self.known_beside
        alike, more = self.look_up(queries.vectors, base.beside, known)
        of_known = more if base.beside is known else self.look_up(queries.vectors, known, known)[1]
        share = queries.share * queries.vectors.any(-1)  # what has no word says nothing
        p = share @ of_known / len(known)
        z_known = z if texts is self.known_texts else self.text(self.known_texts) + self.ids.weight[1:]
        alike, more = share @ alike, share @ more
        third = self.third
        # 4, so that a step of Adam is one in the log-odds
        scores = scores + third["words"](z).T * 4 * alike + third["intent"](z).T * more.log1p()
        q = third["meant"](p @ z_known)
        of_query = q @ z.T
        return Scores((u + third["both"](u * q)) @ z.T + of_query + scores, of_query)

    def look_up(self, vectors: Tensor, texts: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine ``[t, intents]`` of texts to those of the intents, and e of the module: over the mean of training's
        intents, ``known``, so that no score hangs on which others there are."""
        alike = vectors @ texts.T
        to_known = alike if texts is known else vectors @ known.T
        average = (SHARPNESS * to_known).logsumexp(-1, keepdim=True) - np.log(len(known))
        return alike, (SHARPNESS * alike - average).exp()

    def looked_up(self, vectors: Vectors, of_feature: Tensor, texts: Tensor) -> Lines:
        """Lines by their vectors ``[t, encoder.dim]``, some at a time."""
        alike, more = torch.zeros(2, len(of_feature), len(texts)).unbind()
        for rows in torch.arange(len(of_feature)).split(LINES_AT_ONCE):
            some = vectors[rows]
            is_there = some.any(-1, keepdim=True)
            cosine, times = self.look_up(some, texts, self.known_texts)
            alike[rows], more[rows] = is_there * cosine, is_there * times.log1p()
        return Lines(alike, more, of_feature)

    @cached_property
    def known_texts(self) -> Tensor:
        """``[intents, encoder.dim]``, of training's knowledge base."""
        return self.encoder(self.intents.texts)

    @cached_property
    def known_beside(self) -> Tensor:
        """``[intents, query_encoder.dim]``, the same as queries are read."""
        return self.known_texts if self.query_encoder is self.encoder else self.query_encoder(self.intents.texts)

    @cached_property
    def known_lines(self) -> tuple[Vectors, Tensor]:
        """Of each number in ``self.features`` the vector of its line, and whose feature it is."""
        texts, of_feature = [], []
        for feature, known in enumerate(self.codes.lines()):
            texts += known
            of_feature += [feature] * len(known)
        return self.encoder.kept(texts), torch.tensor(of_feature)

    def lines(self, codes: Tensor, base: Base, features: Sequence[Mapping[str, Any]] = ()) -> tuple[Lines, Tensor]:
        """The lines of ``codes`` ``[batch, features]``, and which each user has; with ``features`` also of values that
        training had not."""
        numbers, new, n_known = codes + self.offsets, {}, len(base.lines.of_feature)
        if len(features):
            for row, feature in (codes == 0).nonzero().tolist():
                text = self.codes.line(feature, features[row])
                if text:
                    numbers[row, feature] = n_known + new.setdefault((feature, text), len(new))
        if not new:
            return base.lines.of(numbers)
        is_new = numbers >= n_known
        known, of_known = base.lines.of(numbers.where(~is_new, self.offsets.expand_as(numbers)))
        whose, texts = zip(*new, strict=True)
        found = self.looked_up(self.encoder.kept(texts), torch.tensor(whose), base.texts)
        return known + found, of_known.where(~is_new, numbers - n_known + len(known.of_feature))

    @torch.no_grad()
    def scores(
        self,
        features: Sequence[Mapping[str, Any]],
        intents: Intents | None = None,
        queries: Sequence[Sequence[str]] | None = None,
        batch_size: int = 4096,
    ) -> np.ndarray:
        """Calibrated log-odds ``[n, intents]``, float32, that a user who looks at an intent clicks it.

        Args:
            intents: the knowledge base as it is now; None is that of training.
            queries: ``[n]``, of each user a list, empty where there is none; None is none at all.
        """
        self.eval()
        base = self.base(self.intents if intents is None else intents)
        n_intents = len(base.ids)
        found = []
        for start in range(0, len(features), batch_size):
            rows = range(start, min(start + batch_size, len(features)))
            part = [features[row] for row in rows]
            codes = torch.from_numpy(self.codes(part)).long()
            lines = self.lines(codes, base, part) if self.words else None
            asked = None
            if queries is not None:
                distinct, numbers = numbered([queries[row] for row in rows])
                asked = queries_of(numbers, self.query_encoder.kept(distinct))
            found.append(self(codes, base, lines, asked).all * self.scale[0] + self.scale[1])
        return torch.cat(found).numpy() if found else np.zeros((0, n_intents), dtype=np.float32)

    def save(self, folder: str | Path) -> None:
        """Write the ranker into ``folder``, its settings last. An encoder that is a folder is named as it is seen from
        there, so that a run may be moved."""
        from safetensors.torch import save_file

        folder = Path(folder)
        with replacing(folder / WEIGHTS) as temporary:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, temporary)
        encoders = {name: _seen_from(folder, self.settings[name]) for name in ENCODERS}
        config = (
            self.settings
            | encoders
            | {
                "kind": "intents",
                "features": self.codes.values,
                "intents": [list(pair) for pair in zip(self.intents.ids, self.intents.texts, strict=True)],
            }
        )
        write_whole(folder / CONFIG, json.dumps(config, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Ranker:
        """ValueError where ``folder`` holds no ranker."""
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            ids, texts = zip(*config["intents"], strict=True)
            codes, intents = FeatureCodes(config["features"]), Intents(ids, texts)
            encoders = {name: _found_from(folder, config.get(name, "")) for name in ENCODERS}
            ranker = cls(codes, intents, **encoders, **{name: config[name] for name in ("words", "dim", "seed")})
            ranker.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{folder} is not a ranker ({error}): give the folder of `openrlhf-qs rank`") from None
        return ranker.eval()


def _seen_from(folder: Path, encoder: str) -> str:
    return os.path.relpath(encoder, folder) if encoder != WORDS and os.path.isdir(encoder) else encoder


def _found_from(folder: Path, encoder: str) -> str:
    there = folder / encoder
    return os.path.relpath(there) if encoder not in ("", WORDS) and there.is_dir() else encoder


def numbered(queries: Sequence[Sequence[str]]) -> tuple[list[str], Tensor]:
    """The different texts, the first of them empty, and ``[n, k]``, which each user has; 0 where there is none."""
    number = {"": 0}
    numbers = np.zeros((len(queries), max(1, *map(len, queries)) if len(queries) else 1), dtype=np.int32)
    for row, texts in enumerate(queries):
        numbers[row, : len(texts)] = [number.setdefault(text, len(number)) for text in texts]
    return list(number), torch.from_numpy(numbers)


def queries_of(numbers: Tensor, vectors: Vectors) -> Queries:
    """The texts ``[batch, k]`` of a batch, by :func:`numbered`; each counts alike among a user's own."""
    distinct, column = numbers.unique(return_inverse=True)
    there = (numbers > 0).float()
    weight = there / there.sum(1, keepdim=True).clamp(min=1)
    share = torch.zeros(len(numbers), len(distinct)).scatter_add_(1, column, weight)
    return Queries(vectors[distinct], share)
