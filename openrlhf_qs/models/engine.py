"""vLLM in this process: load a policy, sample from it."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf_qs.form.prompt import Message


def load_engine(policy: str, seed: int, tensor_parallel_size: int = 1):
    """vLLM's offline engine (``vllm.LLM``) in this process. ValueError where ``policy`` is no model."""
    if Path(policy).is_dir() and not (Path(policy) / "config.json").is_file():
        raise ValueError(f"{policy}: no config.json in it, so this is no model; give a Hugging Face folder or name")
    if policy.startswith((".", "/")) and not Path(policy).exists():
        raise ValueError(f"{policy} does not exist; give a Hugging Face folder or name")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one engine, in this process: it starts sooner
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, on a host without a GPU
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)  # triton's bindings list their leaks at the end
    import torch
    from vllm import LLM

    return LLM(
        policy,
        dtype="bfloat16",
        seed=seed,
        tensor_parallel_size=tensor_parallel_size,
        enforce_eager=not torch.cuda.is_available(),
        enable_prefix_caching=True,
        use_tqdm_on_load=False,
    )


def sample(llm, messages: Sequence[Sequence[Message]], **sampling: Any) -> list[Any]:
    """What ``llm`` answers to each list of messages: a list of vLLM's ``CompletionOutput``, ``sampling["n"]`` long.

    Where the prompt leaves no room for ``sampling["max_tokens"]`` in the model, the answer is a text that says so: one
    long conversation stops no run.

    Args:
        llm: from :func:`load_engine`.
        messages: ``[n]``; a model that can think before it answers is told not to.
        sampling: fields of vLLM's ``SamplingParams``.
    """
    from vllm import SamplingParams, TokensPrompt

    tokenizer = llm.get_tokenizer()
    prompts = [
        tokenizer.apply_chat_template(
            list(one), add_generation_prompt=True, enable_thinking=False, tokenize=True, return_dict=False
        )
        for one in messages
    ]
    n_most = llm.llm_engine.model_config.max_model_len - sampling["max_tokens"]
    fitting = [TokensPrompt(prompt_token_ids=ids) for ids in prompts if len(ids) <= n_most]
    outputs = iter(llm.generate(fitting, SamplingParams(**sampling), use_tqdm=False) if fitting else [])
    return [
        next(outputs).outputs
        if len(ids) <= n_most
        else f"the prompt has {len(ids)} tokens, the model takes {n_most} beside the answer"
        for ids in prompts
    ]
