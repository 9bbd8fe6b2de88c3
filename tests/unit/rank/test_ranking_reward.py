"""The ranker as a reward: what a query brings, and that the judge has not seen the clicks it judges."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
from visits import INTENTS, visits, wanted_intents, write

from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import Task
from openrlhf_qs.rank import best, data, score, train
from openrlhf_qs.rank.fit import train_ranker, with_queries
from openrlhf_qs.rank.impressions import Intents, conversation_of
from openrlhf_qs.rank.ranker import Ranker
from openrlhf_qs.registry import REWARDS, load_plugins
from openrlhf_qs.reward.offline import offline_batch


def arguments(module, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    log = visits(2000)
    bare = type(log)([{"visits": one["visits"]} for one in log.features], *list(vars(log).values())[1:])
    asked = [[INTENTS.texts[n]] for n in wanted_intents(log)]
    trained = with_queries(train_ranker(bare, INTENTS, max_epochs=12), bare, asked)
    folder = tmp_path_factory.mktemp("ranker")
    trained.save(folder)
    return folder


def request(clicked: str) -> Request:
    return Request([{"role": "user", "content": "visits: 3"}], "u", {"visits": 3}, (clicked,))


def test_a_query_gains_where_it_says_what_was_clicked_and_loses_where_it_says_another(ranker):
    asked, other = INTENTS.texts[0], INTENTS.texts[5]
    gains = best.gain(Ranker.load(ranker), [request(asked)] * 3, [asked, "", other])
    assert gains[0] > 0.5 and gains[1] == pytest.approx(0, abs=1e-5) and gains[2] < -0.5


def test_the_reward_is_the_gain_and_a_malformed_response_costs_what_is_said(ranker):
    load_plugins()
    reward = REWARDS.create("ranking", ranker=str(ranker), malformed="-2")
    responses = [INTENTS.texts[0], "???", INTENTS.texts[0]]
    batch = offline_batch([request(INTENTS.texts[0])] * 3, responses, task=Task(1, "Which?", "text"))
    gained = best.gain(Ranker.load(ranker), [request(INTENTS.texts[0])], responses[:1])[0]
    torch.testing.assert_close(reward(batch), torch.tensor([gained, -2.0, gained], dtype=torch.float32))


def test_a_label_keeps_what_was_clicked_and_who_knows_no_click_is_no_use(ranker):
    asked = request(INTENTS.texts[2])
    assert Request.of_label(asked.label()) == asked
    for bad, what in (((), "no click"), (("What is love?",), "not an intent of the ranker")):
        with pytest.raises(ValueError, match=what):
            best.gain(Ranker.load(ranker), [Request(asked.conversation, "u", asked.features, bad)], ["Why?"])


def test_the_ranker_that_rewards_does_not_change_with_the_clicks_that_it_judges(tmp_path):
    log = visits(600)
    is_reasoners = log.half(0)
    queries = tmp_path / "queries.jsonl"
    rows = [
        {"conversation": conversation_of(features), "candidates": [{"text": INTENTS.texts[intent]}]}
        for features, intent in zip(log.features, wanted_intents(log), strict=True)
    ]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = []
    for changed in (False, True):
        folder = tmp_path / str(changed)
        folder.mkdir()
        if changed:  # the reasoner's half clicks everything that it did not click
            log.clicks[is_reasoners] = 1 - log.clicks[is_reasoners]
        clicks, base = write(folder, log)
        words = ("--log", str(clicks), "--intents", str(base), "--out", str(folder / "rank"), "--max_epochs", "3")
        train.run(arguments(train, *words, "--queries", str(queries), "--propensity", "none"))
        weights.append(Ranker.load(folder / "rank" / train.REWARD).state_dict())
        both = Ranker.load(folder / "rank").state_dict()
    for name, one in weights[0].items():
        torch.testing.assert_close(weights[1][name], one, rtol=0, atol=0)
    assert not torch.equal(both["user_out.weight"], weights[1]["user_out.weight"])
    assert any(weights[0][f"third.{name}.weight"].any() for name in ("intent", "meant"))
    # in two steps, the third tower on towers that are there, it is the same ranker
    words = ("--log", str(clicks), "--intents", str(base), "--propensity", "none")
    train.run(arguments(train, *words, "--out", str(tmp_path / "two"), "--max_epochs", "3"))
    asked = ("--base", str(tmp_path / "two"), "--queries", str(queries))
    train.run(arguments(train, *words, *asked, "--out", str(tmp_path / "three")))
    for name, one in Ranker.load(tmp_path / "three" / train.REWARD).state_dict().items():
        torch.testing.assert_close(one, weights[1][name], rtol=0, atol=0)
    log.shown[:] = 1, 2, 3  # of the other one, too
    clicks, other = write(tmp_path, log, Intents(INTENTS.ids, ("What is new?", *INTENTS.texts[1:])))
    words = ("--log", str(clicks), "--intents", str(other), "--propensity", "none", "--out", str(tmp_path / "four"))
    with pytest.raises(ValueError, match="two/reward was trained with another knowledge base; retrain it"):
        train.run(arguments(train, *words, *asked))
    with pytest.raises(ValueError, match="two without --queries: give the queries to learn from"):
        train.run(arguments(train, *words, *asked[:2]))


def test_several_reasoners_propose_and_each_query_counts_as_often_as_it_was_sampled(tmp_path):
    files, asked = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], conversation_of({"paid": "card"})
    sampled = [{"text": "Why?", "n_sampled": 2}, {"text": "When?", "n_sampled": 1}]
    for file, candidates in zip(files, (sampled, [{"text": "Who?"}]), strict=True):
        file.write_text(json.dumps({"conversation": asked, "candidates": candidates}) + "\n")
    queries = train.read_queries(files)
    found = train.queries_for([{"paid": "card"}, {"paid": "cash"}], queries)
    assert found == [["Why?", "Why?", "When?", "Who?"], []]
    assert train.shuffled([["a"], [], ["b"], ["c"]], 0)[1] == []


@pytest.mark.parametrize("query", [7, ["Why?", 7], {"text": "Why?"}])
def test_a_row_to_score_with_a_query_that_is_no_text_is_named(ranker, tmp_path, query):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"features": {"visits": 3}, "query": query}) + "\n")
    words = (str(file), "--model", str(ranker), "--out", str(tmp_path / "out.jsonl"))
    with pytest.raises(ValueError, match=r"rows.jsonl:1: query .*; give a text, or a list of texts"):
        score.run(arguments(score, *words))
    file.write_text(json.dumps({"features": {"visits": 3}, "query": ["", INTENTS.texts[4]]}) + "\n")
    score.run(arguments(score, *words))
    assert json.loads((tmp_path / "out.jsonl").read_text())["intents"][0] == INTENTS.ids[4]


def test_what_is_taught_to_the_reasoner_is_of_its_half_and_what_needs_a_query_is_not(tmp_path):
    log = visits(600)
    clicks, base = write(tmp_path, log)
    out = tmp_path / "data"
    data.run(arguments(data, "--log", str(clicks), "--intents", str(base), "--out", str(out), "--heldout", "0.2"))
    before, _ = log.by_time(0.2)
    own = before.half(0) & before.clicks.any(1)
    taught = [json.loads(line) for line in (out / "sft.jsonl").read_text().splitlines()]
    assert [row["conversation"] for row in taught] == [conversation_of(f) for f in before[own].features]
    prompts = [
        Request.of_label(json.loads(line)["label"]) for line in (out / "prompts.jsonl").read_text().splitlines()
    ]
    users = set(log.users[: len(before)][before.half(0)])
    assert {one.user_id for one in prompts} <= users
    assert all(set(one.clicked) <= set(INTENTS.texts) and one.clicked for one in prompts)
    n_heldout = len((out / "heldout.jsonl").read_text().splitlines())
    assert n_heldout == 120
    assert len((out / "visits.jsonl").read_text().splitlines()) == (~before.half(0)).sum() + n_heldout


@pytest.mark.parametrize(
    ("row", "what"),
    [(0, r"'visits' is text in some rows \('many'\) and a number"), (-1, "'visits' is 'many', but training had numb")],
)
def test_features_of_two_types_are_refused_before_anything_is_written(tmp_path, row, what):
    log = visits(200)
    log.features[row]["visits"] = "many"  # the first is trained on, the last is held out
    clicks, base = write(tmp_path, log)
    words = ("--log", str(clicks), "--intents", str(base), "--out", str(tmp_path / "data"))
    with pytest.raises(ValueError, match=what):
        data.run(arguments(data, *words))
    assert not (tmp_path / "data").exists()


def test_the_best_query_of_each_visit_is_taught_and_shuffled_gains_teach_others(ranker, tmp_path):
    prompts, samples, out, pairs = (tmp_path / f"{name}.jsonl" for name in ("prompts", "samples", "out", "pairs"))
    labels, rows = [], []
    for n in range(60):
        asked = Request([{"role": "user", "content": f"visit {n}"}], "u", {"visits": n % 9}, (INTENTS.texts[n % 6],))
        labels.append({"prompt": [{"role": "user", "content": f"visit {n}"}], "label": asked.label()})
        rows.append({"conversation": asked.conversation, "candidates": [{"text": text} for text in INTENTS.texts]})
    prompts.write_text("".join(json.dumps(row) + "\n" for row in labels))
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--samples", str(samples), "--prompts", str(prompts), "--ranker", str(ranker), "--out", str(out))

    def share_right() -> float:
        taught = [json.loads(line) for line in out.read_text().splitlines()]
        wanted = {row["conversation"][0]["content"]: INTENTS.texts[n % 6] for n, row in enumerate(rows)}
        return float(
            np.mean([one["candidates"][0]["text"] == wanted[one["conversation"][0]["content"]] for one in taught])
        )

    best.run(arguments(best, *words, "--pairs", str(pairs)))
    assert share_right() > 0.9
    first = json.loads(pairs.read_text().splitlines()[0])
    assert first["chosen"] == INTENTS.texts[0] != first["rejected"]
    best.run(arguments(best, *words, "--shuffle_scores"))
    assert share_right() < 0.5


def test_intents_are_told_apart_from_a_knowledge_base_of_other_ids():
    assert Intents(("a",), ("How?",)).numbers() == {"a": 0, "How?": 0}
