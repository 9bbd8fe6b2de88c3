"""What each stage of a run is made from: one table, by which ``run.json`` tells whether a stage is as a call asks.

Standard library alone, as everything that the recipes call before the environment is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from openrlhf_qs.files.run_folder import WAYS

Variables = Mapping[str, str]
MODEL = ("*.safetensors", "config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Stage:
    """What a stage is made from, and what of it must be there at its end.

    Attributes:
        variables: of the recipes, what counts: another value is another product.
        reads: the earlier stages that it reads, given the variables.
        files: variables that name files, folders or globs from outside the run; a name of a hub counts as it stands.
        plugins: variables that name plugins. Their options, and the plugin files that register them, count.
        fixed_plugins: plugins that its recipe uses whatever the variables say; they count in the same way.
        products: patterns in its folder of what must be there, each of at least one file; the first one must be new.
    """

    variables: tuple[str, ...]
    reads: Callable[[Variables], tuple[str, ...]] = lambda variables: ()
    files: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    fixed_plugins: tuple[str, ...] = ()
    products: tuple[str, ...] = MODEL

    @property
    def own(self) -> set[str]:
        """The variables that count for it and may have another value in another stage of the run."""
        return {*self.variables, *self.files} - AGREED


def _read_by_garm(variables: Variables) -> tuple[str, ...]:
    if variables.get("DATA_DIR"):  # recipes/garm_upworthy.sh
        return ()
    return ("data",) if variables.get("GARM_BASE") else ("data", "sft")


def _rft(variables: Variables) -> tuple[str, ...]:
    return ("rft",) if variables.get("RFT") == "1" else ()


SFT_SIZE = ("LR", "EPOCHS", "BATCH", "MICRO_BATCH")
FORM = ("GPUS", "NODES")
# Each counts for several stages, and these must agree: data is cut for one tokenizer, one length, one task.
AGREED = {"POLICY", "PROMPT_TEMPLATE", "N_SUGGESTIONS", "MAX_LEN", "MAX_NEW_TOKENS"}
STAGES = {
    "data": Stage(
        ("SEED", "N_IMPRESSIONS", "N_CONTEXTS", "N_SUGGESTIONS", "MAX_LEN", "REFUSED_ROLES"),
        files=("CLICK_LOG", "PROMPT_TEMPLATE", "POLICY"),
        products=("*.jsonl", "log.json", "lengths.json", "max_new_tokens"),
    ),
    "distil": Stage(
        ("SEED", "N_CANDIDATES", "MAX_LEN", *(f"TEACHER_{name}" for name in SFT_SIZE), *FORM),
        reads=lambda variables: ("data",),
        files=("TEACHER", "POLICY"),
        fixed_plugins=("single",),
        products=("candidates.jsonl", *(f"teacher/{pattern}" for pattern in MODEL)),
    ),
    "sft": Stage(
        ("SEED", "N_SUGGESTIONS", "DISTIL", "SFT_DATASET", "MAX_LEN", *(f"SFT_{name}" for name in SFT_SIZE), *FORM),
        reads=lambda variables: ("data", "distil") if variables.get("DISTIL") == "1" else ("data",),
        files=("POLICY", "EMBEDDER", "PROMPT_TEMPLATE"),
        plugins=("SFT_DATASET",),
    ),
    "garm": Stage(
        (
            "SEED",
            "REWARD_MODEL",
            "OBJECTIVE",
            "CALIBRATE",
            "WIDE",
            "SPREAD",
            "MAX_LEN",
            *(f"GARM_{name}" for name in (*SFT_SIZE, "DROPOUT")),
            *FORM,
        ),
        reads=_read_by_garm,
        files=("GARM_BASE", "POLICY", "DATA_DIR"),
        plugins=("REWARD_MODEL", "OBJECTIVE"),
    ),
    "fusion": Stage(
        ("SEED", "REWARD", "FUSION", "NORMALISATION", "N_SAMPLED", "GRPO_TEMPERATURE", "MAX_NEW_TOKENS"),
        reads=lambda variables: ("data", "sft", "garm"),
        plugins=("REWARD", "FUSION", "REWARD_MODEL"),
        products=("weights.json", "responses.jsonl"),
    ),
    "rft": Stage(
        (
            *("SEED", "N_SUGGESTIONS", "N_RFT", "RFT_SAMPLES", "RFT_TEMPERATURE", "MAX_LEN", "MAX_NEW_TOKENS"),
            *(f"RFT_{name}" for name in SFT_SIZE),
            *FORM,
        ),
        reads=lambda variables: ("data", "sft", "garm"),
        files=("POLICY", "EMBEDDER", "PROMPT_TEMPLATE"),
        plugins=("REWARD_MODEL",),
        fixed_plugins=("diverse",),
        products=(*MODEL, "candidates.jsonl"),
    ),
    "grpo": Stage(
        (
            *("SEED", "REWARD", "MAX_LEN", "MAX_NEW_TOKENS", "KL_COEF", "GRPO_LR", "STEPS", "PROMPTS", "N_SAMPLES"),
            *("TRAIN_BATCH", "GRPO_MICRO_BATCH", "GRPO_TEMPERATURE", "CREDIT", "ASYNC", "RFT", *FORM),
        ),
        reads=lambda variables: ("data", "sft", "garm", "fusion", *_rft(variables)),
        files=("POLICY",),  # a model that can speak has other defaults
        plugins=("REWARD", "REWARD_MODEL"),
    ),
    "evaluate": Stage(
        ("SEED", "JUDGE", "N_HELDOUT", "TEMPERATURES", "N_SELECTION", "BEST_OF", "MAX_NEW_TOKENS"),
        reads=lambda variables: ("data", "sft", "garm", "fusion", *_rft(variables), "grpo"),
        files=("EMBEDDER",),
        plugins=("JUDGE", "REWARD", "REWARD_MODEL"),
        products=("metrics.json", "report.html", "responses.*.jsonl"),
    ),
    "intents": Stage(
        ("SEED", "N_VISITS", "N_ASKED"),
        files=("CLICK_LOG", "INTENTS", "POLICY"),
        products=("*.jsonl", "instruction.txt"),
    ),
    "rank": Stage(
        ("SEED", "ENCODER"), reads=lambda variables: ("intents",), files=("INTENTS",), products=("*/ranker.json",)
    ),
    "reason": Stage(
        ("SEED", "MAX_LEN", "QUERY_TOKENS", "QUERY_SAMPLES", *(f"REASON_{name}" for name in SFT_SIZE), *FORM),
        reads=lambda variables: ("intents",),
        files=("POLICY",),
        fixed_plugins=("single",),
        products=(*MODEL, "queries.jsonl"),
    ),
    "align": Stage(
        (
            *("SEED", "ROUNDS", "ALIGN", "ALIGN_SAMPLES", "ALIGN_TEMPERATURE", "ALIGN_STEPS"),
            *("QUERY_ENCODER", "INFO_NCE"),
            *(
                "DPO_LR",
                "DPO_BETA",
                "GRPO_LR",
                "ALIGN_PROMPTS",
                "MAX_LEN",
                "QUERY_TOKENS",
                "QUERY_SAMPLES",
                *(f"ALIGN_{name}" for name in SFT_SIZE),
                *FORM,
            ),
        ),
        reads=lambda variables: ("intents", "rank", "reason"),
        files=("INTENTS",),
        fixed_plugins=("single",),
        products=("*/ranker/ranker.json", "*/*/queries.jsonl"),
    ),
    "foresee": Stage(
        ("SEED", "CONTROLS", "JUDGE"),
        reads=lambda variables: ("intents", "rank", "reason", "align"),
        files=("INTENTS",),
        fixed_plugins=("single",),  # of a control
        products=("metrics.json", "examples.jsonl", "rounds.svg"),
    ),
}


PATHS = {"PLUGIN", "JUDGE", "HOSTFILE", *(name for stage in STAGES.values() for name in stage.files)}


def recipe_of(stage: str) -> str:
    """What makes one stage."""
    return f"recipes/{stage}.sh" if stage in WAYS[0] else f"recipes/rgalign.sh {stage}"


def after(stage: str) -> tuple[str, ...]:
    """The stages that come after one on its way."""
    way = next(way for way in WAYS if stage in way)
    return way[way.index(stage) + 1 :]
