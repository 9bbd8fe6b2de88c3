import numpy as np
import pytest
from held_out import conversation, impression

from openrlhf_qs.evaluation.arms import Shown, clicked_suggestions
from openrlhf_qs.evaluation.quality import quality_change, response_quality
from openrlhf_qs.statistics.clusters import Clusters


def test_quality_by_hand():
    rows = [
        Shown(conversation(0), ["bake the bread", "Bake the bread!", "buy flour"], True, 1.0),
        Shown(conversation(1), ["why"], False, 2.0),
    ]
    quality = response_quality(rows, clicked_suggestions([impression(0, ["buy flour", "sleep"], [1, 0])]))
    assert quality["n_responses"] == 2 and quality["malformed"] == 0.5
    assert quality["near_duplicates"] == 0.5  # the first two say the same but for case and mark
    assert quality["distinct_1"] == pytest.approx(6 / 9)  # bake the bread buy flour why, of 3 + 3 + 2 + 1
    assert quality["distinct_2"] == pytest.approx(3 / 5)  # bake-the the-bread buy-flour, of 2 + 2 + 1
    assert quality["words"] == pytest.approx(9 / 4)
    assert quality["n_likeness"] == 3  # nothing was clicked under the second conversation
    assert quality["log_ppl"] == 1.5
    assert quality["self_similarity"] == pytest.approx(1 / 3)  # one of three pairs is the same
    assert quality["same_meaning"] is None  # nobody looked at the meaning


def test_same_meaning_is_the_share_of_responses_with_two_of_one_direction():
    directions = {"a": [1, 0], "b": [0, 1], "c": [0.8, 0.6], "d": [0.6, 0.8]}

    class Embedder:
        tokenizer = None

        def get_embedding_dimension(self):
            return 2

        def encode(self, texts, **_):
            return np.array([directions[text] for text in texts], dtype=np.float32)

    def share(*responses):
        rows = [Shown(conversation(n), texts, True) for n, texts in enumerate(responses)]
        return response_quality(rows, {}, Embedder())["same_meaning"]

    assert share("abb", "abd", "bca", "a", "") == 0.2  # the nearest others: 0.8, 0.8, none, none
    assert share("acd", "abc") == 0.5  # c and d: 0.96
    assert share() is None


def test_likeness_is_one_for_the_clicked_text_itself_and_takes_the_nearest():
    clicked = clicked_suggestions([impression(0, ["buy flour", "zzz"], [1, 1]), impression(1, ["no"], [0])])
    assert response_quality([Shown(conversation(0), ["Buy flour?"], True)], clicked)["likeness"] == 1.0
    assert response_quality([Shown(conversation(0), ["qqq"], True)], clicked)["likeness"] == 0.0
    assert response_quality([Shown(conversation(1), ["no"], True)], clicked)["likeness"] is None


def test_an_arm_that_says_nothing_has_no_figures_but_is_malformed():
    quality = response_quality([Shown(conversation(0), [], False)], {})
    assert quality["malformed"] == 1.0 and quality["near_duplicates"] == 0.0
    assert [quality[key] for key in ("distinct_1", "distinct_2", "words", "likeness", "log_ppl")] == [None] * 5


def test_a_change_has_the_interval_of_the_difference_over_conversations():
    n = 40
    texts = ["How do I bake bread?", "Which flour is best?", "What does rye cost?"]
    before = [Shown(conversation(i), texts, i % 4 > 0, 1.0 + i % 2) for i in range(n)]  # malformed: 10 of 40
    after = [Shown(conversation(i), texts, True, 1.5 + i % 2) for i in range(n)]
    found = quality_change(before, after, {}, Clusters.of(range(n)))
    # malformed: differences -1 (10 times) and 0; mean -.25, error sqrt(.1875 / 39), t(.975, 39) = 2.0227
    half = 2.0227 * (0.1875 / 39) ** 0.5
    assert found["malformed"] == pytest.approx([-0.25 - half, -0.25 + half], abs=1e-4)
    assert found["log_ppl"] == pytest.approx([0.5, 0.5])  # everywhere by the same
    assert found["self_similarity"] == found["near_duplicates"] == [0.0, 0.0] and "likeness" not in found
    assert found["distinct_2"] == [0.0, 0.0]
    assert quality_change(before, after, {}, Clusters.of([0] * n)) == {}


def test_equal_policies_change_surely_no_more_often_than_they_should():
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(30)]
    n, sure = 100, dict.fromkeys(("malformed", "near_duplicates", "self_similarity", "distinct_2"), 0)
    for _ in range(100):
        arms = [
            [
                Shown(conversation(i), [" ".join(rng.choice(words, 4)) for _ in range(3)], bool(rng.random() < 0.8))
                for i in range(n)
            ]
            for _ in range(2)
        ]
        found = quality_change(*arms, {}, Clusters.of(range(n)))
        for key in sure:
            low, high = found.get(key, (0, 0))
            sure[key] += low > 0 or high < 0
    assert all(times <= 11 for times in sure.values()), sure  # 5 of 100; 11 or more in 1 % of such tests


def test_a_figure_that_is_surely_other_has_an_interval_on_its_side():
    before = [Shown(conversation(i), [f"a{i} b{i}", f"c{i} d{i}"], True) for i in range(60)]
    after = [Shown(conversation(i), ["always the same", "always the same"], True) for i in range(60)]
    found = quality_change(before, after, {}, Clusters.of(range(60)))
    assert found["distinct_2"][1] < -0.9 and found["near_duplicates"][0] == 1.0
