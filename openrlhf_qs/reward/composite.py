"""The composite reward: every part scores the rollout batch, is normalised, weighted, and added; a gate has the last
word.

``fusion/weights.json`` holds the normalisation that the weights were learned for and, for each part, its weight, the
mean and deviation of the SFT policy's own responses, and the options that were calibrated on them::

    {"normalisation": "sft", "rewards": {"garm": {"weight": 1.0, "mean": 0.3, "std": 0.6, "options": {}}, ...}}
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from openrlhf_qs.files.whole import short
from openrlhf_qs.registry import REWARDS
from openrlhf_qs.reward.normalisation import (
    NORMALISATIONS,
    Normalisation,
    RunningStatistics,
    group_means,
    within_group,
)
from openrlhf_qs.reward.rollout import RolloutBatch

NEEDS = {
    "reward_model": "a reward model: give its checkpoint as --reward.model_name_or_path",
    "reference": "the reference policy's log-probs: set --algo.kl.init_coef above 0",
}
OnFailure = Literal["raise", "skip_group"]
ON_FAILURE = {
    "raise": "the run stops with the prompt and the response that did it",
    "skip_group": "all responses to that prompt get the same reward, so none has an advantage; counted",
}
SAME = 1e-6  # totals of a group that lie closer together give no signal, and are made equal
EXACT = 2.0**-10  # of which equal totals are a multiple


class NoNumbers(ValueError):
    """A part returned something else than its numbers."""


@dataclass(frozen=True)
class Part:
    """How one reward enters the sum: ``weight * (reward - mean) / std``; ``options`` were calibrated with them."""

    weight: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """A weights file: the parts, and what their weights were learned for: the normalisation, and the temperature of
    the rollouts, at which the reference is asked too."""

    parts: Mapping[str, Part]
    normalisation: Normalisation = "sft"
    temperature: float = 1.0


@dataclass(frozen=True)
class Scored:
    """What the composite reward says of one rollout batch; tensors are ``[batch]``, float32 or bool.

    Attributes:
        raw: each reward as it is, gates included; nan where the group was skipped.
        normalised, weighted: each part, gates excluded; 0 where the group was skipped.
        total: the reward that training uses.
        credit: ``[batch, n]``, what each suggestion brought to the total (:mod:`openrlhf_qs.reward.credit`), but for
            gates and the means that parts are normalised by; None where it was not asked for.
        closed: a gate was closed, so the total is the floor.
        failed: the group was skipped, because a part failed on one of its responses.
        no_signal: all totals of the group are the same.
        share: of each part, and of ``gate``, in the variance of the totals within a group, averaged over the groups
            with a signal. They add up to 1; a part that works against the others is below 0.
    """

    raw: dict[str, Tensor]
    normalised: dict[str, Tensor]
    weighted: dict[str, Tensor]
    total: Tensor
    credit: Tensor | None
    closed: Tensor
    failed: Tensor
    no_signal: Tensor
    share: dict[str, float]

    def logged(self) -> dict[str, Tensor]:
        """Everything by the name it is logged under, ``[batch]`` each, the same names for every batch.

        What is bool becomes 0 or 1, so that its average is a share of the responses. A raw reward that could not be
        had counts as the average of the others; ``reward_failed`` says how many those are.
        """
        values = {f"reward/{name}": _filled(value) for name, value in self.raw.items()}
        values |= {f"reward_normalised/{name}": value for name, value in self.normalised.items()}
        values |= {f"reward_weighted/{name}": value for name, value in self.weighted.items()}
        values |= {f"share/{name}": torch.full_like(self.total, share) for name, share in self.share.items()}
        return values | {
            "gate_closed": self.closed.float(),
            "no_signal_groups": self.no_signal.float(),
            "reward_failed": self.failed.float(),
        }


class CompositeReward:
    """The weighted sum of registered rewards over one rollout batch, and its gates.

    A reward class with ``gate = True`` is a gate: it returns 1 where a response may pass and 0 where not, and has no
    weight. Where a gate is closed the total is the floor: ``gate_floor``, or the lowest total among the group's open
    responses where that is lower.
    """

    def __init__(
        self,
        names: Sequence[str],
        options: Mapping[str, Mapping[str, str]] | None = None,
        weights: Weights | None = None,
        normalisation: Normalisation | None = None,
        on_failure: OnFailure = "raise",
        gate_floor: float = -3.0,
        min_deviation: float = 0.1,
    ) -> None:
        """
        Args:
            names: registered rewards, each once.
            options: for each name, its options; they go before those in ``weights``.
            weights: from :func:`read_weights`; None adds the rewards, each as of mean 0 and deviation 1. ValueError
                where they are of other rewards.
            normalisation: one of ``NORMALISATIONS``; None takes that of ``weights``. ValueError where it is another:
                the weights mean something else then.
            on_failure: one of ``ON_FAILURE``: what to do where a part raises, or gives nan or inf.
            gate_floor: reward units of the total.
            min_deviation: in deviations of the SFT policy, the least that those of a group, or running ones, are
                taken for. Without it a group of nearly equal responses makes large rewards of nothing.
        """
        _check_choice("normalisation", normalisation, NORMALISATIONS)
        _check_choice("on_failure", on_failure, ON_FAILURE)
        if len(set(names)) != len(names):
            raise ValueError(f"reward {','.join(names)}: a name occurs twice")
        self.gates = [name for name in names if REWARDS[name].gate]
        weighed = [name for name in names if name not in self.gates]
        if weights is None:
            weights = Weights({name: Part() for name in weighed}, normalisation or "sft")
        _check_weights(weights, weighed, normalisation)
        self.parts, self.normalisation, self.temperature = weights.parts, weights.normalisation, weights.temperature
        calibrated = {name: part.options for name, part in self.parts.items()}
        self.rewards = {
            name: REWARDS.create(name, **{**calibrated.get(name, {}), **(options or {}).get(name, {})})
            for name in names
        }
        self.on_failure, self.gate_floor = on_failure, gate_floor
        numbers = torch.tensor([[part.weight, part.mean, part.std] for part in self.parts.values()])
        self.weight, self.mean, self.std = numbers.view(-1, 3).T
        self.min_std = min_deviation * self.std
        self.running = RunningStatistics(self.mean, self.std)

    def needs(self) -> set[str]:
        """What the rewards cannot do without: keys of :data:`NEEDS`."""
        return {need for reward in self.rewards.values() for need in reward.needs}

    def score(self, batch: RolloutBatch, with_credit: bool = False) -> Scored:
        """The composite reward of a batch with all that led to it. ValueError as :meth:`raw`."""
        raw = self.raw(batch)
        _, group = torch.unique(batch.group, return_inverse=True)
        failed = torch.stack([value.isnan() for value in raw.values()]).any(0)
        if failed.all():
            raise ValueError("a reward failed on every prompt of the batch: nothing is left to train on")
        closed = torch.zeros_like(failed)
        for name in self.gates:
            closed |= raw[name] == 0

        values = torch.stack([raw[name] for name in self.parts], dim=-1) if self.parts else torch.zeros(len(group), 0)
        normalised, deviation = self._normalise(
            values, group, failed
        )  # [batch, n_rewards], and what it was divided by
        normalised = normalised.masked_fill(failed[:, None], 0.0)
        weighted = normalised * self.weight  # here, and only here, parts meet weights
        total = self._gated(weighted.sum(-1), closed, group)
        total[failed] = total[~failed].mean()  # whatever an estimator's baseline, no advantage

        credit = None
        if with_credit and self.parts:
            credit = torch.stack([*self.credit(batch, raw).values()], dim=-1)
            credit = (credit / deviation[..., None, :] * self.weight).sum(-1).masked_fill(failed[:, None], 0.0)

        columns = dict(zip(self.parts, weighted.unbind(-1), strict=True))
        if self.gates:
            columns["gate"] = total - weighted.sum(-1)
        highest, lowest = (_by_group(total, group, how) for how in ("amax", "amin"))
        no_signal = highest - lowest <= SAME
        # Equal up to rounding has to be equal: OpenRLHF divides by a group's deviation, of 1e-7 too. In steps whose
        # sums float32 holds exactly, the group's mean is the number itself.
        has_others = torch.bincount(group)[group] > 1
        total = torch.where(no_signal & has_others, (lowest / EXACT).round() * EXACT, total)
        return Scored(
            raw=raw,
            normalised=dict(zip(self.parts, normalised.unbind(-1), strict=True)),
            weighted={name: columns[name] for name in self.parts},
            total=total,
            credit=credit,
            closed=closed,
            failed=failed,
            no_signal=no_signal,
            share=variance_shares(columns, total, group),
        )

    def credit(self, batch: RolloutBatch, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each suggestion brought to each part, as the part is, ``[batch, n]`` float32; ``raw`` is what
        :meth:`raw` says of the batch, which a part that does not tell suggestions apart brought by each."""
        return {name: self._credit(name, raw[name], batch) for name in self.parts}

    def in_sft_units(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each part, gates excluded, in deviations of the SFT policy times its weight: the same number at every step,
        whatever training normalises by."""
        return {
            name: (raw[name] - mean) / std * weight
            for name, mean, std, weight in zip(self.parts, self.mean, self.std, self.weight, strict=True)
        }

    def adapt(self, batch: RolloutBatch) -> dict[str, float]:
        """Let the parts that change while training see a step's rollouts, after they were scored: by part, what it
        will multiply its reward by."""
        adapted = {name: reward.adapt(batch) for name, reward in self.rewards.items() if reward.adapt}
        return {name: multiplier for name, multiplier in adapted.items() if multiplier is not None}

    def raw(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """Each reward as it is, gates included, ``[batch]`` float32.

        ValueError names reward, prompt and response where one raises or is nan or inf. Under ``skip_group`` all
        responses to that prompt are nan instead; where every prompt is, it is an error all the same, for then the
        reward is broken, and not a response.
        """
        return {name: self._one(name, batch) for name in self.rewards}

    def _one(self, name: str, batch: RolloutBatch) -> Tensor:
        problem, before = "", _content(batch)
        try:
            value = self._value(name, batch)
        except Exception as error:
            if isinstance(error, NoNumbers) and self.on_failure == "raise":
                raise
            value, problem = self._prompt_by_prompt(name, batch, error)
        if _content(batch) != before:
            raise ValueError(
                f"reward {name!r} changed the batch that it was given, which the other parts read too: let it copy "
                "what it changes"
            )
        if name in self.gates and not (value.isnan() | (value == 0) | (value == 1)).all():
            raise ValueError(
                f"gate {name!r} returned {value.unique().tolist()}; give 1 for a response that passes, or 0"
            )
        bad = (~value.isfinite()).nonzero().flatten()
        if not len(bad):
            return value
        problem = problem or (
            f"reward {name!r} is {value[bad[0]].item()} for {_quoted(batch, bad[0])} ({len(bad)} of {len(value)} "
            "responses); it would turn the advantages of its whole group into nan"
        )
        skipped = torch.isin(batch.group, batch.group[bad])
        if self.on_failure == "raise" or skipped.all():
            raise ValueError(problem)
        return value.masked_fill(skipped, math.nan)

    def _value(self, name: str, batch: RolloutBatch) -> Tensor:
        shape = (len(batch.responses),)
        with torch.no_grad():
            value = self.rewards[name](batch)
        return _tensor(f"reward {name!r}", value, shape, "one number per response")

    def _prompt_by_prompt(self, name: str, batch: RolloutBatch, error: Exception) -> tuple[Tensor, str]:
        """A reward that raised on the batch, for each prompt alone: nan where it raises again, and what went wrong."""
        value, problem = torch.zeros(len(batch.responses)), ""
        for number in batch.group.unique():
            rows = (batch.group == number).nonzero().flatten().tolist()
            try:
                value[rows] = self._value(name, batch.take(rows))
            except Exception as raised:
                value[rows] = math.nan
                what = str(raised) if isinstance(raised, NoNumbers) else f"reward {name!r} raised {raised!r}"
                problem = problem or f"{what} for {self._culprit(name, batch, rows)}"
        if not problem:
            what = str(error) if isinstance(error, NoNumbers) else f"reward {name!r} raised {error!r}"
            raise ValueError(f"{what}: on the batch, on no prompt of it alone") from error
        return value, problem

    def _culprit(self, name: str, batch: RolloutBatch, rows: Sequence[int]) -> str:
        for row in rows:
            try:
                self._value(name, batch.take([row]))
            except Exception:
                return _quoted(batch, row)
        return f"the {len(rows)} responses to {_question(batch, rows[0])} together"

    def _normalise(self, values: Tensor, group: Tensor, failed: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised ``values``, and what they were divided by: ``[n_rewards]``, or ``[batch, n_rewards]``."""
        if self.normalisation == "group":
            return within_group(values, group, self.min_std)
        if self.normalisation == "running":
            self.running.update(values[~failed])
            deviation = torch.maximum(self.running.std, self.min_std)
            return (values - self.running.mean) / deviation, deviation
        return (values - self.mean) / self.std, self.std

    def _credit(self, name: str, raw: Tensor, batch: RolloutBatch) -> Tensor:
        """What each suggestion brought to one part, ``[batch, n]``."""
        credit, n = self.rewards[name].credit, batch.task.n
        if not credit:
            return raw[:, None].expand(-1, n)
        what = f"one number for each of {n} suggestions"
        with torch.no_grad():
            value = credit(batch)
        return _tensor(f"credit of reward {name!r}", value, (len(batch.responses), n), what)

    def _gated(self, total: Tensor, closed: Tensor, group: Tensor) -> Tensor:
        lowest_open = _by_group(total.masked_fill(closed, math.inf), group, "amin")
        return torch.where(closed, lowest_open.clamp(max=self.gate_floor), total)


def variance_shares(columns: Mapping[str, Tensor], total: Tensor, group: Tensor) -> dict[str, float]:
    """How much of the variance of ``total`` within its group comes from each column, on the average of the responses.

    ``cov(column, total) / var(total)``, as for the advantages of ``group_norm``, where every group has the variance 1.
    Groups whose totals are the same are left out; where no other is there, all shares are 0.

    Args:
        columns: ``[batch]`` each; they add up to ``total``, and so the shares to 1.
        group: ``[batch]``, numbers from 0.
    """
    values = torch.stack([*columns.values(), total], dim=-1).double()
    values = values - group_means(values, group)
    covariance = group_means(values * values[:, -1:], group)
    covariance = covariance[_by_group(total, group, "amax") - _by_group(total, group, "amin") > SAME]
    shares = (covariance[:, :-1] / covariance[:, -1:]).mean(0) if len(covariance) else torch.zeros(len(columns))
    return dict(zip(columns, shares.tolist(), strict=True))


def read_weights(path: str | Path) -> Weights:
    """A weights file. ValueError where it is none, or a number in it would make rewards nan or inf."""
    try:
        read = json.loads(Path(path).read_text())
        weights = Weights(
            {name: Part(**part) for name, part in read["rewards"].items()},
            read.get("normalisation", "sft"),
            float(read.get("temperature", 1.0)),
        )
        usable = {
            name: all(map(math.isfinite, (part.weight, part.mean, part.std))) and part.std > 0
            for name, part in weights.parts.items()
        }
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: run the fusion stage first") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a weights file of the fusion stage: {error!r}") from None
    for name, part in weights.parts.items():
        if not usable[name]:
            raise ValueError(f"{path}: {name} has {part}; give finite numbers and a std above 0")
    _check_choice(f"{path}: normalisation", weights.normalisation, NORMALISATIONS)
    return weights


def _check_weights(weights: Weights, names: Sequence[str], normalisation: str | None) -> None:
    if set(weights.parts) != set(names):
        missing = ", ".join(sorted(set(names) - set(weights.parts))) or "none"
        unknown = ", ".join(sorted(set(weights.parts) - set(names))) or "none"
        raise ValueError(
            f"the weights do not fit the rewards {','.join(names)}: without a weight: {missing}; "
            f"a weight, but not loaded: {unknown}; run the fusion stage again with these rewards"
        )
    if normalisation not in (None, weights.normalisation):
        raise ValueError(
            f"the weights were learned for the normalisation {weights.normalisation!r}, not {normalisation!r}: run "
            "the fusion stage again with it, or leave it out here"
        )


def _check_choice(what: str, value: str | None, known: Mapping[str, str]) -> None:
    if value is not None and value not in known:
        raise ValueError(f"{what} {value!r} is unknown; known: {', '.join(known)}")


def _tensor(whose: str, value: Any, shape: tuple[int, ...], what: str) -> Tensor:
    """What a plugin returned, float32 on the CPU; None among its numbers is nan. NoNumbers where it is something
    else."""
    found = short(value)
    try:
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = [math.nan if one is None else one for one in value]
        value = torch.as_tensor(value)
        if value.layout is not torch.strided or value.is_complex():
            found = f"a {'sparse' if value.layout is not torch.strided else 'complex'} tensor"
            raise TypeError(found)
        value = value.detach().to("cpu", torch.float32)
    except Exception:  # of whatever type it is
        raise NoNumbers(f"{whose} returned {found}; give {what}") from None
    if value.shape != shape:
        raise NoNumbers(f"{whose} returned shape {list(value.shape)} for {shape[0]} responses; give {what}")
    return value


def _content(batch: RolloutBatch) -> bytes:
    """All that a part may read, to see whether one changes it."""
    return pickle.dumps(vars(batch))


def _by_group(values: Tensor, group: Tensor, how: str) -> Tensor:
    """The least (``amin``) or largest (``amax``) value in the group of each, ``[batch]``."""
    n_groups = len(torch.bincount(group))
    return values.new_zeros(n_groups).scatter_reduce_(0, group, values, how, include_self=False)[group]


def _filled(value: Tensor) -> Tensor:
    return torch.where(value.isnan(), value.nanmean(), value)


def _quoted(batch: RolloutBatch, row: int) -> str:
    return f"response {batch.responses[row]!r} to {_question(batch, row)}"


def _question(batch: RolloutBatch, row: int) -> str:
    return repr(batch.conversations[row][-1]["content"])
