import argparse

import pytest

from openrlhf_qs.serve.options import add_suggester_arguments, make_arms

ARMS = [("old", "runs/1/grpo", 0.9), ("new", "runs/2/grpo", 0.1)]


@pytest.fixture
def loaded(monkeypatch):
    """The arguments with which policies are loaded."""
    loaded = []
    monkeypatch.setattr("openrlhf_qs.serve.policy.Policy", lambda *args: loaded.append(args))
    return loaded


def asked(*flags):
    parser = argparse.ArgumentParser()
    add_suggester_arguments(parser)
    return parser.parse_args(["--filter", "none", *flags])


@pytest.mark.parametrize(("arms", "share"), [(ARMS[:1], 0.6), (ARMS, 0.3)])
def test_all_policies_together_take_the_share_of_a_gpu_that_was_given(loaded, arms, share):
    make_arms(asked("--gpu_memory_utilization", "0.6"), [(name, folder, 1 / len(arms)) for name, folder, _ in arms])
    assert [args[-1] for args in loaded] == [share] * len(arms)


@pytest.mark.parametrize("share", ["0", "1.5"])
def test_a_share_that_is_none_is_refused_before_anything_is_loaded(loaded, share):
    with pytest.raises(ValueError, match=f"--gpu_memory_utilization {share}: give more than 0, up to 1"):
        make_arms(asked("--gpu_memory_utilization", share), ARMS)
    assert loaded == []
