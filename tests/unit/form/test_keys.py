import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_qs.form.keys import (
    conversation_key,
    conversation_keys,
    root_key,
    root_keys,
    text_key,
    text_keys,
)

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
CONVERSATIONS = [
    [{"role": role, "content": content} for role, content in said]
    for said in (
        [("user", "a"), ("user", "b")],
        [("user", "a"), ("user", "b")],
        [("user", "a\nb")],
        [("user", 'a"}\n{"role":"user","content":"b')],
        [("user", "a"), ("assistant", "b")],
        [],
    )
]


def test_conversations_are_equal_only_where_roles_and_contents_are():
    keys = [conversation_key(conversation) for conversation in CONVERSATIONS]
    assert keys[0] == keys[1] and len(set(keys)) == 5


def test_a_column_has_the_keys_of_its_conversations():
    column = pl.Series(CONVERSATIONS, dtype=MESSAGES)
    assert conversation_keys(column).to_list() == [conversation_key(one) for one in CONVERSATIONS]
    assert root_keys(column).to_list() == [root_key(one) for one in CONVERSATIONS]


def test_the_turns_of_one_conversation_have_one_root():
    turns = [("user", "How  long?"), ("assistant", "An hour."), ("user", "Why?"), ("assistant", "Yeast.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    system = {"role": "system", "content": "Be short."}
    for conversation in (messages[:2], messages, [system, *messages[:2]]):
        assert root_key(conversation) == "how long?"
    assert "an hour." in root_key(messages[1:2])  # nobody asked: all of it


@pytest.mark.parametrize(
    "one, other",
    [
        ("How LONG?", " how\tlong "),
        ("What’s new?", "what's new"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "café"),
        ("مرحبا؟", "\u202bمرحبا\u202c"),
        ("soft\u00adhyphen", "softhyphen"),
    ],
)
def test_texts_that_differ_in_form_only_are_one(one, other):
    assert text_key(one) == text_key(other) != ""


@pytest.mark.parametrize("one, other", [("Is C++ hard?", "Is C hard?"), ("🍕?", "🍔?"), ("कि", "का"), ("a b", "ab")])
def test_texts_that_differ_in_a_letter_a_mark_or_a_symbol_are_two(one, other):
    assert text_key(one) != text_key(other)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_a_key_is_its_own_key(text):
    assert text_key(text_key(text)) == text_key(text)


def test_a_text_without_a_letter_keeps_its_marks_and_only_one_without_any_is_empty():
    assert text_key("???") == "???" != text_key("!!!")
    assert text_key(" \t") == ""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text()))
def test_keys_of_many_texts_are_those_of_each(texts):
    texts += [" How\x1flong ?", "ẞ and ß", "İ", "a\u3000b", "...", "", "\x7f", "A-b, c"]
    assert text_keys(pl.Series(texts, dtype=pl.String)).to_list() == list(map(text_key, texts))
