"""Prompts on the way to an engine: as long as its policy was taught, whatever its model takes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import polars as pl
import pytest

from openrlhf_qs.form.task import SUGGEST
from openrlhf_qs.models import engine as engines
from openrlhf_qs.models.engine import sample, sample_async
from openrlhf_qs.models.template import prompt_ids
from openrlhf_qs.sft.small_policy import train_tokenizer

TURN = [{"role": "user", "content": "how long does it rise?"}, {"role": "assistant", "content": "bake it in an hour"}]
LONG = [*TURN * 40, {"role": "user", "content": "which flour?"}, {"role": "assistant", "content": "rye"}]
MODEL_LEN, TAUGHT, ANSWER = 1024, 512, 24


class Options(SimpleNamespace):
    FINAL_ONLY = None


@pytest.fixture(scope="module")
def tokenizer():
    log = pl.DataFrame({"conversation": [TURN] * 9, "suggestions": [["How long?", "Which flour?", "At home?"]] * 9})
    return train_tokenizer(log, 256)


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    for name in ("vllm", "vllm.sampling_params"):
        module = ModuleType(name)
        module.SamplingParams = module.TokensPrompt = module.StructuredOutputsParams = Options
        module.RequestOutputKind = Options
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(("n_gpus", "own"), [(1, True), (2, False)])
def test_a_served_policy_of_one_device_is_computed_by_the_process_that_schedules(monkeypatch, n_gpus, own):
    class UniProcExecutor: ...

    for name in ("vllm.v1", "vllm.v1.engine", "vllm.v1.engine.async_llm", "vllm.v1.executor.uniproc_executor"):
        module = ModuleType(name)
        module.AsyncLLM = SimpleNamespace(from_engine_args=lambda args: args)
        module.UniProcExecutor = UniProcExecutor
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["vllm"], "AsyncEngineArgs", Options, raising=False)
    monkeypatch.setattr(engines, "_options", lambda policy, seed, n: {"tensor_parallel_size": n})
    args = vars(engines.load_async_engine("policy", 0, n_gpus))
    # by the name "uni" vLLM would take another one on the CPU, with a process more
    assert args.get("distributed_executor_backend") is (UniProcExecutor if own else None)


@pytest.mark.parametrize(("device", "slept"), [("cuda", [2]), ("cpu", [])])
def test_an_engine_gives_a_gpus_memory_back_for_the_model_that_is_read_next(monkeypatch, device, slept):
    levels = []

    class LLM:
        def __init__(self, enable_sleep_mode):
            self.can_sleep = enable_sleep_mode

        def sleep(self, level):
            levels.append(level if self.can_sleep else "it cannot")

    monkeypatch.setattr(engines, "pick_device", lambda: device)
    monkeypatch.setattr(engines, "_options", lambda policy, seed, n: {})
    monkeypatch.setattr(engines.os, "dup2", lambda *_: None)
    monkeypatch.setattr(sys.modules["vllm"], "LLM", LLM, raising=False)
    engines.free_memory(engines.load_engine("policy", 0))
    assert levels == slept


def asked(tokenizer, max_len: int, model_len: int = MODEL_LEN) -> list[int]:
    """The tokens that both engines are asked with."""
    found = []
    config = SimpleNamespace(max_model_len=model_len)
    engine = SimpleNamespace(get_tokenizer=lambda: tokenizer, model_config=config)
    engine.llm_engine = engine

    def generate(prompts, sampling, use_tqdm):
        found.extend(prompts)
        return [SimpleNamespace(outputs=[]) for _ in prompts]

    async def generate_async(prompt, sampling, request_id):
        found.append(prompt)
        return
        yield

    messages = SUGGEST.messages(LONG)
    engine.generate = generate
    sample(engine, [messages], ANSWER, 1.0, max_len=max_len)
    engine.generate = generate_async
    asyncio.run(sample_async(engine, messages, ANSWER, 1.0, max_len=max_len))
    ids, ids_async = (prompt.prompt_token_ids for prompt in found)
    assert ids == ids_async
    return ids


def test_a_long_chat_is_cut_to_what_the_policy_was_taught_with(tokenizer):
    assert len(prompt_ids(tokenizer, SUGGEST.messages(LONG))) > MODEL_LEN
    taught, model = asked(tokenizer, TAUGHT), asked(tokenizer, 0)
    # whole turns go, so that at most one of them is missing from what there is room for
    assert TAUGHT - ANSWER - 70 < len(taught) <= TAUGHT - ANSWER
    assert MODEL_LEN - ANSWER - 70 < len(model) <= MODEL_LEN - ANSWER


def test_a_model_that_takes_less_than_was_taught_has_the_last_word(tokenizer):
    assert len(asked(tokenizer, TAUGHT, model_len=256)) <= 256 - ANSWER


@pytest.mark.parametrize("served", [True, False])
def test_an_answer_is_its_tokens_in_text_without_the_one_that_ended_it(tokenizer, served):
    whole = tokenizer("How long?\nWhich flour?", add_special_tokens=False)["input_ids"]
    end = tokenizer("x", add_special_tokens=False)["input_ids"][0]  # of a model that ends with an ordinary token
    outputs = [
        SimpleNamespace(
            index=n, finish_reason=reason, token_ids=ids, logprobs=SimpleNamespace(logprobs=[-0.5] * len(ids))
        )
        for n, (reason, ids) in enumerate([("stop", [*whole, end]), ("length", whole[:-1]), ("stop", [end])])
    ]
    config = SimpleNamespace(max_model_len=MODEL_LEN)
    engine = SimpleNamespace(get_tokenizer=lambda: tokenizer, model_config=config)
    engine.llm_engine = engine
    asked_for = []

    def generate(prompts, sampling, use_tqdm):
        asked_for.append(sampling)
        return [SimpleNamespace(outputs=outputs)]

    async def generate_async(prompt, sampling, request_id):
        asked_for.append(sampling)
        for one in reversed(outputs):  # as they end
            yield SimpleNamespace(outputs=[one])

    messages = SUGGEST.messages(TURN)
    engine.generate = generate_async if served else generate
    found = (
        asyncio.run(sample_async(engine, messages, 24, 1.0, 3))
        if served
        else sample(engine, [messages], 24, 1.0, 3)[0]
    )
    assert [one.text for one in found] == ["How long?\nWhich flour?", tokenizer.decode(whole[:-1]), ""]
    assert [list(one.log_probs) for one in found] == [[-0.5] * (len(whole) + 1), [-0.5] * (len(whole) - 1), [-0.5]]
    assert [one.tokens for one in found] == [[*whole, end], whole[:-1], [end]]
    assert asked_for[0].flat_logprobs and asked_for[0].detokenize is False  # else all of that is done in vLLM too


def test_nothing_is_said_of_shared_memory_that_vllm_leaves_to_the_end():
    leak = "from multiprocessing.shared_memory import SharedMemory; SharedMemory(create=True, size=16)"
    quiet = "from openrlhf_qs.models.engine import say_nothing_of_shared_memory as quiet; quiet(); "
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120).stderr
        for code in (leak, quiet + leak)
    ]
    assert "leaked shared_memory" in said[0] and said[1] == ""
