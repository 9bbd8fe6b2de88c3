"""A reward model on a random backbone of two layers, for tests of what stands around it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3PreTrainedModel

from openrlhf_qs.garm.reward_model import reward_model_class

SIZES = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)


def small_reward_model(
    mark: dict[str, Any],
    config_class: type[PreTrainedConfig] = Qwen3Config,
    pretrained: type = Qwen3PreTrainedModel,
    base: type = Qwen3Model,
    **options: Any,
):
    """With the head of ``mark``; ``options`` are further ones of the backbone's config."""
    torch.manual_seed(0)
    return reward_model_class(pretrained, base, mark=mark)(config_class(**SIZES, **options)).eval()
