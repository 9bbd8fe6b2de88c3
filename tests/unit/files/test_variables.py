"""The variables of the recipes in a file."""

import pytest

from openrlhf_qs.files.variables import as_file, main, read_variables

KNOWN = ["STEPS", "OPTION", "CLICK_LOG", "POLICY"]


def write(tmp_path, text):
    (tmp_path / "mine.env").write_text(text)
    return tmp_path / "mine.env"


def test_a_line_is_a_name_and_all_after_the_sign(tmp_path):
    text = "# mine\n\nSTEPS=4\nOPTION = \"ood.threshold=3 rules.max_width=80\"\nCLICK_LOG='a b.jsonl'\nPOLICY=\n"
    found = read_variables(write(tmp_path, text), KNOWN)
    assert found == {
        "STEPS": "4",
        "OPTION": "ood.threshold=3 rules.max_width=80",
        "CLICK_LOG": "a b.jsonl",
        "POLICY": "",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("STEPS=4\nSTPES=5\n", "mine.env:2: STPES is not a variable of the recipes: STEPS?"),
        ("ZZZZZZZ=5\n", "ZZZZZZZ is not a variable of the recipes; recipes/common.sh"),
        ("STEPS 4\n", "mine.env:1: 'STEPS 4' is not a variable; give NAME=value"),
        ("STEPS=4\nSTEPS=5\n", "mine.env:2: STEPS is set twice"),
    ],
)
def test_what_is_no_variable_is_named_with_its_line(tmp_path, text, said):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        read_variables(write(tmp_path, text), KNOWN)


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "none.env"), *KNOWN])
    assert stop.value.code == 1 and capsys.readouterr().err.count("\n") == 1


def test_nothing_in_a_value_is_run_by_the_shell_that_reads_it(tmp_path, capsys):
    main([str(write(tmp_path, "POLICY=$(touch x); `y` 'z\n")), *KNOWN])
    assert capsys.readouterr().out == "POLICY='$(touch x); `y` '\"'\"'z'\n"


def test_what_a_run_used_reads_back_as_it_was(tmp_path):
    stages = {
        "data": {"variables": {"STEPS": "4"}, "given": {"OPTION": "ood.threshold=3 rules.max_width=80"}, "flags": []},
        "grpo": {"variables": {"STEPS": "4", "POLICY": ""}, "given": {}, "flags": ["--adam.lr", "1 e"]},
        "evaluate": {"state": "removed"},
    }
    text = as_file(stages)
    assert read_variables(write(tmp_path, text), KNOWN) == {
        "STEPS": "4",
        "OPTION": "ood.threshold=3 rules.max_width=80",
        "POLICY": "",
    }
    assert "# and its flags: bash recipes/grpo.sh --adam.lr '1 e'" in text
