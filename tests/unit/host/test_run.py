"""What OpenRLHF and Ray are started with."""

import os
import re
import runpy
import sys
from types import SimpleNamespace

import pytest

from openrlhf_qs.host import run as host
from openrlhf_qs.host.settings import GarmSettings, GRPOSettings, Settings, SFTSettings
from openrlhf_qs.models import own_ray


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What OpenRLHF and Ray are started with, instead of being started."""
    environ = {"PATH": os.environ["PATH"], "NO_COLOR": "1", "RAY_TMPDIR": str(tmp_path)}
    calls = SimpleNamespace(ray=None, module=None, argv=None, environ=environ, cache=None, at_the_end=[])
    monkeypatch.setattr(own_ray, "MAX_FOLDER", 999)
    monkeypatch.setattr(own_ray, "atexit", SimpleNamespace(register=lambda *call: calls.at_the_end.append(call)))
    monkeypatch.setattr(os, "environ", calls.environ)
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setattr(host, "install", lambda: None)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda **kwargs: setattr(calls, "ray", kwargs)))

    def run_module(module, run_name, alter_sys):
        calls.module, calls.argv, calls.cache = module, sys.argv[1:], os.environ.get("HF_DATASETS_CACHE")
        assert run_name == "__main__" and alter_sys

    monkeypatch.setattr(runpy, "run_module", run_module)
    return calls


def test_sft_runs_openrlhf_in_this_process_with_its_own_flags(started):
    settings = Settings("cpu", SFTSettings())
    host.run("sft", settings, ["--train.max_epochs", "2"])
    assert started.module == "openrlhf.cli.train_sft" and started.argv == ["--train.max_epochs", "2"]
    assert Settings.from_environment() == settings
    assert started.environ["DS_ACCELERATOR"] == "cpu" and started.environ["WORLD_SIZE"] == "1"
    assert started.ray is None


def test_what_fails_inside_openrlhf_ends_in_one_line_after_its_traceback(started, monkeypatch, capsys):
    def fail(*module, **how):
        raise KeyError("a\n field \x1b[31m")

    monkeypatch.setattr(runpy, "run_module", fail)
    with pytest.raises(SystemExit) as stop:
        host.run("sft", Settings("cpu", SFTSettings()), [])
    assert re.fullmatch(
        r"openrlhf-qs sft: 'a\\n field \\x1b\[31m' \(KeyError at \S+test_run.py:\d+\)", stop.value.code
    )
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_another_process_is_told_as_it_was_there():
    class RayTaskError(RuntimeError):
        cause = ValueError("reward 'brevity' returned None;\n give one number a response")

    told = 'ray::PPO.fit() (pid=7)\n  File "/v/lib/site-packages/openrlhf/a.py", line 3, in x\n    y\nValueError: ...'
    line = "reward 'brevity' returned None; give one number a response (ValueError at openrlhf/a.py:3)"
    assert host.in_one_line(RayTaskError(told)) == line
    assert host.in_one_line(AssertionError()) == "AssertionError"
    assert len(host.in_one_line(RuntimeError("x" * 9999))) < 1100


def test_the_port_of_a_single_process_is_chosen_when_it_is_bound(started):
    """Found free before OpenRLHF is imported, it was taken by another program seconds later, under load."""
    from torch.distributed.rendezvous import rendezvous

    host.run("sft", Settings("cpu", SFTSettings()), [])
    store, rank, world_size = next(rendezvous("env://"))
    assert started.environ["MASTER_PORT"] == "0" and store.port > 0 and (rank, world_size) == (0, 1)


def test_what_a_launcher_or_the_user_has_set_stays(started):
    started.environ.update(RANK="3", WORLD_SIZE="4", OMP_NUM_THREADS="7")
    host.run("garm", Settings("cpu", GarmSettings()), [])
    assert started.module == "openrlhf.cli.train_rm"
    assert started.environ["RANK"] == "3" and started.environ["WORLD_SIZE"] == "4"
    assert started.environ["OMP_NUM_THREADS"] == "7"


def test_on_a_gpu_nothing_of_the_cpu_form_is_set(started):
    host.run("sft", Settings("cuda", SFTSettings()), [])
    assert not set(host.CPU_ENVIRONMENT) & set(started.environ)


def folders(tmp_path):
    """The flags that say where the policy is, and where it goes."""
    return ["--actor.model_name_or_path", str(tmp_path / "sft"), "--ckpt.output_dir", str(tmp_path / "grpo")]


def test_grpo_brings_settings_and_hook_into_every_worker_of_ray(started, tmp_path):
    (tmp_path / "_actor").mkdir()
    settings = Settings("cpu", GRPOSettings(("rules",)))
    host.run("grpo", settings, [*folders(tmp_path), "--ckpt.path", str(tmp_path), "--ckpt.load_enable"])
    assert started.module == "openrlhf.cli.train_ppo_ray"
    runtime_env = started.ray["runtime_env"]
    assert runtime_env["worker_process_setup_hook"] == "openrlhf_qs.host.bootstrap.install"
    assert settings.to_environment().items() <= runtime_env["env_vars"].items()
    assert runtime_env["env_vars"]["DS_ACCELERATOR"] == "cpu"
    assert started.ray["num_gpus"] > 0
    assert not (tmp_path / "_actor").exists()  # it held no finished checkpoint


def test_where_every_gpu_is_hidden_ray_still_has_places_for_them(started, tmp_path):
    started.environ["CUDA_VISIBLE_DEVICES"] = ""  # as recipes/common.sh has it on a CPU
    host.run("grpo", Settings("cpu", GRPOSettings(("rules",))), folders(tmp_path))
    assert started.ray["num_gpus"] > 0 and "CUDA_VISIBLE_DEVICES" not in started.environ


def test_a_ray_of_our_own_listens_on_the_loopback_interface_and_asks_for_a_token(started, tmp_path):
    host.run("grpo", Settings("cpu", GRPOSettings(("rules",))), folders(tmp_path))
    assert started.environ["RAY_AUTH_MODE"] == "token" and len(started.environ["RAY_AUTH_TOKEN"]) == 64
    assert own_ray.LOOPBACK_ENVIRONMENT.items() <= started.environ.items()
    assert own_ray.LOOPBACK_ENVIRONMENT.items() <= started.ray["runtime_env"]["env_vars"].items()


def test_a_ray_that_runs_on_the_machine_is_not_joined_and_ours_leaves_nothing(started, tmp_path):
    left, others = tmp_path / f"{own_ray.PREFIX}999999999-a", tmp_path / f"{own_ray.PREFIX}{os.getpid()}-b"
    for folder in (left, others):
        folder.mkdir()
    host.run("grpo", Settings("cpu", GRPOSettings(("rules",))), folders(tmp_path))
    assert started.ray["address"] == "local"  # without it Ray joins whatever `ray start` began last
    folder = started.ray["_temp_dir"]
    assert os.stat(folder).st_mode & 0o077 == 0 and started.at_the_end == [(own_ray._end, folder)]
    assert not left.exists() and others.exists()  # of a process that was killed, of one that works


def test_a_ray_that_does_not_start_is_one_line_after_its_traceback(started, tmp_path, monkeypatch):
    def too_late(**options):
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=too_late))
    with pytest.raises(SystemExit, match=r"^openrlhf-qs grpo: Ray did not start: The current node timed out during s"):
        host.run("grpo", Settings("cpu", GRPOSettings(("rules",))), folders(tmp_path))


def test_a_folder_whose_sockets_would_have_too_long_paths_is_refused_and_left_as_it_was(
    started, tmp_path, monkeypatch
):
    monkeypatch.setattr(own_ray, "MAX_FOLDER", len(str(tmp_path)))
    with pytest.raises(ValueError, match="RAY_TMPDIR=.*whose path has [0-9]+ letters fewer"):
        own_ray.start()
    assert started.ray is None and not list(tmp_path.iterdir())


def test_the_cache_of_rows_is_in_the_runs_folder_until_the_end(started, tmp_path):
    (tmp_path / "sft" / ".datasets").mkdir(parents=True)
    host.run("sft", Settings("cpu", SFTSettings()), ["--ckpt.output_dir", str(tmp_path / "sft")])
    assert started.cache == str(tmp_path / "sft" / ".datasets")
    assert not os.path.exists(started.cache) and "HF_DATASETS_CACHE" not in started.environ
    started.environ["HF_DATASETS_CACHE"] = str(tmp_path)
    host.run("sft", Settings("cpu", SFTSettings()), ["--ckpt.output_dir", str(tmp_path / "sft")])
    assert started.cache == str(tmp_path) and tmp_path.exists()  # the user's own place


def test_a_ray_cluster_keeps_its_own_books(started, tmp_path):
    started.environ["RAY_ADDRESS"] = "auto"
    host.run("grpo", Settings("cpu", GRPOSettings(("rules",))), folders(tmp_path))
    assert "num_gpus" not in started.ray and "num_cpus" not in started.ray
    assert not {"address", "_temp_dir"} & set(started.ray)
    assert not {"RAY_AUTH_MODE", *own_ray.LOOPBACK_ENVIRONMENT} & set(started.environ)


@pytest.mark.parametrize("flags", [["--logger.wandb.key", "secret"], ["--logger.wandb.key=secret"]])
def test_the_key_of_weights_and_biases_stays_out_of_what_openrlhf_prints(started, flags):
    host.run("sft", Settings("cpu", SFTSettings()), [*flags, "--train.max_epochs", "2"])
    assert "secret" not in " ".join(started.argv) and started.argv[-2:] == ["--train.max_epochs", "2"]
    assert started.environ["WANDB_API_KEY"] == "secret"
    started.environ["WANDB_API_KEY"] = "mine"
    host.run("sft", Settings("cpu", SFTSettings()), flags)
    assert started.environ["WANDB_API_KEY"] == "mine"  # as OpenRLHF has it: the flag only turns it on


def test_the_workers_of_a_cluster_get_what_weights_and_biases_asks(started, tmp_path):
    started.environ["RAY_ADDRESS"] = "auto"
    host.run("grpo", Settings("cpu", GRPOSettings(("rules",))), [*folders(tmp_path), "--logger.wandb.key", "secret"])
    assert started.ray["runtime_env"]["env_vars"]["WANDB_API_KEY"] == "secret"
