"""The report of a run: one HTML file that carries its plots and needs no script, no server and no other file.

In: the run folder (``run.json``, ``data/log.json``, ``fusion/weights.json`` and TensorBoard event files,
whatever of them is there) and the metrics of stage ``evaluate``. Out: ``report/report.html``: what the run came to,
conversations before and after, then the stages in their order.

The page is ``templates/report.html.j2`` with ``templates/report.css``; this module says what stands in it. All that
others wrote is escaped by the template engine, and pictures are images, in which nothing can run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from openrlhf_qs.evaluation import summary
from openrlhf_qs.evaluation.arms import LAST_POLICY
from openrlhf_qs.evaluation.tensorboard import read_scalars
from openrlhf_qs.files.record import durations
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import read_json_lines, write_whole
from openrlhf_qs.plots.calibration import accuracy_curve, reliability_diagram
from openrlhf_qs.plots.curves import small_multiples
from openrlhf_qs.plots.style import arm_colors, svg

STAGES = {
    "data": "The click log, split by conversation into training rows, preference pairs and held-out impressions.",
    "distil": "A teacher of single suggestions, and what it would suggest.",
    "sft": "The policy learns to write suggestions from what was clicked.",
    "garm": "The Gaussian reward model learns from pairs which suggestion is preferred, and how sure that is.",
    "fusion": "The weights of the parts of the composite reward. Each part is normalised by its mean and std first.",
    "rft": "The policy is taught the best that differ of the suggestions in its own samples.",
    "grpo": "The policy is trained on the composite reward, against its own other responses to the same prompt.",
    "evaluate": "All policies on the same held-out conversations.",
}
OPTIONAL = ("distil", "rft")  # stages that a run need not have: no section where there is nothing of them
FIRST_CURVES = (
    "train/rollout/reward_mean",
    "train/kl",
    "train/rollout/response_length_mean",
    "train/loss",
    "train/acc",
    "train/reward/",
)
N_FIRST_CURVES = 6
GROUPS = {
    "best": "where most was gained",
    "worst": "where most was lost",
    "random": "drawn at random",
}


def write_report(run_dir: Path, metrics: Mapping[str, Any]) -> Path:
    """Write ``report/report.html`` of a run.

    Args:
        run_dir: the run folder; what is not there is said to be missing.
        metrics: what ``evaluate`` measured, as in ``report/metrics.json``.

    Returns:
        Path of the file.
    """
    run = RunFolder(run_dir)
    environment = Environment(
        loader=PackageLoader("openrlhf_qs.evaluation"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["plain"] = plain
    write_whole(run.report, environment.get_template("report.html.j2").render(**page(run, metrics, environment)))
    return run.report


def page(run: RunFolder, metrics: Mapping[str, Any], environment: Environment) -> dict[str, Any]:
    """What stands in the page, by the names in the template."""
    alarms = read_json_lines(run.grpo.alarms) if run.grpo.alarms.is_file() else None
    weights = _json(run.weights)
    blocks = {
        "data": _data(run),
        "distil": _curves(run, "distil"),
        "sft": _curves(run, "sft"),
        "garm": _curves(run, "garm") + _calibration(metrics),
        "fusion": _fusion(weights),
        "rft": _curves(run, "rft"),
        "grpo": _alarms(alarms) + _curves(run, "grpo"),
        "evaluate": _evaluation(metrics),
    }
    before, after = "sft", LAST_POLICY
    return {
        "name": run.path.resolve().name,
        "css": environment.loader.get_source(environment, "report.css")[0],
        "conditions": summary.conditions(metrics),
        "answer": metrics.get("answer") or summary.answer(metrics),
        "warnings": summary.warnings(metrics, alarms or (), weights),
        "ctr_bars": _ctr_bars(metrics.get("ab", {})),
        "changes": {"before": before, "after": after, "rows": summary.changes(metrics, before, after)},
        "examples_lead": _examples_lead(metrics),
        "examples": _examples(metrics),
        "stages": [
            {"name": stage, "lead": lead, "blocks": blocks[stage]}
            for stage, lead in STAGES.items()
            if blocks[stage] or stage not in OPTIONAL
        ],
        "durations": _durations(durations(run)),
        "record": _json(run.record),
    }


def plain(value: Any) -> str:
    """A value of a JSON file as text."""
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


# The first screen and the examples


def _ctr_bars(ab: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    colors = arm_colors(ab)
    top = max((arm["ci95"][1] for arm in ab.values()), default=0) or 1.0
    return [
        {
            "name": name,
            "width": round(100 * arm["ctr"] / top, 2),
            "range": [round(100 * end / top, 2) for end in (arm["ci95"][0], arm["ci95"][1] - arm["ci95"][0])],
            "color": colors[name],
            "shown": f"{arm['ctr']:.1%}",
        }
        for name, arm in ab.items()
    ]


def _examples_lead(metrics: Mapping[str, Any]) -> str:
    if metrics.get("ab"):
        return (
            "Held-out conversations, by how the chance that a user clicks changed from sft to the last policy. "
            "Chances are means over the judge's users, not shares of draws. New: neither under sft nor in the log."
        )
    return "Held-out conversations. New: neither under sft nor in the log."


def _examples(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    colors = arm_colors(metrics.get("quality", {}))
    largest = max(
        (
            abs(value)
            for one in metrics.get("examples", ())
            for arm in one["arms"].values()
            for value in arm.get("parts", {}).values()
        ),
        default=1.0,
    )
    groups: dict[str, list] = {}
    for one in metrics.get("examples", ()):
        shown = {"conversation": one["conversation"], "arms": []}
        for name, arm in one["arms"].items():
            garm = arm.get("garm") or [None] * len(arm["suggestions"])
            new = arm.get("new") or [False] * len(arm["suggestions"])
            shown["arms"].append(
                {
                    "name": name,
                    "color": colors.get(name, "#8b929c"),
                    "chance": "" if arm["ctr"] is None else f"{arm['ctr']:.0%} click",
                    "malformed": arm["malformed"],
                    "suggestions": [
                        {
                            "text": text,
                            "clicked": text in one["clicked"],
                            "new": is_new,
                            "garm": "" if score is None else f"GaRM {score[0]:+.2f} ± {score[1]:.2f}",
                        }
                        for text, score, is_new in zip(arm["suggestions"], garm, new, strict=True)
                    ],
                    "parts": [
                        {
                            "name": part,
                            "shown": f"{value:+.2f}",
                            "minus": value < 0,
                            "width": round(100 * abs(value) / largest, 1),
                        }
                        for part, value in arm.get("parts", {}).items()
                    ],
                }
            )
        groups.setdefault(one.get("group", "random"), []).append(shown)
    return [{"title": title, "rows": groups[group]} for group, title in GROUPS.items() if group in groups]


# The stages


def _data(run: RunFolder) -> list[dict]:
    facts = _json(run.data.log)
    if facts is None:
        return []
    log = {name: value for name, value in facts.get("log", facts).items() if not isinstance(value, Mapping | list)}
    rows = [[name.replace("_", " "), plain(value)] for name, value in log.items()]
    rows += [["rows in " + name, plain(n)] for name, n in facts.get("written", {}).items()]
    return [
        _table(["", ""], rows),
        {"kind": "folded", "summary": "all that was read, split and left out", "facts": facts},
    ]


def _fusion(weights: Mapping[str, Any] | None) -> list[dict]:
    if weights is None:
        return []
    first, floor = weights.get("first_stage", {}), weights.get("floor")
    rows = []
    for name, reward in weights["rewards"].items():
        row = [name, _number(reward["weight"]), _number(reward["mean"]), _number(reward["std"])]
        if first:
            coefficient, error = first["coefficient"][name], first["standard_error"][name]
            said = "clicks fall as it rises" if coefficient < -2 * error else "" if coefficient > 0 else "noise"
            row += [f"{coefficient:+.3f} ± {error:.3f}", said]
        rows.append(row)
    heads = ["reward", "weight", "mean", "std", *(("log-odds ± standard error", "") if first else ())]
    note = "The log-odds of a click for a deviation of each part, as the clicks say it; a weight is never below the "
    note += "floor" + (f" of {floor:.0%} of the largest." if floor is not None else ".")
    return [_table(heads, rows, note=note if first else "")]


def _calibration(metrics: Mapping[str, Any]) -> list[dict]:
    garm = metrics.get("garm")
    if garm is None:
        return []
    blocks = [{"kind": "note", "text": garm["verdict"]}]
    if not garm["n_pairs"]:
        return blocks
    if garm.get("baselines"):
        blocks.append(_baselines(garm))
    measured = {"held-out clicks": garm, **metrics.get("garm_on_policy", {})}
    columns = {
        "accuracy": "accuracy, 0.5 is a coin",
        "nll": "NLL, 0.693 is a coin",
        "brier": "Brier, 0.25 is a coin",
        "ece": f"ECE, {garm['n_bins']} bins",
    }
    rows = [
        [
            name,
            f"{one['n_pairs']:,}",
            *("{:.3f} ({:.3f} to {:.3f})".format(one[key], *one[f"{key}_ci95"]) for key in columns),
            f"{one['ece_if_calibrated']:.3f}",
        ]
        for name, one in measured.items()
    ]
    note = (
        f"Held-out clicks: {garm['n_impressions']:,} impressions of the log. The other rows: what users clicked of an "
        "arm's suggestions in the A/B test; those of grpo are what it was never taught. Intervals by bootstrap over "
        "impressions. Every pair is in the diagram from both sides, so it is mirrored; bars are 95 % Wilson intervals."
    )
    blocks.append(_table(["pairs of", "N", *columns.values(), "ECE if calibrated"], rows, note=note))
    blocks.append(_plot(reliability_diagram(garm["reliability"]), "Reliability diagram of the reward model"))
    if "log_ppl" in garm:
        figure = accuracy_curve(garm["log_ppl"]["bins"], "log-perplexity under the SFT policy, nats per token")
        picture = _plot(figure, "Accuracy of the reward model by log-perplexity")
        blocks.append({"kind": "folded", "summary": "accuracy by log-perplexity", "plot": picture})
    return blocks


def _baselines(garm: Mapping[str, Any]) -> dict:
    rows = [["the reward model", f"{garm['accuracy']:.1%}", f"{garm['nll']:.3f}", f"{garm['ece']:.3f}", ""]]
    for name, one in garm["baselines"].items():
        rows.append([name, f"{one['accuracy']:.1%}", f"{one['nll']:.3f}", f"{one['ece']:.3f}", one["sentence"]])
    heads = ["on the same held-out pairs", "accuracy", "NLL", "ECE", ""]
    return _table(heads, rows)


def _evaluation(metrics: Mapping[str, Any]) -> list[dict]:
    blocks: list[dict] = []
    ab = metrics.get("ab")
    if ab:
        n_slots = max(len(arm["slot_ctr"]) for arm in ab.values())
        rows = []
        for name, arm in ab.items():
            slots = [f"{share:.1%}" for share in arm["slot_ctr"]] + ["–"] * (n_slots - len(arm["slot_ctr"]))
            rows.append(
                [name, f"{arm['ctr']:.2%}", "{:.2%} to {:.2%}".format(*arm["ci95"]), f"{arm['n_users']:,}", *slots]
            )
        heads = ["arm", "CTR", "95 % interval", "users", *(f"slot {n + 1}" for n in range(n_slots))]
        blocks.append(_table(heads, rows))
        rows = []
        for name, value in metrics["lift"].items():
            shown = ["–", "–"]
            if value is not None:
                shown = [f"{value:+.2%}", "{:+.2%} to {:+.2%}".format(*metrics["lift_ci95"][name])]
            rows.append([name.replace("_over_", " over "), *shown])
        note = (
            f"Users of judge {metrics['judge']}. CTR is the share of users with at least one click; intervals are "
            "clustered by conversation and by user, lifts compare the arms on the same conversations."
        )
        blocks.append(_table(["relative lift", "CTR", "95 % interval"], rows, note=note))
    else:
        blocks.append({"kind": "note", "text": "No judge, so no A/B test: the held-out clicks alone speak here."})
    if metrics.get("verdict"):
        blocks.append({"kind": "note", "text": metrics["verdict"]})
    blocks += [_temperatures(name, one) for name, one in metrics.get("served", {}).items()]
    blocks += _segments(metrics)
    if metrics.get("quality"):
        blocks += _quality(metrics["quality"])
    return blocks


def _temperatures(name: str, one: Mapping[str, Any]) -> dict:
    rows = [[temperature, _number(value)] for temperature, value in one["tried"].items()]
    note = f"Served at {one['temperature']:g}, chosen on {one['n_conversations']:,} conversations of the fusion split."
    return _table(["temperature", one["by"]], rows, title=f"at which temperature {name} is served", note=note)


def _segments(metrics: Mapping[str, Any]) -> list[dict]:
    blocks = []
    for key, values in metrics.get("segments", {}).items():
        arms = list(next(iter(values.values()))["ctr"])
        rows = [
            [value, f"{one['n_contexts']:,}", *(_interval(one["ctr"][arm], one["ci95"][arm]) for arm in arms)]
            for value, one in values.items()
        ]
        blocks.append(_table([key, "conversations", *arms], rows, title=f"CTR by {key}"))
    return blocks


def _quality(quality: Mapping[str, Mapping[str, Any]]) -> list[dict]:
    columns = {
        "n_responses": ("responses", ","),
        "malformed": ("malformed", ".2%"),
        "near_duplicates": ("near duplicates", ".2%"),
        "same_meaning": ("same meaning", ".2%"),
        "self_similarity": ("self-similarity", ".3f"),
        "distinct_1": ("distinct-1", ".3f"),
        "distinct_2": ("distinct-2", ".3f"),
        "words": ("words", ".1f"),
        "likeness": ("likeness to clicked", ".3f"),
        "log_ppl": ("log-perplexity", ".3f"),
    }
    rows = [
        [name, *("–" if arm[key] is None else format(arm[key], spec) for key, (_, spec) in columns.items())]
        for name, arm in quality.items()
    ]
    note = (
        "Malformed: not as many suggestions with letters as were asked for. Near duplicates: responses with two "
        "suggestions that say the same in nearly the same words. Same meaning: with two whose vectors are alike, "
        "where there was an embedder. Self-similarity, 0 to 1: of two suggestions of a response, by character "
        "trigrams. Distinct-n: different n-grams per n-gram of the whole arm. Words: of a suggestion. Likeness, 0 to "
        "1: to the nearest suggestion clicked under the same conversation; cold_start holds some of those itself, so "
        "compare the other arms with each other. Log-perplexity: nats per token under the SFT policy."
    )
    heads = ["arm", *(heading for heading, _ in columns.values())]
    blocks = [_table(heads, rows, title="quality without users", note=note)]
    rewards = {name: arm["reward"] for name, arm in quality.items() if "reward" in arm}
    if rewards:
        parts = list(next(iter(rewards.values())))
        rows = [[name, *(f"{reward[part]:.3f}" for part in parts)] for name, reward in rewards.items()]
        note = "Means over the arm's responses: each part of the reward in its own unit, and the weighted sum."
        blocks.append(_table(["arm", *parts], rows, title="the reward of every arm", note=note))
    return blocks


def _alarms(alarms: Sequence[Mapping[str, Any]] | None) -> list[dict]:
    if alarms is None:
        return []
    if not alarms:
        return [{"kind": "note", "text": "No monitor gave an alarm."}]
    rows = [[str(alarm["step"]), alarm["monitor"], alarm["sentence"]] for alarm in alarms]
    return [_table(["step", "monitor", "what was seen, and what to do"], rows, text=True)]


def _curves(run: RunFolder, stage: str) -> list[dict]:
    """Small multiples of what a stage logged: the first ones open, the rest folded."""
    scalars = read_scalars(run.tensorboard(stage))
    if not scalars:
        return []
    tags = sorted(scalars, key=_curve_order)
    first, rest = tags[:N_FIRST_CURVES], tags[N_FIRST_CURVES:]
    blocks: list[dict] = [_plot(small_multiples({tag: scalars[tag] for tag in first}), f"Training curves of {stage}")]
    if rest:
        picture = _plot(small_multiples({tag: scalars[tag] for tag in rest}), f"More training curves of {stage}")
        blocks.append({"kind": "folded", "summary": f"{len(rest)} more curves", "plot": picture})
    return blocks


def _curve_order(tag: str) -> tuple[int, str]:
    for place, beginning in enumerate(FIRST_CURVES):
        if tag.startswith(beginning):
            return place, tag
    return len(FIRST_CURVES), tag


def _durations(of_stages: Mapping[str, float]) -> dict:
    rows = [[stage, _duration(seconds)] for stage, seconds in of_stages.items()]
    return _table(["stage", "time"], rows and [*rows, ["together", _duration(sum(of_stages.values()))]])


# Blocks


def _table(
    heads: Iterable[str], rows: Iterable[Sequence[str]], title: str = "", note: str = "", text: bool = False
) -> dict[str, Any]:
    return {"kind": "table", "heads": list(heads), "rows": list(rows), "title": title, "note": note, "text": text}


def _plot(figure: Figure, alt: str) -> dict[str, Any]:
    """The figure as an SVG inside an ``img``: nothing in it can run or reach outside."""
    return {"kind": "plot", "alt": alt, "data": base64.b64encode(svg(figure).encode()).decode("ascii"), "title": ""}


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
