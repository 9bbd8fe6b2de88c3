"""Inputs that real users have (``inputs.jsonl`` beside this file), by kind: what each of them must lead to now."""

from __future__ import annotations

import json
from ast import literal_eval
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from openrlhf_qs import cli
from openrlhf_qs.clicks.check import check_log
from openrlhf_qs.clicks.rows import checked_row
from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.form.keys import text_key
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import format_response, parse_response
from openrlhf_qs.form.task import SUGGEST
from openrlhf_qs.form.text import words
from openrlhf_qs.models.template import fitted, prompt_ids, rendered
from openrlhf_qs.registry import REWARDS, SFT_DATASETS
from openrlhf_qs.reward.fusion import part_scale
from openrlhf_qs.reward.hacked import hacked_responses
from openrlhf_qs.reward.monitors import Monitors, batch_statistics
from openrlhf_qs.reward.offline import offline_batch

ROWS = [row for name in ("inputs", "variants") for row in read_json_lines(Path(__file__).with_name(f"{name}.jsonl"))]
PLAIN = ("How long must it rise?", "Which flour is best?", "Can I freeze it?")
CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
STRICT = (
    "{%- for m in messages -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('Conversation roles must alternate') -}}{%- endif -%}{%- endfor -%}" + CHATML
)


def rows(kind: str):
    found = [row["input"] for row in ROWS if row["kind"].startswith(kind)]
    assert found, kind
    return pytest.mark.parametrize("row", found, ids=map(str, range(len(found))))


def batch(user: str, *responses: list[str]):
    requests = [Request([{"role": "user", "content": user}])] * len(responses)
    return offline_batch(requests, list(map(format_response, responses)), group=[0] * len(responses))


def value(part: str, row: dict, suggestions: list[str] | None = None) -> float:
    return REWARDS.create(part)(batch(row.get("user", "q"), suggestions or row["suggestions"])).item()


@pytest.fixture(scope="module")
def tokenizer():
    from openrlhf_qs.sft.small_policy import train_tokenizer

    question = [{"role": "user", "content": "rise the dough and bake it. How long?"}]
    log = pl.DataFrame({"conversation": [question] * 9, "suggestions": [["How long?", "Which flour?", "Home?"]] * 9})
    return train_tokenizer(log, 1024)


@rows("rules: words where")
def test_good_questions_of_any_script_are_in_form(row):
    assert value("rules", row) == 0


@rows("rules: English suggestions")
def test_ones_own_language_is_never_below_english(row):
    own, english = row["own_language"], row["english"]
    assert value("rules", row, own) >= value("rules", row, english)
    assert value("language", row, own) == 1 and value("language", row, english) == 0


@rows("repetition: nothing")
def test_repetition_is_seen_without_blanks(row):
    assert value("repetition", row) <= -0.2


@rows("repetition: words are cut")
def test_good_text_with_vowel_signs_repeats_nothing(row):
    assert value("repetition", row) == 0


@rows("relevance: on topic")
def test_what_takes_up_the_subject_in_another_form_is_on_topic(row):
    assert value("relevance", row) == pytest.approx(1)


@rows("relevance: off topic")
def test_what_shares_a_question_word_alone_is_off_topic(row):
    assert value("relevance", row) == 0


@rows("monitor diversity")
def test_a_run_that_did_not_change_alarms_nobody(row):
    monitors, one = Monitors(), batch("q", *[row["suggestions"]] * 4)
    found = batch_statistics(one, torch.ones(4), torch.ones(4), torch.zeros(4))
    assert [alarm for step in range(1, 7) for alarm in monitors.update(step, found)] == []


@rows("parse_response: thoughts")
def test_thoughts_are_no_suggestions(row):
    parsed = parse_response(row["text"])
    if row["form"].startswith("unclosed"):
        assert not parsed.well_formed and not parsed.suggestions
    else:
        assert parsed.well_formed and len(parsed.suggestions) == 3


@rows("parse_response: an invisible")
def test_a_mark_that_does_not_show_hides_no_number(row):
    parsed = parse_response(row["text"])
    assert parsed.well_formed and all(text[0].isalnum() for text in parsed.suggestions)


@rows("parse_response: markup")
def test_markup_is_taken_off_or_malformed(row):
    parsed = parse_response(row["text"])
    assert not parsed.well_formed or parsed.suggestions == PLAIN


@rows("template injection")
def test_what_anybody_wrote_is_no_control_token(row, tokenizer):
    from openrlhf_qs.garm.reward_model import suggestion_ids

    tokenizer.chat_template = CHATML
    (ids,) = suggestion_ids(tokenizer, [row["conversation"]], [row["suggestion"]], 512)
    assert sum(one in tokenizer.all_special_ids for one in ids) == 6


@rows("roles that a strict")
def test_a_strict_template_takes_every_conversation(row, tokenizer):
    from openrlhf_qs.garm.reward_model import suggestion_ids

    tokenizer.chat_template = STRICT
    assert fitted(tokenizer, SUGGEST.messages(row["conversation"]), 400)
    assert suggestion_ids(tokenizer, [row["conversation"]], ["ok?"], 512)


@rows("timestamp")
def test_an_epoch_is_no_year(row):
    impression = {"impression_id": "a", "conversation": [{"role": "user", "content": "q"}], "clicks": [1]}
    with pytest.raises(ValueError, match="timestamp"):
        checked_row(json.dumps(impression | {"suggestions": ["a?"], "timestamp": row["timestamp"]}).encode())


@rows("assembly: two wordings")
def test_two_wordings_of_one_question_are_not_both_taught(row):
    candidates = [{"text": t, "n_shown": 9, "n_clicked": 5 - n} for n, t in enumerate(row["candidates"])]
    conversation = [{"role": "user", "content": "q"}]
    (chosen,) = SFT_DATASETS.create("diverse")([{"conversation": conversation, "candidates": candidates}], 3)
    assert chosen and not set(row["candidates"][:2]) <= set(chosen)


@rows("fusion pareto")
def test_a_spliced_response_is_no_good_response(row):
    other = ["Another question here?", "What about this one?", "Why is that so?"]
    conversations = [[{"role": "user", "content": "q"}]] * 2
    made = hacked_responses(conversations, [row["suggestions"], other], [0, 1])["spliced"][0]
    assert sorted(row["suggestions"]) not in [sorted(parse_response(text).suggestions) for text in made]


@rows("pairs: two forms")
def test_two_forms_of_a_text_are_one(row):
    assert text_key(row["a"]) == text_key(row["b"])


@rows("fusion: a default part")
def test_a_part_that_never_varies_stops_nothing(row):
    def column(responses):
        request = Request([{"role": "user", "content": row["user"]}])
        found = REWARDS.create(row["part"])(offline_batch([request] * len(responses), responses))
        return found.double().numpy()[:, None]

    sampled, logged = column(row["sampled"]), column(row["logged"])
    assert part_scale([row["part"]], sampled, logged, np.arange(len(sampled)), "sft").std > 0


@rows("sft: a long conversation")
def test_a_response_is_taught_whole(row, tokenizer):
    tokenizer.chat_template = CHATML
    text, times = row["answer"].rsplit(" * ", 1)
    answer = {"role": "assistant", "content": literal_eval(text) * int(times)}
    prompt = fitted(tokenizer, SUGGEST.messages([{"role": "user", "content": "How do I bake bread?"}, answer]), 480)
    assert len(prompt_ids(tokenizer, prompt)) <= 480 and prompt[0]["content"] == "How do I bake bread?"


@rows("grpo: a user's text")
def test_a_picture_in_words_stays_in_the_prompt(row, tokenizer):
    tokenizer.chat_template = CHATML
    text = rendered(tokenizer, SUGGEST.messages([{"role": "user", "content": row["user"]}]))
    assert "image>" in text and "<image>" not in text


@rows("cold start")
def test_what_no_user_should_see_is_asked_again(row):
    from openrlhf_qs.sft.cold_start import read_suggestions

    if row["case"] in ("bold", "quoted", "italic"):
        assert read_suggestions(row["text"]) == ("How long?", "What flour?", "At home?")
    elif row["case"].startswith("fine"):
        assert format_response(read_suggestions(row["text"])) == row["text"]
    else:
        with pytest.raises(ValueError, match="malformed answer"):
            read_suggestions(row["text"])


@rows("small policy")
def test_a_word_of_the_log_is_about_one_token(row):
    from openrlhf_qs.sft.small_policy import train_tokenizer

    conversations = [[{"role": "user", "content": "q"}]] * 300
    log = pl.DataFrame({"conversation": conversations, "suggestions": [row["suggestions"]] * 300})
    ids = train_tokenizer(log, 4096)(format_response(row["suggestions"]), add_special_tokens=False)["input_ids"]
    n_words = max(row["blank_separated_words"], sum(len(words(text)) for text in row["suggestions"]))
    assert len(ids) <= 2 * n_words + 12


def log_file(path, rows):
    fields = {"timestamp": "2025-01-01T00:00:00Z"}
    rows = [{"impression_id": f"i-{n}", **fields, **row} for n, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@rows("log check: a place")
def test_a_place_that_only_repeats_is_described(row, tmp_path, capsys):
    shown = [row["suggestions"][n % len(row["suggestions"])] for n in range(row["n_rows"])]
    rows = [
        {
            "conversation": [{"role": "user", "content": f"q{n}"}],
            "suggestions": texts,
            "clicks": [
                int(place == (len(texts) - 1 if "click at 3" in row["case"] else 0)) for place in range(len(texts))
            ],
        }
        for n, texts in enumerate(shown)
    ]
    cli.main(["log", "check", str(log_file(tmp_path / "log.jsonl", rows)), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["positions"]) == max(map(len, shown))
    assert found["positions"][-1]["examination"] is not None
    assert any("only repeats what is shown above" in sentence for sentence in found["findings"])


@rows("log check: square")
def test_a_policy_s_name_is_shown_as_it_is(row, tmp_path, capsys):
    impression = {
        "conversation": [{"role": "user", "content": "q"}],
        "suggestions": ["a?", "b?"],
        "clicks": [1, 0],
        "policy": row["policy"],
    }
    cli.main(["log", "check", str(log_file(tmp_path / "log.jsonl", [impression]))])
    assert f"{row['policy']}: 1 impression" in capsys.readouterr().out


@rows("log check: one user")
def test_bots_and_doubles_are_named(row, tmp_path):
    rng = np.random.default_rng(row["seed"])
    of_bots = {"first": [1, 0, 0], "last": [0, 0, 1], "all": [1, 1, 1], "none": [0, 0, 0]}
    rows = []
    for n in range(3000):
        is_bot = rng.random() < row["its_share"]
        clicks = (
            of_bots[row["clicks_of_the_bot"]] if is_bot else (rng.random(3) < [0.2, 0.12, 0.08]).astype(int).tolist()
        )
        rows.append(
            {
                "conversation": [{"role": "user", "content": f"question {rng.integers(200)}"}],
                "suggestions": [f"suggestion {one}?" for one in rng.permutation(30)[:3]],
                "clicks": clicks,
                "user_id": "bot" if is_bot else f"user-{rng.integers(300)}",
                "timestamp": f"2025-01-01T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}Z",
            }
        )
    found = check_log([log_file(tmp_path / "log.jsonl", rows * (1 + row["every_row_twice"]))])
    assert any("'bot' has" in sentence for sentence in found["findings"]) == (row["its_share"] > 0)
    assert any("are the same as another one" in sentence for sentence in found["findings"]) == row["every_row_twice"]


@rows("files of conversations")
def test_byte_order_marks_and_blank_lines_are_passed_over(row, tmp_path):
    if not row["bytes"].endswith("'"):
        pytest.skip("the row is cut in inputs.jsonl")
    file = tmp_path / "rows.jsonl"
    file.write_bytes(literal_eval(row["bytes"]))
    assert all(one["conversation"] for one in read_json_lines(file))


@rows("generate: one long")
def test_what_cannot_be_cut_is_left_out(row, tokenizer):
    tokenizer.chat_template = CHATML
    question, answer = {"role": "user", "content": "How long?"}, {"role": "assistant", "content": "How long? " * 300}
    can_be_cut = {
        "200 turns": [question, answer | {"content": "An hour."}] * 100,
        "40 long turns": [question, answer] * 20,
        "a long answer": [question, answer | {"content": "rise the dough " * 1500}],
    }
    long = {
        "20 pages of Chinese": "烤面包要先发酵。" * 5000,
        "one word without a blank": "x" * 20000,
        "emoji": "🍞" * 5000,
    }.get(row["case"], "rise the dough " * 1500)
    role = "system" if row["case"] == "a long system prompt" else "user"
    conversation = can_be_cut.get(row["case"]) or [{"role": role, "content": long}, question][: 1 + (role == "system")]
    prompt = fitted(tokenizer, SUGGEST.messages(conversation), 960)
    assert len(prompt_ids(tokenizer, prompt)) <= 960 if row["case"] in can_be_cut else prompt is None
