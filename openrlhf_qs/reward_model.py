"""The reward model: a backbone, and a registered head that gives each suggestion a mean and a standard deviation.

In: messages that end in a suggestion (:func:`openrlhf_qs.prompt.suggestion_messages`). Out: ``[batch, 2]``, float32,
mean and standard deviation in reward units. One class serves every registered head: ``config.json`` of a checkpoint
says which one it has, under ``reward_model``. OpenRLHF builds it in ``train_rm`` and ``RewardModelActor``; without
OpenRLHF::

    scorer = SuggestionScorer("runs/default/garm")
    mean, std = scorer([conversation], ["How long does it take?"])
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrlhf_qs.prompt import Message, suggestion_messages
from openrlhf_qs.registry import REWARD_MODELS, load_plugins


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whatever its weights are: bfloat16 makes ties within a group."""

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), self.weight.float(), self.bias.float())


def reward_model_class(
    base_pretrained_model: type,
    base_llm_model: type,
    value_head_prefix: str = "score",
    packing_samples: bool = False,
    *,
    mark: dict | None = None,
) -> type:
    """The reward-model class over one backbone; takes what OpenRLHF gives to its own ``_get_reward_model``.

    Args:
        base_pretrained_model, base_llm_model: of transformers, as ``Qwen3PreTrainedModel`` and ``Qwen3Model``.
        value_head_prefix: name of the head among the weights.
        packing_samples: whether sequences come padded but run packed (needs flash-attn).
        mark: ``{"name": a registered head, "options": {...}}`` for a new head; None keeps the config's own.
    """

    class SuggestionRewardModel(base_pretrained_model):
        supports_gradient_checkpointing = True

        def __init__(self, config):
            super().__init__(config)
            if mark is not None:
                config.reward_model = mark
            config.value_head_prefix = value_head_prefix
            self.head = REWARD_MODELS.create(config.reward_model["name"], **config.reward_model["options"])
            setattr(self, self.base_model_prefix, base_llm_model(config))
            setattr(self, value_head_prefix, Float32Linear(config.hidden_size, self.head.n_outputs))
            # OpenRLHF's evaluation writes the mean and deviation of the means into the config. They are applied where
            # reward normalisation is asked for.
            self.normalize_reward = getattr(config, "normalize_reward", False)
            self.mean = getattr(config, "mean", 0.0)
            self.std = getattr(config, "std", 1.0)
            self.post_init()

        def forward(
            self,
            input_ids: Tensor,
            attention_mask: Tensor,
            return_output: bool = False,
            ring_attn_group=None,
            pad_sequence: bool = False,
            packed_seq_lens=None,
        ):
            """Token ids and mask ``[batch, length]`` to mean and standard deviation ``[batch, 2]``, float32."""
            batch, length = input_ids.shape
            last = length - 1 - attention_mask.long().fliplr().argmax(dim=1)
            if packing_samples:
                from openrlhf.models.ring_attn_utils import gather_and_pad_tensor, unpad_and_slice_tensor

                input_ids, position_ids, _, pad_len, indices = unpad_and_slice_tensor(
                    input_ids, attention_mask, ring_attn_group
                )
                mask = None
            else:
                position_ids = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
                mask = attention_mask
            outputs = getattr(self, self.base_model_prefix)(input_ids, attention_mask=mask, position_ids=position_ids)
            hidden = outputs["last_hidden_state"]
            if packing_samples:
                raw = getattr(self, value_head_prefix)(hidden)
                raw = torch.stack(
                    [
                        gather_and_pad_tensor(r, ring_attn_group, pad_len, indices, batch, length)
                        for r in raw.unbind(-1)
                    ],
                    dim=-1,
                )[torch.arange(batch, device=raw.device), last]
            else:
                raw = getattr(self, value_head_prefix)(hidden[torch.arange(batch, device=hidden.device), last])
            rewards = self.head.output(raw)
            if not self.training and self.normalize_reward:
                rewards = torch.stack(((rewards[:, 0] - self.mean) / self.std, rewards[:, 1] / self.std), dim=-1)
            return (rewards, outputs) if return_output else rewards

    return SuggestionRewardModel


def read_mark(path: str | Path) -> dict | None:
    """``config.json``'s ``reward_model`` entry of a local checkpoint, None where it is none of ours or not local."""
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        return None
    return json.loads(config_file.read_text()).get("reward_model")


def check_checkpoint(path: str | Path) -> dict:
    """The mark of the reward model at ``path``. ValueError where it has none, or its weights are not what it says.

    A head that is missing among the weights would be loaded with random numbers, with no more than a table in the log.
    """
    from safetensors import safe_open

    if not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"{path}/config.json does not exist: give the folder of a reward model that recipes/garm.sh wrote"
        )
    mark = read_mark(path)
    if mark is None:
        raise ValueError(
            f"{path}/config.json has no entry `reward_model`: this is no reward model of ours; "
            "train one with recipes/garm.sh"
        )
    load_plugins()
    prefix = json.loads((Path(path) / "config.json").read_text()).get("value_head_prefix", "score")
    shapes = {}
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            shapes.update({key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()})
    found = shapes.get(f"{prefix}.weight")
    n_outputs = REWARD_MODELS[mark["name"]].n_outputs
    if found is None or found[0] != n_outputs:
        raise ValueError(
            f"{path}: head {prefix}.weight should have {n_outputs} rows for {mark['name']!r}, found "
            f"{'none' if found is None else found[0]}; the checkpoint is damaged or its value_head_prefix is wrong"
        )
    return mark


def encode_suggestions(
    tokenizer, conversations: Sequence[Sequence[Message]], suggestions: Sequence[str], max_len: int
) -> tuple[Tensor, Tensor]:
    """Token ids and mask ``[n, length]``, padded left; of a text that is too long, the beginning is cut.

    The text is the chat template's, and ends in the end-of-sequence token, as in training.
    """
    texts = [
        tokenizer.apply_chat_template(suggestion_messages(conversation, suggestion), tokenize=False).rstrip("\n")
        for conversation, suggestion in zip(conversations, suggestions, strict=True)
    ]
    eos = tokenizer.eos_token
    texts = [text if text.endswith(eos) else f"{text} {eos}" for text in texts]
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    encoded = tokenizer(
        texts, max_length=max_len, truncation=True, padding=True, add_special_tokens=False, return_tensors="pt"
    )
    return encoded["input_ids"], encoded["attention_mask"]


class SuggestionScorer:
    """A trained reward model as a function: conversations and suggestions to means and standard deviations."""

    def __init__(self, path: str | Path, device: str = "cpu", max_len: int = 1024) -> None:
        """
        Args:
            path: folder of a checkpoint that ``recipes/garm.sh`` wrote. ValueError where it is not one.
            max_len: tokens; of longer texts the beginning is cut.
        """
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        check_checkpoint(path)
        config = AutoConfig.from_pretrained(path)
        base = AutoModel._model_mapping[type(config)]
        self.model = reward_model_class(base.__base__, base, config.value_head_prefix).from_pretrained(
            path, config=config, dtype=torch.float32
        )
        self.model.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.max_len = max_len

    @torch.no_grad()
    def __call__(
        self, conversations: Sequence[Sequence[Message]], suggestions: Sequence[str], batch_size: int = 128
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, float64 ``[n]`` each, reward units; row i is suggestion i of conversation i."""
        rewards = [torch.empty(0, 2)]
        for start in range(0, len(suggestions), batch_size):
            rows = slice(start, start + batch_size)
            input_ids, mask = encode_suggestions(self.tokenizer, conversations[rows], suggestions[rows], self.max_len)
            rewards.append(self.model(input_ids.to(self.model.device), mask.to(self.model.device)).cpu())
        mean, std = torch.cat(rewards).double().numpy().T
        return mean, std
