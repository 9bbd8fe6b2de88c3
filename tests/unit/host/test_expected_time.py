"""How long a stage will take, from what there is to do and from the pace of one text."""

import pytest

from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.host import expected_time
from openrlhf_qs.host.expected_time import expected, in_words, n_responses


def test_what_is_taught_read_and_written_takes_its_share_of_a_pass():
    # 30 s to start, and .1 s * (5.5 * 100 + 1.25 * 40 + 1 * 40) = 64 s
    said = expected(190, 0.1, 100, 40, 40)
    assert said.startswith("about 2 minutes ") and said.endswith("tokens: 100 trained on, 40 read, 40 written")
    assert expected(190, 0.1, 0, 0, 40).endswith("190 tokens: 40 written")


def test_impressions_of_one_conversation_count_once_and_no_more_than_the_most(tmp_path):
    assert n_responses(["320"]) == 320
    conversations = [[{"role": "user", "content": text}] for text in ("Hi", "Hi", "Why?", "How?")]
    write_json_lines(tmp_path / "fusion.jsonl", [{"conversation": one} for one in conversations])
    write_json_lines(tmp_path / "prompts.jsonl", [{"label": text} for text in "abcd"])
    file = str(tmp_path / "fusion.jsonl")
    assert (
        n_responses(["4", file]) == 4 * 3
        and n_responses(["4", file, "2"]) == 8
        and n_responses(["4", file, "9"]) == 12
    )
    assert n_responses(["1", str(tmp_path / "prompts.jsonl")]) == 4


@pytest.mark.parametrize("words", [["x"], ["0"], ["3", "f", "y"], ["3", "f", "1", "2"]])
def test_what_is_no_number_of_responses_is_refused(words):
    with pytest.raises(ValueError, match="give the number of responses"):
        n_responses(words)


@pytest.mark.parametrize(
    ("seconds", "said"), [(44, "about 40 s"), (130, "about 2 minutes"), (9000, "about 2.5 hours")]
)
def test_it_is_said_no_more_exactly_than_it_is_known(seconds, said):
    assert in_words(seconds) == said


def test_the_line_names_the_stage(monkeypatch, capsys):
    import argparse

    monkeypatch.setattr(expected_time, "pace", lambda folder, policy: (200, 0.5))
    parser = argparse.ArgumentParser()
    expected_time.add_arguments(parser)
    flags = ["--run", "r", "--stage", "grpo", "--policy", "p", "--written", "320", "--read", "960", "--taught", "320"]
    expected_time.run(parser.parse_args(flags))
    # 30 + .5 * (1760 + 1200 + 320) = 1670 s
    assert capsys.readouterr().out.startswith("grpo: about 28 minutes at the machine's current pace")
