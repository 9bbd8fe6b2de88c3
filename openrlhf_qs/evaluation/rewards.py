"""The reward of a run, measured: the reward model against clicks, and each part on what every arm says.

What a policy says after training is where a reward model is asked and was never taught: out of distribution. The A/B
test's own clicks judge it there, made into pairs as the log's are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from openrlhf_qs.clicks.preferences import Pairs, all_pairs, preference_rows, preferences, read_preferences
from openrlhf_qs.clicks.propensity import PLACES
from openrlhf_qs.clicks.rows import MESSAGES
from openrlhf_qs.evaluation.arms import Shown
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import read_task
from openrlhf_qs.garm import baselines
from openrlhf_qs.garm.calibration import calibration_verdict
from openrlhf_qs.garm.eval import against_baselines, by_log_ppl, evaluate_pairs, pair_log_ppl, score_pairs
from openrlhf_qs.models.reference import reference_log_ppl
from openrlhf_qs.reward.offline import offline_batch

N_LOG_PPL = 2000  # pairs whose log-perplexity is measured, at most
N_CONTEXTS = 500  # conversations of an arm that its reward is measured on, at most


def on_heldout_pairs(run: RunFolder, scorer, seed: int = 0, chance: Callable | None = None) -> dict[str, Any]:
    """The reward model of a run on ``data/preferences.heldout.jsonl``.

    Args:
        chance: of a click, where the judge knows it, for the Bayes rule.

    Returns:
        ``observed`` of :func:`openrlhf_qs.garm.eval.evaluate_pairs` at the top, with ``position`` and ``std`` beside
        it; ``log_ppl``, accuracy by log-perplexity under the SFT policy, where there is one; ``baselines`` of
        :func:`openrlhf_qs.garm.eval.against_baselines`; a ``verdict`` in words.
    """
    rows = read_preferences(run.data.preferences_heldout)
    pairs = all_pairs(rows)
    if not len(pairs.row):
        return {"n_pairs": 0, "verdict": "No held-out pair to measure the reward model on."}
    metrics, scored = _measured(rows, pairs, scorer, seed)
    if (run.sft / "config.json").is_file():
        some = np.random.default_rng(seed).permutation(len(pairs.row))[:N_LOG_PPL]
        part = Pairs(*(column[some] for column in pairs))
        metrics["log_ppl"] = by_log_ppl(scored.take(some), pair_log_ppl(rows, part, str(run.sft)), seed)
    train = read_preferences(run.data.preferences) if run.data.preferences.is_file() else []
    metrics["baselines"] = against_baselines(scored, baselines.fitted(train, rows, pairs, chance), seed)
    return metrics | {"verdict": calibration_verdict(metrics)}


def on_clicks(
    scorer,
    conversations: Sequence[Sequence[Message]],
    suggestions: Sequence[Sequence[str]],
    clicks: np.ndarray,
    seed: int = 0,
    propensities: Sequence[float] | None = None,
    chance: Callable | None = None,
    **places: Sequence[float],
) -> dict[str, Any] | None:
    """The reward model of a run on what one arm of the A/B test showed.

    Args:
        conversations, suggestions: ``n_contexts`` each; what the users of a context saw, in the order shown.
        clicks: ``[n_contexts, users, slots]``, 0 or 1.
        propensities: how much each place is looked at, as the log says. An arm chose its own order, so its own clicks
            cannot tell; None, or fewer than places, counts every place alike.
        chance: of a click, where the judge knows it, for the Bayes rule.
        places: what else the log says of each place (:data:`openrlhf_qs.clicks.propensity.PLACES`), by name.

    Returns:
        As :func:`on_heldout_pairs`, without ``log_ppl``; the users of one context are one cluster of the bootstrap.
        None where no user clicked one suggestion and passed over another.
    """
    shown = [
        (str(number), list(conversation), list(texts), user[: len(texts)].tolist())
        for number, (conversation, texts, users) in enumerate(zip(conversations, suggestions, clicks, strict=True))
        for user in users
        if len(texts)
    ]
    if not any(0 < sum(clicked) < len(clicked) for *_, clicked in shown):
        return None
    columns = {"impression_id": pl.String, "conversation": MESSAGES, "suggestions": pl.List(pl.String)}
    log = pl.DataFrame(shown, schema=columns | {"clicks": pl.List(pl.Int8)}, orient="row")
    n_places = log["suggestions"].list.len().max()
    known = propensities is not None and len(propensities) >= n_places
    made = preferences(log, "ipw", propensities, **places) if known else preferences(log, "all", [1.0] * n_places)
    rows = list(preference_rows(made))
    pairs = all_pairs(rows)
    metrics, scored = _measured(rows, pairs, scorer, seed)
    metrics["baselines"] = against_baselines(scored, baselines.fitted([], rows, pairs, chance), seed)
    return metrics | {"verdict": calibration_verdict(metrics)}


def places_of(run: RunFolder) -> dict[str, list[float]]:
    """How much each place is looked at, and trusted, as the stage ``data`` found, by the names of :func:`on_clicks`;
    nothing where it did not run."""
    if not run.data.log.is_file():
        return {}
    summary = json.loads(run.data.log.read_text())
    return {name: summary.get(name, []) for name in ("propensities", *PLACES)}


class RunReward:
    """The composite reward of a run, with the weights of ``fusion/weights.json``, on what an arm says.

    Args:
        scorer: of the run's reward model; None where there is none.
        options: of plugins, by name.
    """

    def __init__(self, run: RunFolder, scorer, options: Mapping[str, Mapping[str, str]]) -> None:
        from openrlhf_qs.reward.composite import CompositeReward, read_weights  # --help need not wait for torch

        # In deviations of the SFT policy, whatever training normalises by: the same number for every policy.
        weights = replace(read_weights(run.weights), normalisation="sft")
        self.composite = CompositeReward(list(weights.parts), options, weights, on_failure="skip_group")
        if scorer is None and "reward_model" in self.composite.needs():
            raise ValueError(f"{run.garm} is missing, but fusion/weights.json has a weight for it: run garm")
        self.scorer = scorer if "reward_model" in self.composite.needs() else None
        self.reference = str(run.sft)
        self.task = read_task(self.reference)

    def __call__(self, rows: Sequence[Shown]) -> tuple[dict[str, float], np.ndarray]:
        """Part to its mean, in its own unit, and ``total`` to that of the weighted sum; and the composite reward of
        each response, ``[n]``, nan where a part of it failed."""
        scored = self._score(rows)
        means = {name: float(values.nanmean()) for name, values in scored.raw.items()}
        totals = np.where(scored.failed.numpy(), np.nan, scored.total.double().numpy())
        return means | {"total": float(scored.total.mean())}, totals

    def totals(self, rows: Sequence[Shown]) -> np.ndarray:
        """The composite reward of each response, ``[n]``; nan where a part of it failed."""
        return self(rows)[1]

    def weighted(self, rows: Sequence[Shown]) -> list[dict[str, float]]:
        """Of each response, what each part adds to the sum."""
        weighted = {name: values.tolist() for name, values in self._score(rows).weighted.items()}
        return [{name: values[row] for name, values in weighted.items()} for row in range(len(rows))]

    def _score(self, rows: Sequence[Shown]):
        """Where a row has no log-perplexity at the temperature of the rollouts that the weights are for, all are
        measured."""
        responses, log_ppl = [row.response for row in rows], [row.log_ppl for row in rows]
        temperature = self.composite.temperature
        if None in log_ppl or any(row.reference_temperature != temperature for row in rows):
            log_ppl = None
            if "reference" in self.composite.needs():
                log_ppl = reference_log_ppl(self.reference, [row.conversation for row in rows], responses, temperature)
        batch = offline_batch(
            [Request(row.conversation) for row in rows],
            responses,
            log_ppl,
            self.scorer,
            task=self.task,
            finish_reasons=[row.finish_reason for row in rows],
            n_shown=[row.n for row in rows],
        )
        return self.composite.score(batch)


def _measured(rows: Sequence[Mapping[str, Any]], pairs: Pairs, scorer, seed: int):
    scored = score_pairs(rows, pairs, scorer)
    metrics = evaluate_pairs(scored, seed=seed)
    return metrics.pop("observed") | metrics, scored
