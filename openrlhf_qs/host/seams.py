"""Where our plugins enter OpenRLHF: the smallest class or function at each place, replaced by one that calls it.

What takes its place is in a module of its own, which is imported here where it is wanted: it imports OpenRLHF.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import wrapt

from openrlhf_qs.host.patches import patch
from openrlhf_qs.host.settings import DPOSettings, GarmSettings, GRPOSettings, Settings, SFTSettings


def head_and_objective(settings: Settings):
    """What the stage ``garm`` trains: an instance of the head, and one of the objective, by default the head's own.
    ValueError where the objective wants what the head does not say."""
    from openrlhf_qs.registry import OBJECTIVES, REWARD_MODELS

    name = settings.stage.reward_model
    head = REWARD_MODELS.create(name, **settings.options_of(name))
    asked = settings.stage.objective or head.objective
    objective = OBJECTIVES.create(asked, **settings.options_of(asked))
    if objective.of_clicks and head.click_log_odds is None:
        raise ValueError(
            f"objective {asked!r} needs log-odds of a click, which reward model {name!r} does not give: use "
            "--qs.objective pairs, or give its class click_log_odds"
        )
    return head, objective


def _assembles(settings: Settings) -> bool:
    return isinstance(settings.stage, SFTSettings) and bool(settings.stage.sft_dataset)


def _trains_reward_model(settings: Settings) -> bool:
    return isinstance(settings.stage, GarmSettings)


def _prefers(settings: Settings) -> bool:
    return isinstance(settings.stage, DPOSettings)


def _rewards(settings: Settings) -> bool:
    return isinstance(settings.stage, GRPOSettings) and bool(settings.stage.reward)


def _looks_at_samples(settings: Settings) -> bool:
    return _rewards(settings) and settings.stage.samples_every > 0


def _has_a_reference(settings: Settings) -> bool:
    return isinstance(settings.stage, GRPOSettings) and bool(settings.stage.reference)


@patch(
    "openrlhf.datasets",
    "SFTDataset.__init__",
    "self dataset tokenizer max_length strategy input_template pretrain_mode num_processors multiturn",
    wanted=_assembles,
)
def sft_dataset(module: ModuleType, settings: Settings) -> None:
    """The assembly plugin chooses some of a conversation's candidates. Without it `sft.jsonl` has no responses."""
    from openrlhf_qs.form.task import Task, read_template
    from openrlhf_qs.host.sft_dataset import AssembledSFTDataset
    from openrlhf_qs.registry import SFT_DATASETS, load_plugins

    load_plugins(settings.plugin_files)
    stage = settings.stage
    name = stage.sft_dataset
    choose = SFT_DATASETS.create(name, **settings.options_of(name))
    template = read_template(stage.prompt_template)
    # A teacher's instances are single texts.
    task = Task(1, template, "text") if choose.single else Task(stage.n_suggestions, template)
    report_names = iter(("assembly.json", "assembly.eval.json"))  # train_sft makes these two datasets, in this order
    module.SFTDataset = partial(AssembledSFTDataset, name, choose, task, report_names)


@patch(
    "openrlhf.models.model",
    "_get_reward_model",
    "base_pretrained_model base_llm_model value_head_prefix packing_samples",
)
def reward_model_class(module: ModuleType, settings: Settings) -> None:
    """A checkpoint says in its config.json which registered head it has. Without this OpenRLHF builds its one-output
    head and loads a Gaussian checkpoint into it with random numbers."""
    from openrlhf_qs.host.reward_model_loading import RewardModelLoader

    module.get_llm_for_sequence_regression = RewardModelLoader(module, settings)


@patch(
    "openrlhf.datasets",
    "RewardDataset.__init__",
    "self dataset tokenizer max_length strategy input_template is_dpo num_processors",
    wanted=_trains_reward_model,
)
def reward_dataset(module: ModuleType, settings: Settings) -> None:
    """An impression is read once, with all its suggestions, and its pairs have weights and soft labels. Without this
    each pair reads its conversation twice, all count the same, and of a long text the suggestion, which stands at the
    end, is cut off."""
    from openrlhf_qs.host.reward_dataset import SuggestionRewardDataset
    from openrlhf_qs.registry import load_plugins

    load_plugins(settings.plugin_files)
    _, objective = head_and_objective(settings)
    module.RewardDataset = partial(SuggestionRewardDataset, objective.whole_lists)


@patch(
    "openrlhf.datasets",
    "RewardDataset.__init__",
    "self dataset tokenizer max_length strategy input_template is_dpo num_processors",
    wanted=_prefers,
)
def preference_dataset(module: ModuleType, settings: Settings) -> None:
    """A prompt of ``dpo`` is in the roles of the template and cut by whole turns, as ``sft`` taught it. Without this a
    strict template stops the run, and a long conversation loses its end."""
    from openrlhf_qs.host.preference_dataset import FittedPreferenceDataset

    module.RewardDataset = FittedPreferenceDataset


@patch(
    "openrlhf.trainer.rm_trainer",
    "RewardModelTrainer.concatenated_forward",
    "self model chosen_ids c_mask reject_ids r_mask",
    wanted=_trains_reward_model,
)
def reward_model_trainer(module: ModuleType, settings: Settings) -> None:
    """The trainer's loss takes scalar rewards of two texts a pair. Without this a mean and a standard deviation are
    compared with each other."""
    from openrlhf_qs.host.reward_model_trainer import SuggestionRewardModelTrainer
    from openrlhf_qs.registry import load_plugins

    load_plugins(settings.plugin_files)
    module.RewardModelTrainer = partial(SuggestionRewardModelTrainer, *head_and_objective(settings))


@patch(
    "openrlhf.datasets",
    "PromptDataset.__init__",
    "self dataset tokenizer strategy input_template",
    wanted=_rewards,
)
def prompt_dataset(module: ModuleType, settings: Settings) -> None:
    """A prompt is in the roles of the template and cut by whole turns. Without this a strict template stops the run,
    and a long conversation loses the end or the middle of a turn."""
    from openrlhf_qs.host.prompt_dataset import FittedPromptDataset

    module.PromptDataset = FittedPromptDataset


@patch(
    "openrlhf.trainer.ray.launcher",
    "ReferenceModelActor.init_model_from_pretrained",
    "strategy pretrain _ray_trace_ctx",
    wanted=_has_a_reference,
)
def reference_policy(module: ModuleType, settings: Settings) -> None:
    """GRPO may start from another policy than its reference. Without this both are the actor's checkpoint."""
    actor = module.ReferenceModelActor.__ray_metadata__.modified_class
    load = actor.init_model_from_pretrained

    def init_model_from_pretrained(self, strategy, pretrain):
        load(self, strategy, settings.stage.reference)

    actor.init_model_from_pretrained = init_model_from_pretrained


@patch(
    "openrlhf.trainer.ppo_utils.experience_maker",
    "RemoteExperienceMaker.make_experience",
    "self samples_list",
    wanted=_rewards,
)
def experience_maker(module: ModuleType, settings: Settings) -> None:
    """The composite reward sees the whole rollout batch, with the reference log-probs. Without it a response gets one
    scalar from one model."""
    from openrlhf_qs.host.experience_maker import CompositeExperienceMaker
    from openrlhf_qs.registry import load_plugins

    load_plugins(settings.plugin_files)
    module.RemoteExperienceMaker = partial(CompositeExperienceMaker, settings)


@patch(
    "openrlhf.trainer.ppo_utils.samples_generator",
    "SamplesGenerator._generate_vllm",
    "self dataloader_iter num_prompts dynamic_filtering generate_kwargs",
    wanted=_looks_at_samples,
)
def same_prompts(module: ModuleType, settings: Settings) -> None:
    """The same prompts are asked again every so many steps. Without this `samples.jsonl` has other prompts at every
    step, and nobody sees what changed."""
    from openrlhf_qs.host.same_prompts import SamePromptsGenerator

    SamePromptsGenerator.every = settings.stage.samples_every
    module.SamplesGenerator = SamePromptsGenerator


@patch(
    "openrlhf.trainer.ppo_utils.samples_generator",
    "SamplesGenerator._dispatch_prompts_to_vllm",
    "self prompts labels images generate_kwargs",
)
def rollout_requests(module: ModuleType, settings: Settings) -> None:
    """OpenRLHF sends the tokenizer along with each prompt, and reads the finished response alone. Without this all is
    as right, but an engine builds the tokenizer anew for each prompt, one after the other, and vLLM sends a response
    from process to process again with each token that it grows by."""
    from vllm.sampling_params import RequestOutputKind

    from openrlhf_qs.host.sent_tokenizer import SentTokenizer

    module.SamplingParams = partial(module.SamplingParams, output_kind=RequestOutputKind.FINAL_ONLY)

    def dispatch(dispatch_to_vllm, generator, args, kwargs):
        tokenizer = generator.tokenizer
        generator.tokenizer = SentTokenizer(tokenizer)
        try:
            return dispatch_to_vllm(*args, **kwargs)
        finally:
            generator.tokenizer = tokenizer

    wrapt.wrap_function_wrapper(module, "SamplesGenerator._dispatch_prompts_to_vllm", dispatch)
