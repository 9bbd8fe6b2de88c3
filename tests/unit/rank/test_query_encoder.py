"""Queries read by another model than the features' words, as the reasoner itself; InfoNCE of queries and intents."""

from __future__ import annotations

import argparse

import numpy as np
import polars as pl
import pytest
import torch
from visits import INTENTS, visits, wanted_intents

from openrlhf_qs.clicks.click_log import SCHEMA
from openrlhf_qs.models.embedder import embed
from openrlhf_qs.rank import train
from openrlhf_qs.rank.encoder import Encoder
from openrlhf_qs.rank.fit import TEMPERATURE, train_ranker, with_queries
from openrlhf_qs.rank.impressions import Intents
from openrlhf_qs.rank.ranker import Ranker, numbered, queries_of
from openrlhf_qs.sft.small_policy import build_small_policy

NOUNS = ("kettle", "sofa", "lamp", "drone", "camera", "blender")
TEXTS = tuple(f"How do I {action} my {noun}?" for action in ("return", "repair", "clean", "sell") for noun in NOUNS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the small policy of random weights in ``reason``."""
    folder = tmp_path_factory.mktemp("run")
    asked = [{"role": "user", "content": "article: kettle\npaid: card"}]
    rows = {"conversation": [asked] * len(TEXTS), "suggestions": [[text] for text in TEXTS]}
    log = pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows})
    build_small_policy(log, folder / "reason", vocab_size=512, hidden_size=128, n_layers=1)
    return folder


def knows_little(n: int, seed: int = 0):
    """Visits of whom only a number is known that says nothing, so that all hangs on the query."""
    log = visits(n, seed)
    return type(log)([{"visits": one["visits"]} for one in log.features], *list(vars(log).values())[1:]), [
        [INTENTS.texts[intent]] for intent in wanted_intents(log)
    ]


@pytest.fixture(scope="module")
def base():
    return train_ranker(knows_little(2000)[0], INTENTS, max_epochs=2)


def right(scores: np.ndarray, queries: list[list[str]]) -> float:
    return float(np.mean([INTENTS.texts[n] == query for n, (query,) in zip(scores.argmax(1), queries, strict=True)]))


def test_hidden_states_of_a_language_model_tell_intents_apart_once_they_are_whitened(run):
    encoder = Encoder(str(run / "reason"), TEXTS)
    raw, white = torch.from_numpy(embed(encoder.model, TEXTS)).float(), encoder(TEXTS)
    nearest = [(vectors @ vectors.T - 2 * torch.eye(len(TEXTS))).max(1).values for vectors in (raw, white)]
    assert nearest[0].mean() > 0.8 and nearest[1].mean() < 0.6
    np.testing.assert_allclose(white.norm(dim=1).numpy(), 1, atol=2e-3)
    assert not encoder([" "]).any()
    assert Encoder("words", TEXTS).whitening is None


def test_the_reasoner_reads_its_queries_by_its_last_hidden_state_also_after_the_run_was_moved(run, base, tmp_path):
    log, queries = knows_little(2000)
    ranker = with_queries(base, log, queries, query_encoder=str(run / "reason"))
    new, asked = knows_little(200, seed=1)
    scores = ranker.scores(new.features, queries=asked)
    assert right(scores, asked) > 0.9
    np.testing.assert_array_equal(ranker.scores(new.features), base.scores(new.features))
    ranker.save(run / "rank")
    run.rename(tmp_path / "moved")
    moved = Ranker.load(tmp_path / "moved" / "rank")
    np.testing.assert_array_equal(moved.scores(new.features, queries=asked), scores)
    order = [3, 0, 5, 1, 4, 2]
    turned = Intents(tuple(INTENTS.ids[n] for n in order), tuple(INTENTS.texts[n] for n in order))
    np.testing.assert_allclose(moved.scores(new.features, turned, asked), scores[:, order], rtol=1e-3, atol=1e-3)
    (tmp_path / "moved").rename(run)
    with pytest.raises(ValueError, match="rank' cannot be loaded"):
        with_queries(base, log, queries, query_encoder=str(run / "rank"))


def test_by_info_nce_a_query_alone_stands_near_what_it_names_in_the_space_of_the_ranker(base):
    log, queries = knows_little(2000)
    new, asked = knows_little(200, seed=1)
    found = {}
    for coef in (0.0, 1.0):
        ranker = with_queries(base, log, queries, info_nce=coef)
        assert right(ranker.scores(new.features, queries=asked), asked) > 0.9
        found[coef] = of_query_alone(ranker, new, asked)
    # Chance is the log of a sixth, -1.8. Without it the look-up says what a query says, and z . q need not.
    assert found[1.0] > max(-0.9, found[0.0] + 0.3)


def of_query_alone(ranker: Ranker, log, queries: list[list[str]]) -> float:
    """Mean log-probability of the intent that each query names, of ``z . q`` alone, nats."""
    distinct, numbers = numbered(queries)
    with torch.no_grad():
        codes = torch.from_numpy(ranker.codes(log.features)).long()
        knowledge = ranker.base(INTENTS)
        asked = queries_of(numbers, ranker.query_encoder.kept(distinct))
        of_query = ranker(codes, knowledge, ranker.lines(codes, knowledge), asked).of_query
    wanted = torch.tensor([INTENTS.texts.index(text) for (text,) in queries])
    return float((of_query / TEMPERATURE).log_softmax(-1)[torch.arange(len(wanted)), wanted].mean())


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--query_encoder", "minilm"), "--query_encoder minilm without --queries"),
        (("--info_nce", ".5"), "--info_nce 0.5 without --queries"),
        (("--info_nce", "-1", "--queries", "q.jsonl"), "--info_nce -1.0: give a weight of at least 0"),
    ],
)
def test_what_reads_queries_is_refused_where_there_are_none(flags, what):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(["--log", "x.jsonl", "--intents", "y.jsonl", "--out", "z", *flags])
    with pytest.raises(ValueError, match=what):
        train.run(args)
