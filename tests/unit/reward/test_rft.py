import json
import types

import pytest

from openrlhf_qs import cli
from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.form.task import SUGGEST
from openrlhf_qs.garm.reward_model import Scores
from openrlhf_qs.models.engine import Answer
from openrlhf_qs.reward import rft
from openrlhf_qs.sft import distil

PIECES = ["1. Why", " salt?\n", "2. How", " long?\n", "3. Which", " oven?", ""]  # by token


class Tokenizer:
    def decode(self, tokens, skip_special_tokens):
        return "".join(PIECES[token] for token in tokens)


def answer(log_probs, tokens=range(7), finish_reason="stop"):
    return Answer("".join(PIECES[token] for token in tokens), finish_reason, list(tokens), log_probs)


@pytest.fixture
def sampler(monkeypatch):
    """A sampler without a model."""
    llm = types.SimpleNamespace(get_tokenizer=Tokenizer)
    monkeypatch.setattr(distil, "load_engine", lambda *args: llm)
    return rft.ResponseSampler(distil.Options("policy", 2, 64, 0.7, 1), seed=0)


def test_each_suggestion_has_the_mean_log_probability_of_its_own_tokens(sampler):
    found = list(sampler.suggestions([answer([-1.0, -2.0, -0.5, -0.5, -3.0, -0.0, -3.0])]))
    assert found == [("Why salt?", -1.5, True), ("How long?", -0.5, True), ("Which oven?", -2.0, True)]


def test_a_malformed_or_cut_response_gives_no_candidate_and_is_counted_by_its_suggestions(sampler):
    malformed = answer([-1.0] * 4, range(4))
    cut = answer([-1.0] * 7, finish_reason="length")
    candidates, left_out = distil.merge_samples(sampler.suggestions([malformed, cut]))
    assert candidates == []
    assert (left_out["malformed"], left_out["cut_off"]) == (SUGGEST.n, SUGGEST.n)


CONVERSATIONS = [[{"role": "user", "content": text}] for text in ("Bread?", "Tea?")]


@pytest.fixture
def rft_of_two(tmp_path, sampler, monkeypatch):
    """Calls ``openrlhf-qs rft`` on two conversations with a reward model, and returns its rows."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "candidates.jsonl"
    write_json_lines(prompts, [{"label": json.dumps({"conversation": one})} for one in CONVERSATIONS])
    flags = ["--policy", "policy", "--reward_model", "garm", "--prompts", str(prompts)]

    def call(scorer, *more):
        monkeypatch.setattr("openrlhf_qs.garm.eval.load_on_device", lambda path: scorer)
        cli.main(["rft", *flags, "--out", str(out), "--n_samples", "2", *more])
        return read_json_lines(out)

    return call


def sampled(llm, messages, *rest, max_len=0):
    return [[answer([-1.0] * 7), answer([-2.0] * 7)] for _ in messages]


def by_length(of, texts):
    mean = [10 * CONVERSATIONS.index(c) + len(text) for c, text in zip(of, texts, strict=True)]
    return Scores(*[types.SimpleNamespace(tolist=lambda: mean)] * 3)


def test_every_candidate_gets_the_reward_models_mean_under_its_own_conversation(rft_of_two, monkeypatch):
    monkeypatch.setattr(distil, "sample", sampled)
    rows = rft_of_two(by_length)
    assert [row["conversation"] for row in rows] == CONVERSATIONS
    for number, row in enumerate(rows):
        assert {one["text"]: one["garm_mean"] for one in row["candidates"]} == {
            text: 10 * number + len(text) for text in ("Why salt?", "How long?", "Which oven?")
        }
        assert [(one["log_prob"], one["n_sampled"]) for one in row["candidates"]] == [(-1.0, 2)] * 3


def test_what_is_sampled_is_not_sampled_again_where_the_scoring_was_killed(rft_of_two, monkeypatch):
    monkeypatch.setattr(distil, "sample", sampled)
    with pytest.raises(KeyboardInterrupt):
        rft_of_two(killed)
    monkeypatch.setattr(distil, "sample", lambda *args: pytest.fail("sampled again"))
    assert len(rft_of_two(by_length)) == 2


def killed(of, texts):
    raise KeyboardInterrupt


def test_it_takes_the_last_conversations_and_leaves_the_first_to_grpo(rft_of_two, monkeypatch):
    monkeypatch.setattr(distil, "sample", sampled)
    [row] = rft_of_two(by_length, "--n_max", "1")
    assert row["conversation"] == CONVERSATIONS[-1]
