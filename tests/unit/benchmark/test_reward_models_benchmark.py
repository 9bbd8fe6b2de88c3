import numpy as np
import pytest
from scipy.special import ndtr

from openrlhf_qs.benchmark.reward_models import BEST_OF, Pairs, Task, World, best_of, make_head, measure, summary
from openrlhf_qs.registry import load_plugins

load_plugins()


class Bytes:
    """An embedder that needs no weights: how often each letter occurs."""

    tokenizer = None  # it reads any text

    def get_embedding_dimension(self):
        return 26

    def encode(self, texts, normalize_embeddings, **_):
        counts = np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], dtype=float)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def heteroscedastic(n=400, seed=0):
    """A task whose mean is the first feature and whose standard deviation grows with the second."""
    rng = np.random.default_rng(seed)
    features = rng.uniform(-1, 1, (n, 4)).astype(np.float32)
    gold, spread = 2 * features[:, 0].astype(float), np.exp(1.5 * features[:, 1].astype(float))

    def pairs(n_pairs):
        a, b = rng.integers(n, size=(2, n_pairs))
        first = rng.random(n_pairs) < ndtr((gold[a] - gold[b]) / np.hypot(spread[a], spread[b]))
        ones = np.ones(n_pairs)
        return Pairs(np.where(first, a, b), np.where(first, b, a), ones, ones)

    return Task(features, pairs(8000), {"in": pairs(4000)}, (gold, spread), {"in": (np.arange(n), [np.arange(n)])})


def test_the_gaussian_head_finds_who_is_uncertain_and_bradley_terry_cannot():
    task = heteroscedastic()
    gaussian, scalar = (
        measure(task, head, n_steps=400, seed=0) for head in ("gaussian:kl=0.01:beta=0", "bradley_terry")
    )
    assert gaussian["sigma_rank.in"] > 0.6 and scalar["sigma_rank.in"] == 0
    assert gaussian["nll.in"] < scalar["nll.in"]
    assert {f"best_of_{n}.in" for n in BEST_OF} <= gaussian.keys()


def test_the_same_seed_gives_the_same_figures():
    task = heteroscedastic()
    assert measure(task, "dpl", 20, seed=3) == measure(task, "dpl", 20, seed=3)


def test_best_of_n_with_the_truth_is_the_expected_maximum():
    rng = np.random.default_rng(0)
    gold = rng.uniform(size=5000)
    assert best_of(gold, gold, 4, seed=0) == pytest.approx(4 / 5, abs=0.03)  # of n uniforms: n / (n + 1)
    assert best_of(rng.uniform(size=5000), gold, 4, seed=0) == pytest.approx(0.5, abs=0.06)


def test_the_world_knows_its_truth_and_keeps_other_domains_apart():
    world = World(Bytes(), n_contexts=40)
    task = world.task(seed=0)
    gold, spread = task.truth
    groups = [set(np.concatenate([pairs.chosen, pairs.rejected])) for pairs in (task.train, *task.tests.values())]
    assert sum(map(len, groups)) == len(set().union(*groups))  # no suggestion in two of them
    for pairs in (task.train, *task.tests.values()):
        assert (world.context[pairs.chosen] == world.context[pairs.rejected]).all()
    # the share of users who prefer the better one is that of two Gaussians
    c, r = task.train.chosen, task.train.rejected
    expected = ndtr(np.abs(gold[c] - gold[r]) / np.hypot(spread[c], spread[r])).mean()
    assert np.mean(np.where(gold[c] == gold[r], 0.5, gold[c] > gold[r])) == pytest.approx(expected, abs=0.1)


def test_the_summary_is_mean_and_deviation_over_seeds():
    found = summary([{"nll.in": 1.0}, {"nll.in": 3.0}])
    assert found == {"nll.in": {"mean": 2.0, "std": pytest.approx(2**0.5)}}
    assert summary([{"nll.in": 1.0}])["nll.in"]["std"] == 0


def test_a_head_is_named_with_its_options():
    head = make_head("gaussian:link=mackay:gauge=0.5")
    assert (head.link, head.gauge) == ("mackay", 0.5)
    with pytest.raises(ValueError, match="unknown reward model 'gausian'"):
        make_head("gausian")
