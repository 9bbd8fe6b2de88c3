"""From which checkpoint a run goes on that was killed."""

import pytest
import torch

from openrlhf_qs.host.checkpoints import settle

FILES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")


def checkpoint(folder, step, files=FILES):
    (folder / f"global_step{step}").mkdir(parents=True)
    for file in files:
        torch.save({"step": step}, folder / f"global_step{step}" / file)
    (folder / "latest").write_text(f"global_step{step}")


def cut(file):
    file.write_bytes(file.read_bytes()[:-50])


@pytest.fixture(params=["", "_actor"], ids=["sft", "grpo"])
def run(tmp_path, request):
    """``--ckpt.path`` of a run and the folder of its model, with two whole checkpoints."""
    path = tmp_path / "ckpt"
    for step in (4, 8):
        checkpoint(path / request.param, step)
    return path, path / request.param


def latest(folder):
    return (folder / "latest").read_text()


def test_a_whole_checkpoint_is_left_alone_in_silence(run, capsys):
    path, folder = run
    assert settle(path) == 8 and latest(folder) == "global_step8"
    assert (folder / "global_step4").is_dir() and capsys.readouterr().out == ""


def test_of_one_that_is_cut_the_one_before_is_taken(run, capsys):
    path, folder = run
    cut(folder / "global_step8" / FILES[0])
    assert settle(path) == 4 and latest(folder) == "global_step4"
    assert not (folder / "global_step8").exists()
    assert "the checkpoint of step 8 is not whole: continuing from step 4" in capsys.readouterr().out


def test_one_that_lacks_a_file_is_not_whole(run):
    path, folder = run
    (folder / "global_step8" / FILES[1]).unlink()
    assert settle(path) == 4


def test_one_that_latest_does_not_name_yet_may_lack_what_another_process_writes(run):
    path, folder = run
    (folder / "latest").write_text("global_step4")
    assert settle(path) == 4 and not (folder / "global_step8").exists()


def test_where_latest_names_a_folder_that_is_gone_the_newest_that_is_there_is_taken(run, capsys):
    path, folder = run
    (folder / "latest").write_text("global_step12")
    assert settle(path) == 8 and latest(folder) == "global_step8"
    assert "step 12, the last one it names, is not whole: continuing from step 8" in capsys.readouterr().out


def test_a_run_killed_while_it_wrote_latest_goes_on_from_the_newest(run):
    path, folder = run
    (folder / "latest").write_text("")
    assert settle(path) == 8 and latest(folder) == "global_step8"


def test_where_none_is_whole_the_run_begins_anew(run, capsys):
    path, folder = run
    for step in (4, 8):
        cut(folder / f"global_step{step}" / FILES[0])
    assert settle(path) == 0
    assert not (folder / "latest").exists() and not list(path.rglob("*.pt"))
    assert "step 4, 8 is not whole: starting from the beginning" in capsys.readouterr().out


def test_a_run_killed_before_its_first_latest_begins_anew(run):
    path, folder = run
    (folder / "latest").unlink()
    assert settle(path) == 0 and not list(path.rglob("*.pt"))


def test_policy_and_critic_go_on_from_the_same_step(tmp_path):
    for model, steps in (("_actor", (4, 8, 12)), ("_critic", (4, 8))):
        for step in steps:
            checkpoint(tmp_path / model, step)
    assert settle(tmp_path) == 8
    assert latest(tmp_path / "_actor") == latest(tmp_path / "_critic") == "global_step8"
    assert not (tmp_path / "_actor" / "global_step12").exists()


def test_what_is_no_checkpoint_stays(run):
    path, folder = run
    (path / "kept").mkdir()
    (folder / "global_step8_hf").mkdir()
    (folder / "best_global_step4").mkdir()
    cut(folder / "global_step8" / FILES[0])
    settle(path)
    assert (path / "kept").is_dir() and (folder / "global_step8_hf").is_dir()
    assert (folder / "best_global_step4").is_dir()


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_without_a_checkpoint_there_is_nothing_to_do(tmp_path, make, capsys):
    make(tmp_path / "ckpt")
    assert settle(tmp_path / "ckpt") == 0 and capsys.readouterr().out == ""
