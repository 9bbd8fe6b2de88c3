"""A reward model that was trained with LoRA, written as a whole model.

In: the folder of a checkpoint with LoRA weights (``recipes/garm.sh --ds.lora.rank 16``). Out: one that OpenRLHF's
``RewardModelActor`` loads.
"""

from __future__ import annotations

import argparse

from openrlhf_qs.models.folder import make_usable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of a reward model with LoRA weights")
    parser.add_argument("--out", required=True, help="folder for the full model")


def run(args: argparse.Namespace) -> None:
    merge(args.model, args.out)
    print(f"{args.out}: {args.model} with its LoRA weights merged")


def merge(path: str, out: str) -> None:
    """Write the checkpoint at ``path`` to ``out``, whole, in bfloat16. ValueError where it has no LoRA weights."""
    import torch
    from transformers import AutoTokenizer

    from openrlhf_qs.garm.reward_model import check_checkpoint, is_adapter, load_reward_model

    check_checkpoint(path)
    if not is_adapter(path):
        raise ValueError(f"{path} has no adapter_config.json: it is already a full model, use it as it is")
    load_reward_model(path).to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(path).save_pretrained(out)
    make_usable(out)
