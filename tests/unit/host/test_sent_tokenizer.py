import pickle

from openrlhf_qs.host.sent_tokenizer import SentTokenizer


class Tokenizer:
    n_built = 0

    def __init__(self, words):
        self.words = words

    def __reduce__(self):
        return build, (self.words,)


def build(words):
    Tokenizer.n_built += 1
    return Tokenizer(words)


def test_a_tokenizer_is_built_once_however_often_it_arrives_and_another_is_not_taken_for_it():
    a, b = ([pickle.dumps(SentTokenizer(Tokenizer(words))) for _ in range(3)] for words in ("ab", "cd"))
    arrived = [pickle.loads(one) for one in a]
    assert arrived[0].words == "ab" and arrived[0] is arrived[1] is arrived[2] and Tokenizer.n_built == 1
    assert [pickle.loads(one).words for one in (*b, *a)] == ["cd"] * 3 + ["ab"] * 3
