"""Contract with OpenRLHF: each extension point of the installed version is where our patches expect it, on a CPU."""

import asyncio
import importlib.util
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from openrlhf_qs.form.request import Request
from openrlhf_qs.host import cpu, flash_attn_stand_in, leavings, operators, patches, remote_code, seams
from openrlhf_qs.host.bootstrap import all_patches
from openrlhf_qs.host.patches import TESTED, Patch, apply_when_imported
from openrlhf_qs.host.settings import VARIABLE, DPOSettings, GarmSettings, GRPOSettings, Settings, SFTSettings
from openrlhf_qs.registry import REWARDS
from openrlhf_qs.reward.composite import CompositeReward

NO_OPENRLHF = pytest.mark.skipif(importlib.util.find_spec("openrlhf") is None, reason="OpenRLHF is not installed")


def in_a_new_process(code, **environment):
    """What ``code`` prints last, from JSON; what it patches ends with its process."""
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    env |= {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


# The installed OpenRLHF

CONTRACT = """
import importlib.util, json, os
os.environ["DS_ACCELERATOR"] = "cpu"
from openrlhf_qs.host import flash_attn_stand_in
from openrlhf_qs.host.bootstrap import all_patches
from openrlhf_qs.host.patches import openrlhf_version
found = importlib.util.find_spec("flash_attn") is not None
flash_attn_stand_in.install()
ring = importlib.import_module("openrlhf.models.ring_attn_utils")
said = ""
try:
    ring.unpad_input()
except (RuntimeError, TypeError) as error:
    said = str(error)
print(json.dumps({
    "version": openrlhf_version(),
    "flash_attn_before": found,
    "flash_attn_after": importlib.util.find_spec("flash_attn") is not None,
    "unpad_input": said,
    "problems": {one.target: one.problem(importlib.import_module(one.module)) for one in all_patches()},
}))
"""


@pytest.fixture(scope="module")
def contract():
    """What one process found in the installed OpenRLHF; it costs seconds, so it is asked once."""
    return in_a_new_process(CONTRACT)


@NO_OPENRLHF
@pytest.mark.parametrize("one", all_patches(), ids=lambda one: f"{one.module}.{one.target}")
def test_the_installed_openrlhf_is_where_the_patch_expects_it(contract, one):
    assert contract["problems"][one.target] == ""


@NO_OPENRLHF
def test_the_installed_version_is_one_that_was_tested(contract):
    assert contract["version"] in TESTED


@NO_OPENRLHF
def test_the_stand_in_for_flash_attn_is_seen_by_one_module_only_and_says_what_is_missing(contract):
    assert contract["flash_attn_after"] == contract["flash_attn_before"]
    if not contract["flash_attn_before"]:
        assert "flash-attn is not installed: packing and ring attention need it" in contract["unpad_input"]


def test_where_flash_attn_is_installed_nothing_is_put_before_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    before = list(sys.meta_path)
    flash_attn_stand_in.install()
    assert sys.meta_path == before


# What a patch is


@pytest.mark.parametrize("one", all_patches(), ids=lambda one: one.target)
def test_every_patch_says_why_and_what_breaks_without_it(one):
    assert "Without" in one.why and one.why.endswith(".")
    assert one.why.index("Without") > 20, "first why, then what breaks"


@pytest.mark.parametrize("stage", [SFTSettings(), GarmSettings(), DPOSettings(), GRPOSettings(("ood",))])
def test_each_target_is_patched_once_in_a_stage(stage):
    targets = [(one.module, one.target) for one in all_patches() if one.wanted(Settings(stage=stage))]
    assert len(set(targets)) == len(targets) > 10


def test_only_openrlhf_and_what_it_runs_on_are_patched():
    assert {one.module.partition(".")[0] for one in all_patches()} == {
        *("datasets", "openrlhf", "torch", "transformers", "vllm")
    }


def test_rows_in_memory_go_where_the_run_keeps_rows(tmp_path, monkeypatch):
    module = ModuleType("fingerprint")
    module.get_temporary_cache_files_directory = lambda: "/tmp/hf_datasets-1"
    leavings.temporary_rows(module, Settings())
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    assert module.get_temporary_cache_files_directory() == "/tmp/hf_datasets-1"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / ".datasets"))
    assert module.get_temporary_cache_files_directory() == str(tmp_path / ".datasets")
    assert (tmp_path / ".datasets").is_dir()


def test_the_log_has_no_conversations():
    module = ModuleType("logging_utils")
    module.init_logger = logging.getLogger
    leavings.samples_in_the_log(module, Settings())
    assert leavings.is_no_sample in module.init_logger("of this test").filters
    for message, kept in (("Sample: ['user: my secret', 0.5]", False), ("Global step 3: {}", True)):
        assert leavings.is_no_sample(logging.LogRecord("ppo", 20, "", 0, message, None, None)) is kept


def test_shared_memory_loses_its_name_when_all_have_opened_it():
    from multiprocessing.shared_memory import SharedMemory

    class MessageQueue:
        def __init__(self, memory):
            self.buffer = SimpleNamespace(shared_memory=memory, is_creator=True)

        def wait_until_ready(self):
            pass

    module = ModuleType("shm_broadcast")
    module.MessageQueue = MessageQueue
    leavings.shared_memory(module, Settings())
    memory = SharedMemory(create=True, size=8)
    queue = MessageQueue(memory)
    reader = SharedMemory(memory.name)
    queue.wait_until_ready()
    with pytest.raises(FileNotFoundError):
        SharedMemory(memory.name)
    memory.buf[0] = 7
    assert reader.buf[0] == 7 and not queue.buffer.is_creator  # it works on
    queue.wait_until_ready()
    memory.close()
    reader.close()


def test_what_needs_no_gpu_is_kept_apart_from_what_trains():
    for one in all_patches():
        homes = (cpu,) if one.device == "cpu" else (leavings, operators, remote_code, seams)
        assert one.apply.__module__ in {home.__name__ for home in homes}


def module_with(function):
    """A module ``host`` that has ``Maker.make``."""
    module = ModuleType("host")
    module.Maker = type("Maker", (), {"make": function})
    return module


def one_patch(apply=lambda module, settings: None, target="Maker.make", **changes):
    fields = {"module": "host", "parameters": ("self", "samples"), "device": "any", "wanted": lambda settings: True}
    return Patch(**fields | {"target": target, "apply": apply} | changes)


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (module_with(lambda self, samples: None), ""),
        (module_with(lambda self, samples=None: None), ""),
        (module_with(lambda self, rollouts: None), "host.Maker.make takes (self, rollouts), not (self, samples)"),
        (module_with(lambda self, samples, n: None), "host.Maker.make takes (self, samples, n), not (self, samples)"),
        (module_with(lambda self: None), "host.Maker.make takes (self), not (self, samples)"),
        (SimpleNamespace(Maker=object), "host.Maker.make is gone"),
        (ModuleType("host"), "host.Maker.make is gone"),
    ],
)
def test_what_moved_or_takes_other_parameters_is_named(module, problem):
    assert one_patch().problem(module) == problem


@pytest.fixture
def host_module(tmp_path, monkeypatch):
    """``host_of_the_test``: a module that can be imported, with one function."""
    (tmp_path / "host_of_the_test.py").write_text("def make(samples): return 'its own'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(patches, "openrlhf_version", lambda: "9.9")
    yield "host_of_the_test"
    sys.modules.pop("host_of_the_test", None)


def test_a_patch_is_applied_when_its_module_is_imported(host_module):
    applied = []

    def replace(module, settings):
        applied.append(settings)
        module.make = lambda samples: "ours"

    one = one_patch(replace, target="make", module=host_module, parameters=("samples",))
    settings = Settings("cpu")
    apply_when_imported([one], settings)
    assert applied == []
    assert importlib.import_module(host_module).make([]) == "ours"
    assert applied == [settings]


def test_a_patch_that_does_not_fit_stops_the_import_with_both_versions(host_module):
    one = one_patch(target="make", module=host_module, parameters=("rollouts",))
    apply_when_imported([one], Settings("cpu"))
    message = r"host_of_the_test.make takes \(samples\), not \(rollouts\) in OpenRLHF 9.9: .* tested with ==0.11.2"
    with pytest.raises(RuntimeError, match=message):
        importlib.import_module(host_module)


def registered(monkeypatch, settings):
    """The patches that are registered for a run with ``settings``."""
    names = []
    monkeypatch.setattr(patches.wrapt, "register_post_import_hook", lambda hook, module: names.append(hook))
    monkeypatch.setattr(patches, "_checked", lambda one, settings: one.apply.__name__)
    apply_when_imported(all_patches(), settings)
    return set(names)


def test_a_run_gets_the_patches_it_asks_for_and_no_other(monkeypatch):
    always = {"lock_of_the_kernel", "remote_code", "reward_model_class", "rollout_requests"}
    always |= {"samples_in_the_log", "shared_memory", "temporary_rows"}
    on_cpu = {
        "cuda_calls",
        "device_mesh",
        "log_probs",
        "replay_buffer",
        "rollout_engine",
        "rollouts_in_order",
        "shared_prompts",
        "stores",
        "weight_sync_group",
    }
    on_cpu |= {"weight_update", "weights_of_a_sync"}
    assert registered(monkeypatch, Settings("cuda")) == always
    assert registered(monkeypatch, Settings("cpu")) == always | on_cpu
    assert registered(monkeypatch, Settings(stage=SFTSettings())) == always | {"sft_dataset"}
    garm = {"reward_dataset", "reward_model_trainer"}
    assert registered(monkeypatch, Settings(stage=GarmSettings())) == always | garm
    assert registered(monkeypatch, Settings(stage=DPOSettings())) == always | {"preference_dataset"}
    assert registered(monkeypatch, Settings(stage=GRPOSettings(("ood",)))) == always | {
        "experience_maker",
        "prompt_dataset",
        "same_prompts",
    }
    unwatched = Settings(stage=GRPOSettings(("ood",), samples_every=0))
    assert registered(monkeypatch, unwatched) == always | {"experience_maker", "prompt_dataset"}


# The speed of GRPO on a CPU


def small_policy():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=11, num_hidden_layers=2, num_key_value_heads=1, initializer_range=0.3, **sizes)
    return Qwen3ForCausalLM(config)


def test_log_probs_of_responses_are_the_same_with_prompts_that_they_share():
    from openrlhf_qs.host.cpu import log_probs_from_logits, shared_prompts

    class Actor:
        temperature, packing_samples, model = 2.0, False, small_policy()

        def forward(self, sequences, action_mask=None, attention_mask=None, return_output=False, **kwargs):
            position_ids = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
            output = self.model(sequences, attention_mask=attention_mask, position_ids=position_ids)
            found = log_probs_from_logits(output["logits"], torch.roll(sequences, -1, dims=1), self.temperature)
            return found[:, :-1] if action_mask is None else found[:, :-1] * action_mask

    actor, whole = Actor(), Actor.forward
    # two responses to one prompt that begin alike, one of them again, one to a longer prompt; padded on both sides
    sequences = torch.tensor(
        [[1, 2, 3, 4, 5, 6, 0], [1, 2, 3, 4, 7, 0, 0], [1, 2, 3, 4, 5, 6, 0], [0, 1, 2, 3, 8, 9, 10]]
    )
    attention_mask = torch.tensor([[1] * 6 + [0], [1] * 5 + [0] * 2, [1] * 6 + [0], [0] + [1] * 6])
    action_mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1]])
    expected = whole(actor, sequences, action_mask, attention_mask)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in actor.model.parameters()]
    actor.model.zero_grad()
    n_rows = []
    actor.model.model.register_forward_hook(lambda module, given, output: n_rows.append(len(output[0])))
    shared_prompts(SimpleNamespace(Actor=Actor), Settings("cpu"))
    found, _ = actor.forward(sequences, action_mask, attention_mask, return_output=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    found.sum().backward()
    for parameter, gradient in zip(actor.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-4)
    assert n_rows == [2]  # one for each prompt
    # of what SFT asks for, nothing is left out
    assert actor.forward(sequences, attention_mask=attention_mask, return_logprobs=True).shape == (4, 6)


def test_responses_to_one_prompt_stay_together_in_training():
    from openrlhf_qs.host.cpu import rollouts_in_order

    module = SimpleNamespace(DataLoader=torch.utils.data.DataLoader)
    rollouts_in_order(module, Settings("cpu"))
    assert [batch.tolist() for batch in module.DataLoader(range(4), batch_size=2, shuffle=True)] == [[0, 1], [2, 3]]


def test_a_port_that_was_taken_meanwhile_is_no_end_where_nobody_was_told_of_it():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        store = cpu.loopback_store("127.0.0.1", port, world_size=1, is_master=True)
        store.set("key", "value")
        assert store.get("key") == b"value" and store.port != port
        with pytest.raises(OSError, match="in use"):  # the others would ask the other program
            cpu.loopback_store("127.0.0.1", port, world_size=2, is_master=True)


def test_rollouts_on_a_cpu_have_an_engine_that_suits_it():
    from openrlhf_qs.host.cpu import rollout_engine

    class Rollouts:
        async def __init__(self, **options):
            self.options = options

        async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
            return prompt_token_ids, sampling_params.output_kind.name

    remote = SimpleNamespace(__ray_metadata__=SimpleNamespace(modified_class=Rollouts))
    rollout_engine(SimpleNamespace(RolloutRayActor=remote), Settings("cpu"))
    rollouts = object.__new__(Rollouts)
    asyncio.run(rollouts.__init__(model="policy", tensor_parallel_size=1, distributed_executor_backend="uni"))
    assert rollouts.options["distributed_executor_backend"].__name__ == "UniProcExecutor"
    assert rollouts.options["model"] == "policy" and rollouts.options["max_num_seqs"] == 512
    sampling = SimpleNamespace(output_kind=None)
    assert asyncio.run(rollouts.generate([1, 2], sampling)) == ([1, 2], "FINAL_ONLY")


def test_the_weights_of_a_sync_go_to_vllm_together():
    from openrlhf_qs.host.cpu import weights_of_a_sync

    class Rollouts:
        def __init__(self):
            self.calls = []
            self.llm = SimpleNamespace(collective_rpc=self.collective_rpc)

        async def collective_rpc(self, name, args):
            self.calls.append((name, *args))

    remote = SimpleNamespace(__ray_metadata__=SimpleNamespace(modified_class=Rollouts))
    weights_of_a_sync(SimpleNamespace(RolloutRayActor=remote), Settings("cpu"))
    rollouts = Rollouts()
    for _ in range(2):
        asyncio.run(rollouts.update_weight("embedding", "bf16", (4, 2)))
        asyncio.run(rollouts.update_weight("norm", "bf16", (2,), empty_cache=True))
    assert rollouts.calls == 2 * [("update_weights_of_sync", [("embedding", "bf16", (4, 2)), ("norm", "bf16", (2,))])]


# The bootstrap of every process

BOOTSTRAP = """
import json, sys
from openrlhf_qs.host.bootstrap import install
install()
install()
print(json.dumps({
    "patches": "openrlhf_qs.host.patches" in sys.modules,
    "finders": sum("_Finder" in type(finder).__name__ for finder in sys.meta_path),
    "imported": sorted({"torch", "openrlhf", "vllm", "ray", "deepspeed"} & set(sys.modules)),
}))
"""


def test_a_process_that_belongs_to_no_run_is_left_alone():
    assert in_a_new_process(BOOTSTRAP) == {"patches": False, "finders": 0, "imported": []}


def test_a_process_of_a_run_is_prepared_once_and_imports_nothing_heavy():
    found = in_a_new_process(BOOTSTRAP, **Settings("cpu", GRPOSettings(("ood",))).to_environment())
    assert found["patches"] and found["imported"] == []
    # where flash-attn is not installed, one finder of ours, though install was called twice
    assert found["finders"] == (importlib.util.find_spec("flash_attn") is None)


# The seam of GRPO, on a host of a few lines


@pytest.fixture
def host_of_grpo(monkeypatch):
    """A module with the experience maker that GRPO's seam extends."""
    utils = ModuleType("openrlhf.models.utils")
    utils.masked_mean = lambda tensor, mask, dim: (tensor * mask).sum(dim) / mask.sum(dim)
    monkeypatch.setitem(sys.modules, "openrlhf.models.utils", utils)
    monkeypatch.setattr(REWARDS, "_plugins", dict(REWARDS._plugins))

    @REWARDS.register("first_letter")
    class FirstLetter:
        def __call__(self, batch):
            assert batch.group.tolist() == [0, 0, 1, 1] and batch.malformed.all()
            assert [c[0]["content"] for c in batch.conversations] == ["q0", "q0", "q1", "q1"]
            return torch.tensor([float(ord(response[0]) - ord("a")) for response in batch.responses])

    class RemoteExperienceMaker:
        def __init__(self):
            self.tokenizer = SimpleNamespace(
                decode=lambda ids, skip_special_tokens: "".join(chr(ord("a") + i) for i in ids.tolist())
            )
            self.args = SimpleNamespace(
                rollout=SimpleNamespace(n_samples_per_prompt=2), actor=SimpleNamespace(model_name_or_path="policy")
            )
            self.initial_model_group = object()

        def make_experience(self, samples_list):
            assert all(samples.rewards.shape == (2,) for samples in samples_list)
            for samples in samples_list:
                samples.info["logprobs_diff"] = torch.tensor([0.5, 0.25])
            return samples_list

    module = ModuleType("openrlhf.trainer.ppo_utils.experience_maker")
    module.RemoteExperienceMaker = RemoteExperienceMaker
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "openrlhf_qs.host.experience_maker", raising=False)  # its base is this host's
    yield module
    del sys.modules["openrlhf_qs.host.experience_maker"]


def two_micro_batches(base_action_log_probs=None):
    """Two prompts with two responses each: the first token is the prompt's, one or two more are the response."""
    log_probs = torch.tensor([[-1.0, -3.0], [-2.0, 9.0]])  # of policy tokens; what is masked does not count
    return [
        SimpleNamespace(
            sequences=torch.tensor([[0, first, first], [0, first + 1, 0]]),
            action_mask=torch.tensor([[1, 1], [1, 0]]),
            action_log_probs=log_probs,
            base_action_log_probs=base_action_log_probs,
            labels=[Request([{"role": "user", "content": f"q{n}"}]).label()] * 2,
            index=[2 * n, 2 * n + 1],
            truncated=torch.tensor([0, n]),
            info={},
        )
        for n, first in enumerate((1, 3))
    ]


def made(module, *rewards, **settings):
    seams.experience_maker(module, Settings("cpu", GRPOSettings(rewards, monitor="off", samples_every=0, **settings)))
    return module.RemoteExperienceMaker()


def test_every_sample_gets_the_same_keys_and_its_own_total(host_of_grpo):
    maker = made(host_of_grpo, "first_letter", "ood", "rules")
    samples_list = maker.make_experience(two_micro_batches())
    for samples, letters in zip(samples_list, ([1.0, 2.0], [3.0, 4.0]), strict=True):
        info = samples.info
        parts = ("first_letter", "ood", "rules")
        assert set(info) == {
            *("logprobs_diff", "reward", "malformed", "gate_closed", "no_signal_groups", "reward_failed"),
            *(
                f"{kind}/{part}"
                for kind in ("reward", "reward_normalised", "reward_weighted", "share")
                for part in parts
            ),
        }
        assert info["reward/first_letter"].tolist() == letters
        # the policy's mean log-prob is -2 in both; less the difference to the reference: -2.5 and -2.25
        assert info["reward/ood"].tolist() == [-2.5, -2.25]
        assert info["reward/rules"].tolist() == [-1.0, -1.0] and info["malformed"].tolist() == [1.0, 1.0]
        assert samples.rewards.tolist() == [letters[0] - 3.5, letters[1] - 3.25] == info["reward"].tolist()


def test_the_reference_log_probs_themselves_are_taken_where_they_are_kept(host_of_grpo):
    maker = made(host_of_grpo, "ood")
    samples_list = maker.make_experience(two_micro_batches(torch.tensor([[-4.0, -6.0], [-1.0, 9.0]])))
    # (-4 - 6) / 2 = -5;  -1, the masked one aside
    assert samples_list[0].info["reward/ood"].tolist() == [-5.0, -1.0]


def test_the_weights_of_the_fusion_stage_are_used(host_of_grpo, tmp_path):
    weights = tmp_path / "weights.json"
    weights.write_text(json.dumps({"rewards": {"first_letter": {"weight": 2.0, "mean": 1.0, "std": 4.0}}}))
    maker = made(host_of_grpo, "first_letter", weights=str(weights))
    samples_list = maker.make_experience(two_micro_batches())
    # 2 * (letter - 1) / 4, while what is logged under the part's name stays raw
    assert samples_list[0].rewards.tolist() == [0.0, 0.5]
    assert samples_list[1].info["reward/first_letter"].tolist() == [3.0, 4.0]


def test_a_reward_that_fails_stops_the_step(host_of_grpo, monkeypatch):
    maker = made(host_of_grpo, "first_letter")
    monkeypatch.setattr(CompositeReward, "score", lambda self, *batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        maker.make_experience(two_micro_batches())


# The seam of the reward model, on a host of a few lines


@pytest.fixture
def host_of_reward_models():
    """A module with the functions that the reward model's seam wraps; its loader returns what it would build."""
    module = ModuleType("openrlhf.models.model")
    module._get_reward_model = module.LoraConfig = dict

    def get_llm_for_sequence_regression(path, model_type, *, value_head_prefix="score"):
        return SimpleNamespace(
            lora=module.LoraConfig(r=4), head=getattr(module._get_reward_model, "keywords", "the host's")
        )

    module.get_llm_for_sequence_regression = get_llm_for_sequence_regression
    return module


def test_under_lora_a_new_head_is_trained_and_saved_whole(host_of_reward_models, tmp_path, monkeypatch):
    from openrlhf_qs.host import reward_model_loading

    tokenizers = SimpleNamespace(from_pretrained=lambda path: SimpleNamespace(get_vocab=lambda: {"a": 0}))
    monkeypatch.setattr(reward_model_loading, "AutoTokenizer", tokenizers)
    seams.reward_model_class(host_of_reward_models, Settings(stage=GarmSettings()))
    built = host_of_reward_models.get_llm_for_sequence_regression(str(tmp_path), "reward", value_head_prefix="value")
    assert built.head["mark"].pop("vocabulary") == reward_model_loading.vocabulary_print(
        tokenizers.from_pretrained("")
    )
    assert built.head == {"mark": {"name": "click_gaussian", "options": {}}}
    assert built.lora == {"r": 4, "modules_to_save": ["value"], "exclude_modules": ["value"]}
    assert host_of_reward_models.LoraConfig is host_of_reward_models._get_reward_model is dict  # as it was


def test_a_reward_model_of_lora_weights_is_refused_for_rl_with_the_way_out(host_of_reward_models, tmp_path):
    mark = {"name": "gaussian", "options": {}}
    (tmp_path / "config.json").write_text(json.dumps({"reward_model": mark}))
    save_file({"base_model.model.score.weight": torch.zeros(2, 8)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    seams.reward_model_class(host_of_reward_models, Settings())
    with pytest.raises(ValueError, match=f"`openrlhf-qs garm merge {tmp_path} --out FOLDER`"):
        host_of_reward_models.get_llm_for_sequence_regression(str(tmp_path), "reward")


def test_an_actor_of_another_process_gets_the_loader_of_its_own(host_of_reward_models, monkeypatch):
    package = ModuleType("openrlhf.models")
    package.model = host_of_reward_models
    monkeypatch.setitem(sys.modules, "openrlhf.models", package)
    seams.reward_model_class(host_of_reward_models, Settings())
    sent = pickle.dumps(host_of_reward_models.get_llm_for_sequence_regression)
    seams.reward_model_class(host_of_reward_models, Settings())
    assert pickle.loads(sent) is host_of_reward_models.get_llm_for_sequence_regression
