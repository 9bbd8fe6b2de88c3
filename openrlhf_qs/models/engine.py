"""vLLM: load a policy, sample from it; for a whole job in this process, or for a server that is asked at any time."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.task import Task
from openrlhf_qs.models.device import pick_device
from openrlhf_qs.models.folder import check_model, read_config
from openrlhf_qs.models.outlived import children_end_with_this_process
from openrlhf_qs.models.own_ray import SILENT_ENVIRONMENT
from openrlhf_qs.models.resolve import resolve_model
from openrlhf_qs.models.template import fitted, prepared, prompt_ids

# Log-probs of the sampled token only. vLLM would make the text anew with every token, and an object of each.
_WITH_LOG_PROBS: dict[str, Any] = {"logprobs": 0, "flat_logprobs": True, "detokenize": False}
_TOKENIZING = ThreadPoolExecutor(1, "tokenizing")  # a tokenizer takes one thread at a time


def load_engine(policy: str, seed: int, tensor_parallel_size: int = 1):
    """vLLM's offline engine (``vllm.LLM``) in this process. ValueError where ``policy`` is no model.

    It takes nearly all of a GPU's memory; :func:`free_memory` gives it back, for a model that is read afterwards.

    Args:
        policy: folder or hub name, or what :func:`openrlhf_qs.models.resolve.resolve_model` makes a folder of.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one engine, in this process: it starts sooner
    options = _options(policy, seed, tensor_parallel_size)
    atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)  # triton's bindings list their leaks at the end
    from vllm import LLM

    return LLM(**options, enable_sleep_mode=pick_device() == "cuda")


def free_memory(llm) -> None:
    """Free the GPU's memory that an engine from :func:`load_engine` holds. It writes nothing after that."""
    if pick_device() == "cuda":
        llm.sleep(level=2)


def load_async_engine(policy: str, seed: int, tensor_parallel_size: int = 1, gpu_memory_utilization: float = 0.9):
    """vLLM's asynchronous engine (``AsyncLLM``), which takes requests at any time and batches what is there.

    Unlike those of :func:`load_engine` its log-probabilities are at the temperature of sampling: those with which an
    answer was drawn. It lives in processes of its own, which ``shutdown()`` ends, or the end of this process in any
    way. ValueError where ``policy`` is no model.

    Args:
        gpu_memory_utilization: share of each of its GPUs' memory that it takes; nothing on a host without a GPU.
    """
    options = _options(policy, seed, tensor_parallel_size) | in_one_process(tensor_parallel_size)
    if pick_device() == "cuda":
        options["gpu_memory_utilization"] = gpu_memory_utilization
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    with children_end_with_this_process():
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(**options, logprobs_mode="processed_logprobs", disable_log_stats=True)
        )


def in_one_process(tensor_parallel_size: int) -> dict[str, Any]:
    """The option by which vLLM schedules and computes in one process, where that can be. By its name, "uni", it takes
    no such executor on the CPU, but one with a process more, and the two wait for each other by asking all the time: a
    core that serves nobody."""
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return {"distributed_executor_backend": UniProcExecutor} if tensor_parallel_size == 1 else {}


def options_on_cpu() -> dict[str, int]:
    """What vLLM should take at once on a host without a GPU. By itself it takes 128 or 256 requests, and remembers
    blocks of 128 tokens, so that the samples of a shorter prompt share none of it."""
    return {"max_num_seqs": 512, "block_size": 32}


def say_nothing_of_shared_memory() -> None:
    """Python's process that cleans up shared memory says at the end that vLLM left some; it is gone by then. It
    takes the filters of warnings that stand here when it is started."""
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")


def _options(policy: str, seed: int, tensor_parallel_size: int) -> dict[str, Any]:
    """What both engines are made with; the environment that they read is set."""
    policy = resolve_model(policy)
    check_model(policy)
    if Path(policy).is_dir() and "reward_model" in read_config(policy):
        raise ValueError(
            f"{policy} is a reward model, which writes nothing; give a policy, as written by recipes/sft.sh or grpo.sh"
        )
    for name, value in SILENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    say_nothing_of_shared_memory()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, on a host without a GPU
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    on_cpu = pick_device() == "cpu"
    return {
        "model": policy,
        "dtype": "bfloat16",
        "seed": seed,
        "tensor_parallel_size": tensor_parallel_size,
        "enforce_eager": on_cpu,
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        **(options_on_cpu() if on_cpu else {}),
    }


class Answer(NamedTuple):
    """What a model wrote.

    Attributes:
        text: without special tokens.
        finish_reason: ``stop`` where the model ended it, ``length`` where it was cut at the token limit.
        tokens: of the text and its end.
        log_probs: nats, of each token under the model, before the temperature; of the asynchronous engine, at it.
    """

    text: str
    finish_reason: str
    tokens: Sequence[int]
    log_probs: Sequence[float]

    @property
    def mean_log_prob(self) -> float:
        """Nats per token."""
        return sum(self.log_probs) / len(self.log_probs)


def sample(
    llm,
    messages: Sequence[Sequence[Message]],
    max_tokens: int,
    temperature: float,
    n: int = 1,
    progress: str = "",
    regex: str = "",
    max_len: int = 0,
) -> list[list[Answer] | str]:
    """``n`` answers of ``llm`` to each list of messages.

    A prompt that leaves no room for ``max_tokens`` is cut by :func:`openrlhf_qs.models.template.fitted`;
    where that is not enough the answer is a text that says so: one long conversation stops no run.

    Args:
        llm: from :func:`load_engine`.
        messages: a model that can think before it answers is told not to.
        max_tokens: of an answer.
        progress: what is counted, in front of a progress bar in the terminal; empty: none.
        regex: of the only answers that can be given, by vLLM's structured outputs; empty: any.
        max_len: tokens of a prompt with its answer (:attr:`openrlhf_qs.form.task.Task.max_len`); 0: the model's own.
    """
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import StructuredOutputsParams

    tokenizer = llm.get_tokenizer()
    n_most = Task(max_len=max_len).room(llm.llm_engine.model_config.max_model_len) - max_tokens
    fits = [_fitted_ids(tokenizer, one, n_most) for one in messages]
    prompts = [ids for ids, _ in fits]
    if n_cut := sum(was_cut for _, was_cut in fits):
        print(f"{n_cut} of {len(prompts)} prompts were cut to {n_most} tokens, by whole turns from the beginning")
    fitting = [TokensPrompt(prompt_token_ids=ids) for ids in prompts if len(ids) <= n_most]
    # No seed here: vLLM's CPU backend knows the engine's alone.
    form = StructuredOutputsParams(regex=regex) if regex else None
    sampling = SamplingParams(
        n=n, max_tokens=max_tokens, temperature=temperature, structured_outputs=form, **_WITH_LOG_PROBS
    )
    bar = partial(_bar, progress) if progress else False
    outputs = iter(llm.generate(fitting, sampling, use_tqdm=bar) if fitting else [])
    return [
        _answers(tokenizer, next(outputs).outputs) if len(ids) <= n_most else too_long(len(ids), n_most)
        for ids in prompts
    ]


def _bar(words: str, iterable: Any = None, desc: str = "", total: int | None = None, **_: Any) -> Any:
    """vLLM's progress bar in a line of 79 letters; its own fills the terminal, and is followed by speeds in tokens.
    That of the prompts it takes in, which lasts a moment, is not shown."""
    from tqdm import tqdm

    shown = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
    return tqdm(iterable, desc=words, total=total, ncols=79, bar_format=shown, disable=desc != "Processed prompts")


async def sample_async(
    engine, messages: Sequence[Message], max_tokens: int, temperature: float, n: int = 1, max_len: int = 0
) -> list[Answer] | str:
    """:func:`sample` of one list of messages by an engine from :func:`load_async_engine`. Where the caller is
    cancelled, the engine stops to write."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    n_most = Task(max_len=max_len).room(engine.model_config.max_model_len) - max_tokens
    loop = asyncio.get_running_loop()
    tokenizer = engine.get_tokenizer()
    ids, _ = await loop.run_in_executor(_TOKENIZING, _fitted_ids, tokenizer, messages, n_most)
    if len(ids) > n_most:
        return too_long(len(ids), n_most)
    sampling = SamplingParams(
        n=n,
        max_tokens=max_tokens,
        temperature=temperature,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **_WITH_LOG_PROBS,
    )
    written: dict[int, Any] = {}
    async for output in engine.generate(TokensPrompt(prompt_token_ids=ids), sampling, request_id=uuid.uuid4().hex):
        written.update((one.index, one) for one in output.outputs)
    in_order = [written[index] for index in sorted(written)]
    return await loop.run_in_executor(_TOKENIZING, _answers, tokenizer, in_order)


def too_long(n_tokens: int, n_most: int) -> str:
    """What is said of a prompt that could not be cut."""
    return f"the prompt has {n_tokens} tokens, the policy takes {max(n_most, 0)} beside the answer"


def _fitted_ids(tokenizer, messages: Sequence[Message], n_most: int) -> tuple[list[int], bool]:
    """The tokens of a prompt, cut where that is enough, and whether it was cut."""
    fit = fitted(tokenizer, messages, n_most)
    if fit is None:
        return prompt_ids(tokenizer, messages), False
    return prompt_ids(tokenizer, fit), fit != prepared(tokenizer, messages)


def _answers(tokenizer, outputs: Sequence[Any]) -> list[Answer]:
    """What vLLM's outputs say, in text, without the token that ended one."""
    return [
        Answer(_text(tokenizer, one), one.finish_reason, list(one.token_ids), one.logprobs.logprobs) for one in outputs
    ]


def _text(tokenizer, output: Any) -> str:
    ids = output.token_ids[:-1] if output.finish_reason == "stop" else output.token_ids
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
