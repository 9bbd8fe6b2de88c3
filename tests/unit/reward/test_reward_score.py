import csv
import json
import math
import re

import pytest

from openrlhf_qs import cli

GOOD = "1. How long does it take?\n2. Which flour is the best one?\n3. Can I bake bread without an oven?"
CONVERSATION = [{"role": "user", "content": "How do I bake bread?"}]
ROWS = [
    {"conversation": CONVERSATION, "response": GOOD, "log_ppl": 1.0},
    {"conversation": CONVERSATION, "response": "Sorry.", "log_ppl": 3.0},
    {"conversation": "Bread?", "suggestions": ["How long?", "Which flour is best?", "Why not rye?"], "log_ppl": 2.0},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def score(*words):
    cli.main(["reward", "score", *map(str, words)])


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_comes_back_with_its_parts_and_the_total(file, tmp_path, capsys):
    weights = tmp_path / "weights.json"
    weights.write_text(
        json.dumps({"rewards": {"rules": {"weight": 0.5}, "ood": {"weight": 2.0, "mean": -1.0, "std": 2.0}}})
    )
    out = tmp_path / "out.jsonl"
    score(file, "--reward", "rules,ood", "--weights", weights, "--out", out)
    rows = read(out)
    assert [row["response"] for row in rows[:2]] == [GOOD, "Sorry."] and rows[2]["suggestions"]
    # rules: 0, -1 malformed, one of three too short;  ood: -log_ppl
    assert [row["reward/rules"] for row in rows] == pytest.approx([0, -1, -1 / 3])
    assert [row["reward/ood"] for row in rows] == [-1.0, -3.0, -2.0]
    # 0.5 * rules + 2 * (ood + 1) / 2
    assert [row["reward"] for row in rows] == pytest.approx([0.0, -0.5 - 2.0, -0.5 / 3 - 1.0])
    shown = capsys.readouterr().out
    assert "average of 3" in shown and "weight" in shown and "3 rows in" in shown


def test_a_gate_is_seen(file, tmp_path, capsys):
    out = tmp_path / "out.csv"
    score(file, "--reward", "rules,gate_malformed", "--out", out)
    with open(out, newline="") as table:
        rows = list(csv.DictReader(table))
    assert [float(row["gate_closed"]) for row in rows] == [0.0, 1.0, 0.0]
    assert float(rows[1]["reward"]) == -3.0
    assert "gate closed: 1 of 3" in capsys.readouterr().out


def test_the_reference_says_how_likely_a_response_is(file, tmp_path, monkeypatch):
    asked_at = []

    def log_ppl(reference, conversations, responses, temperature):
        asked_at.append(temperature)
        return [float(len(text)) for text in responses]

    monkeypatch.setattr("openrlhf_qs.models.reference.reference_log_ppl", log_ppl)
    score(file, "--reward", "ood", "--reference", "sft", "--out", tmp_path / "out.jsonl")
    assert [row["reward/ood"] for row in read(tmp_path / "out.jsonl")][:2] == [-len(GOOD), -len("Sorry.")]
    weights = {
        "normalisation": "sft",
        "temperature": 0.6,
        "rewards": {"ood": {"weight": 1.0, "mean": 0.0, "std": 1.0}},
    }
    (tmp_path / "weights.json").write_text(json.dumps(weights))
    score(file, "--reward", "ood", "--reference", "sft", "--weights", tmp_path / "weights.json")
    assert asked_at == [1.0, 0.6]  # the second: that of the rollouts that the weights are for


@pytest.mark.parametrize(
    ("row", "words", "message"),
    [
        ({"conversation": [], "response": "a"}, ("rules",), "row 4: conversation .*; give a list of messages"),
        ({"conversation": "a"}, ("rules",), "row 4: no response, and no suggestions"),
        ({"conversation": "a", "suggestions": [1]}, ("rules",), "row 4: no response, and suggestions"),
        ({"conversation": "a", "suggestions": [""]}, ("rules",), "row 4: suggestion '' is empty"),
        ({"conversation": "a", "response": 3}, ("rules",), "row 4: response '3'; give text"),
        ({"conversation": "a", "response": "a"}, ("ood",), "give the SFT policy as --reference, or a column log_ppl"),
        ({"conversation": "a", "response": "a", "log_ppl": math.nan}, ("ood",), "'ood' is nan for response 'a'"),
        ({"conversation": "a", "response": "a"}, ("garm",), "give its folder as --reward_model"),
        ({"conversation": "a", "response": "a"}, ("rules", "--normalisation", "none"), "unknown; known: sft"),
    ],
)
def test_bad_input_is_one_line_that_says_where_and_what_to_do(file, capsys, row, words, message):
    with open(file, "a") as rows:
        rows.write(json.dumps(row) + "\n")
    with pytest.raises(SystemExit) as stopped:
        score(file, "--reward", *words)
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and len(error.splitlines()) == 1
    assert re.search(message, error), error
