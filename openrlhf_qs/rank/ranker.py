r"""The ranker: two towers, features and intent, and with a query a third one.

    ranker = train_ranker(impressions, intents, queries)
    ranker.save("runs/rgalign/rank")
    scores = Ranker.load("runs/rgalign/rank").scores(features, intents, queries)      # [n, intents], log-odds

The score of an intent is ``z . (u + q + W(u * q)) + b + v cos(query, intent) + w p``: ``z`` of its text and, where
training knew it, of its id; ``u`` of the features, ``q`` of the query. So each two towers interact, features and query
by their product, and all intents of a user are scored by one matrix product. An intent or a word that training did not
have is still read, by its text. Texts are vectors of a frozen encoder (:class:`Encoder`).

**The query looks itself up.** ``p`` is the softmax of ``SHARPNESS cos(query, intent)`` over the knowledge base: which
intent the query means. ``q`` is a network of the query's text, and a linear map of the mean ``z`` under ``p``. Without
it the query must learn from a few thousand clicks what the intents that it names are like, and a query that names the
very best intent is worth half as much (docs/RGALIGN.md has the figures).

**What is learned.** With examination :math:`\theta_k` (:mod:`openrlhf_qs.clicks.propensity`), shown intents
:math:`i_1..i_K` and clicks :math:`c_k`, a row costs

.. math::
    -\sum_k c_k\log\theta_k\sigma(s_k)+(1-c_k)\log(1-\theta_k\sigma(s_k))
    \;-\;\lambda\sum_k\frac{c_k}{\theta_k}\log\frac{e^{s_k}}{\sum_j e^{s_j}}
    \;-\;\mu\sum_k\frac{c_k}{\theta_k}\log\frac{e^{s_k+\log p_k}}{\sum_{i}e^{s_i+\log p_i}}

the position-based model's likelihood, whose clicks of different places are independent; ListNet's top-one
cross-entropy (Cao et al. 2007), which is the KL divergence from the clicks but for a constant, over what was shown;
and over all intents, with the share :math:`p_i` of the shows that were intent i's added to its score, as for a sampled
softmax: an intent that was never shown is not disliked for it.

Plain torch, because the whole is eighty lines of it and the loss is none that a library of recommenders has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openrlhf_qs.files.whole import replacing, write_whole
from openrlhf_qs.models.embedder import embed, load_embedder
from openrlhf_qs.rank.impressions import FeatureCodes, Impressions, Intents

CONFIG, WEIGHTS = "ranker.json", "ranker.safetensors"
MAX_WEIGHT = 5.0  # of a click, in clicks at the top, as for the pairs of the reward model
N_BUCKETS = 1024  # of the encoder `words`
SHARPNESS = 30.0  # of a query's look-up, a cosine of 1


class Encoder:
    """Texts to unit vectors, each distinct text once.

    Args:
        name: ``words``, hashed words, pairs of words and their pieces, which knows every word and needs no model; or
            a sentence-transformers model, as ``minilm``.
    """

    def __init__(self, name: str = "words") -> None:
        self.name = name
        self.model = None if name == "words" else load_embedder(name)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """``[n, dim]``, float32; zeros for an empty text."""
        distinct = list(dict.fromkeys(texts))
        number = {text: n for n, text in enumerate(distinct)}
        return self._encoded(distinct)[[number[text] for text in texts]]

    @property
    def dim(self) -> int:
        return N_BUCKETS if self.model is None else self.model.get_embedding_dimension()

    def _encoded(self, texts: Sequence[str]) -> Tensor:
        if self.model is not None:
            vectors = torch.tensor(embed(self.model, texts).astype(np.float32))
        else:
            from sklearn.feature_extraction.text import HashingVectorizer

            of_words = HashingVectorizer(n_features=N_BUCKETS, ngram_range=(1, 2), stop_words=None)
            vectors = torch.tensor(of_words.transform(texts).toarray(), dtype=torch.float32)
        return vectors * torch.tensor([[bool(text.strip())] for text in texts])


class Ranker(nn.Module):
    """See the module."""

    def __init__(
        self, codes: FeatureCodes, intents: Intents, encoder: str = "words", dim: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        self.codes, self.intents, self.encoder = codes, intents, Encoder(encoder)
        self.encoded: tuple = (None, None, None)  # the knowledge base that was asked for last
        self.settings = {"encoder": encoder, "dim": dim, "seed": seed}
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
            self.query = nn.Sequential(nn.Linear(self.encoder.dim, 128), nn.ReLU(), nn.Linear(128, dim))
            self.both = nn.Linear(dim, dim, bias=False)
            self.meant = nn.Linear(dim, dim)
            self.same_words = nn.Parameter(torch.tensor(1.0))
            self.same_intent = nn.Parameter(torch.tensor(1.0))
            nn.init.normal_(self.features.weight, std=0.1)
            for table in (self.ids, self.ids_bias):
                nn.init.normal_(table.weight, std=0.05)
                with torch.no_grad():
                    table.weight[0] = 0
            self.scale = nn.Parameter(torch.tensor([1.0, 0.0]), requires_grad=False)  # of the log-odds, by calibration

    def intent_ids(self, intents: Intents) -> Tensor:
        """``[n]``: 0 for an intent that training did not have, or had with another text."""
        number = {pair: n for n, pair in enumerate(zip(self.intents.ids, self.intents.texts, strict=True), start=1)}
        return torch.tensor([number.get(pair, 0) for pair in zip(intents.ids, intents.texts, strict=True)])

    def forward(self, codes: Tensor, query: Tensor | None, ids: Tensor, texts: Tensor) -> Tensor:
        """Scores ``[batch, intents]``, log-odds of a click on what is looked at.

        Args:
            codes: ``[batch, features]``.
            query: ``[batch, encoder.dim]``; zeros where there is none, None where no row has one.
            ids, texts: ``[intents]`` and ``[intents, encoder.dim]``.
        """
        u = self.user_out(self.user(self.features(codes + self.offsets).flatten(1)))
        z = self.text(texts) + self.ids(ids)
        bias = (self.text_bias(texts) + self.ids_bias(ids)).squeeze(-1)
        if query is None:
            return u @ z.T + bias
        there = query.abs().sum(-1, keepdim=True) > 0
        alike = query @ texts.T
        p = (SHARPNESS * alike).softmax(-1) * there
        q = (self.query(query) + self.meant(p @ z)) * there
        near = self.same_words * 4 * alike + self.same_intent * 5 * p  # 4 and 5, so that a step of Adam is one in them
        return (u + q + self.both(u * q)) @ z.T + bias + near

    @torch.no_grad()
    def scores(
        self,
        features: Sequence[Mapping[str, Any]],
        intents: Intents | None = None,
        queries: Sequence[str] | None = None,
        batch_size: int = 4096,
    ) -> np.ndarray:
        """Calibrated log-odds ``[n, intents]``, float32, that a user who looks at an intent clicks it.

        Args:
            intents: the knowledge base as it is now; None is that of training.
            queries: ``[n]``, empty where there is none; None is none at all.
        """
        self.eval()
        intents = self.intents if intents is None else intents
        codes = torch.from_numpy(self.codes(features)).long()
        if intents != self.encoded[0]:
            self.encoded = intents, self.intent_ids(intents), self.encoder(intents.texts)
        _, ids, texts = self.encoded
        found = []
        for start in range(0, len(codes), batch_size):
            part = slice(start, start + batch_size)
            query = None if queries is None else self.encoder(queries[part])
            found.append(self(codes[part], query, ids, texts) * self.scale[0] + self.scale[1])
        return torch.cat(found).numpy() if found else np.zeros((0, len(intents)), dtype=np.float32)

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
            ranker = cls(codes, intents, config["encoder"], config["dim"], config["seed"])
            ranker.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{folder} holds no ranker ({error}): give the folder of `openrlhf-qs rank`") from None
        return ranker.eval()


def train_ranker(
    log: Impressions,
    intents: Intents,
    queries: Sequence[str] | None = None,
    encoder: str = "words",
    listwise: float = 0.3,
    over_all: float = 1.0,
    query_dropout: float = 0.15,
    intent_dropout: float = 0.2,
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
        queries: ``[n]``, one a row, empty where there is none; None makes two towers.
        listwise, over_all: lambda and mu of the loss.
        query_dropout: how often a query is hidden, so that the ranker also works without.
        intent_dropout: how often the id of an intent is hidden, so that its text alone has to do.
        batch_size: 0 is 1024, or less for a small log, so that an epoch has 50 steps.
    """
    if not log.clicks.any():
        raise ValueError(f"no click in {len(log)} impressions: there is nothing to learn from")
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    codes = FeatureCodes.of(log.features)
    ranker = Ranker(codes, intents, encoder, dim, seed)
    table = torch.from_numpy(codes(log.features))
    distinct = list(dict.fromkeys(["", *(queries or ())]))
    number = {text: n for n, text in enumerate(distinct)}
    of_row = torch.tensor([number[text] for text in queries]) if queries else torch.zeros(len(log), dtype=torch.long)
    vectors, texts, ids = ranker.encoder(distinct), ranker.encoder(intents.texts), ranker.intent_ids(intents)
    shown, clicks = torch.from_numpy(log.shown).long(), torch.from_numpy(log.clicks).float()
    examination = torch.tensor(log.examination, dtype=torch.float32)
    n_shows = torch.bincount(shown[shown >= 0], minlength=len(intents)).float()
    log_share = ((n_shows + 1) / (n_shows.sum() + len(intents))).log()
    if (n_shows == 0).all():
        raise ValueError("nothing was shown")

    order = rng.permutation(len(log))
    batch_size = batch_size or min(1024, max(32, len(log) // 50))
    n_kept_back = max(1, len(log) // 20)
    kept_back, order = torch.from_numpy(order[:n_kept_back]), order[n_kept_back:]
    query_kept_back = vectors[of_row[kept_back]] if queries else None
    optimiser = torch.optim.AdamW(ranker.parameters(), lr=lr, weight_decay=weight_decay)
    n_steps = max_epochs * -(-len(order) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=n_steps, pct_start=0.1)
    best, best_state, since = float("inf"), None, 0
    for epoch in range(max_epochs):
        ranker.train()
        shuffled = torch.from_numpy(rng.permutation(order))
        for rows in shuffled.split(batch_size):
            query_of = of_row[rows] * (torch.rand(len(rows)) >= query_dropout)
            query = vectors[query_of] if queries else None
            seen_ids = ids * (torch.rand(len(ids)) >= intent_dropout)
            scores = ranker(table[rows].long(), query, seen_ids, texts)
            loss = click_loss(scores, shown[rows], clicks[rows], examination, log_share, listwise, over_all)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        ranker.eval()
        with torch.no_grad():
            scores = ranker(table[kept_back].long(), query_kept_back, ids, texts)
            value = click_loss(scores, shown[kept_back], clicks[kept_back], examination, log_share, 0, over_all).item()
        if progress:
            print(f"epoch {epoch + 1}: loss {value:.4f} on {len(kept_back):,} rows kept back", flush=True)
        if value < best:
            best, since = value, 0
            best_state = {name: one.clone() for name, one in ranker.state_dict().items()}
        else:
            since += 1
            if since == 4:
                break
    ranker.load_state_dict(best_state)
    with torch.no_grad():
        scores = ranker(table[kept_back].long(), query_kept_back, ids, texts)
    ranker.scale.data = calibration(scores, shown[kept_back], clicks[kept_back], examination)
    return ranker.eval()


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
        log_share: ``[intents]``.
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
