"""What a stage refuses before anything is loaded, by its flags and OpenRLHF's."""

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from openrlhf_qs.host import checks, patches
from openrlhf_qs.host import run as host
from openrlhf_qs.host.settings import VARIABLE, GarmSettings, GRPOSettings, Settings, SFTSettings


@pytest.fixture(autouse=True)
def tested_host(monkeypatch):
    """As if the tested OpenRLHF were installed."""
    monkeypatch.setattr(checks, "openrlhf_version", lambda: "0.11.2")


NAMED = ("--model.model_name_or_path", "org/model", "--data.dataset", "org/set")  # on the hub, which nobody asks
NAMED_FOR_GRPO = ("--actor.model_name_or_path", "org/model", "--data.prompt_dataset", "org/set")


def prepare(stage, *argv, named=True):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    host.add_arguments(parser, stage)
    if named:
        argv = (*(NAMED_FOR_GRPO if stage == "grpo" else NAMED), *argv)
    args, rest = parser.parse_known_args(["--qs.device", "cpu", *argv])
    return checks.prepare(stage, args, rest)


@pytest.fixture
def garm(write_small_garm):
    """The folder of a Gaussian reward model."""
    return write_small_garm()


RULES = ("--qs.reward", "rules", "--data.label_key", "label")
GRPO = ("--algo.advantage.estimator", "group_norm")

# Settings


@pytest.mark.parametrize(
    "stage",
    [
        None,
        SFTSettings("raw"),
        GarmSettings("dpl", objective="pairs"),
        GRPOSettings(("garm", "ood"), weights="/w.json", monitor="stop", monitor_threshold=("sigma=0.5",)),
    ],
)
def test_the_settings_reach_another_process_as_they_are(monkeypatch, stage):
    settings = Settings("cpu", stage, plugin_files=("/p.py",), options={"ood": {"coef": "1"}})
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.from_environment() == settings


def test_a_process_without_the_variable_belongs_to_no_run(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert Settings.from_environment() is None


def test_each_stage_has_its_own_plugin(garm):
    assert prepare("sft") == Settings("cpu", SFTSettings(sft_dataset="diverse"))
    assert prepare("garm") == Settings("cpu", GarmSettings())
    settings = prepare("grpo", "--data.label_key", "label", "--reward.model_name_or_path", str(garm), *GRPO)
    rewards = ("garm", "ood", "rules", "relevance", "diversity")
    assert settings == Settings("cpu", GRPOSettings(rewards, monitor="warn"))


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing_in_it.py").write_text("")
    (tmp_path / "weights.json").write_text(
        json.dumps({"rewards": {"rules": {"weight": 1.0, "mean": 0.0, "std": 1.0}}})
    )
    settings = prepare("grpo", *RULES, "--qs.plugin", "nothing_in_it.py", "--qs.weights", "weights.json")
    assert settings.plugin_files == (str(tmp_path / "nothing_in_it.py"),)
    assert settings.stage.weights == str(tmp_path / "weights.json")


def test_options_are_kept_for_every_process():
    settings = prepare("grpo", *RULES, "--qs.option", "rules.min_width=2", "--qs.option", "rules.max_width=9")
    assert settings.options == {"rules": {"min_width": "2", "max_width": "9"}}


def test_an_empty_reward_leaves_openrlhf_its_own():
    assert prepare("grpo", "--qs.reward", "", "--reward.remote_url", "http://h/").stage.reward == ()


# What is refused


@pytest.mark.parametrize(
    ("stage", "argv", "message"),
    [
        ("sft", ["--qs.sft_datset", "raw"], "unknown flags --qs.sft_datset: see openrlhf-qs sft --help"),
        ("garm", ["--qs.reward", "ood"], "unknown flags --qs.reward"),
        ("sft", ["--qs.sft_dataset", "divers"], "unknown sft dataset 'divers'; known: diverse, raw"),
        ("garm", ["--qs.reward_model", "cauchy"], "known: bradley_terry, click_gaussian, dpl, gaussian"),
        ("grpo", ["--qs.reward", "rules,odd"], "unknown reward 'odd'; known: .*ood"),
        ("grpo", ["--qs.reward", "rules,rules"], "a name occurs twice"),
        ("grpo", ["--qs.option", "odd.threshold=1"], r"option odd.…: unknown plugin 'odd'; known: .*ood"),
        ("grpo", ["--qs.option", "ood.coef=1"], "reward 'ood' has no option 'coef'; its options: .*threshold"),
        ("grpo", ["--qs.option", "ood.threshold=high"], "ood.threshold = 'high'"),
        (
            "garm",
            ["--qs.reward_model", "gaussian", "--qs.option", "gaussian.gauge=-1"],
            "gaussian.gauge must be >= 0 and finite, got -1",
        ),
        ("sft", ["--qs.plugin", "nowhere.py"], "plugin file .*nowhere.py does not exist"),
        ("sft", ["--ckpt.load_enable"], "--ckpt.load_enable without --ckpt.save_steps resumes nothing"),
        ("sft", ["--ckpt.load_enable", "--ckpt.save_steps", "-1"], "resumes nothing"),
        ("sft", ["--ckpt.load_enable", "--ckpt.save_steps=-1"], "resumes nothing"),
        ("sft", ["--data.dataset", "no.jsonl"], "--data.dataset no.jsonl does not exist: run the data stage first"),
        ("grpo", [*RULES, "--data.prompt_dataset=no.parquet"], "--data.prompt_dataset no.parquet does not exist"),
        ("sft", ["--model.model_name_or_path", "./nowhere"], "--model.model_name_or_path ./nowhere does not exist"),
        ("grpo", ["--qs.reward", "rules"], "--data.label_key label is missing"),
        ("grpo", [*RULES, "--reward.remote_url", "f.py"], "--reward.remote_url .* both give the reward: remove one"),
        ("grpo", [*RULES, "--train.agent_func_path", "f.py"], "both give the reward: remove one"),
        ("grpo", ["--qs.reward", "garm"], "reward garm needs a reward model: give its checkpoint"),
        ("grpo", ["--qs.reward", "garm", "--reward.model_name_or_path", "no/"], "no/+config.json does not exist"),
        ("grpo", ["--qs.reward", "ood", "--algo.kl.init_coef", "0"], "reward ood needs the reference .*found 0"),
        ("grpo", ["--qs.reward", "ood", "--algo.kl.init_coef=0.0"], "set --algo.kl.init_coef above 0"),
        ("grpo", ["--qs.reward", "ood", "--algo.kl.init", "0"], "reward ood needs the reference .*found 0"),
        ("grpo", ["--qs.reward", "ood", "--algo.kl.init=-1"], "reward ood needs the reference .*found -1"),
        ("grpo", [*RULES, "--algo.dynamic_filtering_enable"], "reward/remote.py as --reward.remote_url"),
        ("grpo", [*RULES, "--algo.dynamic_filtering_e"], "reward/remote.py as --reward.remote_url"),
        ("grpo", [*RULES, "--reward.remote", "f.py"], "both give the reward: remove one"),
        ("sft", ["--ckpt.load"], "--ckpt.load_enable without --ckpt.save_steps resumes nothing"),
        ("sft", ["--data.datase", "no.jsonl"], "ambiguous option: --data.datase could match"),
        ("sft", ["--train.max_epoch", "two"], "argument --train.max_epochs: invalid int value: 'two'"),
        (
            "sft",
            ["--ds.made_up"],
            "unrecognized arguments: --ds.made_up; every flag: openrlhf-qs",
        ),
        ("garm", ["--adam.lr"], "argument --adam.lr: expected one argument"),
        ("grpo", [*RULES, "--qs.monitor_threshold", "sigmas=1"], "unknown monitor 'sigmas'; known: malformed"),
        ("grpo", [*RULES, "--qs.monitor_threshold", "sigma"], "--qs.monitor_threshold sigma: give NAME=NUMBER"),
        ("grpo", [*RULES, "--qs.monitor_window", "0"], "window is 0 steps"),
        ("grpo", [*RULES, "--qs.monitor_judge", "nobody"], "unknown judge 'nobody'"),
        ("grpo", [*RULES, "--qs.credit", "suggestion"], "estimator gae: give one of group_norm, rloo, dr_grpo, or"),
        ("grpo", [*RULES, "--qs.weights", "no.json"], "no.json does not exist: run the fusion stage first"),
        (
            "grpo",
            [*RULES, *GRPO, "--qs.credit=suggestion", "--reward.overlong_buffer_len", "8"],
            "--reward.overlong_buffer_len .*: give --qs.credit response",
        ),
        (
            "grpo",
            [*RULES, *GRPO, "--qs.credit=suggestion", "--reward.stop_properly_penalty_coef", "0.5"],
            "--reward.stop_properly_penalty_coef .*: give --qs.credit response",
        ),
        (
            "grpo",
            ["--qs.reward=ood", *GRPO, "--qs.option=ood.form=constraint", "--qs.normalisation=group"],
            "normalisation group divides that out again",
        ),
    ],
)
def test_what_would_fail_later_is_refused_in_one_line(tmp_path, monkeypatch, stage, argv, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        prepare(stage, *argv)
    assert "\n" not in str(error.value)


def test_weights_of_other_rewards_are_refused(tmp_path):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps({"rewards": {"diversity": {"weight": 1.0}}}))
    with pytest.raises(ValueError, match="without a weight: rules; a weight, but not loaded: diversity"):
        prepare("grpo", *RULES, "--qs.weights", str(file))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--actor.model_name_or_path .*: it has no config.json, so it is not a model"):
        prepare("grpo", *RULES, "--actor.model_name_or_path", str(tmp_path))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("stage", "argv"), [("sft", ["--model."]), ("garm", ["--model."]), ("grpo", [*RULES, "--actor."])]
)
def test_a_model_with_code_of_its_own_is_refused_unless_it_is_asked_for(tmp_path, stage, argv, file):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / file).write_text(json.dumps({"auto_map": {"AutoModelForCausalLM": "code.Model"}}))
    argv = [*argv[:-1], f"{argv[-1]}model_name_or_path", str(tmp_path)]
    with pytest.raises(
        ValueError, match=rf"{argv[-2]} .*: {file} names Python code of its own .*: read it, then give"
    ):
        prepare(stage, *argv)
    assert prepare(stage, *argv, "--qs.trust_remote_code_enable").trust_remote_code


def test_a_hub_name_is_left_to_openrlhf():
    prepare("sft", "--model.model_name_or_path", "Qwen/Qwen3-4B", "--data.dataset", "org/a_set")


def test_of_several_datasets_each_must_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="b.jsonl does not exist"):
        prepare("sft", "--data.dataset", "a.jsonl,b.jsonl")
    (tmp_path / "b.jsonl").write_text("{}\n")
    prepare("sft", "--data.dataset", "a.jsonl,b.jsonl")


@pytest.mark.parametrize(
    ("stage", "argv", "missing"),
    [
        ("sft", [], "--model.model_name_or_path"),
        ("garm", ["--model.model_name_or_path", "org/model"], "--data.dataset"),
        ("grpo", [*RULES, "--data.prompt_dataset", "org/set"], "--actor.model_name_or_path"),
        ("grpo", [*RULES, "--actor.model_name_or_path", "org/model"], "--data.prompt_dataset"),
    ],
)
def test_a_training_without_a_model_or_data_is_told_what_is_missing(stage, argv, missing):
    with pytest.raises(ValueError, match=f"{missing} is missing: give a "):
        prepare(stage, *argv, named=False)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "has no row"),
        ("\n\n", "has no row"),
        ('{"a": 1}\n{"a": ', ":2: not JSON"),
        ('{"a": 1}\n', "has 1 rows, and .*log.json says 2: it was cut or changed"),
    ],
)
@pytest.mark.parametrize(("stage", "flag"), [("sft", "dataset"), ("garm", "dataset"), ("grpo", "prompt_dataset")])
def test_data_that_is_empty_or_cut_is_refused(tmp_path, stage, flag, text, found):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    (tmp_path / "log.json").write_text(json.dumps({"written": {"rows.jsonl": 2 if '"a": 1' in text else 0}}))
    with pytest.raises(ValueError, match=f"rows.jsonl ?{found}"):
        prepare(stage, *(RULES if stage == "grpo" else ()), f"--data.{flag}", str(file))


def test_a_model_without_weights_or_with_cut_ones_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no weights"):
        prepare("sft", "--model.model_name_or_path", str(tmp_path))
    save_file({"a": torch.ones(9)}, tmp_path / "model.safetensors")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"model.safetensors has \d+ of \d+ bytes"):
        prepare("grpo", *RULES, "--actor.model_name_or_path", str(tmp_path))


def test_a_checkpoint_that_is_saved_can_be_resumed():
    prepare("sft", "--ckpt.load_enable", "--ckpt.save_steps", "50")


def test_the_reference_is_there_unless_the_kl_penalty_is_switched_off():
    prepare("grpo", "--qs.reward", "ood", "--data.label_key", "label")
    prepare("grpo", "--qs.reward", "ood", "--data.label_key", "label", "--algo.kl.init_coef", "1e-3")
    prepare("grpo", *RULES, "--algo.kl.init_coef", "0")


@pytest.mark.parametrize("estimator", [(), ("--algo.advantage.estimator", "gae")])
def test_a_critic_is_not_started_from_our_reward_model(garm, estimator):
    argv = ("--qs.reward", "garm", "--data.label_key", "label", "--reward.model_name_or_path", str(garm), *estimator)
    with pytest.raises(ValueError, match="name the SFT policy as --critic.model_name_or_path, or use group_norm"):
        prepare("grpo", *argv)
    prepare("grpo", *argv, "--critic.model_name_or_path", "org/sft")


def test_the_monitors_are_chosen_by_flags():
    chosen = prepare("grpo", *RULES, "--qs.monitor", "stop", "--qs.monitor_threshold", "sigma=0.5").stage
    assert (chosen.monitor, chosen.monitor_threshold, chosen.monitor_window) == ("stop", ("sigma=0.5",), 5)


def test_an_openrlhf_that_was_not_tested_is_refused_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(checks, "openrlhf_version", lambda: "0.10.0")
    with pytest.raises(ValueError, match="OpenRLHF 0.10.0 was not tested .*: install openrlhf==0.11.2, or .*untested"):
        prepare("sft")
    prepare("sft", "--qs.untested_host_enable")


def test_a_missing_openrlhf_is_one_sentence(monkeypatch):
    def version(package):
        raise patches.importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(patches.importlib.metadata, "version", version)
    with pytest.raises(ValueError, match="OpenRLHF is not installed"):
        patches.openrlhf_version()
