"""Change the head of a trained reward model in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openrlhf_qs.files.whole import replacing, write_whole
from openrlhf_qs.garm.crosses import CROSSES
from openrlhf_qs.garm.overlap import OVERLAPS
from openrlhf_qs.models.folder import make_usable


def edit_head(path: str | Path, edit: Callable[[dict[str, Any], Any, Any, dict[str, Any]], tuple[Any, Any]]) -> None:
    """Replace weight ``[n_outputs, width]`` and bias ``[n_outputs]`` of the head, and what the config says of it.

    The weights are written first, in one go, and the config last.

    Args:
        edit: called with the config, the weight and the bias, and the other weights by name; returns the new weight
            and bias, and may change the config and the others.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    config_file = Path(path) / "config.json"
    config = json.loads(config_file.read_text())
    prefix = config.get("value_head_prefix", "score")
    weight_name, bias_name = f"{prefix}.weight", f"{prefix}.bias"
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            if weight_name not in weights.keys():
                continue
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}
            metadata = weights.metadata()
        if bias_name not in tensors:
            raise ValueError(f"{file}: {weight_name} is there and {bias_name} is not; the checkpoint is damaged")
        weight, bias = tensors.pop(weight_name), tensors.pop(bias_name)
        tensors[weight_name], tensors[bias_name] = edit(config, weight, bias, tensors)
        with replacing(file) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    write_whole(config_file, json.dumps(config, indent=2) + "\n")
    make_usable(path)


def scale_means(
    config: dict[str, Any], weight: Any, bias: Any, others: dict[str, Any], means: slice, scale: float
) -> None:
    """Within an edit: multiply the outputs ``means`` of the head, and the crosses and overlaps, which add to them.

    ``mean_scale`` in the config keeps the product; ``mean`` and ``std`` there, for those who normalise rewards by
    them, follow.
    """
    import torch

    weight[means] *= scale
    bias[means] *= scale
    if CROSSES in config["reward_model"]:
        others[f"{CROSSES}.weight"] *= scale
    if OVERLAPS in config["reward_model"]:
        others[f"{OVERLAPS}.value"].view(torch.float32).mul_(scale)  # kept as bits
    config["mean_scale"] = config.get("mean_scale", 1.0) * scale
    for name in ("mean", "std"):
        if name in config:
            config[name] *= scale
