"""The baselines of the A/B test: the log's favourites, and the best of several samples."""

from __future__ import annotations

import math

from openrlhf_qs.evaluation.baselines import best_of, most_clicked


def asked(text):
    return [{"role": "user", "content": text}]


def candidate(text, n_clicked, n_shown=9):
    return {"text": text, "n_shown": n_shown, "n_clicked": n_clicked}


def test_what_was_clicked_most_under_the_nearest_conversations_is_shown_once():
    rows = [
        {
            "conversation": asked("How do I bake bread?"),
            "candidates": [
                candidate("Which flour is best?", 5),
                candidate("which flour is best", 4),  # says the same, so it is left out
                candidate("How long must it rise?", 3),
                candidate("Where is the oven?", 1),
            ],
        },
        {"conversation": asked("Which car is cheap?"), "candidates": [candidate("Is it electric?", 9)]},
    ]
    shown = most_clicked(rows, [asked("May I bake bread with rye?"), asked("Is a used car cheap?")], 3)
    assert shown == [["Which flour is best?", "How long must it rise?", "Where is the oven?"], ["Is it electric?"]]


def test_a_conversation_about_nothing_in_the_log_gets_nothing():
    rows = [{"conversation": asked("bread"), "candidates": [candidate("Which flour?", 5)]}]
    assert most_clicked(rows, [asked("xyzzy")], 3) == [[]]


def test_the_best_of_a_group_is_that_with_the_largest_total_and_a_failed_one_never_is():
    # groups 7 and 2: of rows 0, 2, 3 the totals are nan, 1, 0.5; of rows 1, 4 they are -3 and -2
    assert best_of([math.nan, -3.0, 1.0, 0.5, -2.0], [7, 2, 7, 7, 2]) == [2, 4]
    assert best_of([math.nan], [0]) == [0]
