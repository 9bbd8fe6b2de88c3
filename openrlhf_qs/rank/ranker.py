r"""The ranker: two towers, features and intent, and with queries a third one.

    ranker = train_ranker(impressions, intents, queries)
    ranker.save("runs/rgalign/rank")
    scores = Ranker.load("runs/rgalign/rank").scores(features, intents, queries)      # [n, intents], log-odds

The score of an intent is ``z . u + b`` and what the two look-ups below add: ``z`` of its text and, where training knew
it, of its id; ``u`` of the features. All intents of a user are scored by one matrix product. Texts are vectors of a
frozen encoder (:class:`Encoder`).

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

**What is learned.** With examination :math:`\theta_k` (:mod:`openrlhf_qs.clicks.propensity`), shown intents
:math:`i_1..i_K` and clicks :math:`c_k`, a row costs

.. math::
    -\sum_k c_k\log\theta_k\sigma(s_k)+(1-c_k)\log(1-\theta_k\sigma(s_k))
    \;-\;\lambda\sum_k\frac{c_k}{\theta_k}\log\frac{e^{s_k}}{\sum_j e^{s_j}}
    \;-\;\mu\sum_k\frac{c_k}{\theta_k}\log\frac{e^{s_k+\log p_k}}{\sum_{i}e^{s_i+\log p_i}}

the position-based model's likelihood, whose clicks of different places are independent; ListNet's top-one
cross-entropy (Cao et al. 2007), which is the KL divergence from the clicks but for a constant, over what was shown;
and over all intents, with the share :math:`p_i` of the shows that were intent i's added to its score, as for a sampled
softmax: an intent is not disliked for being shown seldom. One that was never shown is not in the sum: a small share in
place of none would not do, for Adam makes of a small gradient as large a step as of a large one, so what can only lose
goes down all the time. How high a new intent stands is learned from the others: in every batch some lose their id and
what was learned of one of their words, and some features count as not known.

Plain torch, because the whole is eighty lines of it and the loss is none that a library of recommenders has.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from openrlhf_qs.files.whole import replacing, write_whole
from openrlhf_qs.models.embedder import embed, load_embedder
from openrlhf_qs.rank.impressions import FeatureCodes, Impressions, Intents

CONFIG, WEIGHTS = "ranker.json", "ranker.safetensors"
MAX_WEIGHT = 5.0  # of a click, in clicks at the top, as for the pairs of the reward model
N_BUCKETS = 1024  # of the encoder `words`
PATIENCE = 4  # epochs
MAX_STEPS = 5000  # of a training: a million impressions, of 930 batches, are gone through five times and not twenty
SHARPNESS = 30.0  # of a look-up, a cosine of 1
LINES_AT_ONCE = 4096  # whose vectors are in memory at one time


class Encoder:
    """Texts to unit vectors.

    Args:
        name: ``words``, hashed words and pairs of words, which knows every word and needs no model; or a
            sentence-transformers model, as ``minilm``.
    """

    def __init__(self, name: str = "words") -> None:
        self.name = name
        self.model = None if name == "words" else load_embedder(name)

    @property
    def dim(self) -> int:
        return N_BUCKETS if self.model is None else self.model.get_embedding_dimension()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """``[n, dim]``, float32; zeros for an empty text."""
        return self.kept(texts)[np.arange(len(texts))]

    def kept(self, texts: Sequence[str]) -> Vectors:
        """Of a million texts a tenth of what their vectors take."""
        if self.model is not None:
            is_there = np.array([[bool(text.strip())] for text in texts])
            return Vectors((embed(self.model, texts) * is_there).astype(np.float16))
        from sklearn.feature_extraction.text import HashingVectorizer

        return Vectors(HashingVectorizer(n_features=N_BUCKETS, ngram_range=(1, 2), dtype=np.float32).transform(texts))

    def with_a_word_hidden(self, texts: Sequence[str]) -> tuple[Vectors, Tensor]:
        """Each text once for every word of it, without what was learned of that word: as a text reads in which that
        word is new. A model knows the words that it was not trained on here, so for one nothing is hidden.

        Returns:
            ``[t, dim]``, and ``[len(texts) + 1]``: those of text n begin at the n-th of these numbers.
        """
        words = [text.split() if self.model is None else [text] for text in texts]
        starts = torch.tensor([0, *np.cumsum([len(of_text) for of_text in words])])
        whole = self.kept([text for text, of_text in zip(texts, words, strict=True) for _ in of_text])
        if self.model is None:
            shorter = self.kept([" ".join(one[:n] + one[n + 1 :]) for one in words for n in range(len(one))])
            whole.matrix = whole.matrix.multiply(shorter.matrix != 0).tocsr()
        return whole, starts


class Vectors:
    """Vectors of texts as they are kept, sparse or in half precision; those of some rows are taken out as a tensor."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix

    def __getitem__(self, rows: Tensor | np.ndarray) -> Tensor:
        """``[len(rows), dim]``, float32."""
        some = self.matrix[np.asarray(rows)]
        return torch.from_numpy(some.toarray() if hasattr(some, "toarray") else some.astype(np.float32))


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
        lines: those of every value that training had, by their number in ``Ranker.features``; None without words.
    """

    ids: Tensor
    texts: Tensor
    lines: Lines | None


class Queries(NamedTuple):
    """The queries of some users.

    Attributes:
        vectors: ``[t, encoder.dim]``, of the different texts.
        share: ``[batch, t]``, of each among a user's own; all 0 for who has none.
    """

    vectors: Tensor
    share: Tensor


class Ranker(nn.Module):
    """See the module.

    Args:
        words: whether the features' words look themselves up; without, these are the plain two towers.
    """

    def __init__(
        self,
        codes: FeatureCodes,
        intents: Intents,
        encoder: str = "words",
        words: bool = True,
        dim: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.codes, self.intents, self.encoder, self.words = codes, intents, Encoder(encoder), words
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
            self.forget_queries()
            self.scale = nn.Parameter(torch.tensor([1.0, 0.0]), requires_grad=False)  # of the log-odds, by calibration

    @torch.no_grad()
    def forget_queries(self) -> None:
        """The third tower as it is before any query: it adds nothing."""
        for weights in self.third.parameters():
            weights.zero_()

    def intent_ids(self, intents: Intents) -> Tensor:
        """``[n]``: 0 for an intent that training did not have, or had with another text."""
        number = {pair: n for n, pair in enumerate(zip(self.intents.ids, self.intents.texts, strict=True), start=1)}
        return torch.tensor([number.get(pair, 0) for pair in zip(intents.ids, intents.texts, strict=True)])

    def base(self, intents: Intents) -> Base:
        """A knowledge base, looked up once: the last one is kept."""
        if self.asked_last is None or self.asked_last[0] != intents:
            texts = self.known_texts if intents == self.intents else self.encoder(intents.texts)
            lines = self.looked_up(*self.known_lines, texts) if self.words else None
            self.asked_last = intents, Base(self.intent_ids(intents), texts, lines)
        return self.asked_last[1]

    def forward(
        self,
        codes: Tensor,
        base: Base,
        lines: tuple[Lines, Tensor] | None = None,
        queries: Queries | None = None,
        ids: Tensor | None = None,
        learned: Tensor | None = None,
    ) -> Tensor:
        """Scores ``[batch, intents]``, log-odds of a click on what is looked at.

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
        if queries is not None:
            alike, more = self.look_up(queries.vectors, texts)
            known = self.known_texts
            of_known = more if texts is known else self.look_up(queries.vectors, known)[1]
            share = queries.share * queries.vectors.any(-1)  # what has no word says nothing
            p = share @ of_known / len(known)
            z_known = z if texts is known else self.text(known) + self.ids.weight[1:]
            alike, more = share @ alike, share @ more
            third = self.third
            # 4, so that a step of Adam is one in the log-odds
            scores = scores + third["words"](z).T * 4 * alike + third["intent"](z).T * more.log1p()
            q = third["meant"](p @ z_known)
            u = u + q + third["both"](u * q)
        return u @ z.T + scores

    def look_up(self, vectors: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine ``[t, intents]`` of texts to those of the intents, and e of the module: over the mean of training's
        intents, so that no score hangs on which others there are."""
        alike = vectors @ texts.T
        to_known = alike if texts is self.known_texts else vectors @ self.known_texts.T
        average = (SHARPNESS * to_known).logsumexp(-1, keepdim=True) - np.log(len(self.intents))
        return alike, (SHARPNESS * alike - average).exp()

    def looked_up(self, vectors: Vectors, of_feature: Tensor, texts: Tensor) -> Lines:
        """Lines by their vectors ``[t, encoder.dim]``, some at a time."""
        alike, more = torch.zeros(2, len(of_feature), len(texts)).unbind()
        for rows in torch.arange(len(of_feature)).split(LINES_AT_ONCE):
            some = vectors[rows]
            is_there = some.any(-1, keepdim=True)
            cosine, times = self.look_up(some, texts)
            alike[rows], more[rows] = is_there * cosine, is_there * times.log1p()
        return Lines(alike, more, of_feature)

    @cached_property
    def known_texts(self) -> Tensor:
        """``[intents, encoder.dim]``, of training's knowledge base."""
        return self.encoder(self.intents.texts)

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
                asked = queries_of(numbers, self.encoder.kept(distinct))
            found.append(self(codes, base, lines, asked) * self.scale[0] + self.scale[1])
        return torch.cat(found).numpy() if found else np.zeros((0, n_intents), dtype=np.float32)

    def save(self, folder: str | Path) -> None:
        """Write the ranker into ``folder``, its settings last."""
        from safetensors.torch import save_file

        folder = Path(folder)
        with replacing(folder / WEIGHTS) as temporary:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, temporary)
        config = self.settings | {
            "kind": "intents",
            "features": self.codes.values,
            "intents": [list(pair) for pair in zip(self.intents.ids, self.intents.texts, strict=True)],
        }
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
            ranker = cls(codes, intents, **{name: config[name] for name in ("encoder", "words", "dim", "seed")})
            ranker.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{folder} holds no ranker ({error}): give the folder of `openrlhf-qs rank`") from None
        return ranker.eval()


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


def train_ranker(
    log: Impressions,
    intents: Intents,
    queries: Sequence[Sequence[str]] | None = None,
    encoder: str = "words",
    words: bool = True,
    listwise: float = 0.3,
    over_all: float = 1.0,
    intent_dropout: float = 0.2,
    feature_dropout: float = 0.03,
    max_epochs: int = 20,
    batch_size: int = 0,
    lr: float = 3e-3,
    weight_decay: float = 1e-4,
    dim: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Ranker:
    """A ranker of ``log``; it stops after the epoch that is best on a twentieth of the rows, and is calibrated there.

    Args:
        queries: ``[n]``, a list a row, empty where there is none: :func:`with_queries` follows.
        words: whether the features' words look themselves up.
        listwise, over_all: lambda and mu of the loss.
        intent_dropout: how often an intent is as a new one: without its id, and without what was learned of a word.
        feature_dropout: how often a feature counts as not known; its words look themselves up all the same.
        max_epochs: at most; fewer where they would be more than ``MAX_STEPS`` steps, but 3 at least.
        batch_size: 0 is 1024, or less for a small log, so that an epoch has 50 steps.
    """
    if not log.clicks.any():
        raise ValueError(f"no click in {len(log)} impressions: there is nothing to learn from")
    torch.manual_seed(seed)
    codes = FeatureCodes.of(log.features)
    ranker = Ranker(codes, intents, encoder, words, dim, seed)
    table = torch.from_numpy(codes(log.features))
    base = ranker.base(intents)
    hidden, starts = ranker.encoder.with_a_word_hidden(intents.texts)
    clicked = Clicked(log, len(intents), listwise, over_all)

    def loss_of(rows: Tensor, in_training: bool) -> Tensor:
        ranker.train(in_training)
        some, ids, learned = table[rows].long(), None, None
        lines = ranker.lines(some, base) if words else None
        if in_training:
            some = some * (torch.rand(some.shape) >= feature_dropout)
            is_new = torch.rand(len(intents)) < intent_dropout
            ids, learned = base.ids * ~is_new, base.texts.clone()
            picked = starts[:-1] + (torch.rand(len(intents)) * (starts[1:] - starts[:-1])).long()
            learned[is_new] = hidden[picked[is_new]]
        return clicked.loss(ranker(some, base, lines, None, ids, learned), rows, in_training)

    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(log)))
    kept_back, order = order[: max(1, len(log) // 20)], order[max(1, len(log) // 20) :]
    batch_size = batch_size or min(1024, max(32, len(log) // 50))
    max_epochs = min(max_epochs, max(3, MAX_STEPS // -(-len(order) // batch_size)))
    optimiser = torch.optim.AdamW(ranker.parameters(), lr=lr, weight_decay=weight_decay)
    fit(ranker, optimiser, loss_of, order, kept_back, batch_size, max_epochs, PATIENCE, seed, progress)
    ranker.eval()
    with torch.no_grad():
        some = table[kept_back].long()
        scores = ranker(some, base, ranker.lines(some, base) if words else None)
    ranker.scale.data = calibration(scores, clicked.shown[kept_back], clicked.clicks[kept_back], clicked.examination)
    return ranker if queries is None else with_queries(ranker, log, queries, seed=seed, progress=progress)


def with_queries(
    base: Ranker,
    log: Impressions,
    queries: Sequence[Sequence[str]],
    listwise: float = 0.3,
    over_all: float = 1.0,
    max_epochs: int = 12,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
    progress: bool = False,
) -> Ranker:
    """The same ranker with a third tower, of the rows that have queries; where that tower makes it worse on a fifth of
    them that is kept back, it stays empty.

    Args:
        base: of the same log, or of a part of it that its users do not leave.
    """
    has_some = torch.tensor([row for row, texts in enumerate(queries) if texts])
    if not len(has_some):
        raise ValueError(f"no query for any of {len(log)} impressions: there is nothing to learn from")
    ranker = copy.deepcopy(base).eval()  # the two towers are read, not trained: nothing of theirs is dropped
    ranker.forget_queries()
    table = torch.from_numpy(ranker.codes(log[has_some.numpy()].features))
    knowledge, clicked = ranker.base(ranker.intents), Clicked(log, len(ranker.intents), listwise, over_all)
    distinct, numbers = numbered([queries[row] for row in has_some])
    vectors = ranker.encoder.kept(distinct)

    def loss_of(rows: Tensor, in_training: bool) -> Tensor:
        some = table[rows].long()
        lines = ranker.lines(some, knowledge) if ranker.words else None
        scores = ranker(some, knowledge, lines, queries_of(numbers[rows], vectors))
        return clicked.loss(scores, has_some[rows], in_training)

    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(has_some)))
    kept_back, order = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5) :]
    ranker.requires_grad_(False).third.requires_grad_(True)
    named = list(ranker.third.named_parameters())
    # How far a query is trusted at all is two numbers, found before what it means for each intent is.
    trust = {"params": [one for name, one in named if name.endswith("bias")], "lr": 3e-2, "weight_decay": 0.0}
    others = [one for name, one in named if not name.endswith("bias")]
    optimiser = torch.optim.AdamW([trust, {"params": others}], lr=lr, weight_decay=weight_decay)
    batch_size = min(256, max(32, len(order) // 50))
    # No stop before the end: while the rate is high, an epoch can be worse than none.
    fit(ranker, optimiser, loss_of, order, kept_back, batch_size, max_epochs, max_epochs, seed, progress)
    return ranker.requires_grad_(True)


class Clicked:
    """The clicks of a log, as :func:`click_loss` takes them."""

    def __init__(self, log: Impressions, n_intents: int, listwise: float, over_all: float) -> None:
        self.shown, self.clicks = torch.from_numpy(log.shown).long(), torch.from_numpy(log.clicks).float()
        self.examination = torch.tensor(log.examination, dtype=torch.float32)
        self.listwise, self.over_all = listwise, over_all
        n_shows = torch.bincount(self.shown[self.shown >= 0], minlength=n_intents).float()
        if not n_shows.any():
            raise ValueError("nothing was shown")
        self.log_share = (n_shows / n_shows.sum()).log()

    def loss(self, scores: Tensor, rows: Tensor, in_training: bool) -> Tensor:
        """Of some rows, by their scores ``[batch, intents]``; what ListNet adds is left out where it only measures."""
        listwise = self.listwise if in_training else 0
        shown, clicks = self.shown[rows], self.clicks[rows]
        return click_loss(scores, shown, clicks, self.examination, self.log_share, listwise, self.over_all)


def fit(
    ranker: Ranker,
    optimiser: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, bool], Tensor],
    order: Tensor,
    kept_back: Tensor,
    batch_size: int,
    max_epochs: int,
    patience: int,
    seed: int,
    progress: bool,
) -> None:
    """Train until ``patience`` epochs were no better on the rows kept back; the ranker is as it was after the best, or
    before the first.

    Args:
        loss_of: of some rows, in training or not.
    """
    n_steps = max_epochs * -(-len(order) // batch_size)
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, n_steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    best, best_state, best_epoch = float("inf"), None, 0
    for epoch in range(max_epochs + 1):
        if epoch:
            for rows in order[torch.from_numpy(rng.permutation(len(order)))].split(batch_size):
                loss = loss_of(rows, True)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        with torch.no_grad():
            value = loss_of(kept_back, False).item()
        if progress:
            print(f"epoch {epoch}: loss {value:.4f} on {len(kept_back):,} rows kept back", flush=True)
        if value < best:
            best, best_epoch = value, epoch
            best_state = {name: one.clone() for name, one in ranker.state_dict().items()}
        elif epoch - best_epoch == patience:
            break
    ranker.load_state_dict(best_state)


def click_loss(
    scores: Tensor,
    shown: Tensor,
    clicks: Tensor,
    examination: Tensor,
    log_share: Tensor,
    listwise: float,
    over_all: float,
) -> Tensor:
    """The loss of the module, nats a row, averaged.

    Args:
        scores: ``[batch, intents]``.
        shown, clicks: ``[batch, k]``; what was not shown is -1.
        examination: ``[k]``.
        log_share: ``[intents]``, -inf for what was never shown.
    """
    there = shown >= 0
    of_shown = scores.gather(1, shown.clamp(min=0))
    chance = (of_shown.sigmoid() * examination).clamp(1e-6, 1 - 1e-6)
    loss = -(torch.where(clicks > 0, chance.log(), (1 - chance).log()) * there).sum(-1).mean()
    weight = clicks * (1 / examination).clamp(max=MAX_WEIGHT) * there
    if listwise:
        among_shown = of_shown.masked_fill(~there, -torch.inf).log_softmax(-1)
        loss = loss - listwise * (weight * among_shown.masked_fill(~there, 0)).sum(-1).mean()
    if over_all:
        among_all = (scores + log_share).log_softmax(-1).gather(1, shown.clamp(min=0))
        loss = loss - over_all * (weight * among_all).sum(-1).mean()
    return loss


def calibration(scores: Tensor, shown: Tensor, clicks: Tensor, examination: Tensor) -> Tensor:
    """``[2]``, slope and shift by which the log-odds fit clicks best (Platt), the examination taken as known; 1 and 0
    where there are fewer than 20 clicks."""
    there = shown >= 0
    if clicks[there].sum() < 20:
        return torch.tensor([1.0, 0.0])
    of_shown = scores.gather(1, shown.clamp(min=0))[there]
    theta, clicked = examination.expand_as(shown)[there], clicks[there]
    line = torch.tensor([1.0, 0.0], requires_grad=True)
    optimiser = torch.optim.LBFGS([line], max_iter=50)

    def closure() -> Tensor:
        optimiser.zero_grad()
        chance = ((of_shown * line[0] + line[1]).sigmoid() * theta).clamp(1e-6, 1 - 1e-6)
        loss = nn.functional.binary_cross_entropy(chance, clicked)
        loss.backward()
        return loss

    optimiser.step(closure)
    return line.detach() if line[0] > 0 and line.isfinite().all() else torch.tensor([1.0, 0.0])
