"""What ``benchmark cold-start`` says of answers: of the first and of the chosen ones, by rules and by an embedder."""

import numpy as np

from openrlhf_qs.benchmark.cold_start import Near, conversations, judged, taken
from openrlhf_qs.models.engine import Answer


class Words:
    """An embedder that needs no weights: which of a few words a text has."""

    tokenizer = None  # it reads any text
    known = ("bread", "cat", "tax", "moon")

    def get_embedding_dimension(self):
        return len(self.known)

    def encode(self, texts, **_):
        vectors = np.array([[word in text.lower() for word in self.known] for text in texts], dtype=float)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def asked(*words):
    return [[{"role": "user", "content": f"Tell me of my {word}."}] for word in words]


def answer(*texts):
    return Answer("\n".join(f"{n}. {text}" for n, text in enumerate(texts, start=1)), "stop", [], [])


def test_an_answer_is_near_where_all_three_are_nearer_to_their_own_conversation_than_to_the_others():
    near = Near(Words(), asked("bread", "cat", "tax", "moon"))
    told = judged(
        asked("bread", "cat", "tax", "moon"),
        [
            ("How old is bread?", "Is bread good?", "Why bread?"),
            ("How old is a cat?", "Is bread good?", "Why a cat?"),  # one is nearer to another conversation
            "no answer",
            ("What is it?", "Why?", "How?"),  # as near to all
        ],
        near,
    )
    # one of the three well-formed answers
    assert told["all_near"] == 0.333
    assert told["well_formed"] == 0.75 and told["all_on_topic"] == 0.25


def test_a_suggestion_may_be_nearer_to_one_conversation_in_twenty():
    # 21 conversations: one's own, and 20 others, of which 19 must be farther
    near = Near(Words(), asked("bread", "bread and cat", *["cat"] * 19))
    assert near([1], ["Is bread good?"]).tolist() == [True]  # only the first is nearer
    near = Near(Words(), asked("bread", "bread", "bread and cat", *["cat"] * 18))
    assert near([2], ["Is bread good?"]).tolist() == [False]


def test_without_an_embedder_or_a_well_formed_answer_nothing_is_said_of_nearness():
    assert "all_near" not in judged(asked("bread"), [("What?", "Why?", "How?")])
    assert "all_near" not in judged(asked("bread"), ["malformed"], Near(Words(), asked("bread")))


def test_the_first_of_several_answers_is_judged_as_an_answer_alone():
    answers = [[answer("How old is bread?", "Is bread old?", "Is bread old?"), answer("Why bread?", "A?", "B?")]]
    first, best = (taken(asked("bread"), answers, n)[0] for n in (1, 2))
    assert first == "malformed answer: two equal texts"
    assert len(best) == 3 and "Why bread?" in best


def test_three_hundred_conversations_are_asked_no_two_alike():
    texts = [str(one) for one in conversations()]
    assert len(texts) == len(set(texts)) == 300
