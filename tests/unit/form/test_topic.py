import pytest

from openrlhf_qs.form.topic import on_topic

BREAD = [
    {"role": "user", "content": "What is the best way to bake bread at home?"},
    {"role": "assistant", "content": "Use strong flour and let the dough rest overnight."},
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Which flours do bakers use?", True),  # a form of a word of the answer, and of one of the question
        ("Can I freeze breads?", True),
        ("What is the best way to learn chess?", False),  # "best way" stands under anything
        ("How do I use it?", False),
        ("", False),
    ],
)
def test_a_suggestion_is_on_the_topic_where_a_word_of_the_conversation_comes_back(text, expected):
    assert on_topic(BREAD, text) is expected


def test_it_holds_in_other_languages():
    german = [{"role": "user", "content": "Wie pflege ich meine Zimmerpflanzen im Winter?"}]
    assert on_topic(german, "Brauchen Pflanzen im Winter Dünger?")
    assert not on_topic(german, "Wie komme ich nach Paris?")
