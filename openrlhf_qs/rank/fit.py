r"""What the ranker learns from a log, and how.

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

The third tower's loss may have one term more (``info_nce``), of the queries alone: :math:`s` of the last sum is then
:math:`z\cdot q/\tau`, so that a query stands, for the ranker, near what was clicked and far from everything else
(InfoNCE, van den Oord et al. 2018, whose negatives are here all other intents). With a temperature :math:`\tau` of .1
it says where q points and hardly how long it is: in the score q is added to what the features say already.

The two towers and the third one are trainings of the same form (:class:`TwoTowers`, :class:`ThirdTower`) that one loop
(:func:`fit`) goes through.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from openrlhf_qs.rank.encoder import WORDS, Vectors
from openrlhf_qs.rank.impressions import FeatureCodes, Impressions, Intents
from openrlhf_qs.rank.ranker import Ranker, Scores, numbered, queries_of

MAX_WEIGHT = 5.0  # of a click, in clicks at the top, as for the pairs of the reward model
TEMPERATURE = 0.1  # of InfoNCE
PATIENCE = 4  # epochs
MAX_STEPS = 5000  # of a training: a million impressions, of 930 batches, are gone through five times and not twenty


class Rows(NamedTuple):
    """Impressions as numbers.

    Attributes:
        codes: ``[n, features]``.
        shown, clicks: ``[n, places]``; what was not shown is -1.
        queries: ``[n, k]``, by :func:`openrlhf_qs.rank.ranker.numbered`; k is 0 for the two towers.
    """

    codes: Tensor
    shown: Tensor
    clicks: Tensor
    queries: Tensor

    @classmethod
    def of(cls, log: Impressions, codes: FeatureCodes, queries: Tensor | None = None) -> Rows:
        queries = torch.zeros(len(log), 0, dtype=torch.int32) if queries is None else queries
        return cls(*map(torch.from_numpy, (codes(log.features), log.shown, log.clicks)), queries)

    def take(self, rows: Tensor) -> Rows:
        return Rows(*(of[rows] for of in self))


def train_ranker(
    log: Impressions,
    intents: Intents,
    encoder: str = WORDS,
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
    n_workers: int = 0,
) -> Ranker:
    """Two towers, of ``log``; the training stops after the epoch that is best on a twentieth of the rows, and what
    comes out is calibrated there.

    Args:
        encoder: of texts, by name: :class:`openrlhf_qs.rank.encoder.Encoder`.
        words: whether the features' words look themselves up.
        listwise, over_all: lambda and mu of the loss.
        intent_dropout: how often an intent is as a new one: without its id, and without what was learned of a word.
        feature_dropout: how often a feature counts as not known; its words look themselves up all the same.
        max_epochs: at most; fewer where they would be more than ``MAX_STEPS`` steps, but 3 at least.
        batch_size: 0 is 1024, or less for a small log, so that an epoch has 50 steps.
        n_workers: of Ray Train, which share the training; 0 is none, this process alone.
    """
    if not log.clicks.any():
        raise ValueError(f"no click in {len(log)} impressions: there is nothing to learn from")
    torch.manual_seed(seed)
    ranker = Ranker(FeatureCodes.of(log.features), intents, encoder, words, dim, seed)
    loss = Loss.of(log, len(intents), listwise, over_all)
    training = TwoTowers(ranker, loss, intent_dropout, feature_dropout, lr, weight_decay)
    rows = Rows.of(log, ranker.codes)
    learned, kept_back = apart(len(log), 20, seed)
    batch_size = batch_size or min(1024, max(32, len(log) // 50))
    max_epochs = min(max_epochs, max(3, MAX_STEPS // -(-len(learned) // batch_size)))
    learned, kept_back = rows.take(learned), rows.take(kept_back)
    fit_rows(training, learned, kept_back, Schedule(batch_size, max_epochs, PATIENCE, seed, progress), n_workers)
    ranker.eval()
    with torch.no_grad():
        ranker.scale.data = calibration(training.scores(kept_back).all, kept_back, loss.examination)
    return ranker


def with_queries(
    base: Ranker,
    log: Impressions,
    queries: Sequence[Sequence[str]],
    query_encoder: str = "",
    listwise: float = 0.3,
    over_all: float = 1.0,
    info_nce: float = 0.0,
    max_epochs: int = 12,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
    progress: bool = False,
    n_workers: int = 0,
) -> Ranker:
    """The same ranker with a third tower, learned from the rows that have queries; where that tower makes it worse on
    a fifth of them that is kept back, it stays empty.

    Args:
        base: of the same log, or of a part of it that its users do not leave.
        queries: ``[n]``, a list a row, empty where there is none.
        query_encoder: of the queries, and of the intents that they are compared with; empty: that of ``base``.
        info_nce: weight of the term of the queries alone.
        n_workers: as in :func:`train_ranker`.
    """
    has_some = np.array([row for row, texts in enumerate(queries) if texts], dtype=int)
    if not len(has_some):
        raise ValueError(f"no query for any of {len(log)} impressions: there is nothing to learn from")
    ranker = copy.deepcopy(base).eval()  # the two towers are read, not trained: nothing of theirs is dropped
    ranker.forget_queries(query_encoder)
    distinct, numbers = numbered([queries[row] for row in has_some])
    loss = Loss.of(log, len(ranker.intents), listwise, over_all, info_nce)
    training = ThirdTower(ranker, loss, ranker.query_encoder.kept(distinct), lr, weight_decay)
    rows = Rows.of(log[has_some], ranker.codes, numbers)
    learned, kept_back = apart(len(has_some), 5, seed)
    learned, kept_back = rows.take(learned), rows.take(kept_back)
    batch_size = min(256, max(32, len(learned.codes) // 50))
    # No stop before the end: while the rate is high, an epoch can be worse than none.
    fit_rows(training, learned, kept_back, Schedule(batch_size, max_epochs, max_epochs, seed, progress), n_workers)
    return ranker.requires_grad_(True)


def apart(n: int, one_in: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which of ``n`` rows are learned from, and which are kept back, one in so many, both in a random order."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    n_back = max(1, n // one_in)
    return order[n_back:], order[:n_back]


class Training(Protocol):
    """What :func:`fit` goes through."""

    ranker: Ranker

    def optimiser(self) -> torch.optim.Optimizer: ...

    def loss_of(self, rows: Rows, in_training: bool) -> Tensor:
        """Of some rows."""
        ...


class TwoTowers:
    """Features and intent, learned from visits without queries."""

    def __init__(
        self,
        ranker: Ranker,
        loss: Loss,
        intent_dropout: float,
        feature_dropout: float,
        lr: float,
        weight_decay: float,
    ) -> None:
        self.ranker, self.loss, self.lr, self.weight_decay = ranker, loss, lr, weight_decay
        self.intent_dropout, self.feature_dropout = intent_dropout, feature_dropout
        self.base = ranker.base(ranker.intents)
        self.hidden, self.starts = ranker.encoder.with_a_word_hidden(ranker.intents.texts)

    def optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.ranker.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def loss_of(self, rows: Rows, in_training: bool) -> Tensor:
        self.ranker.train(in_training)
        return self.loss(self.scores(rows, in_training), rows, in_training)

    def scores(self, rows: Rows, in_training: bool = False) -> Scores:
        codes, base, ids, learned = rows.codes.long(), self.base, None, None
        lines = self.ranker.lines(codes, base) if self.ranker.words else None
        if in_training:
            codes = codes * (torch.rand(codes.shape) >= self.feature_dropout)
            is_new = torch.rand(len(base.ids)) < self.intent_dropout
            ids, learned = base.ids * ~is_new, base.texts.clone()
            picked = self.starts[:-1] + (torch.rand(len(base.ids)) * (self.starts[1:] - self.starts[:-1])).long()
            learned[is_new] = self.hidden[picked[is_new]]
        return self.ranker(codes, base, lines, None, ids, learned)


class ThirdTower:
    """Queries, learned on top of two towers that stay.

    Args:
        vectors: of the different queries, by their numbers.
    """

    def __init__(self, ranker: Ranker, loss: Loss, vectors: Vectors, lr: float, weight_decay: float) -> None:
        self.ranker, self.loss, self.vectors, self.lr, self.weight_decay = ranker, loss, vectors, lr, weight_decay
        self.base = ranker.base(ranker.intents)
        ranker.requires_grad_(False).third.requires_grad_(True)

    def optimiser(self) -> torch.optim.Optimizer:
        named = list(self.ranker.third.named_parameters())
        # How far a query is trusted at all is two numbers, found before what it means for each intent is.
        trust = {"params": [one for name, one in named if name.endswith("bias")], "lr": 3e-2, "weight_decay": 0.0}
        others = {"params": [one for name, one in named if not name.endswith("bias")]}
        return torch.optim.AdamW([trust, others], lr=self.lr, weight_decay=self.weight_decay)

    def loss_of(self, rows: Rows, in_training: bool) -> Tensor:
        codes = rows.codes.long()
        lines = self.ranker.lines(codes, self.base) if self.ranker.words else None
        scores = self.ranker(codes, self.base, lines, queries_of(rows.queries, self.vectors))
        return self.loss(scores, rows, in_training)


class Batches(Protocol):
    """Rows in batches, in a new random order each time."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Rows]: ...


class InMemory:
    """The batches of rows that are in this process."""

    def __init__(self, rows: Rows, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.rng = rows, batch_size, np.random.default_rng(seed)

    def __len__(self) -> int:
        return -(-len(self.rows.codes) // self.batch_size)

    def __iter__(self) -> Iterator[Rows]:
        order = torch.from_numpy(self.rng.permutation(len(self.rows.codes)))
        return map(self.rows.take, order.split(self.batch_size))


class Schedule(NamedTuple):
    """How long a training goes on, and with what.

    Attributes:
        batch_size: rows of a step.
        max_epochs, patience: as in :func:`fit`.
        seed: of the order of the rows.
        progress: whether each epoch prints a line.
    """

    batch_size: int
    max_epochs: int
    patience: int
    seed: int = 0
    progress: bool = False


def fit_rows(training: Training, learned: Rows, kept_back: Rows, schedule: Schedule, n_workers: int) -> None:
    """:func:`fit` on batches of the rows ``learned``: in this process, or on ``n_workers`` workers of Ray Train."""
    if n_workers:
        from openrlhf_qs.rank.on_ray import fit_on_ray

        fit_on_ray(training, learned, kept_back, schedule, n_workers)
    else:
        batches = InMemory(learned, schedule.batch_size, schedule.seed)
        fit(training, batches, kept_back, schedule.max_epochs, schedule.patience, schedule.progress)


def fit(training: Training, batches: Batches, kept_back: Rows, max_epochs: int, patience: int, progress: bool) -> None:
    """Train until ``patience`` epochs were no better on ``kept_back``; the ranker is as it was after the best, or
    before the first."""
    ranker, optimiser = training.ranker, training.optimiser()
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, max_epochs * len(batches), pct_start=0.1)
    best, best_state, best_epoch = float("inf"), None, 0
    for epoch in range(max_epochs + 1):
        if epoch:
            for rows in batches:
                loss = training.loss_of(rows, True)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        with torch.no_grad():
            value = training.loss_of(kept_back, False).item()
        if progress:
            print(f"epoch {epoch}: loss {value:.4f} on {len(kept_back.codes):,} validation rows", flush=True)
        if value < best:
            best, best_epoch = value, epoch
            best_state = {name: one.clone() for name, one in ranker.state_dict().items()}
        elif epoch - best_epoch == patience:
            break
    ranker.load_state_dict(best_state)


class Loss(NamedTuple):
    """The loss of the module.

    Attributes:
        examination: ``[places]``.
        log_share: ``[intents]``, -inf for what was never shown.
        listwise, over_all, info_nce: weights of its terms.
    """

    examination: Tensor
    log_share: Tensor
    listwise: float
    over_all: float
    info_nce: float = 0.0

    @classmethod
    def of(cls, log: Impressions, n_intents: int, listwise: float, over_all: float, info_nce: float = 0.0) -> Loss:
        shown = torch.from_numpy(log.shown).long()
        n_shows = torch.bincount(shown[shown >= 0], minlength=n_intents).float()
        if not n_shows.any():
            raise ValueError("nothing was shown")
        examination = torch.tensor(log.examination, dtype=torch.float32)
        return cls(examination, (n_shows / n_shows.sum()).log(), listwise, over_all, info_nce)

    def __call__(self, scores: Scores, rows: Rows, in_training: bool = True) -> Tensor:
        """Nats a row, averaged; what ListNet and InfoNCE add is left out where it only measures."""
        shown, clicks = rows.shown.long(), rows.clicks.float()
        there = shown >= 0
        of_shown = scores.all.gather(1, shown.clamp(min=0))
        chance = (of_shown.sigmoid() * self.examination).clamp(1e-6, 1 - 1e-6)
        loss = -(torch.where(clicks > 0, chance.log(), (1 - chance).log()) * there).sum(-1).mean()
        weight = clicks * (1 / self.examination).clamp(max=MAX_WEIGHT) * there
        if in_training and self.listwise:
            among_shown = of_shown.masked_fill(~there, -torch.inf).log_softmax(-1)
            loss = loss - self.listwise * (weight * among_shown.masked_fill(~there, 0)).sum(-1).mean()
        terms = [(scores.all, self.over_all)]
        if in_training and self.info_nce:
            terms.append((scores.of_query / TEMPERATURE, self.info_nce))
        for some, coef in terms:
            if coef:
                among_all = (some + self.log_share).log_softmax(-1).gather(1, shown.clamp(min=0))
                loss = loss - coef * (weight * among_all).sum(-1).mean()
        return loss


def calibration(scores: Tensor, rows: Rows, examination: Tensor) -> Tensor:
    """``[2]``, slope and shift by which the log-odds fit clicks best (Platt), the examination taken as known; 1 and 0
    where there are fewer than 20 clicks."""
    shown, clicks = rows.shown.long(), rows.clicks.float()
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
