import json

import polars as pl
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


def test_what_too_few_rows_cannot_tell_is_no_pass(tmp_path):
    few, enough = ([row(n) for n in range(n_rows)] for n_rows in (99, 100))
    assert levels(checked(tmp_path / "few.jsonl", few), "repeats") == ["unknown"]
    assert levels(checked(tmp_path / "few.jsonl", few), "languages") == ["unknown"]
    assert levels(checked(tmp_path / "enough.jsonl", enough), "repeats") == ["pass"]


def test_an_estimator_that_stops_the_stage_data_fails(tmp_path):
    path = tmp_path / "log.jsonl"
    checked(path, [row(n) for n in range(5)])
    found = check_log([path], propensity="harvest")
    [one] = [one for one in found["checks"] if one["about"] == "examination"]
    assert (one["level"], one["stages"]) == ("fail", ("data",)) and one["sentence"].startswith("harvest: no clicks on")


@pytest.mark.parametrize(
    ("fields", "level", "sentence"),
    [
        ({"userid": "a"}, "warn", "'userid' is not read; did you mean user_id?"),
        ({"user_id": "a", "userid": "a"}, "pass", "with user_id; not read: 'userid'"),
        ({"session": 1, "topic": 2}, "pass", "only the required ones are read; not read: 'session', 'topic'"),
        (
            dict.fromkeys("zyxwvut"),
            "pass",
            "only the required ones are read; not read: 't', 'u', 'v', 'w', 'x' and 2 more",
        ),
        ({"policy": "p", "meta": {"userid": "a"}}, "pass", "with policy, meta"),
    ],
)
def test_a_field_that_is_nearly_an_optional_one_is_said(tmp_path, fields, level, sentence):
    rows = [row(0), row(1, **fields)]
    found = checked(tmp_path / "log.jsonl", rows)
    assert [(one["level"], one["sentence"]) for one in found["checks"] if one["about"] == "fields"] == [
        (level, sentence)
    ]
    pl.DataFrame([{**row(0), **fields}], strict=False).write_parquet(tmp_path / "log.parquet")
    assert check_log([tmp_path / "log.parquet"])["fields"] == found["fields"]


@pytest.mark.parametrize("sign", ["\x00", "\x1b", "\x7f", "\x9b", "\u202d", "\u202e"])
def test_what_moves_a_cursor_or_turns_text_round_in_a_suggestion_is_said(tmp_path, sign):
    rows = [row(0), row(1, (f"How{sign} long?", f"{sign}Why?", "Which flour?")), row(2, question=f"How{sign}?")]
    found = checked(tmp_path / "log.jsonl", rows)
    assert found["n_control"] == 1 and levels(found, "suggestions") == ["pass", "warn"]
    assert any(one.startswith("1 row with a control character") for one in found["findings"])


def test_marks_that_texts_of_some_scripts_need_are_no_control_characters(tmp_path):
    texts = ("\u200fمرحبا؟", "\u2067שלום\u2069?", "می\u200cخواهم\t?")
    assert checked(tmp_path / "log.jsonl", [row(0, texts)])["n_control"] == 0


def test_the_exit_status_says_what_was_found_where_it_is_asked_to(tmp_path, capsys):
    warn, fail = tmp_path / "warn.jsonl", tmp_path / "fail.jsonl"
    assert checked(warn, [row(n) for n in range(5)])["verdict"] == "warn"
    assert checked(fail, [row(n, clicks=(0, 0, 0)) for n in range(5)])["verdict"] == "fail"
    for path in (warn, fail):
        cli.main(["log", "check", str(path)])
    cli.main(["log", "check", str(warn), "--fail_on", "fail"])
    for path, level in ((warn, "warn"), (fail, "warn"), (fail, "fail")):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(["log", "check", str(path), "--fail_on", level, "--json"])
        assert stop.value.code == 1 and json.loads(capsys.readouterr().out)["verdict"] == path.stem


def test_rates_per_suggestion_are_called_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    checked(tmp_path / "log.jsonl", [row(n, policy="old") for n in range(5)])
    cli.main(["log", "check", str(tmp_path / "log.jsonl")])
    shown = [line for line in capsys.readouterr().out.splitlines() if "0.3333" in line]
    # one click on three suggestions; a user clicks under every impression
    assert len(shown) == 2 and all("CTR per suggestion" in line for line in shown)


def test_the_worst_level_stands_for_all():
    assert worst([]) == "pass"


def test_the_page_says_the_same_and_escapes_what_others_wrote(tmp_path, capsys):
    path, page = tmp_path / "log.jsonl", tmp_path / "page.html"
    path.write_text("".join(json.dumps(row(n, policy="<script>alert(1)</script>")) + "\n" for n in range(20)))
    cli.main(["log", "check", str(path), "--html", str(page)])
    text = page.read_text()
    assert "&lt;script&gt;" in text and "<script>" not in text and "data:image/svg+xml;base64," in text
    assert all(word in text for word in ("pass", "warn", "examination", "fusion"))
