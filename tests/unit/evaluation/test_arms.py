import pytest
from held_out import conversation, impression

from openrlhf_qs.evaluation.arms import (
    Shown,
    as_shown,
    by_temperature,
    cold_start,
    load_responses,
    on_same_conversations,
    on_same_places,
    read_impressions,
)
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import write_json_lines


def test_arms_are_joined_on_the_text_of_the_conversation():
    joined = on_same_conversations(
        {
            "a": [(conversation(2), ["2"]), (conversation(0), ["0"]), (conversation(2), ["again"])],
            "b": [(conversation(0), ["zero"]), ([m | {"extra": None} for m in conversation(2)], ["two"])],
            "c": [(conversation(n), [text]) for n, text in enumerate(("null", "eins", "zwei"))],
        }
    )
    assert {name: [row[1] for row in rows] for name, rows in joined.items()} == {
        "a": [["2"], ["0"]],
        "b": [["two"], ["zero"]],
        "c": [["zwei"], ["null"]],
    }


def test_arms_without_a_conversation_in_common_are_an_error_with_their_sizes():
    with pytest.raises(ValueError, match=r"no conversation is in every arm \(a 1, b 1\)"):
        on_same_conversations({"a": [(conversation(0), [])], "b": [(conversation(1), [])]})


def test_the_arms_of_a_run_come_in_order_and_know_what_is_malformed(tmp_path):
    three = "1. How long?\n2. Which one?\n3. Why so?"
    for name, response in (("zeta", three), ("grpo", three), ("sft", "1. How long?\nno number"), ("alpha", three)):
        rows = [{"conversation": conversation(0), "response": response, "log_ppl": 1.5}]
        write_json_lines(tmp_path / "report" / f"responses.{name}.jsonl", rows)
    arms = load_responses(RunFolder(tmp_path))
    assert list(arms) == ["sft", "grpo", "alpha", "zeta"]
    assert arms["sft"] == [Shown(conversation(0), ("How long?",), False, 1.5, "1. How long?\nno number")]
    assert arms["grpo"][0].well_formed


def test_the_arm_of_the_log_is_the_first_impression_of_each_conversation():
    logged, other = cold_start(
        [
            impression(0, ["First?", "Second?", "???"], [0, 0, 0]),
            impression(0, ["Later", "impression", "here"], [1, 0, 0]),
            impression(1, ["Good?", "Better?", "Best?"], [0, 0, 0]),
        ]
    )
    text = "1. First?\n2. Second?\n3. ???"
    assert logged == Shown(conversation(0), ["First?", "Second?", "???"], False, None, text)
    assert other.well_formed


def test_an_arm_that_has_too_little_to_show_is_malformed_and_takes_no_place_from_the_others():
    few, whole = as_shown(conversation(0), ["One?"], 3), as_shown(conversation(0), ["One?", "Two?", "Three?"])
    assert not few.well_formed and whole.well_formed
    kept = on_same_places({"few": [few], "whole": [whole]})
    assert (len(kept["few"][0].suggestions), len(kept["whole"][0].suggestions)) == (1, 3)


def test_what_is_cut_to_the_places_of_all_arms_stays_malformed_in_its_text():
    prose = Shown(conversation(0), ["One?", "Two?"], False, response="Well: 1. One? 2. Two?")
    two = as_shown(conversation(0), ["One?", "Two?"], 2)
    kept = on_same_places({"prose": [prose], "two": [two]})["prose"][0]
    assert kept.n == 2 and kept.response == prose.response and not kept.well_formed


def test_a_policy_has_an_arm_for_each_temperature_and_its_name_is_the_one_it_is_served_with():
    rows = [Shown(conversation(n), [], True, temperature=t) for t in (1.0, 0.5, 0.3) for n in range(2)]
    arms = by_temperature("sft", rows, 0.5)
    assert list(arms) == ["sft", "sft@1", "sft@0.3"]
    assert [row.temperature for row in arms["sft"]] == [0.5, 0.5]
    assert list(by_temperature("sft", rows)) == ["sft", "sft@0.5", "sft@0.3"], "the first where none was chosen"
    assert list(by_temperature("sft", rows[:2])) == ["sft"]
    with pytest.raises(ValueError, match="sft: no responses at temperature 0.7, only at 1, 0.5, 0.3"):
        by_temperature("sft", rows, 0.7)


def test_a_run_without_responses_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="run `openrlhf-qs generate` first"):
        load_responses(RunFolder(tmp_path))


def test_bad_rows_are_told_together_by_line(tmp_path):
    good = {"conversation": conversation(0), "response": "1. x"}
    bad = {"conversation": conversation(0)}
    write_json_lines(tmp_path / "report" / "responses.sft.jsonl", [good] + [bad] * 25)
    with pytest.raises(ValueError) as error:
        load_responses(RunFolder(tmp_path))
    lines = str(error.value).splitlines()
    assert "responses.sft.jsonl:2: no response" in lines[0]
    assert len(lines) == 21 and lines[-1] == "and 5 more"


@pytest.mark.parametrize("clicks", [[1], [0, 2], None, "01", [0, [1]]])
def test_impressions_need_one_click_value_per_suggestion(tmp_path, clicks):
    write_json_lines(tmp_path / "heldout.jsonl", [impression(0, ["a", "b"], clicks)])
    with pytest.raises(ValueError, match="heldout.jsonl:1: clicks .* for 2 suggestions"):
        read_impressions(tmp_path / "heldout.jsonl")
