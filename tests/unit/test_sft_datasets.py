import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_qs.click_log import read_click_log
from openrlhf_qs.pairs import examination_propensities
from openrlhf_qs.plugins.sft_datasets import Diverse, word_similarity
from openrlhf_qs.registry import SFT_DATASETS
from openrlhf_qs.response import format_response, parse_response
from openrlhf_qs.sft_set import sft_candidates


def row(*candidates):
    """A row of (text, n_clicked, weight)."""
    fields = ("text", "n_shown", "n_clicked", "weight")
    values = ((text, 10, n_clicked, weight) for text, n_clicked, weight in candidates)
    return {"conversation": [], "candidates": [dict(zip(fields, value, strict=True)) for value in values]}


def test_clicked_suggestions_come_first_and_the_best_of_them_at_the_top():
    different = row(("Cheap flights?", 0, 0.9), ("Good hotels?", 1, 0.3), ("Local food?", 2, 0.5))
    assert Diverse()(different) == ["Local food?", "Good hotels?", "Cheap flights?"]


def test_a_near_duplicate_gives_way_to_a_worse_suggestion_that_differs():
    similar = row(
        ("How long should the dough rise?", 5, 0.5),
        ("How long should my dough rise?", 4, 0.49),
        ("Which flour is best?", 1, 0.1),
        ("What does salt do?", 1, 0.1),
    )
    expected = ["How long should the dough rise?", "Which flour is best?", "What does salt do?"]
    assert Diverse()(similar) == expected
    assert Diverse(diversity=0.0)(similar) == expected  # the limit holds whatever the clicks
    assert "How long should my dough rise?" in Diverse(diversity=0.0, max_similarity=1.0)(similar)


def test_diversity_weighs_clicks_against_difference():
    best, near, far = ("How do I store bread?", 9, 1.0), ("How do I freeze bread?", 8, 0.9), ("Who sells rye?", 1, 0.2)
    # third place: quality 0.9 or 0.2; similarity to the first, or to the second where that is higher
    third = ("Is oat flour healthy?", 1, 0.1)
    assert near[0] in Diverse(diversity=0.2)(row(best, near, far, third))
    assert near[0] not in Diverse(diversity=0.9)(row(best, near, far, third))


def test_a_row_that_cannot_give_three_is_dropped():
    a, b, c = ("Cheap flights?", 1, 0.5), ("Good hotels?", 0, 0.3), ("Local food?", 0, 0.2)
    assert Diverse()(row(a, b)) is None
    assert Diverse()(row()) is None
    assert Diverse()(row(a, b, ("good hotels", 0, 0.1))) is None  # the third only repeats the second
    assert Diverse()(row(a, b, ("1 + 1 = ?", 5, 0.9))) is None  # no letter
    assert Diverse()(row(("Rail pass?", 0, 0.5), b, c)) is None  # none was clicked


def test_raw_takes_what_was_clicked_and_shown_most():
    raw = SFT_DATASETS.create("raw")
    assert raw(row(("a", 0, 0.9), ("b", 2, 0.1), ("b again", 2, 0.1), ("c", 5, 0.0))) == ["c", "b", "b again"]
    assert raw(row(("a", 1, 0.9), ("b", 2, 0.1))) is None


@pytest.mark.parametrize("name", ["diverse", "raw"])
def test_every_answer_on_the_tiny_log_is_a_well_formed_response(name, tiny_log):
    log = read_click_log(tiny_log)
    answers = list(map(SFT_DATASETS.create(name), sft_candidates(log, examination_propensities(log))))
    assert all(answers)
    for answer in answers:
        assert parse_response(format_response(answer)).suggestions == tuple(answer)


@pytest.mark.parametrize("option", ["diversity", "max_similarity"])
def test_options_out_of_range_are_refused(option):
    for value in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"diverse\.{option} must be in \[0, 1\], got {value}"):
            SFT_DATASETS.create("diverse", **{option: value})


def test_word_similarity_is_the_mean_of_tokens_and_ngrams():
    # all words of the first are in the second: token_set_ratio 1; words and pairs shared: 3 + 2 of 4 + 3
    assert word_similarity("best flour bread", "The best flour, bread!") == pytest.approx((1 + 5 / 7) / 2)


@settings(max_examples=100, deadline=None)
@given(st.text(), st.text())
def test_word_similarity_is_symmetric_and_in_0_to_1(a, b):
    assert 0 <= word_similarity(a, b) <= 1
    assert word_similarity(a, b) == pytest.approx(word_similarity(b, a))


def test_the_same_words_are_alike_and_other_words_are_not():
    assert word_similarity("How long?", "how LONG") == 1
    assert word_similarity("abc def", "xyz uvw") < 0.1


def test_an_embedder_sees_two_wordings_of_one_question(monkeypatch):
    meaning = {"Cheap flights?": 0, "Affordable planes?": 0, "Good hotels?": 1, "Local food?": 2}
    loaded = []

    def model(name):
        loaded.append(name)
        return SimpleNamespace(encode=lambda texts, **_: np.eye(3)[[meaning[text] for text in texts]])

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=model))
    two_wordings = row(
        ("Cheap flights?", 5, 0.5), ("Affordable planes?", 4, 0.4), ("Good hotels?", 1, 0.1), ("Local food?", 1, 0.1)
    )
    assert "Affordable planes?" in Diverse()(two_wordings)
    by_meaning = Diverse(embedder="folder/of/a/model")
    assert loaded == []  # only when it is used
    for _ in range(2):
        assert by_meaning(two_wordings) == ["Cheap flights?", "Good hotels?", "Local food?"]
    assert loaded == ["folder/of/a/model"]


def test_an_embedder_without_its_package_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match="diverse.embedder=m: needs sentence-transformers; install it"):
        Diverse(embedder="m")(row(("a", 1, 0.5), ("b", 0, 0.1), ("c", 0, 0.1)))
