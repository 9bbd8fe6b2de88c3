"""Proposals of an assistant that speaks first: nine numbers of each, and what people said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from openrlhf_qs.rank import proposals, score
from openrlhf_qs.rank.proposals import centred, context_auc, read_proposals


def row(context: int, proposal: str, accepted: int) -> dict:
    events = ["The user opens a mail.", f"The user searches for {context} flights to Rome."]
    return {
        "context_id": str(context),
        "story": str(context),
        "events": events,
        "proposal": proposal,
        "accepted": accepted,
        "judges": 3,
    }


def rows() -> list[dict]:
    made = []
    for context in range(30):
        made += [row(context, f"Compare prices of {context} flights to Rome", 3), row(context, "Water the plants", 0)]
    return made


def test_a_mean_of_a_context_is_taken_off_its_rows():
    np.testing.assert_allclose(centred(np.array([[1.0], [3.0], [5.0]]), ["a", "a", "b"]), [[-1], [1], [0]])


def test_the_auc_of_contexts_is_weighted_by_their_proposals():
    scores, accepted = np.array([2.0, 1.0, 1.0, 2.0, 3.0, 0.0]), np.array([True, False, True, False, False, True])
    # a: right, 2 rows; b: wrong, 3 rows; c has one proposal, which says nothing
    assert context_auc(scores, accepted, list("aabbbc")) == pytest.approx(2 / 5)


def test_it_learns_that_people_take_what_belongs_to_what_they_did_last(tmp_path, capsys):
    train, held_out, out = tmp_path / "train.jsonl", tmp_path / "dev.jsonl", tmp_path / "out.jsonl"
    train.write_text("".join(json.dumps(one) + "\n" for one in rows()))
    held_out.write_text(
        "".join(json.dumps(row(99, text, 0)) + "\n" for text in ("Sing a song", "Book flights to Rome"))
    )
    proposals.run(_args(file=str(train), out=str(tmp_path / "model"), encoder="minilm", seed=0))
    score.run(_args(file=str(held_out), model=str(tmp_path / "model"), out=str(out), intents="", n=3))
    song, book = map(json.loads, out.read_text().splitlines())
    assert book["score"] > 0 > song["score"] and book["chance"] > 0.5 > song["chance"]
    assert song["proposal"] == "Sing a song"
    assert "no context has both an accepted and a rejected proposal: no GAUC; ECE" in capsys.readouterr().out
    # what another program writes: a number as the context, none at all, fewer fields, a proposal alone in its context
    bare = [{"events": ["The user opens a map."], "proposal": text} for text in ("Find a way", "Sing")]
    held_out.write_text("".join(json.dumps(one) + "\n" for one in [bare[0] | {"context_id": 7}, *bare]))
    score.run(_args(file=str(held_out), model=str(tmp_path / "model"), out=str(out), intents="", n=3))
    alone, find, sing = map(json.loads, out.read_text().splitlines())
    assert alone["score"] == 0 and 0 < alone["chance"] < 1 and find["score"] > sing["score"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"events": []}, r"file.jsonl:1: events \[\]; give a list of texts"),
        ({"proposal": " "}, "proposal ' '; give a text"),
        ({"accepted": 4}, "4 of 3 judges accept"),
        ({"context_id": ["a"]}, r"context_id \['a'\]; give a text"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, what):
    file = tmp_path / "file.jsonl"
    file.write_text(json.dumps(row(0, "Help", 1) | change) + "\n")
    with pytest.raises(ValueError, match=what):
        read_proposals(file, judged=True)


def test_a_model_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a ranker"):
        score.run(_args(file="x", model=str(tmp_path), out="y", intents="", n=3))


def _args(**values):
    import argparse

    return argparse.Namespace(**values)
