"""Zero-query logs and knowledge bases: read, and refused with a reason."""

from __future__ import annotations

import json

import numpy as np
import pytest
from visits import INTENTS, visits, write

from openrlhf_qs.rank.impressions import FeatureCodes, in_words, read_impressions, read_intents


def test_a_log_is_read_as_it_was_written_and_its_examination_estimated(tmp_path):
    log = visits(4000)
    clicks, base = write(tmp_path, log)
    read = read_impressions(clicks, read_intents(base), "ctr")
    assert (read.shown == log.shown).all() and (read.clicks == log.clicks).all()
    assert list(read.features) == list(log.features)
    np.testing.assert_allclose(read.examination, [1.0, 0.6, 0.3], atol=0.12)


def test_where_the_order_was_random_the_click_rate_of_a_place_says_how_much_it_is_looked_at(tmp_path):
    clicks, base = write(tmp_path, visits(4000))
    rows = [json.loads(line) | {"policy": "shuffled"} for line in clicks.read_text().splitlines()]
    clicks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    intents = read_intents(base)
    found = read_impressions(clicks, intents).examination
    np.testing.assert_array_equal(found, read_impressions(clicks, intents, "ctr").examination)
    np.testing.assert_allclose(found, [1.0, 0.6, 0.3], atol=0.12)


def test_suggestions_may_be_ids_of_intents(tmp_path):
    clicks, base = write(tmp_path, visits(20, n_users=4))
    text = clicks.read_text()
    for key, words in zip(INTENTS.ids, INTENTS.texts, strict=True):
        text = text.replace(words, key)
    clicks.write_text(text)
    assert (read_impressions(clicks, read_intents(base), "none").shown == visits(20, n_users=4).shown).all()


def test_an_intent_that_is_not_in_the_knowledge_base_is_named_with_its_row(tmp_path):
    clicks, base = write(tmp_path, visits(30))
    clicks.write_text(clicks.read_text().replace("How do I repair my lamp?", "What is love?"))
    with pytest.raises(ValueError, match="shows 'What is love[?]', which is not an intent; add it or drop the row"):
        read_impressions(clicks, read_intents(base))


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"id": "a"}, "base.jsonl:2: intent 'a' has the text None; give one line of text"),
        ({"id": "a", "text": "  "}, "has the text '  '"),
        ({"id": 4, "text": "Why?"}, "id 4; give it as text"),
        ({"id": "first", "text": "Why?"}, "is also in line 1"),
        ({"id": "a", "text": "How?"}, "is also in line 1"),
    ],
)
def test_an_intent_without_a_text_or_that_stands_twice_is_refused_with_its_line(tmp_path, row, what):
    base = tmp_path / "base.jsonl"
    base.write_text(json.dumps({"id": "first", "text": "How?"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError) as error:
        read_intents(base)
    assert what in str(error.value)


def test_features_that_training_did_not_have_are_zero_and_another_type_is_an_error():
    codes = FeatureCodes.of([{"seller": "near", "age": 30}, {"seller": "far", "age": 50}])
    assert codes([{"seller": "elsewhere", "new": "x"}]).tolist() == [[0, 0]]
    assert codes([{"seller": "far", "age": 31.0}])[0, 1] == 1
    assert len({int(codes([{"age": age}])[0, 0]) for age in (20, 60)}) == 2
    with pytest.raises(ValueError, match="feature 'age' is 'young', but training had numbers"):
        codes([{"age": "young"}])
    with pytest.raises(ValueError, match="row 2: feature 'seller' is 3, but training had text; give the same kind"):
        codes([{"seller": "far"}, {"seller": 3}])
    with pytest.raises(ValueError, match=r"feature 'seller' is \['near'\]; give text, a number, true or false"):
        codes([{"seller": ["near"]}])


def test_a_feature_that_is_text_here_and_a_number_there_is_refused_before_training():
    with pytest.raises(ValueError, match=r"'age' is text in some rows \('three'\) and a number in others \(3\)"):
        FeatureCodes.of([{"age": 3}, {"age": "three"}])


def test_the_words_of_features_do_not_hang_on_their_order():
    assert in_words({"b": 1, "a": "x"}) == in_words({"a": "x", "b": 1, "c": None}) == "a: x\nb: 1"


def test_halves_are_of_users_and_do_not_hang_on_the_other_rows():
    log = visits(500)
    half = log.half(0)
    assert 0.3 < half.mean() < 0.7
    by_user = {}
    for user, own in zip(log.users, half, strict=True):
        assert by_user.setdefault(user, own) == own
    assert (log[np.arange(100, 200)].half(0) == half[100:200]).all()


def test_a_cut_by_time_leaves_a_click_on_both_sides_or_says_so():
    log = visits(100)
    before, after = log.by_time(0.2)
    assert len(before) == 80 and max(before.times) < min(after.times)
    log.clicks[80:] = 0
    with pytest.raises(ValueError, match="no click after it in 100 rows"):
        log.by_time(0.2)
