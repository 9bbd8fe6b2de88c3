import json
import math
import os
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_qs.form.request import Request
from openrlhf_qs.reward.monitors import (
    MONITORS,
    LastGood,
    Monitors,
    MonitorStop,
    Watch,
    batch_statistics,
    newest_step,
    parse_thresholds,
    watch,
)
from openrlhf_qs.reward.offline import offline_batch

FLAT = {
    "proxy": 0.1,
    "proxy_std": 0.3,
    "malformed": 0.01,
    "response_length": 38.0,
    "distinct_2": 0.4,
    "ref_log_ppl": 0.7,
    "sigma": 1.0,
}
# What a batch of 128 responses scatters by, from step to step
NOISE = {
    "proxy": 0.05,
    "proxy_std": 0.03,
    "malformed": 0.009,
    "response_length": 1.0,
    "distinct_2": 0.02,
    "ref_log_ppl": 0.04,
    "sigma": 0.03,
}


def alarms_of(curve, n_steps=60, seed=0, **kwargs):
    """The alarms of a noisy run in which each statistic of ``curve`` is a function of the step."""
    rng = np.random.default_rng(seed)
    monitors = Monitors(**kwargs)
    found = []
    for step in range(1, n_steps + 1):
        row = FLAT | {name: value(step) for name, value in curve.items()}
        noisy = {name: max(0.0, value + NOISE[name] * rng.standard_normal()) for name, value in row.items()}
        found += monitors.update(step, noisy)
    return found


def after(step, value, otherwise):
    return lambda now: value if now > step else otherwise


@pytest.mark.parametrize("seed", range(20))
def test_a_flat_noisy_curve_gives_no_alarm(seed):
    assert alarms_of({}, n_steps=300, seed=seed) == []


def test_a_run_that_improves_gives_no_alarm():
    better = {"proxy": lambda s: 0.1 + s / 60, "malformed": lambda s: 0.03 - s / 3000, "sigma": lambda s: 1 - s / 600}
    assert alarms_of(better) == []


@pytest.mark.parametrize(
    ("monitor", "curve"),
    [
        ("malformed", {"malformed": after(20, 0.2, 0.01)}),
        ("length", {"response_length": after(20, 60.0, 38.0)}),
        ("length", {"response_length": after(20, 20.0, 38.0)}),
        ("diversity", {"distinct_2": after(20, 0.2, 0.4)}),
        ("log_ppl", {"ref_log_ppl": after(20, 1.6, 0.7)}),
        ("sigma", {"sigma": after(20, 1.6, 1.0)}),
        ("hacking", {"malformed": after(20, 0.08, 0.01), "proxy": after(20, 0.4, 0.1)}),
    ],
)
def test_each_sign_of_failure_alarms_once_within_the_window(monitor, curve):
    # hacking is seen early: before the malformed share is one that alarms by itself
    (alarm,) = alarms_of(curve, thresholds={"malformed": 0.15} if monitor == "hacking" else {})
    assert alarm.monitor == monitor
    assert 20 < alarm.step <= 20 + 5
    assert alarm.value > alarm.threshold == MONITORS[monitor].threshold
    assert str(alarm).startswith(f"monitor {monitor}, step {alarm.step}: ") and "{" not in str(alarm)


def test_a_slow_drift_is_seen_against_the_beginning_not_against_the_last_step():
    (alarm,) = alarms_of({"sigma": lambda step: 1 + step / 60}, n_steps=60)
    assert alarm.monitor == "sigma" and 12 < alarm.step < 25  # 1 + step / 60 passes 1.25 times the beginning at 18


def test_malformed_responses_without_a_rising_reward_are_no_hacking():
    assert alarms_of({"malformed": after(20, 0.08, 0.01)}, thresholds={"malformed": 0.15}) == []


def test_one_odd_batch_gives_no_alarm():
    assert alarms_of({name: lambda s, v=value: 9 * v if s == 30 else v for name, value in FLAT.items()}) == []


def test_an_alarm_comes_again_only_after_the_sign_had_gone():
    def steps(levels):
        monitors = Monitors(window=1)
        return [a.step for n, v in enumerate(levels, 1) for a in monitors.update(n, {"malformed": v})]

    assert steps([0.01, 0.06, 0.09, 0.06]) == [2]
    assert steps([0.01, 0.06, 0.045, 0.06]) == [2]  # 0.045 is not below 0.8 * 0.05
    assert steps([0.01, 0.06, 0.039, 0.06]) == [2, 4]


def test_a_missing_statistic_silences_its_monitors_only():
    monitors = Monitors(window=1)
    assert monitors.update(1, {"malformed": 0.5})[0].monitor == "malformed"
    assert monitors.update(2, FLAT) == []


@given(st.lists(st.fixed_dictionaries({name: st.floats(0, 100) for name in FLAT}), max_size=30), st.integers(1, 9))
def test_any_run_gives_each_alarm_above_its_threshold_and_never_before_the_window(rows, window):
    monitors = Monitors(window=window)
    for step, row in enumerate(rows, 1):
        for alarm in monitors.update(step, row):
            assert alarm.step == step >= window and alarm.value > alarm.threshold
            assert math.isfinite(alarm.value)


def test_a_threshold_is_an_option():
    curve = {"sigma": after(20, 1.6, 1.0)}
    assert alarms_of(curve, thresholds={"sigma": 1.0}) == []
    assert [a.monitor for a in alarms_of(curve, thresholds=parse_thresholds(["sigma=0.5", "length=0.9"]))] == ["sigma"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Monitors({"sigmas": 1.0}), "unknown monitor 'sigmas'; known: malformed, .*hacking"),
        (lambda: Monitors({"sigma": 0.0}), "threshold of monitor sigma is 0.0; give a number above 0"),
        (lambda: Monitors({"sigma": math.nan}), "is nan"),
        (lambda: Monitors(window=0), "window is 0 steps; give 1 or more"),
        (lambda: parse_thresholds(["sigma"]), "--qs.monitor_threshold sigma: give NAME=NUMBER"),
        (lambda: parse_thresholds(["sigma=high"]), "give NAME=NUMBER, as in sigma=0.5"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The statistics


def test_the_statistics_of_a_batch_are_what_can_be_counted_by_hand():
    conversation = [{"role": "user", "content": "How do I bake bread?"}]
    batch = offline_batch(
        [Request(conversation)] * 2,
        ["1. How long now?\n2. How long now?\n3. Which flour?", "Sorry."],
        ref_log_ppl=[0.5, 1.5],
        scorer=lambda conversations, suggestions: (np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 6.0]), np.zeros(3)),
    )
    row = batch_statistics(
        batch,
        torch.tensor([1.0, 3.0]),
        torch.tensor([10, 2]),
        torch.tensor([-4.0, -1.0]),
        judge=lambda conversations, suggestions: [[0.5] * len(texts) for texts in suggestions],
    )
    assert row == pytest.approx(
        {
            "proxy": 2.0,  # the mean over the one response that has suggestions
            "proxy_std": 0.0,
            "malformed": 0.5,
            "response_length": 6.0,
            "distinct_2": 3 / 5,  # how long, long now, twice, and which flour
            "ref_log_ppl": 1.0,
            "kl": ((-4 + 5) + (-1 + 3)) / 2,  # log-prob of the policy less that of the reference
            "sigma": 3.0,
            "gold": (1 - 0.5**3) / 2,  # three suggestions, then none
        }
    )


def test_a_batch_without_reference_reward_model_and_suggestions_has_statistics_too():
    batch = offline_batch([Request([{"role": "user", "content": "Hi"}])], [""])
    row = batch_statistics(batch, torch.ones(1), torch.ones(1), torch.zeros(1))
    assert row == {"proxy": 1, "proxy_std": 0, "malformed": 1, "response_length": 1, "distinct_2": 0}


# The watch over a run


def write_checkpoint(checkpoints, step, max_num=1):
    """As DeepSpeed does under OpenRLHF: delete what is too much, write the files, then ``latest``."""
    actor = checkpoints / "_actor"
    old = sorted(actor.glob("global_step*"), key=lambda folder: int(folder.name[11:]))
    for folder in old[: max(0, len(old) - max_num + 1)]:
        shutil.rmtree(folder)
    (actor / f"global_step{step}").mkdir(parents=True)
    (actor / f"global_step{step}" / "states.pt").write_text(f"policy after {step}")
    (actor / "latest").write_text(f"global_step{step}")


def train(tmp_path, sigmas, save_steps=4, first_step=1, stop=True, window=3):
    """Steps with these sigmas, and a checkpoint every ``save_steps``; MonitorStop's sentence, or None."""
    ckpt = SimpleNamespace(path=str(tmp_path / "ckpt"), output_dir=str(tmp_path), load_enable=True)
    watched = watch(ckpt, {}, window, stop)
    assert watched.step == first_step - 1
    for step, sigma in enumerate(sigmas, first_step):
        try:
            watched(FLAT | {"sigma": sigma})
        except MonitorStop as error:
            return str(error)
        if step % save_steps == 0:
            write_checkpoint(tmp_path / "ckpt", step)
    return None


def rows(tmp_path, name):
    return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]


def test_a_warning_is_written_and_printed_and_the_run_goes_on(tmp_path, capsys):
    assert train(tmp_path, [1.0] * 9 + [2.0] * 9, stop=False) is None
    (alarm,) = rows(tmp_path, "alarms.jsonl")
    assert (alarm["monitor"], alarm["step"], alarm["value"]) == ("sigma", 11, 1.0)
    assert capsys.readouterr().out.startswith("monitor sigma, step 11: the reward model's standard deviation is 2, 1 ")
    assert [row["step"] for row in rows(tmp_path, "statistics.jsonl")] == list(range(1, 19))
    assert sorted(os.listdir(tmp_path / "ckpt")) == ["_actor"]


def test_a_stop_keeps_the_newest_checkpoint_from_before_the_window(tmp_path):
    # alarm at 11 of window 9 to 11: step 8's policy writes the responses of step 9, step 4's none of them
    sentence = train(tmp_path, [1.0] * 9 + [2.0] * 9)
    last_good = tmp_path / "ckpt" / "last_good"
    assert (last_good / "_actor" / "latest").read_text() == "global_step8"
    assert (last_good / "_actor" / "global_step8" / "states.pt").read_text() == "policy after 8"
    assert sentence.startswith("monitor sigma, step 11: ") and f"with --ckpt.path {last_good}" in sentence
    assert newest_step(last_good) == 8
    assert sorted(os.listdir(tmp_path / "ckpt")) == ["_actor", "last_good"]


def test_a_checkpoint_within_the_window_is_not_good_and_an_older_one_survives_its_deletion(tmp_path):
    train(tmp_path, [1.0] * 7 + [2.0] * 9)  # alarm at 9, window 7 to 9; OpenRLHF has deleted step 4 for step 8
    assert (tmp_path / "ckpt" / "_actor" / "latest").read_text() == "global_step8"
    kept = tmp_path / "ckpt" / "last_good" / "_actor"
    assert (kept / "global_step4" / "states.pt").read_text() == "policy after 4"


def test_without_a_good_checkpoint_the_sentence_says_so(tmp_path):
    assert "start again from the SFT policy" in train(tmp_path, [1.0] * 3 + [2.0] * 9)
    assert not (tmp_path / "ckpt" / "last_good").exists()


def test_no_more_is_kept_than_a_window_needs_and_it_takes_no_space_of_its_own(tmp_path):
    train(tmp_path, [1.0] * 50, save_steps=1)
    kept = tmp_path / "ckpt" / "kept"
    assert sorted(int(folder.name[11:]) for folder in kept.iterdir()) == [47, 48, 49]
    newest = tmp_path / "ckpt" / "_actor" / "global_step50"
    LastGood(tmp_path / "ckpt", 50, 3).keep(51)
    linked = kept / "global_step50" / "_actor" / "global_step50" / "states.pt"
    assert linked.samefile(newest / "states.pt")


def test_a_resumed_run_remembers_its_beginning_and_forgets_what_it_does_again(tmp_path):
    train(tmp_path, [1.0] * 10, save_steps=4)  # broken off at 10, goes on from 8
    assert train(tmp_path, [1.5] * 6, first_step=9) is not None  # 1.5 against the 1.0 of the first steps
    assert [row["step"] for row in rows(tmp_path, "statistics.jsonl")] == list(range(1, 11))
    assert [row["step"] for row in rows(tmp_path, "alarms.jsonl")] == [10]
    # again: the same alarm at the same step, though it stands in the file already
    assert "step 10" in train(tmp_path, [1.5] * 6, first_step=9)
    assert len(rows(tmp_path, "alarms.jsonl")) == 1


def test_a_new_run_in_an_old_folder_begins_anew(tmp_path):
    write_checkpoint(tmp_path / "ckpt", 8)
    (tmp_path / "alarms.jsonl").write_text(json.dumps({"step": 3}) + "\n")
    ckpt = SimpleNamespace(path=str(tmp_path / "ckpt"), output_dir=str(tmp_path), load_enable=False)
    assert watch(ckpt, {}, 3, stop=False).step == 0
    assert rows(tmp_path, "alarms.jsonl") == []


def test_a_file_system_without_hard_links_gets_copies(tmp_path, monkeypatch):
    def no_links(*args, **kwargs):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    train(tmp_path, [1.0] * 7 + [2.0] * 9)
    assert (tmp_path / "ckpt" / "last_good" / "_actor" / "global_step4" / "states.pt").read_text() == "policy after 4"


def test_what_an_alarm_row_holds_is_the_alarm(tmp_path):
    watched = Watch(Monitors(window=1), tmp_path, tmp_path / "ckpt", resumed_step=0, stop=False)
    watched(FLAT | {"malformed": 0.5})
    monitors = Monitors(window=1)
    assert rows(tmp_path, "alarms.jsonl") == [asdict(a) for a in monitors.update(1, FLAT | {"malformed": 0.5})]
