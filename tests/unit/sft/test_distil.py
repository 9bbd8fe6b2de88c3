import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_qs import cli
from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.form.keys import text_key
from openrlhf_qs.sft.distil import LEFT_OUT, merge_samples, report_table

CONVERSATION = [{"role": "user", "content": "Hi"}]


def test_what_differs_in_case_and_punctuation_only_is_one_candidate_in_its_likeliest_form():
    samples = [
        ("which flour", -2.0, True),
        (" Which flour? ", -0.5, True),
        ("Why salt?", -1.0, True),
        ("Which  flour?", -0.7, True),
    ]
    candidates, left_out = merge_samples(samples)
    assert candidates == [
        {"text": "Which flour?", "log_prob": -0.5, "n_sampled": 3},
        {"text": "Why salt?", "log_prob": -1.0, "n_sampled": 1},
    ]
    assert not any(left_out.values())


def test_what_cannot_be_shown_is_left_out_and_counted():
    samples = [("A?", -1.0, True), ("A very lo", -1.0, False), ("1 + 1", -1.0, True), ("A?\nB?", -1.0, True)]
    candidates, left_out = merge_samples(samples)
    assert [candidate["text"] for candidate in candidates] == ["A?"]
    assert left_out == dict.fromkeys(LEFT_OUT, 0) | {"cut_off": 1, "malformed": 2}
    assert merge_samples([]) == ([], dict.fromkeys(LEFT_OUT, 0))
    samples = [("Welches Mehl nehme ich für das Brot?", -1.0, True), ("Which flour should I take for it?", -1.0, True)]
    conversation = [{"role": "user", "content": "Wie backe ich zu Hause ein gutes Brot?"}]
    candidates, left_out = merge_samples(samples, conversation)
    assert [candidate["text"] for candidate in candidates] == ["Welches Mehl nehme ich für das Brot?"]
    assert left_out == dict.fromkeys(LEFT_OUT, 0) | {"another_language": 1}


@given(st.lists(st.tuples(st.text(max_size=6), st.floats(-9, 0), st.booleans()), max_size=30))
def test_no_sample_is_lost_and_no_two_candidates_are_equal(samples):
    candidates, left_out = merge_samples(samples)
    assert sum(c["n_sampled"] for c in candidates) + sum(left_out.values()) == len(samples)
    keys = [text_key(c["text"]) for c in candidates]
    assert len(set(keys)) == len(keys)
    assert [c["log_prob"] for c in candidates] == sorted((c["log_prob"] for c in candidates), reverse=True)


def test_the_table_adds_up():
    rows = [
        {"candidates": [1, 2, 3, 4], "left_out": {"cut_off": 1, "malformed": 0, "prompt_too_long": 0}},
        {"candidates": [], "left_out": {"cut_off": 0, "malformed": 0, "prompt_too_long": 8}},
    ]
    table = report_table(rows, 8, "")
    # 16 samples, 9 left out, 4 different ones: 3 were repetitions
    numbers = dict(zip((c.strip() for c in table.columns[0]._cells), table.columns[1]._cells, strict=True))
    assert numbers["repeated"] == "3" and numbers["candidates"] == "4" and numbers["prompt_too_long"] == "8"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--teacher", "."], "it has no config.json"),
        (["--teacher", "/nonexistent"], "/nonexistent does not exist"),
        (["--teacher", ".", "--n_samples", "0"], "--n_samples 0"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, capsys, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    write_json_lines("rows.jsonl", [{"conversation": CONVERSATION}])
    with pytest.raises(SystemExit):
        cli.main(["distil", *flags, "--prompts", "rows.jsonl", "--out", "out.jsonl"])
    assert said in capsys.readouterr().err.strip()
    assert not (tmp_path / "out.jsonl").exists()


def test_the_help_waits_for_no_engine():
    code = (
        "import sys\nfrom openrlhf_qs import cli\ntry: cli.main(['distil', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'vllm', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
