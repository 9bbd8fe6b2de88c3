"""How OpenRLHF loads a reward model that has one of our heads.

In: what OpenRLHF gives to its ``get_llm_for_sequence_regression``. Out: the model; a checkpoint says in its
``config.json`` which registered head it has, and in training the stage's settings say it.
"""

from __future__ import annotations

import functools
from types import ModuleType

from transformers import AutoTokenizer

from openrlhf_qs.garm.reward_model import (
    MATCH,
    check_checkpoint,
    is_adapter,
    read_mark,
    reward_model_class,
    turn_end_id,
    vocabulary_print,
)
from openrlhf_qs.host.settings import GarmSettings, Settings
from openrlhf_qs.registry import load_plugins


class RewardModelLoader:
    """``get_llm_for_sequence_regression``, with our class where the model has, or shall have, one of our heads."""

    def __init__(self, module: ModuleType, settings: Settings) -> None:
        """
        Args:
            module: ``openrlhf.models.model``.
        """
        self.module = module
        self.load = module.get_llm_for_sequence_regression
        self.settings = settings

    def __reduce__(self):
        """Ray sends OpenRLHF's actor classes to its workers with all that they call: of this, the worker's own."""
        return _of_this_process, ()

    def __call__(self, model_name_or_path: str, model_type: str, **kwargs):
        """The model. ValueError where it holds LoRA weights only, or weights that are not what it says."""
        load_plugins(self.settings.plugin_files)
        trained = isinstance(self.settings.stage, GarmSettings)
        mark = None
        if trained:  # the head is new, whatever the backbone was
            name = self.settings.stage.reward_model
            tokenizer = AutoTokenizer.from_pretrained(model_name_or_path)
            mark = {
                "name": name,
                "options": self.settings.options_of(name),
                "vocabulary": vocabulary_print(tokenizer),
            }
            if self.settings.stage.dropout:
                mark["dropout"] = self.settings.stage.dropout
            if self.settings.stage.exact_match_enable:
                mark["turn_end_id"] = turn_end_id(tokenizer)
        elif model_type == "reward" and read_mark(model_name_or_path) is not None:
            if is_adapter(model_name_or_path):
                raise ValueError(
                    f"{model_name_or_path} has LoRA weights, which OpenRLHF does not load for a reward model; merge "
                    f"them with `openrlhf-qs garm merge {model_name_or_path} --out FOLDER` and give that folder"
                )
            mark = check_checkpoint(model_name_or_path)
        if mark is None:
            return self.load(model_name_or_path, model_type, **kwargs)
        host_class, host_lora = self.module._get_reward_model, self.module.LoraConfig
        self.module._get_reward_model = functools.partial(reward_model_class, mark=mark)
        # Under LoRA what is new is trained and saved whole; the host would keep its random start.
        new = [kwargs.get("value_head_prefix", "score"), *([MATCH] if "turn_end_id" in mark else [])]
        self.module.LoraConfig = functools.partial(host_lora, modules_to_save=new, exclude_modules=new)
        try:
            return self.load(model_name_or_path, model_type, **kwargs)
        finally:
            self.module._get_reward_model, self.module.LoraConfig = host_class, host_lora


def _of_this_process():
    from openrlhf.models import model

    return model.get_llm_for_sequence_regression
