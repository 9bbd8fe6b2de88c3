"""The parts of the reward mean the same in ten languages: the table of docs/REWARDS.md.

``pytest tests/unit/form/test_ten_languages.py -s`` prints it.
"""

from __future__ import annotations

import pytest
from short_questions import FRAMES

from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import format_response
from openrlhf_qs.registry import REWARDS
from openrlhf_qs.reward.offline import offline_batch

ASKED = (0, 2, 5)  # of the ten ways to ask, those that a response has
PARTS = {
    "relevance": ("on topic", "off topic"),
    "repetition": ("on topic", "repeated"),
    "diversity": ("on topic", "repeated"),
    "rules": ("on topic", "one word each"),
    "language": ("on topic", "another language"),
}


def means(code: str) -> dict[str, dict[str, float]]:
    """By part and by kind of response, the mean over ten conversations in that language."""
    frames, subjects = FRAMES[code]
    frames_elsewhere, elsewhere = FRAMES["de" if code == "en" else "en"]
    requests, responses = [], {kind: [] for kinds in PARTS.values() for kind in kinds}
    for n, subject in enumerate(subjects):
        requests.append(Request([{"role": "user", "content": frames[9].format(subject)}]))
        other = subjects[(n + 3) % len(subjects)]
        made = {
            "on topic": [frames[k].format(subject) for k in ASKED],
            "off topic": [frames[k].format(other) for k in ASKED],
            "repeated": [frames[0].format(subject)] * 3,
            "one word each": [subject[:2]] * 3,
            "another language": [frames_elsewhere[k].format(elsewhere[n]) for k in ASKED],
        }
        for kind, texts in made.items():
            responses[kind].append(format_response(texts))
    return {
        name: {kind: REWARDS.create(name)(offline_batch(requests, responses[kind])).mean().item() for kind in kinds}
        for name, kinds in PARTS.items()
    }


@pytest.fixture(scope="module")
def table():
    found = {code: means(code) for code in FRAMES}
    heads = [f"`{name}` {kind}" for name, kinds in PARTS.items() for kind in kinds]
    print("\n| | " + " | ".join(heads) + " |\n|" + " --- |" * (len(heads) + 1))
    for code, of_parts in found.items():
        row = [f"{value:.2f}" for of_kinds in of_parts.values() for value in of_kinds.values()]
        print(f"| {code} | " + " | ".join(row) + " |")
    return found


@pytest.mark.parametrize("code", FRAMES)
def test_a_good_response_is_told_from_a_bad_one_in_every_language(table, code):
    found = table[code]
    assert found["relevance"]["on topic"] >= 0.85 and found["relevance"]["off topic"] <= 0.15
    assert found["repetition"]["on topic"] >= -0.1 and found["repetition"]["repeated"] <= -0.6
    assert found["diversity"]["on topic"] >= 0.1 and found["diversity"]["repeated"] == 0
    assert found["rules"]["on topic"] >= -0.1 and found["rules"]["one word each"] == -1
    assert found["language"]["on topic"] == 1 and found["language"]["another language"] <= 0.25


def test_no_language_is_far_from_the_others(table):
    for name, kinds in PARTS.items():
        values = [table[code][name][kinds[0]] for code in FRAMES]
        assert max(values) - min(values) <= 0.35, name
