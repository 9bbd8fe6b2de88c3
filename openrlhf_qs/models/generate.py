"""Let a policy answer conversations, with vLLM, and say how likely its answers are under a reference.

In: JSON Lines with a ``conversation`` a row. Out: JSON Lines ``{"conversation", "response"}``, and ``log_ppl`` (nats
per token under ``--reference``, the end of the response counted) where a reference is given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.form.prompt import Message, policy_messages
from openrlhf_qs.models.engine import load_engine
from openrlhf_qs.models.reference import reference_log_ppl


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
