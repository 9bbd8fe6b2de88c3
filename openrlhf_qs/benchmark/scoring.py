"""``openrlhf-qs benchmark scoring``: a GRPO group scored at once, against one response after the other.

A group is the responses to one conversation, with three suggestions each. OpenRLHF calls a reward function with one
response a time; ours scores the group in rows that share the conversation. The same reward model, the same texts, one
process, in turns; tokenizing counts.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_qs.benchmark.garm_training import (
    N_SUGGESTIONS,
    RATIO_AT,
    add_model_arguments,
    conversation_lengths,
    in_turns,
    make_conversation,
    make_suggestion,
    median_ratio,
    print_result,
    setting,
    write_backbone,
)
from openrlhf_qs.registry import load_plugins
from openrlhf_qs.sft.small_policy import MAX_TOKENS

if TYPE_CHECKING:  # --help need not wait for torch
    from torch import Tensor

N_RESPONSES = 8  # of a group


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--n_tokens",
        default="32,64,128,256,512",
        metavar="N,N",
        help=f"tokens per conversation; default 32,64,128,256,512; {RATIO_AT}, at which `ratio` is measured, is "
        "always included",
    )
    add_model_arguments(parser, hidden_size=512)


def run(args: argparse.Namespace) -> None:
    """Measure, print one JSON object."""
    print_result(measure, args)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Time both ways at each length.

    Returns:
        ``ratio`` (groups a second at once over one by one, the median of the repetitions) at ``RATIO_AT`` tokens, and
        ``curve`` with ``ratio``, the median ``groups_per_second`` of both ways, and ``max_difference`` of their
        results.
    """
    import torch

    lengths = conversation_lengths(args.n_tokens)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_backbone(folder, args)
        model = _reward_model(folder)
    curve = []
    for n_tokens in lengths:
        conversation = make_conversation(tokenizer, n_tokens, rng)
        responses = [[make_suggestion(tokenizer, rng) for _ in range(N_SUGGESTIONS)] for _ in range(N_RESPONSES)]
        results: dict[str, Tensor] = {}

        def one_by_one(conversation=conversation, responses=responses, results=results) -> None:
            scores = [score(model, tokenizer, conversation, suggestions, False) for suggestions in responses]
            results["one_by_one"] = torch.cat(scores)

        def at_once(conversation=conversation, responses=responses, results=results) -> None:
            suggestions = [suggestion for response in responses for suggestion in response]
            results["at_once"] = score(model, tokenizer, conversation, suggestions, True)

        seconds = in_turns({"one_by_one": one_by_one, "at_once": at_once}, args.n_repeats, f"{n_tokens} tokens")
        curve.append(
            {
                "n_tokens": n_tokens,
                "ratio": median_ratio(seconds["one_by_one"], seconds["at_once"]),
                "groups_per_second": {way: 1 / statistics.median(times) for way, times in seconds.items()},
                "max_difference": float((results["one_by_one"] - results["at_once"]).abs().max()),
            }
        )
    return {
        "ratio": next(point["ratio"] for point in curve if point["n_tokens"] == RATIO_AT),
        "n_tokens": RATIO_AT,
        "curve": curve,
        "n_responses": N_RESPONSES,
        **setting(args),
    }


def score(model, tokenizer, conversation, suggestions: list[str], share_prefix: bool) -> Tensor:
    """Rewards ``[suggestions, 3]``, in order."""
    import torch

    from openrlhf_qs.garm.reward_model import suggestion_rows

    input_ids, mask, place = suggestion_rows(
        tokenizer, [conversation] * len(suggestions), suggestions, MAX_TOKENS, share_prefix
    )
    with torch.no_grad():
        return model(input_ids, mask)[place]


def _reward_model(folder: str | Path):
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Model, Qwen3PreTrainedModel

    from openrlhf_qs.garm.reward_model import reward_model_class

    load_plugins()
    made = reward_model_class(Qwen3PreTrainedModel, Qwen3Model, mark={"name": "gaussian", "options": {}})
    return made.from_pretrained(folder, dtype="float32").eval()
