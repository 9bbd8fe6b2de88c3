"""A policy that is served: responses to one conversation at a time, many conversations at once.

In: the folder of a policy, as a stage of the recipes writes it. Out: for a conversation some sampled responses, each
with its suggestions and the log-probability, at the temperature of sampling, of all its tokens and of those of each
suggestion: the true propensities of what is shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from openrlhf_qs.files.journal import model_print
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.task import read_task
from openrlhf_qs.models.engine import Answer, load_async_engine, sample_async
from openrlhf_qs.models.template import token_texts

MAX_CHARACTERS = 8  # for each token that the model has room for: what is older of a conversation is not looked at


class Response(NamedTuple):
    """One sampled response.

    Attributes:
        suggestions: what can be read; nothing of a malformed one.
        problem: why it is malformed, in words; empty where it is well formed.
        log_prob: nats, of all its tokens and its end, at the temperature.
        log_probs: nats a token, mean over the tokens of each suggestion.
    """

    suggestions: tuple[str, ...]
    problem: str
    log_prob: float
    log_probs: tuple[float, ...]


class Policy:
    """An asynchronous engine with a policy, asked and read as in its training.

    Attributes:
        task: what it was trained for.
        model: a print of its weights: other ones have another, under the same name.
    """

    def __init__(
        self,
        folder: str,
        temperature: float,
        max_new_tokens: int = 64,
        seed: int = 0,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature {temperature}: give more than 0, so that what is shown has a probability")
        self.task = read_task(folder)
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.model = hashlib.blake2b(model_print(folder).encode(), digest_size=8).hexdigest()
        self.engine = load_async_engine(folder, seed, tensor_parallel_size, gpu_memory_utilization)
        self.piece = token_texts(self.engine.get_tokenizer())
        self.n_characters = MAX_CHARACTERS * self.engine.model_config.max_model_len

    async def sample(self, conversation: Sequence[Message], n: int) -> list[Response] | str:
        """``n`` responses, or a text that says why the conversation leaves no room for one."""
        messages = self.task.messages(recent(conversation, self.n_characters))
        answers = await sample_async(
            self.engine, messages, self.max_new_tokens, self.temperature, n, self.task.max_len
        )
        return answers if isinstance(answers, str) else [self._read(answer) for answer in answers]

    def _read(self, answer: Answer) -> Response:
        from openrlhf_qs.reward.credit import suggestion_log_probs

        parsed, log_prob = self.task.read(answer.text, answer.finish_reason), sum(answer.log_probs)
        if not parsed.well_formed:
            return Response((), parsed.problem, log_prob, ())
        log_probs = suggestion_log_probs(list(map(self.piece, answer.tokens)), answer.log_probs, self.task.n)
        return Response(parsed.suggestions, "", log_prob, tuple(log_probs))

    async def check(self) -> None:
        """Raise where the engine is dead."""
        await self.engine.check_health()

    def close(self) -> None:
        self.engine.shutdown()


def recent(conversation: Sequence[Message], n_characters: int) -> list[Message]:
    """The last messages, those whose texts have ``n_characters`` together; the last one, where it is longer, without
    its beginning. So a request takes no longer than its model can read."""
    kept: list[Message] = []
    for message in reversed(conversation):
        if n_characters <= 0:
            break
        text = message["content"][-n_characters:]
        if kept and len(text) < len(message["content"]):
            break
        kept.append({"role": message["role"], "content": text})
        n_characters -= len(text)
    return kept[::-1]
