"""The report of a run: one HTML file that carries its plots and needs no script, no server and no other file.

In: the run folder (``run.json``, ``data/log.json``, ``fusion/weights.json`` and TensorBoard event files, whatever of
them is there) and the metrics of stage ``evaluate``. Out: ``report/report.html``, its sections in the order of the
stages.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from openrlhf_qs.evaluation.tensorboard import read_scalars
from openrlhf_qs.files.record import durations
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import read_json_lines, write_whole
from openrlhf_qs.plots.calibration import accuracy_curve, reliability_diagram
from openrlhf_qs.plots.curves import ctr_bars, small_multiples
from openrlhf_qs.plots.style import INK, arm_colors, svg

STAGES = {
    "data": "The click log, split by conversation into training rows, preference pairs and held-out impressions.",
    "sft": "The policy learns to write three suggestions from what was clicked.",
    "garm": "The Gaussian reward model learns from pairs which suggestion is preferred, and how sure that is.",
    "fusion": "The weights of the parts of the composite reward. Each part is normalised by its mean and std first.",
    "grpo": "The policy is trained on the composite reward, against its own other responses to the same prompt.",
    "evaluate": "All policies on the same held-out conversations.",
}
FIRST_CURVES = (
    "train/rollout/reward_mean",
    "train/reward/",
    "train/kl",
    "train/rollout/response_length_mean",
    "train/loss",
    "train/acc",
)


def write_report(run_dir: Path, metrics: Mapping[str, Any]) -> Path:
    """Write ``report/report.html`` of a run.

    Args:
        run_dir: the run folder; what is not there is said to be missing.
        metrics: what ``evaluate`` measured, as in ``report/metrics.json``.

    Returns:
        Path of the file.
    """
    run = RunFolder(run_dir)
    bodies = {
        "data": _data(run),
        "sft": _curves(run, "sft"),
        "garm": _curves(run, "garm") + _calibration(metrics),
        "fusion": _fusion(run.weights),
        "grpo": _alarms(run) + _curves(run, "grpo"),
        "evaluate": _evaluation(metrics),
    }
    name = escape(run.path.resolve().name)
    sections = "".join(
        f'<section id="{stage}"><h2>{stage}</h2><p class="lead">{what}</p>'
        f"{bodies[stage] or _note(f'Nothing in this run folder to show of stage {stage}.')}</section>"
        for stage, what in STAGES.items()
    )
    links = "".join(f'<a href="#{stage}">{stage}</a>' for stage in STAGES)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · openrlhf-qs</title><style>{CSS}</style></head><body><main>"
        f'<header><p class="product">openrlhf-qs</p><h1>{name}</h1><nav>{links}</nav></header>'
        f"{_headline(metrics)}{_durations(durations(run))}{sections}</main></body></html>\n"
    )
    write_whole(run.report, page)
    return run.report


def _headline(metrics: Mapping[str, Any]) -> str:
    cards = []
    ab, lift = metrics.get("ab", {}), metrics.get("lift", {})
    for name, arm in ab.items():
        low, high = arm["ci95"]
        cards.append((f"CTR {name}", f"{arm['ctr']:.1%}", f"{low:.1%} to {high:.1%}", arm_colors(ab)[name]))
    for name, value in lift.items():
        if value is not None and name in ("grpo_over_sft", "grpo_over_cold_start"):
            low, high = metrics["lift_ci95"][name]
            cards.append(
                (f"lift, {name.replace('_over_', ' over ')}", f"{value:+.1%}", f"{low:+.1%} to {high:+.1%}", INK)
            )
    quality = metrics.get("quality", {})
    if not ab:
        colors = arm_colors(quality)
        cards += [
            (f"well formed {name}", f"{1 - arm['malformed']:.1%}", f"{arm['n_responses']:,} responses", colors[name])
            for name, arm in quality.items()
        ]
    garm = metrics.get("garm", {})
    if garm.get("n_pairs"):
        low, high = garm["accuracy_ci95"]
        cards.append(("GaRM accuracy", f"{garm['accuracy']:.1%}", f"{low:.1%} to {high:.1%}", INK))
        low, high = garm["ece_ci95"]
        cards.append(("GaRM ECE", f"{garm['ece']:.3f}", f"{low:.3f} to {high:.3f}", INK))
    tiles = "".join(
        f'<div class="card" style="border-top-color:{color}"><p>{escape(label)}</p><strong>{escape(figure)}</strong>'
        f"<small>{escape(below)}</small></div>"
        for label, figure, below, color in cards
    )
    verdict = f'<p class="verdict">{escape(metrics["verdict"])}</p>' if metrics.get("verdict") else ""
    return f'<div class="cards">{tiles}</div>{verdict}'


def _durations(of_stages: Mapping[str, float]) -> str:
    if not of_stages:
        return ""
    times = [_duration(seconds) for seconds in of_stages.values()]
    total = sum(of_stages.values())
    return _table([*of_stages, "together"], [[*times, _duration(total)]])


def _data(run: RunFolder) -> str:
    file = run.data.log
    if not file.is_file():
        return ""
    return _facts(json.loads(file.read_text(encoding="utf-8")))


def _fusion(file: Path) -> str:
    if not file.is_file():
        return ""
    rewards = json.loads(file.read_text(encoding="utf-8"))["rewards"]
    largest = max((abs(reward["weight"]) for reward in rewards.values()), default=0.0) or 1.0
    rows = [
        [
            escape(name),
            _number(reward["weight"]),
            f'<div class="bar" style="width:{abs(reward["weight"]) / largest * 8:.2f}rem"></div>',
            _number(reward["mean"]),
            _number(reward["std"]),
        ]
        for name, reward in rewards.items()
    ]
    return _table(["reward", "weight", "", "mean", "std"], rows)


def _calibration(metrics: Mapping[str, Any]) -> str:
    garm = metrics.get("garm")
    if garm is None:
        return ""
    verdict = f'<p class="verdict">{escape(garm["verdict"])}</p>'
    if not garm["n_pairs"]:
        return verdict
    measured = {"held-out clicks": garm, **metrics.get("garm_on_policy", {})}
    columns = {
        "accuracy": "accuracy, 0.5 is a coin",
        "nll": "NLL, 0.693 is a coin",
        "brier": "Brier, 0.25 is a coin",
        "ece": f"ECE, {garm['n_bins']} bins",
    }
    rows = [
        [
            escape(name),
            f"{one['n_pairs']:,}",
            *("{:.3f} ({:.3f} to {:.3f})".format(one[key], *one[f"{key}_ci95"]) for key in columns),
            f"{one['ece_if_calibrated']:.3f}",
        ]
        for name, one in measured.items()
    ]
    parts = [verdict, _table(["pairs of", "N", *columns.values(), "ECE if calibrated"], rows)]
    parts.append(
        _note(
            f"Held-out clicks: {garm['n_impressions']:,} impressions of the log. The other rows: what users clicked "
            "of an arm's suggestions in the A/B test; those of grpo are what it was never taught. Intervals "
            "by bootstrap over impressions. Every pair is in the diagram from both sides, so it is mirrored; bars are "
            "95 % Wilson intervals."
        )
    )
    parts.append(_image(reliability_diagram(garm["reliability"]), "Reliability diagram of the reward model"))
    if "confidence" in garm:
        figure = accuracy_curve(garm["confidence"], "confidence of the reward model", diagonal=True)
        parts.append(_image(figure, "Accuracy of the reward model by its confidence"))
    if "log_ppl" in garm:
        figure = accuracy_curve(garm["log_ppl"]["bins"], "log-perplexity under the SFT policy, nats per token")
        parts.append(_image(figure, "Accuracy of the reward model by log-perplexity"))
    return "".join(parts)


def _evaluation(metrics: Mapping[str, Any]) -> str:
    parts = []
    ab = metrics.get("ab")
    if ab:
        parts.append(_image(ctr_bars(ab), "CTR of each arm with its 95 % interval"))
        n_slots = max(len(arm["slot_ctr"]) for arm in ab.values())
        rows = []
        for name, arm in ab.items():
            slots = [f"{share:.1%}" for share in arm["slot_ctr"]] + ["–"] * (n_slots - len(arm["slot_ctr"]))
            interval = "{:.2%} to {:.2%}".format(*arm["ci95"])
            rows.append([escape(name), f"{arm['ctr']:.2%}", interval, f"{arm['n_users']:,}", *slots])
        slot_heads = [f"slot {n + 1}" for n in range(n_slots)]
        parts.append(_table(["arm", "CTR", "95 % interval", "users", *slot_heads], rows))
        rows = []
        for name, value in metrics["lift"].items():
            interval = metrics["lift_ci95"][name]
            shown = ["–", "–"] if value is None else [f"{value:+.2%}", "{:+.2%} to {:+.2%}".format(*interval)]
            rows.append([escape(name.replace("_over_", " over ")), *shown])
        parts.append(_table(["relative lift", "CTR", "95 % interval"], rows))
        parts.append(
            _note(
                f"Simulated users of judge {metrics['judge']}. CTR is the share of users with at least one click; "
                "intervals are clustered by conversation, lifts compare the arms on the same conversations."
            )
        )
    else:
        parts.append(_note("No judge, so no A/B test: the held-out clicks alone speak here."))
    if metrics.get("quality"):
        parts.append(_quality(metrics["quality"]))
    if metrics.get("examples"):
        parts.append("<h3>Held-out conversations</h3>")
        parts += [_example(example, arm_colors(metrics["quality"])) for example in metrics["examples"]]
    return "".join(parts)


def _quality(quality: Mapping[str, Mapping[str, Any]]) -> str:
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
        [escape(name), *("–" if arm[key] is None else format(arm[key], spec) for key, (_, spec) in columns.items())]
        for name, arm in quality.items()
    ]
    about = (
        "Malformed: not three suggestions with letters. Near duplicates: responses with two suggestions that say the "
        "same in nearly the same words. Same meaning: with two whose vectors are alike, where there was an embedder. "
        "Self-similarity, 0 to 1: of two suggestions of a response, by character trigrams. Distinct-n: different "
        "n-grams per n-gram of the whole arm. Words: of a suggestion. Likeness, 0 to 1: to the nearest suggestion "
        "clicked under the same conversation; cold_start holds some of those itself, so compare the other arms with "
        "each other. Log-perplexity: nats per token under the SFT policy."
    )
    return _table(["arm", *(heading for heading, _ in columns.values())], rows) + _note(about) + _reward_of(quality)


def _reward_of(quality: Mapping[str, Mapping[str, Any]]) -> str:
    rewards = {name: arm["reward"] for name, arm in quality.items() if "reward" in arm}
    if not rewards:
        return ""
    parts = list(next(iter(rewards.values())))
    rows = [[escape(name), *(f"{reward[part]:.3f}" for part in parts)] for name, reward in rewards.items()]
    about = "Means over the arm's responses: each part of the reward in its own unit, and the weighted sum."
    return _table(["arm", *map(escape, parts)], rows) + _note(about)


def _example(example: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    turns = "".join(
        f"<p><b>{escape(message['role'])}</b> {escape(message['content'])}</p>" for message in example["conversation"]
    )
    columns, clicked = [], ' class="clicked"'
    for name, arm in example["arms"].items():
        items = "".join(
            f"<li{clicked if text in example['clicked'] else ''}>{escape(text)}</li>" for text in arm["suggestions"]
        )
        ctr = "" if arm["ctr"] is None else f" · {arm['ctr']:.0%} click"
        malformed = ' <em class="flag">malformed</em>' if arm["malformed"] else ""
        columns.append(
            f'<div style="border-color:{colors[name]}"><h4>{escape(name)}<small>{ctr}</small>{malformed}</h4>'
            f"<ol>{items}</ol></div>"
        )
    return f'<article><div class="turns">{turns}</div><div class="arms">{"".join(columns)}</div></article>'


def _alarms(run: RunFolder) -> str:
    file = run.grpo.alarms
    if not file.is_file():
        return ""
    alarms = read_json_lines(file)
    if not alarms:
        return _note("No monitor gave an alarm.")
    rows = [[str(alarm["step"]), escape(alarm["monitor"]), escape(alarm["sentence"])] for alarm in alarms]
    return _table(["step", "monitor", "what was seen, and what to do"], rows)


def _curves(run: RunFolder, stage: str) -> str:
    """Small multiples of every scalar a stage logged; a name for the folder where event files lie."""
    scalars = read_scalars(run.tensorboard(stage))
    if not scalars:
        return ""
    figure = small_multiples({tag: scalars[tag] for tag in sorted(scalars, key=_curve_order)})
    return _image(figure, f"Training curves of stage {stage}")


def _curve_order(tag: str) -> tuple[int, str]:
    for place, beginning in enumerate(FIRST_CURVES):
        if tag.startswith(beginning):
            return place, tag
    return len(FIRST_CURVES), tag


def _image(figure: Figure, alt: str) -> str:
    """The figure as an SVG inside an ``img``: nothing in it can run or reach outside."""
    data = base64.b64encode(svg(figure).encode()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; ``headings`` are text, cells of ``rows`` are HTML already."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _facts(facts: Mapping[str, Any]) -> str:
    """A JSON object as a table of two columns; objects inside as tables inside."""
    rows = [[escape(str(name).replace("_", " ")), _value(value)] for name, value in facts.items()]
    body = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _facts(value)
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return _number(value) if isinstance(value, int | float) and not isinstance(value, bool) else escape(str(value))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: #1f2430; font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header { margin-bottom: 1.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 0; }
h3 { font-size: 1.05rem; margin: 2rem 0 .75rem; }
h4 { font-size: .9rem; margin: 0 0 .3rem; }
h4 small { color: #667085; font-weight: 400; }
.product { color: #667085; margin: 0; }
nav a { color: #3572b0; margin-right: 1rem; text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { background: #fff; border: 1px solid #e4e7ec; border-radius: 10px; padding: 1.4rem 1.6rem; }
section { margin-top: 1.25rem; }
.lead { color: #667085; margin: .15rem 0 1rem; }
.note { color: #667085; font-size: .85rem; max-width: 80ch; }
.verdict { font-size: 1.02rem; max-width: 85ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; }
.card { background: #fff; border: 1px solid #e4e7ec; border-top: 4px solid; border-radius: 10px; padding: .8rem 1rem; }
.card p { margin: 0; color: #667085; font-size: .85rem; }
.card strong { display: block; font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card small { color: #667085; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid #eceef2; white-space: nowrap; }
th { color: #667085; font-weight: 500; }
th:first-child, td:first-child, .facts td, .facts th { text-align: left; white-space: normal; }
.facts th { vertical-align: top; padding-right: 2rem; }
.facts .facts { margin: 0; }
.bar { background: #3572b0; height: .7rem; border-radius: 2px; }
img { max-width: 100%; height: auto; display: block; margin: .8rem 0; }
article { border-top: 1px solid #eceef2; padding: 1rem 0; }
.turns { max-height: 14rem; overflow-y: auto; }
.turns p { margin: 0 0 .4rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.turns b { color: #667085; font-weight: 500; font-size: .85rem; margin-right: .4rem; }
.arms { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 1rem; margin-top: .6rem; }
.arms > div { border-left: 3px solid; padding-left: .8rem; }
.arms ol { margin: 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.clicked::after { content: " ✓ clicked"; color: #2e7d4f; font-size: .8rem; white-space: nowrap; }
.flag { color: #b3361d; font-size: .8rem; font-style: normal; }
"""
