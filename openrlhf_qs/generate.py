"""Let a policy answer conversations, with vLLM, and say how likely its answers are under a reference.

In: JSON Lines with a ``conversation`` a row. Out: JSON Lines ``{"conversation", "response"}``, and ``log_ppl`` (nats
per token under ``--reference``, the end of the response counted) where a reference is given.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf_qs.files import read_json_lines, write_json_lines
from openrlhf_qs.prompt import Message, policy_messages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", required=True, help="folder or hub name of the policy")
    parser.add_argument(
        "--reference", default="", help="policy that gives log_ppl, mostly the SFT policy; default: none"
    )
    parser.add_argument("--prompts", required=True, metavar="FILE", help="JSON Lines with a conversation a row")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--n_max", type=int, default=2000, help="distinct conversations, the first ones; default 2000")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="tokens a response may have; default 64")
    parser.add_argument("--n_samples", type=int, default=1, help="responses to each conversation; default 1")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling, as in training; default 1")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    if args.n_samples < 1:
        raise ValueError(f"--n_samples {args.n_samples}: give 1 or more")
    conversations = list(
        {json.dumps(row["conversation"]): row["conversation"] for row in read_json_lines(args.prompts)}.values()
    )
    conversations = [c for c in conversations[: args.n_max] for _ in range(args.n_samples)]
    responses = generate(args.policy, conversations, args.max_new_tokens, args.temperature, args.seed)
    rows = [{"conversation": c, "response": r} for c, r in zip(conversations, responses, strict=True)]
    if args.reference:
        log_ppl = reference_log_ppl(args.reference, conversations, responses)
        rows = [row | {"log_ppl": value} for row, value in zip(rows, log_ppl, strict=True)]
    write_json_lines(args.out, rows)
    print(f"{len(rows)} responses of {args.policy} in {args.out}")


def generate(
    policy: str, conversations: Sequence[Sequence[Message]], max_new_tokens: int, temperature: float, seed: int
) -> list[str]:
    """One sampled response a conversation. ValueError where ``policy`` is no model."""
    llm = load_engine(policy, seed)
    from vllm import SamplingParams

    outputs = llm.chat(
        [policy_messages(conversation) for conversation in conversations],
        # No seed here: vLLM's CPU backend knows the engine's alone.
        SamplingParams(temperature=temperature, max_tokens=max_new_tokens),
        use_tqdm=True,
    )
    return [output.outputs[0].text for output in outputs]


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


def reference_log_ppl(
    reference: str, conversations: Sequence[Sequence[Message]], responses: Sequence[str], batch_size: int = 64
) -> list[float]:
    """Mean negative log-probability of each response and its end under ``reference``, ``[n]``, nats per token."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(reference)
    tokenizer.padding_side = "left"  # responses end together, and the logits of what stands before are left out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        reference, dtype=torch.bfloat16 if device == "cuda" else torch.float32
    )
    model.to(device).eval()
    prompts = [
        tokenizer.apply_chat_template(policy_messages(conversation), tokenize=False, add_generation_prompt=True)
        for conversation in conversations
    ]
    n_prompt = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]] if prompts else []
    texts = [f"{p}{r}{tokenizer.eos_token}" for p, r in zip(prompts, responses, strict=True)]
    values = [0.0] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for start in range(0, len(texts), batch_size):
        rows = by_length[start : start + batch_size]
        encoded = tokenizer(
            [texts[row] for row in rows], padding=True, add_special_tokens=False, return_tensors="pt"
        ).to(device)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        n_response = mask.sum(-1) - torch.tensor([n_prompt[row] for row in rows], device=device)
        kept = int(n_response.max())
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                logits_to_keep=kept + 1,
            ).logits[:, -kept - 1 : -1]
        nll = F.cross_entropy(logits.float().transpose(1, 2), ids[:, -kept:], reduction="none")
        of_response = torch.arange(kept, 0, -1, device=device) <= n_response[:, None]
        means = (nll * of_response).sum(-1) / n_response
        for row, value in zip(rows, means.tolist(), strict=True):
            values[row] = value
    return values
