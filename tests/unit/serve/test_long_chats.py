"""A long chat that is served: the policy reads it from the beginning of a turn, in as many tokens as it was taught."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import Task
from openrlhf_qs.models.template import token_texts
from openrlhf_qs.serve.policy import Policy
from openrlhf_qs.serve.suggester import Suggester
from openrlhf_qs.sft.small_policy import train_tokenizer

CHAT = [{"role": "assistant" if n % 2 else "user", "content": f"message {n} of this chat"} for n in range(40)]
ANSWER = "1. How long must it rise?\n2. Which flour is best?\n3. Can I freeze it?"


class Engine:
    """Of a model that takes 1,024 tokens and always answers the same; it keeps its prompts."""

    model_config = SimpleNamespace(max_model_len=1024)

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.prompts = tokenizer, []

    def get_tokenizer(self):
        return self.tokenizer

    async def generate(self, prompt, sampling, request_id):
        self.prompts.append(prompt["prompt_token_ids"])
        ids = [*self.tokenizer(ANSWER)["input_ids"], self.tokenizer.eos_token_id]
        log_probs = SimpleNamespace(logprobs=[-0.1] * len(ids))
        outputs = [
            SimpleNamespace(index=n, finish_reason="stop", token_ids=ids, logprobs=log_probs)
            for n in range(sampling.n)
        ]
        yield SimpleNamespace(outputs=outputs)


@pytest.fixture
def policy(tiny_log) -> Policy:
    """As it is loaded from a folder, but for the engine."""
    tokenizer = train_tokenizer(read_click_log(tiny_log), vocab_size=400)
    policy = Policy.__new__(Policy)
    policy.task, policy.temperature, policy.max_new_tokens, policy.model = Task(max_len=300), 0.7, 64, "small"
    policy.engine, policy.piece, policy.n_characters = Engine(tokenizer), token_texts(tokenizer), 8 * 1024
    return policy


def test_a_chat_of_forty_messages_is_answered_and_read_from_the_beginning_of_a_turn(policy):
    choice = asyncio.run(Suggester(policy, {}, n_samples=2)(Request(CHAT)))
    assert len(choice.texts) == 3 and not choice.reason
    (prompt,) = policy.engine.prompts
    text = policy.engine.tokenizer.decode(prompt)
    assert len(prompt) <= 300 - 64 and text.startswith("<|im_start|>user\nmessage ")
    kept = [n for n in range(40) if f"message {n} of this chat<|im_end|>" in text]
    assert kept == list(range(kept[0], 40)) and 2 < len(kept) < 40 and kept[0] % 2 == 0


def test_a_last_question_that_is_too_long_is_told_and_nothing_is_shown(policy):
    choice = asyncio.run(Suggester(policy, {}, n_samples=2)(Request([{"role": "user", "content": "why " * 3000}])))
    assert choice.reason == "too_long" and not choice.shown and not policy.engine.prompts
