"""Monitors of GRPO: the signs by which reward hacking shows, looked for after every rollout.

In: one row of statistics a step (:func:`batch_statistics`). Out: an :class:`Alarm` at each onset, which says what to
do. A monitor compares medians: of the last ``window`` steps, ``last``, with those of the first ``window``, ``first``.
One odd batch moves no median, so it gives no alarm.

Beside the policy, :class:`Watch` writes ``statistics.jsonl`` (every step) and ``alarms.jsonl``. A resumed run reads
the first back, so that its beginning stays the beginning of the run. Under ``--qs.monitor stop`` an alarm ends the
run, and ``last_good`` in the checkpoint folder holds the newest checkpoint from before the window of the alarm.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import TYPE_CHECKING

from openrlhf_qs.files.run_folder import GrpoFolder
from openrlhf_qs.files.whole import appended_lines, write_json_lines
from openrlhf_qs.form.text import words
from openrlhf_qs.reward.judged import click_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from openrlhf_qs.reward.rollout import RolloutBatch

WINDOW = 5  # steps
RECOVERED = 0.8  # of the threshold; an alarm is over below it, so that a value which trembles there alarms once
PROXY_RISE = 0.25  # of the proxy's deviation within a batch: the least rise that counts

Row = Mapping[str, float]


@dataclass(frozen=True)
class Monitor:
    """One sign of failure; it shows where ``value`` is above ``threshold``.

    Attributes:
        statistics: what it reads; where a row lacks one of them the monitor is silent.
        value: of the medians ``first`` and ``last``.
        threshold: the default.
        sentence: what is seen and what to do, with ``{value}``, ``{first}`` and ``{last}`` to fill in.
    """

    statistics: tuple[str, ...]
    value: Callable[[Row, Row], float]
    threshold: float
    sentence: str


def _change(name: str) -> Callable[[Row, Row], float]:
    """``last / first - 1`` of a positive statistic."""
    return lambda first, last: last[name] / max(first[name], 1e-9) - 1


def _malformed_while_proxy_rises(first: Row, last: Row) -> float:
    rises = last["proxy"] - first["proxy"] > PROXY_RISE * first["proxy_std"]
    return last["malformed"] - first["malformed"] if rises else 0.0


MONITORS = {
    "malformed": Monitor(
        ("malformed",),
        lambda first, last: last["malformed"],
        0.05,
        "{value:.1%} of the responses are malformed; make `rules` weigh more, or make it a gate, and look at the "
        "responses before you continue",
    ),
    "length": Monitor(
        ("response_length",),
        lambda first, last: abs(_change("response_length")(first, last)),
        0.3,
        "responses have {last[response_length]:.0f} tokens, {first[response_length]:.0f} at first; a part of the "
        "reward pays for length: see which rises with it, and narrow rules.min_width and rules.max_width",
    ),
    "diversity": Monitor(
        ("distinct_2",),
        lambda first, last: -_change("distinct_2")(first, last) if first["distinct_2"] else 0.0,
        0.3,
        "the batch repeats itself: {last[distinct_2]:.2f} different word pairs per pair, {first[distinct_2]:.2f} at "
        "first; give `diversity` more weight, raise --algo.kl.init_coef, or lower --actor.adam.lr",
    ),
    "log_ppl": Monitor(
        ("ref_log_ppl",),
        lambda first, last: last["ref_log_ppl"] - first["ref_log_ppl"],
        0.5,
        "log-perplexity under the reference is {last[ref_log_ppl]:.2f} nats per token, {first[ref_log_ppl]:.2f} at "
        "first: the policy is leaving what the reward model has seen; give `ood` more weight or raise "
        "--algo.kl.init_coef",
    ),
    "sigma": Monitor(
        ("sigma",),
        _change("sigma"),
        0.25,
        "the reward model's standard deviation is {last[sigma]:.3g}, {first[sigma]:.3g} at first: the policy is "
        "moving to where the model is unsure and its mean is worth less; give `garm_sigma` more weight, or train the "
        "reward model on clicks under this policy",
    ),
    "hacking": Monitor(
        ("proxy", "proxy_std", "malformed"),
        _malformed_while_proxy_rises,
        0.03,
        "the proxy reward rose from {first[proxy]:.3g} to {last[proxy]:.3g} while malformed responses rose from "
        "{first[malformed]:.1%} to {last[malformed]:.1%}: the policy found what the reward gets wrong; read the "
        "responses with the highest reward, and add a rule or a gate against what they do",
    ),
}


@dataclass(frozen=True)
class Alarm:
    """The onset of one sign: at ``step``, monitor ``monitor`` saw ``value`` above ``threshold``."""

    step: int
    monitor: str
    value: float
    threshold: float
    sentence: str

    def __str__(self) -> str:
        return f"monitor {self.monitor}, step {self.step}: {self.sentence}"


class Monitors:
    """All monitors over one run; :meth:`update` takes a step and answers with its alarms."""

    def __init__(self, thresholds: Mapping[str, float] | None = None, window: int = WINDOW) -> None:
        """
        Args:
            thresholds: name of a monitor to its threshold, above 0; the others keep their default.
            window: steps, at least 1, at the beginning and at the end that are compared.
        """
        thresholds = dict(thresholds or {})
        unknown = sorted(set(thresholds) - set(MONITORS))
        if unknown:
            raise ValueError(f"unknown monitor {unknown[0]!r}; known: {', '.join(MONITORS)}")
        for name, threshold in thresholds.items():
            if not 0 < threshold < math.inf:
                raise ValueError(f"the threshold of monitor {name} is {threshold}; give a number above 0")
        if window < 1:
            raise ValueError(f"the monitors' window is {window} steps; give 1 or more")
        self.thresholds = {name: monitor.threshold for name, monitor in MONITORS.items()} | thresholds
        self.window = window
        self.rows: list[Row] = []
        self.active: set[str] = set()

    def update(self, step: int, statistics: Row) -> list[Alarm]:
        """The alarms that begin with this step; none before there are ``window`` steps.

        Args:
            step: of the policy, as OpenRLHF counts them: 1 is the first.
            statistics: of its rollout, from :func:`batch_statistics`.
        """
        self.rows.append(statistics)
        if len(self.rows) < self.window:
            return []
        first, last = (_medians(rows) for rows in (self.rows[: self.window], self.rows[-self.window :]))
        alarms = []
        for name, monitor in MONITORS.items():
            if not all(one in first and one in last for one in monitor.statistics):
                continue
            value, threshold = monitor.value(first, last), self.thresholds[name]
            if value > threshold and name not in self.active:
                self.active.add(name)
                sentence = monitor.sentence.format(value=value, first=first, last=last)
                alarms.append(Alarm(step, name, value, threshold, sentence))
            elif value < RECOVERED * threshold:
                self.active.discard(name)
        return alarms


def _medians(rows: Sequence[Row]) -> dict[str, float]:
    """Of each statistic that all rows have."""
    names = set.intersection(*(set(row) for row in rows))
    return {name: median(row[name] for row in rows) for name in names}


def batch_statistics(
    batch: RolloutBatch, reward: Tensor, n_tokens: Tensor, log_prob: Tensor, judge: Callable | None = None
) -> dict[str, float]:
    """What the monitors read of one rollout batch.

    Args:
        reward: ``[batch]``, the composite.
        n_tokens: ``[batch]``, of each response.
        log_prob: ``[batch]``, nats, of each whole response under the policy.
        judge: whose clicks are gold, :mod:`openrlhf_qs.plugins.judges.endpoint`; None for none.

    Returns:
        ``proxy`` and ``proxy_std``, mean and deviation over the responses of what stands for clicks: the reward
        model's mean over a response's suggestions, or the composite reward where there is no model; ``malformed``,
        share of the responses that cannot be read as suggestions or were cut; ``response_length``, tokens;
        ``distinct_2``, different word pairs per word pair of all suggestions, 0 without one. With a reference
        ``ref_log_ppl``, nats per token, and ``kl``, nats per response, estimated as log-prob less the reference's.
        With a reward model ``sigma``, its standard deviation, mean over the suggestions. With a judge ``gold``, the
        share of users who click at least once.
    """
    said = [words(text) for parsed in batch.parsed for text in parsed.suggestions]
    pairs = [pair for text in said for pair in pairwise(text)]
    proxy = [fmean(means) for means in batch.reward_mean or () if means] or reward.tolist()
    row = {
        "proxy": fmean(proxy),
        "proxy_std": pstdev(proxy),
        "malformed": batch.malformed.float().mean().item(),
        "response_length": n_tokens.float().mean().item(),
        "distinct_2": len(set(pairs)) / max(len(pairs), 1),
    }
    if batch.ref_log_ppl is not None:
        row["ref_log_ppl"] = batch.ref_log_ppl.mean().item()
        row["kl"] = (log_prob + n_tokens * batch.ref_log_ppl).mean().item()
    sigmas = [sigma for response in batch.reward_std or () for sigma in response]
    if sigmas:
        row["sigma"] = fmean(sigmas)
    if judge is not None:
        shown = [parsed.suggestions for parsed in batch.parsed]
        clicks = click_probabilities(judge, batch.conversations, shown, where="the rollouts")
        row["gold"] = float((1 - (1 - clicks).prod(axis=1)).mean())
    return row


class MonitorStop(RuntimeError):
    """A monitor gave an alarm in a run that was told to stop then."""


def watch(ckpt, thresholds: Mapping[str, float], window: int, stop: bool) -> Watch:
    """The watch over a run of OpenRLHF, from its ``--ckpt`` flags."""
    checkpoints = Path(ckpt.path)
    resumed_step = newest_step(checkpoints) if ckpt.load_enable else 0
    return Watch(Monitors(thresholds, window), Path(ckpt.output_dir), checkpoints, resumed_step, stop)


class Watch:
    """The monitors of one run, its files, and what an alarm leads to."""

    def __init__(self, monitors: Monitors, folder: Path, checkpoints: Path, resumed_step: int, stop: bool) -> None:
        """
        Args:
            folder: where ``statistics.jsonl`` and ``alarms.jsonl`` go.
            checkpoints: OpenRLHF's ``--ckpt.path``.
            resumed_step: the step of the checkpoint that the run goes on from, 0 for a new run. What the files know
                of later steps is forgotten.
            stop: whether an alarm ends the run.
        """
        self.monitors = monitors
        self.folder = GrpoFolder(folder)
        self.step = resumed_step
        self.last_good = LastGood(checkpoints, resumed_step, monitors.window) if stop else None
        for file in (self.folder.statistics, self.folder.alarms):
            write_json_lines(file, [row for row in appended_lines(file) if row["step"] <= resumed_step])
        for row in appended_lines(self.folder.statistics):
            self.monitors.update(row["step"], {name: value for name, value in row.items() if name != "step"})

    def __call__(self, statistics: Row) -> None:
        """Take the next step. MonitorStop where it brings an alarm and the run is to stop."""
        self.step += 1
        _append(self.folder.statistics, {"step": self.step, **statistics})
        if self.last_good:
            self.last_good.keep(self.step)
        alarms = self.monitors.update(self.step, statistics)
        for alarm in alarms:
            _append(self.folder.alarms, asdict(alarm))
            print(alarm, flush=True)  # `openrlhf-qs follow` shows it
        if alarms and self.last_good:
            kept = self.last_good.settle(self.step)
            way_on = (
                f"the last good checkpoint is {kept}: continue from it, with other settings, with --ckpt.path {kept}"
                if kept
                else "no checkpoint is older than its cause: start again from the SFT policy, with another reward"
            )
            raise MonitorStop(f"{alarms[0]}. The run was told to stop (--qs.monitor stop); {way_on}")


class LastGood:
    """Keeps the checkpoints of which one may be the last good one, whatever ``--ckpt.max_num`` deletes.

    They are hard links, so they take space only once OpenRLHF has deleted its own: one checkpoint more, and one for
    each ``--ckpt.save_steps`` in a window.
    """

    def __init__(self, checkpoints: Path, resumed_step: int, window: int) -> None:
        self.checkpoints = checkpoints
        self.kept = checkpoints / "kept"
        self.window = window
        for step in self.steps():
            if step > resumed_step:  # it will be written again, into the same files
                shutil.rmtree(self.kept / f"global_step{step}")

    def steps(self) -> list[int]:
        """The kept ones, by step."""
        return sorted(_step(folder.name) for folder in self.kept.glob("global_step*"))

    def keep(self, step: int) -> None:
        """Keep the newest checkpoint, and drop those that are older than the last good one, seen from ``step``."""
        tag = f"global_step{newest_step(self.checkpoints)}"
        models = [model for model in self.checkpoints.glob("_*") if (model / tag).is_dir()]  # _actor, maybe _critic
        if models and not (self.kept / tag).is_dir():
            unfinished = self.kept / f".{tag}"
            shutil.rmtree(unfinished, ignore_errors=True)
            for model in models:
                shutil.copytree(model / tag, unfinished / model.name / tag, copy_function=_link)
                (unfinished / model.name / "latest").write_text(tag)
            unfinished.rename(self.kept / tag)
        for old in self.good(step)[:-1]:
            shutil.rmtree(self.kept / f"global_step{old}")

    def good(self, step: int) -> list[int]:
        """Kept checkpoints whose policy has no response in the window that ends with ``step``."""
        return [kept for kept in self.steps() if kept <= step - self.window]

    def settle(self, step: int) -> Path | None:
        """Call the newest good one ``last_good`` and drop the others. None where there is none."""
        good = self.good(step)
        folder = self.checkpoints / "last_good"
        shutil.rmtree(folder, ignore_errors=True)
        if good:
            (self.kept / f"global_step{good[-1]}").rename(folder)
        shutil.rmtree(self.kept, ignore_errors=True)
        return folder if good else None


def newest_step(checkpoints: Path) -> int:
    """The step of the checkpoint that OpenRLHF would go on from, 0 where there is none."""
    latest = checkpoints / "_actor" / "latest"
    return _step(latest.read_text()) if latest.is_file() else 0


def _step(tag: str) -> int:
    return int(re.search(r"(\d+)\s*$", tag)[1])


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _append(path: Path, row: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def parse_thresholds(settings: Sequence[str]) -> dict[str, float]:
    """``["sigma=0.5"]`` as ``{"sigma": 0.5}``. ValueError for what is no such thing."""
    thresholds = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            thresholds[name] = float(value)
        except ValueError:
            raise ValueError(f"--qs.monitor_threshold {setting}: give NAME=NUMBER, as in sigma=0.5") from None
    return thresholds
