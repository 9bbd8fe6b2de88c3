"""The outcome of a run, in words: the answer, its conditions, warnings, what changed.

In: the metrics of ``evaluate``, the alarms of GRPO, the weights file. Out: sentences and rows of plain text, which the
report's first screen and the terminal show.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from openrlhf_qs.evaluation.arms import AT, LAST_POLICY
from openrlhf_qs.garm.calibration import ECE_LIMIT

BASELINES = (
    "cold_start",
    "most_clicked",
    "sft",
    "sft_best_of",
)  # what the last policy has to beat, by prefix of the name
START = "rft"  # what GRPO starts from, if there is one
CEILING = "ceiling"
BOUNDS = ("bayes_rule",)  # reference values for a reward model that it need not beat
SIMULATED = ("built_in_world",)  # judges whose users are simulated
COIN_NLL = math.log(2)  # nats per pair
MALFORMED_LIMIT, NEAR_DUPLICATES_LIMIT = 0.01, 0.10
CHANGES = {  # of quality: words, format, whether more is better
    "malformed": ("malformed", ".1%", False),
    "near_duplicates": ("with near-duplicates", ".1%", False),
    "self_similarity": ("self-similarity", ".3f", False),
    "distinct_2": ("distinct-2", ".3f", True),
    "likeness": ("likeness to clicked", ".3f", True),
    "log_ppl": ("log-perplexity, nats", ".2f", False),
}


def conditions(metrics: Mapping[str, Any]) -> str:
    """Who clicked, on what, at which temperatures, after how many trainings."""
    judge = metrics.get("judge", "none")
    if judge == "none":
        users = "no users, only the clicks in the log"
    elif judge in SIMULATED:
        users = f"simulated users ({judge}), no real users"
    else:
        users = f"users of the judge {judge}"
    parts = [users]
    if n := metrics.get("contexts", {}).get("compared"):
        parts.append(f"{n:,} held-out conversations")
    parts += [f"{name} at temperature {one['temperature']:g}" for name, one in metrics.get("served", {}).items()]
    parts.append(f"seed {metrics.get('seed', 0)}, one training")
    return " · ".join(parts)


def strongest_baseline(ab: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The baseline with the highest CTR; None if there is none."""
    names = [name for name in ab if name != LAST_POLICY and name.startswith(BASELINES) and AT not in name]
    return max(names, key=lambda name: ab[name]["ctr"], default=None)


def answer(metrics: Mapping[str, Any]) -> str:
    """One sentence: how the trained policy did against the strongest baseline."""
    ab = metrics.get("ab", {})
    if LAST_POLICY not in ab:
        if ab:
            best = max(ab, key=lambda name: ab[name]["ctr"])
            return f"{best} has the highest CTR of {len(ab)} arms: {ab[best]['ctr']:.1%} of its users click."
        said = "No judge, so no A/B test: nothing here shows whether users prefer the policies."
        garm = metrics.get("garm", {})
        if garm.get("n_pairs"):
            low, high = garm["accuracy_ci95"]
            said += (
                f" The reward model prefers the clicked suggestion in {garm['accuracy']:.1%} of the held-out pairs "
                f"({low:.1%} to {high:.1%})."
            )
        return said
    baseline = strongest_baseline(ab)
    rate = f"{ab[LAST_POLICY]['ctr']:.1%} of users click with {LAST_POLICY}"
    value = metrics.get("lift", {}).get(f"{LAST_POLICY}_over_{baseline}")
    if baseline is None or value is None:
        return f"{rate}; there is no baseline to compare it with."
    low, high = metrics["lift_ci95"][f"{LAST_POLICY}_over_{baseline}"]
    word = "clearly more" if low > 0 else "clearly fewer" if high < 0 else "no clear difference"
    start = ""
    if over := metrics["lift_ci95"].get(f"{LAST_POLICY}_over_{START}"):
        than = "clearly fewer" if over[0] > 0 else "clearly more" if over[1] < 0 else "no clear difference"
        start = f" With {START}, which it starts from, {ab[START]['ctr']:.1%} click: {than}."
    ceiling = f" The ceiling for any policy with these users is {ab[CEILING]['ctr']:.1%}." if CEILING in ab else ""
    return (
        f"{rate}, {ab[baseline]['ctr']:.1%} with the strongest baseline, {baseline}: {word} (relative lift "
        f"{value:+.1%}, 95 % interval {low:+.1%} to {high:+.1%}, for this one training)."
        f"{start}{best_of_each(metrics)}{ceiling}"
    )


def best_of_several(names: Collection[str]) -> tuple[str, str] | None:
    """The arms of the last policy and of SFT with the best of as many samples; None if they are not both there."""
    for name in names:
        if name.startswith(f"{LAST_POLICY}_best_of") and (other := name.replace(LAST_POLICY, "sft", 1)) in names:
            return name, other
    return None


def best_of_each(metrics: Mapping[str, Any]) -> str:
    """A sentence on the arms of :func:`best_of_several`; empty if there are none, or they cannot be compared."""
    arms = best_of_several(metrics["ab"])
    if arms is None or metrics["lift"].get(key := "_over_".join(arms)) is None:
        return ""
    after, before = (f"{metrics['ab'][name]['ctr']:.1%}" for name in arms)
    low, high = metrics["lift_ci95"][key]
    return (
        f" When the reward picks one of {arms[0].rpartition('_')[2]} samples, {after} click with {LAST_POLICY} and "
        f"{before} with sft ({metrics['lift'][key]:+.1%}, {low:+.1%} to {high:+.1%})."
    )


def warnings(
    metrics: Mapping[str, Any], alarms: Sequence[Mapping[str, Any]] = (), weights: Mapping[str, Any] | None = None
) -> list[dict[str, str]]:
    """What a reader must know before trusting the numbers: ``kind`` (bad, warn) and ``sentence``, bad ones first.

    Args:
        alarms: of GRPO's monitors: ``step``, ``monitor``, ``sentence``.
        weights: the content of ``fusion/weights.json``.
    """
    found: list[tuple[str, str]] = []
    ab, quality = metrics.get("ab", {}), metrics.get("quality", {})
    if LAST_POLICY in ab and (baseline := strongest_baseline(ab)):
        interval = metrics.get("lift_ci95", {}).get(f"{LAST_POLICY}_over_{baseline}")
        if interval and interval[0] <= 0:
            word = "loses to" if interval[1] < 0 else "is not clearly better than"
            found.append(("bad" if interval[1] < 0 else "warn", f"{LAST_POLICY} {word} the baseline {baseline}."))
    after, before = quality.get(LAST_POLICY), quality.get("sft")
    start = START if START in quality else "sft"
    now, was = (quality.get(name, {}).get("reward", {}).get("total") for name in (LAST_POLICY, start))
    if now is not None and was is not None and now <= was:
        found.append(
            (
                "warn",
                f"{LAST_POLICY} as served has no more of the reward it was trained on ({now:.3f}) than {start}, which "
                f"it started from ({was:.3f}).",
            )
        )
    if after:
        if after["malformed"] > MALFORMED_LIMIT:
            found.append(("bad", f"{after['malformed']:.1%} of the {LAST_POLICY} responses are malformed."))
        if after["near_duplicates"] > NEAR_DUPLICATES_LIMIT:
            was = f" ({before['near_duplicates']:.1%} for sft)" if before else ""
            share = f"{after['near_duplicates']:.1%}"
            found.append(("warn", f"{share} of the {LAST_POLICY} responses contain near-duplicates{was}."))
        if before and after["distinct_2"] and before["distinct_2"] and after["distinct_2"] < before["distinct_2"] / 2:
            found.append(
                (
                    "warn",
                    f"{LAST_POLICY} repeats itself: distinct-2 is {after['distinct_2']:.3f} "
                    f"({before['distinct_2']:.3f} for sft).",
                )
            )
    garm = metrics.get("garm", {})
    if garm.get("ece", 0) > ECE_LIMIT:
        low, high = garm["ece_ci95"]
        kind, word = ("bad", "are off") if low > ECE_LIMIT else ("warn", "may be off (more pairs would show)")
        found.append(
            (kind, f"The reward model's probabilities {word}: ECE {garm['ece']:.3f} ({low:.3f} to {high:.3f}).")
        )
    for name, one in garm.get("baselines", {}).items():
        if one["loses"] and name not in BOUNDS:
            found.append(("bad", f"The reward model loses to {name}: {one['sentence']}"))
    own = metrics.get("garm_on_policy", {}).get(LAST_POLICY)
    if own and own["nll_ci95"][1] >= COIN_NLL:
        low, high = own["accuracy_ci95"]
        kind, word = ("bad", "worse") if own["nll_ci95"][0] > COIN_NLL else ("warn", "not clearly better")
        bound = own.get("baselines", {}).get("bayes_rule")
        most = f"; the Bayes rule would in {bound['accuracy']:.1%}" if bound else ""
        found.append(
            (
                kind,
                f"On {LAST_POLICY} suggestions, which it was not trained on, the reward model prefers the clicked one "
                f"in {own['accuracy']:.1%} of the pairs ({low:.1%} to {high:.1%}{most}); its probabilities are {word} "
                f"than a coin's (NLL {own['nll']:.3f}, coin: {COIN_NLL:.3f}).",
            )
        )
    for name, coefficient in ((weights or {}).get("first_stage", {}).get("coefficient", {})).items():
        error = weights["first_stage"]["standard_error"][name]
        if coefficient < -2 * error:
            weight = weights["rewards"].get(name, {}).get("weight", 0)
            found.append(
                (
                    "bad" if weight > 0 else "warn",
                    f"Clicks fall as {name} rises ({coefficient:+.2f} ± {error:.2f}), but its weight in training was "
                    f"{weight:+.2f}.",
                )
            )
    by_monitor: dict[str, list[Mapping[str, Any]]] = {}
    for alarm in alarms:
        by_monitor.setdefault(alarm["monitor"], []).append(alarm)
    for name, some in by_monitor.items():
        times = f", and {len(some) - 1} times later" if len(some) > 1 else ""
        found.append(("warn", f"Monitor {name} at step {some[0]['step']}{times}: {some[0]['sentence']}"))
    if metrics.get("judge") in SIMULATED:
        found.append(("warn", "The users are simulated: these rates say nothing about real users."))
    return [{"kind": kind, "sentence": sentence} for kind, sentence in sorted(found, key=lambda one: one[0] != "bad")]


def changes(metrics: Mapping[str, Any], before: str = "sft", after: str = LAST_POLICY) -> list[dict[str, str]]:
    """What clearly got better or worse, by the 95 % intervals of the changes: ``name``, ``before``, ``after``,
    ``kind`` (good, bad, muted), ``word``."""
    rows, ab, quality = [], metrics.get("ab", {}), metrics.get("quality", {})
    if before in ab and after in ab:
        interval = metrics.get("lift_ci95", {}).get(f"{after}_over_{before}")
        rows.append(
            ("users who click", f"{ab[before]['ctr']:.1%}", f"{ab[after]['ctr']:.1%}", *_verdict(interval, True))
        )
    changed = metrics.get("quality_change", {})
    intervals = changed["ci95"] if (changed.get("before"), changed.get("after")) == (before, after) else {}
    if before in quality and after in quality:
        for key, (name, spec, more_is_better) in CHANGES.items():
            was, now = quality[before].get(key), quality[after].get(key)
            if was is None or now is None:
                continue
            rows.append((name, format(was, spec), format(now, spec), *_verdict(intervals.get(key), more_is_better)))
    return [dict(zip(("name", "before", "after", "kind", "word"), row, strict=True)) for row in rows]


def _verdict(interval: Sequence[float] | None, more_is_better: bool) -> tuple[str, str]:
    """Kind and word of a change with this 95 % interval; None, as from an earlier version, is not compared."""
    if interval is None:
        return "muted", "not compared"
    low, high = interval
    if low <= 0 <= high:
        return "muted", "no clear change"
    return ("good", "better") if (low > 0) == more_is_better else ("bad", "worse")
