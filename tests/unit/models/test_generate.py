"""Generate: one engine for several files and temperatures."""

from __future__ import annotations

import argparse

import pytest

from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.models import generate
from openrlhf_qs.models.engine import Answer


def asked(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def engine(monkeypatch):
    """An engine that answers with the prompt and the temperature; a list of how often it was loaded."""
    loaded = []

    def sample(llm, messages, max_tokens, temperature, n=1, progress="", max_len=0):
        return [
            "too long"
            if one[0]["content"] == "long"
            else [Answer(f"{one[0]['content']} at {temperature}", "stop", [0, 0], [-0.5, -0.5])]
            for one in messages
        ]

    monkeypatch.setattr(generate, "load_engine", lambda policy, seed: loaded.append(policy))
    monkeypatch.setattr(generate, "free_memory", lambda llm: loaded.append("freed"))
    monkeypatch.setattr(generate, "sample", sample)
    return loaded


def run(*argv):
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    generate.run(parser.parse_args([str(argument) for argument in argv]))


def test_two_files_at_two_temperatures_are_answered_by_one_engine(tmp_path, engine):
    write_json_lines(tmp_path / "a.jsonl", [{"conversation": asked(text)} for text in ("x", "x", "long", "y")])
    write_json_lines(tmp_path / "b.jsonl", [{"conversation": asked(text)} for text in ("z", "left out")])
    files = ["--prompts", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--out", tmp_path / "c", tmp_path / "d"]
    run("--policy", "p", *files, "--n_max", 9, 1, "--temperature", 1, 0.5, "--n_samples", 2, 1)
    found = [(row["response"], row["temperature"]) for row in read_json_lines(tmp_path / "c")]
    one, half = ("x at 1.0", 1.0), ("x at 0.5", 0.5)
    assert found == [one, one, ("y at 1.0", 1.0), ("y at 1.0", 1.0), half, ("y at 0.5", 0.5)]
    assert [row["response"] for row in read_json_lines(tmp_path / "d")] == ["z at 1.0", "z at 1.0", "z at 0.5"]
    assert engine == ["p", "freed"]
    assert {conversation_key(row["conversation"]) for row in read_json_lines(tmp_path / "d")} == {
        conversation_key(asked("z"))
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--n_samples", 0], "--n_samples 0: give 1 or more"),
        (["--n_samples", 1, 2, 3, "--temperature", 1, 0.5], "--n_samples has 3 values for 2 of --temperature"),
        (["--temperature", 1, 1], "give different ones"),
        (["--temperature", -0.5], "0 or more"),
        (["--max_new_tokens", 0], "--max_new_tokens 0: give 1 or more"),
        (["--out", "x", "y"], "--out has 2 files for 1 of --prompts"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_the_engine_is_loaded(tmp_path, engine, flags, said):
    write_json_lines(tmp_path / "a.jsonl", [{"conversation": asked("x")}])
    with pytest.raises(ValueError, match=said):
        run("--policy", "p", "--prompts", tmp_path / "a.jsonl", "--out", tmp_path / "b", *flags)
    assert engine == []


def test_suggestions_in_another_language_than_the_users_are_counted(tmp_path, engine, monkeypatch, capsys):
    text = "1. Which flour should I take for the bread?\n2. Wie lange muss der Teig gehen?\n3. Warum Salz?"
    monkeypatch.setattr(
        generate, "sample", lambda llm, messages, *rest, **more: [[Answer(text, "stop", [0, 0], [-0.5, -0.5])]]
    )
    write_json_lines(tmp_path / "a.jsonl", [{"conversation": asked("Wie backe ich zu Hause ein gutes Brot?")}])
    run("--policy", "p", "--prompts", tmp_path / "a.jsonl", "--out", tmp_path / "b")
    assert "1 of 3 suggestions are clearly in another language or script" in capsys.readouterr().out
