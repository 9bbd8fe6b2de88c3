import json

import pytest

from openrlhf_qs import cli
from openrlhf_qs.clicks.check import check_log
from openrlhf_qs.clicks.verdicts import worst
from openrlhf_qs.world.click_log import write_click_log


def row(n, suggestions=("How long?", "Which flour?", "Why so?"), clicks=(1, 0, 0), question="", **fields):
    return {
        "impression_id": f"i-{n}",
        "timestamp": f"2025-01-01T00:{n // 60 % 60:02}:{n % 60:02}Z",
        "conversation": [{"role": "user", "content": question or f"How do I bake bread number {n}?"}],
        "suggestions": [f"{text} {n}" for text in suggestions],
        "clicks": list(clicks),
        **fields,
    }


def checked(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return check_log([path])


def levels(found, about):
    return [one["level"] for one in found["checks"] if one["about"] == about]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / "clicks.jsonl"
    write_click_log(path, 4000, 600, seed=0)
    return path


def test_a_log_of_random_order_passes_all_that_can_be_told(world):
    found = check_log([world])
    for about in ("rows", "clicks", "pairs", "languages", "repeats", "order"):
        assert set(levels(found, about)) == {"pass"}, about
    assert levels(found, "conversations") == ["pass", "warn"]  # 600 are few for a policy of random weights
    assert found["order"] == "random" and found["languages"]["users"]["en"] > 0.9
    assert found["n_suggestions"] == {3: 4000} and found["n_conversations_again"] > 50


def test_a_log_without_a_pair_or_a_click_fails(tmp_path):
    all_clicked = checked(tmp_path / "all.jsonl", [row(n, clicks=(1, 1, 1)) for n in range(5)])
    assert levels(all_clicked, "pairs") == ["fail"] and all_clicked["verdict"] == "fail"
    none = checked(tmp_path / "none.jsonl", [row(n, clicks=(0, 0, 0)) for n in range(5)])
    assert levels(none, "clicks") == ["fail"]


def test_a_number_of_suggestions_that_no_policy_writes_unasked_is_said(tmp_path):
    rows = [row(n, "abcd" if n % 4 else "abc", [1, 0, 0, 0][: 4 if n % 4 else 3]) for n in range(20)]
    found = checked(tmp_path / "log.jsonl", rows)
    [sentence] = [one["sentence"] for one in found["checks"] if one["about"] == "suggestions"]
    assert sentence.startswith("3 to 4 per row, mostly 4") and "N_SUGGESTIONS=4" in sentence


def test_suggestions_in_another_language_are_said_with_what_that_hurts(tmp_path):
    english = ("How long must the dough rise?", "Which flour is the best one?", "Can I bake without an oven?")
    rows = [row(n, english, question="Wie backe ich zu Hause ein gutes Brot mit Sauerteig?") for n in range(100)]
    found = checked(tmp_path / "log.jsonl", rows)
    [one] = [one for one in found["checks"] if one["about"] == "languages"]
    assert one["level"] == "warn" and one["stages"] == ("sft", "garm") and "users write de (100%)" in one["sentence"]


def test_a_text_with_a_large_share_is_named(tmp_path):
    rows = [row(n) for n in range(200)]
    for one in rows[::3]:
        one["suggestions"][2] = "Tell me more"
    found = checked(tmp_path / "log.jsonl", rows)
    assert any("'Tell me more' is shown in 67 rows or more (34%)" in sentence for sentence in found["findings"])


def test_a_policy_s_rate_has_an_interval_over_impressions(tmp_path):
    rows = [row(n, clicks=(n % 2, n % 2, n % 2), policy="old") for n in range(100)]
    found = checked(tmp_path / "log.jsonl", rows)
    # all three clicks of a row fall together: 100 shows' worth of evidence, not 300
    assert found["policies"]["old"] == {
        "n_impressions": 100,
        "ctr": 0.5,
        "ctr_ci95": pytest.approx([0.4038, 0.5962], abs=1e-4),
    }


def test_the_worst_level_stands_for_all():
    assert worst([]) == "pass"


def test_the_page_says_the_same_and_escapes_what_others_wrote(tmp_path, capsys):
    path, page = tmp_path / "log.jsonl", tmp_path / "page.html"
    path.write_text("".join(json.dumps(row(n, policy="<script>alert(1)</script>")) + "\n" for n in range(20)))
    cli.main(["log", "check", str(path), "--html", str(page)])
    text = page.read_text()
    assert "&lt;script&gt;" in text and "<script>" not in text and "data:image/svg+xml;base64," in text
    assert all(word in text for word in ("pass", "warn", "examination", "fusion"))
