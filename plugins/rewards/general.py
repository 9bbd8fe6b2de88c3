"""A general reward model as a part: how good the response is as an answer, as people rate answers of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from openrlhf_qs.models.device import Device, pick_device
from openrlhf_qs.models.folder import check_model
from openrlhf_qs.models.template import rendered
from openrlhf_qs.registry import REWARDS

if TYPE_CHECKING:
    from torch import Tensor

    from openrlhf_qs.form.prompt import Message
    from openrlhf_qs.form.task import Task
    from openrlhf_qs.reward.rollout import RolloutBatch


@REWARDS.register("general")
class GeneralReward:
    """The score of a general reward model, such as Skywork's, for the conversation and the whole response.

    The model is loaded at the first call, in the process that scores, and needs memory besides what else is loaded
    there. It reads the policy's prompt, and the response as the assistant's turn, in its own chat template.

    Args:
        model: folder or hub name of a sequence classifier with one label, such as
            Skywork/Skywork-Reward-V2-Qwen3-0.6B.
        max_len: tokens; longer texts are cut at the beginning.
        batch_size: responses per forward pass.
        device: ``auto`` is cuda if torch finds a GPU.
    """

    def __init__(self, model: str, max_len: int = 2048, batch_size: int = 16, device: Device = "auto") -> None:

        if max_len < 1 or batch_size < 1:
            raise ValueError(f"general: max_len and batch_size must be at least 1, got {max_len} and {batch_size}")
        self.name = model
        self.max_len = max_len
        self.batch_size = batch_size
        self.device = pick_device(device)
        self.model = self.tokenizer = None

    def __call__(self, batch: RolloutBatch) -> Tensor:
        import torch

        if self.model is None:
            self.model, self.tokenizer = load_classifier(self.name, self.device)
        rows = [self._ids(batch.task, c, r) for c, r in zip(batch.conversations, batch.responses, strict=True)]
        by_length = sorted(range(len(rows)), key=lambda n: len(rows[n]))  # texts of one batch need little padding
        rewards = torch.empty(len(rows))
        for start in range(0, len(rows), self.batch_size):
            part = by_length[start : start + self.batch_size]
            encoded = self.tokenizer.pad({"input_ids": [rows[n] for n in part]}, return_tensors="pt").to(self.device)
            with torch.no_grad():
                rewards[part] = self.model(**encoded).logits[:, 0].float().cpu()
        return rewards

    def _ids(self, task: Task, conversation: Sequence[Message], response: str) -> list[int]:
        messages = [*task.messages(conversation), {"role": "assistant", "content": response}]
        ids = self.tokenizer(rendered(self.tokenizer, messages), add_special_tokens=False)["input_ids"]
        return ids[-self.max_len :]


def load_classifier(name: str, device: str) -> tuple[Any, Any]:
    """A sequence classifier with one label, and its tokenizer. ValueError if ``name`` is no such model."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    check_model(name, "general.model =")
    try:
        config = AutoConfig.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"general.model = {name}: {reason}; give a folder or a hub name") from error
    architecture = ", ".join(config.architectures or ["nothing"])
    if "ForSequenceClassification" not in architecture or config.num_labels != 1:
        raise ValueError(
            f"general.model = {name} is a {architecture} with {config.num_labels} labels; give a sequence classifier "
            "with one, a reward model such as Skywork's (a GaRM is the part `garm`)"
        )
    if not tokenizer.chat_template:
        raise ValueError(f"general.model = {name} has no chat template, so it cannot read a conversation")
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        name, dtype=torch.bfloat16 if device == "cuda" else torch.float32, output_loading_info=True
    )
    if loaded["missing_keys"]:
        missing = ", ".join(sorted(loaded["missing_keys"]))
        raise ValueError(f"general.model = {name} has no weights for {missing}; it would score by random numbers")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id  # the classifier reads the last token that is no padding
    return model.to(device).eval(), tokenizer
