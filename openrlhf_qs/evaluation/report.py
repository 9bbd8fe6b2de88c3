"""The report of a run: one HTML file that contains its plots and needs no script, server or other file.

In: the run folder (``run.json``, ``data/log.json``, ``fusion/weights.json`` and TensorBoard event files, as far as
they exist) and the metrics of stage ``evaluate``. Out: ``report/report.html``: the outcome, conversations before and
after, then the stages in order.

The page is ``templates/report.html.j2`` with ``templates/report.css``; this module provides its content. The template
engine escapes everything that others wrote, and plots are embedded as images, in which no script can run.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from openrlhf_qs.evaluation import report_texts, summary
from openrlhf_qs.evaluation.ablation import overoptimisation_curve
from openrlhf_qs.evaluation.arms import AT, LAST_POLICY
from openrlhf_qs.evaluation.tensorboard import read_scalars
from openrlhf_qs.files.record import read_record
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import read_json_lines, write_whole
from openrlhf_qs.plots.calibration import accuracy_curve, reliability_diagram
from openrlhf_qs.plots.curves import curve, over_kl
from openrlhf_qs.plots.proxy import proxy_and_gold
from openrlhf_qs.plots.style import arm_colors, svg

STAGES = {
    "data": "The click log, split by conversation into training rows, preference pairs and held-out impressions.",
    "distil": "A teacher of single suggestions, and its candidates.",
    "sft": "The policy learns to write suggestions from what was clicked.",
    "garm": "The reward model learns from clicks how good a suggestion is and how much users differ about it.",
    "fusion": "The weights of the parts of the composite reward. Each part is first normalised by its mean and std.",
    "rft": "The policy is fine-tuned on the best suggestions from its own samples, chosen to differ from each other.",
    "grpo": "The policy is trained on the composite reward; each response is compared with others to the same prompt.",
    "evaluate": "All policies on the same held-out conversations.",
}
OPTIONAL = ("distil", "rft")  # stages that a run may lack: without data they get no section
# Stage to the curves drawn first: tag to title. `statistics/` tags come from grpo/statistics.jsonl.
FIRST_CURVES = {
    "distil": {"train/gpt_loss": "loss, nats per token"},
    "sft": {"train/gpt_loss": "loss, nats per token"},
    "rft": {"train/gpt_loss": "loss, nats per token"},
    "garm": {
        "train/loss": "loss",
        "train/acc": "accuracy on training pairs",
    },
    "grpo": {
        "train/rollout/reward_mean": "composite reward",
        "statistics/proxy": "proxy: the reward model's mean",
        "train/kl": "KL to the reference, nats per token",
        "train/rollout/response_length_mean": "response length, tokens",
        "train/malformed": "malformed, share of responses",
        "statistics/distinct_2": "distinct-2 per step",
    },
}
NO_CURVES = ("_mean",)  # suffixes of running means, which OpenRLHF logs as well in sft and garm


def write_report(run_dir: Path, metrics: Mapping[str, Any]) -> Path:
    """Write ``report/report.html`` of a run.

    Args:
        run_dir: the run folder; the report says what is missing in it.
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
    """The content of the page, by the names in the template."""
    alarms = read_json_lines(run.grpo.alarms) if run.grpo.alarms.is_file() else None
    weights = _json(run.weights)
    blocks = {
        "data": _data(run),
        "distil": _curves(run, "distil"),
        "sft": _curves(run, "sft"),
        "garm": _curves(run, "garm") + _calibration(metrics),
        "fusion": _fusion(weights),
        "rft": _curves(run, "rft"),
        "grpo": _alarms(alarms) + _curves(run, "grpo") + _over_kl(run) + _samples(run),
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
        "examples": report_texts.before_and_after(metrics, before, after),
        "stages": [
            {"name": stage, "lead": lead, "blocks": blocks[stage]}
            for stage, lead in STAGES.items()
            if blocks[stage] or stage not in OPTIONAL
        ],
        "made": _made(read_record(run)),
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
    ab = {name: arm for name, arm in ab.items() if AT not in name}  # at other temperatures: the table of evaluate
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


HOW_TO_READ = (
    "New: neither suggested by sft here nor shown under this conversation in the log. GaRM: the reward model's mean "
    "± its standard deviation; higher is better. Bars: what each part adds to the response's reward, in standard "
    "deviations of the SFT policy; red bars subtract."
)


def _examples_lead(metrics: Mapping[str, Any]) -> str:
    if metrics.get("ab"):
        return (
            "Held-out conversations, grouped by how the click probability changed from sft to the last policy. "
            f"Probabilities are means over the judge's users; no clicks are drawn. {HOW_TO_READ}"
        )
    return f"Held-out conversations. {HOW_TO_READ}"


# The stages


def _data(run: RunFolder) -> list[dict]:
    facts = _json(run.data.log)
    if facts is None:
        return []
    log = {name: value for name, value in facts.get("log", facts).items() if not isinstance(value, Mapping | list)}
    times = {"first": "first impression", "last": "last impression"}
    shares = {"clicked_share": "impressions with a click", "ctr": "clicks per suggestion shown"}
    rows = [
        [
            (shares | times).get(name) or name.removeprefix("n_").replace("_", " "),
            f"{value:.1%}"
            if name in shares
            else plain(value)[:16].replace("T", " ")
            if name in times
            else plain(value),
        ]
        for name, value in log.items()
    ]
    rows += [["rows in " + name, plain(n)] for name, n in facts.get("written", {}).items()]
    return [
        _table(["", ""], rows),
        {"kind": "folded", "summary": "everything that was read, split and left out", "facts": facts},
    ]


def _fusion(weights: Mapping[str, Any] | None) -> list[dict]:
    if weights is None:
        return []
    first, share = weights.get("first_stage", {}), weights.get("shares", {})
    floor = first.get("floor")
    largest = max((reward["weight"] for reward in weights["rewards"].values()), default=0.0)
    rows = []
    for name, reward in weights["rewards"].items():
        row = [name, _number(reward["weight"])]
        if first and name not in first["coefficient"]:
            row += ["–", "the same for every response"]
        elif first:
            coefficient, error = first["coefficient"][name], first["standard_error"][name]
            falls = "clicks fall as it rises" if coefficient < -2 * error else ""
            told = falls or ("" if coefficient > 2 * error else "may be 0")
            floored = floor is not None and first.get("told", True) and reward["weight"] <= floor * largest * 1.0001
            row += [
                (f"{coefficient:+.3f}", f"± {error:.3f}"),
                ", ".join(filter(None, [told, "at the floor" if floored else ""])),
            ]
        if share:
            row.append(f"{share[name]:.0%}")
        rows.append([*row, _number(reward["mean"]), _number(reward["std"])])
    heads = [
        "part",
        "weight",
        *(("log-odds of a click", "") if first else ()),
        *(("share of the reward",) if share else ()),
    ]
    note = ""
    if first:
        note = "Log-odds of a click per standard deviation of the part, ± standard error."
        if floor is not None:
            note += f" No weight is below the floor, which is {floor:.0%} of the largest."
        if not first.get("told", True):
            note += " This log cannot determine the weights, so all parts have the same share."
    if share:
        note += " Share: of the variance of the reward among the responses to one prompt."
    return [_table([*heads, "mean", "std"], rows, note=note.strip())]


def _calibration(metrics: Mapping[str, Any]) -> list[dict]:
    garm = metrics.get("garm")
    if garm is None:
        return []
    blocks = [{"kind": "note", "text": f"On held-out clicks: {garm['verdict']}"}]
    if not garm["n_pairs"]:
        return blocks
    if garm.get("baselines"):
        blocks.append(_baselines(garm))
    measured = {"held-out clicks": garm, **metrics.get("garm_on_policy", {})}
    columns = {
        "accuracy": "accuracy (coin: 0.5)",
        "nll": "NLL (coin: 0.693)",
        "brier": "Brier (coin: 0.25)",
        "ece": f"ECE ({garm['n_bins']} bins)",
    }
    rows = [
        [
            name,
            f"{one['n_pairs']:,}",
            *((f"{one[key]:.3f}", "{:.3f} to {:.3f}".format(*one[f"{key}_ci95"])) for key in columns),
            f"{one['ece_if_calibrated']:.3f}",
            f"{one['baselines']['bayes_rule']['accuracy']:.3f}" if "bayes_rule" in one.get("baselines", {}) else "–",
        ]
        for name, one in measured.items()
    ]
    others = (
        "Other rows: pairs from the A/B test's clicks on an arm's suggestions; grpo's suggestions are out of "
        "distribution for the reward model. "
    )
    note = (
        f"Held-out clicks: {garm['n_impressions']:,} impressions of the log. {others if len(rows) > 1 else ''}"
        "Intervals are bootstrapped over impressions. Pairs are weighted as in training. The diagram counts each pair "
        "from both sides, so it is symmetric; its bars are 95 % Wilson intervals."
    )
    heads = ["pairs from", "N", *columns.values(), "ECE if calibrated", "accuracy of the Bayes rule"]
    blocks.append(_table(heads, rows, note=note))
    blocks.append(_plot(reliability_diagram(garm["reliability"]), "Reliability diagram of the reward model"))
    if "log_ppl" in garm:
        figure = accuracy_curve(garm["log_ppl"]["bins"], "log-perplexity under the SFT policy, nats per token")
        picture = _plot(figure, "Accuracy of the reward model by log-perplexity")
        blocks.append({"kind": "folded", "summary": "accuracy by log-perplexity", "plot": picture})
    return blocks


def _baselines(garm: Mapping[str, Any]) -> dict:
    rows = [["the reward model", f"{garm['accuracy']:.1%}", f"{garm['nll']:.3f}", f"{garm['ece']:.3f}", ""]]
    for name, one in garm["baselines"].items():
        of_it = f"{name}, the bound" if name in summary.BOUNDS else name
        rows.append([of_it, f"{one['accuracy']:.1%}", f"{one['nll']:.3f}", f"{one['ece']:.3f}", one["sentence"]])
    heads = ["on the same held-out pairs", "accuracy", "NLL", "ECE", "the reward model in comparison (95 % interval)"]
    return _table(heads, rows, text=True)


def _evaluation(metrics: Mapping[str, Any]) -> list[dict]:
    blocks: list[dict] = []
    ab = metrics.get("ab")
    if ab:
        n_slots = max(len(arm["slot_ctr"]) for arm in ab.values())
        rows = []
        for name, arm in ab.items():
            slots = [f"{share:.1%}" for share in arm["slot_ctr"]] + ["–"] * (n_slots - len(arm["slot_ctr"]))
            rows.append([name, _interval(arm["ctr"], arm["ci95"]), f"{arm['n_users']:,}", *slots])
        heads = ["arm", "CTR", "users", *(f"position {n + 1}" for n in range(n_slots))]
        blocks.append(_table(heads, rows))
        rows = []
        for name, value in metrics["lift"].items():
            shown = "–"
            if value is not None:
                shown = f"{value:+.1%}", "{:+.1%} to {:+.1%}".format(*metrics["lift_ci95"][name])
            rows.append([name.replace("_over_", " over "), shown])
        note = (
            f"The users are those of the judge {metrics['judge']}. CTR is the share of users with at least one click. "
            "Intervals are clustered by conversation and by user; lifts compare the arms on the same conversations. "
            "NAME@T is a policy at temperature T; NAME alone is the policy at the temperature it is served with."
        )
        first = [row for row in rows if row[0].startswith(f"{LAST_POLICY} over ")] or rows
        blocks.append(_table(["relative lift", "CTR"], first, note=note))
        if rest := [row for row in rows if row not in first]:
            blocks.append({"kind": "folded", "summary": "all other lifts", "table": _table(["", "CTR"], rest)})
    else:
        blocks.append({"kind": "note", "text": "No judge, so no A/B test: the held-out clicks are the only evidence."})
    if metrics.get("verdict"):
        blocks.append({"kind": "folded", "summary": "who beats whom, in words", "text": metrics["verdict"]})
    if metrics.get("served"):
        blocks.append(_temperatures(metrics["served"]))
    blocks += _proxy(metrics.get("proxy")) + _segments(metrics)
    if metrics.get("quality"):
        blocks += _quality(metrics["quality"])
    return blocks


def _temperatures(served: Mapping[str, Mapping[str, Any]]) -> dict:
    tried = list(dict.fromkeys(temperature for one in served.values() for temperature in one["tried"]))
    rows = []
    for name, one in served.items():
        form = "{:+.3f}" if one["by"] == "composite reward" else "{:.1%}"
        reached = {temperature: form.format(value) for temperature, value in one["tried"].items()}
        rows.append([name, *(reached.get(temperature, "–") for temperature in tried), f"{one['temperature']:g}"])
    first = next(iter(served.values()))
    on = f"{first['n_conversations']:,} conversations of the fusion split"
    note = f"{first['by'].capitalize()}, on {on}; no other comparison uses them."
    heads = ["policy", *(f"at {temperature}" for temperature in tried), "served with"]
    return _table(heads, rows, title="the temperature each policy is served with", note=note)


def _proxy(proxy: Mapping[str, Any] | None) -> list[dict]:
    if proxy is None:
        return []
    found = proxy["correlation"]
    before, after = proxy["before"], proxy["after"]
    note = (
        f"Left: each arm on {proxy['n_contexts']:,} conversations. Right: the same conversations, sorted by how much "
        f"the reward changed from {before} to {after}, in groups of equal size. "
    )
    note += (
        "One of the two did not change."
        if found is None
        else f"Across conversations, the two changes have a rank correlation of {found:+.2f}."
    )
    figure = proxy_and_gold(proxy["arms"], proxy["bins"])
    return [_plot(figure, "Proxy against gold", title="proxy against gold"), {"kind": "note", "text": note}]


def _segments(metrics: Mapping[str, Any]) -> list[dict]:
    blocks = []
    for key, values in metrics.get("segments", {}).items():
        arms = list(next(iter(values.values()))["ctr"])
        changed = [one for one in values.values() if "change" in one]
        rows = [
            [
                value,
                f"{one['n_contexts']:,}",
                *(_interval(one["ctr"][arm], one["ci95"][arm]) for arm in arms),
                *([_points(one["change"], one["change_ci95"])] if changed else []),
            ]
            for value, one in values.items()
        ]
        heads = [key, "conversations", *arms, *([f"{arms[0]} to {LAST_POLICY}"] if changed else [])]
        note = "Each interval covers its own row only: expect one in twenty to miss." if len(rows) > 9 else ""
        blocks.append(_table(heads, rows, title=f"CTR by {key}", note=note))
    return blocks


def _points(change: float, interval: Sequence[float]) -> tuple[str, str]:
    return f"{100 * change:+.1f} points", "{:+.1f} to {:+.1f}".format(*(100 * end for end in interval))


def _quality(quality: Mapping[str, Mapping[str, Any]]) -> list[dict]:
    columns = {
        "n_responses": ("responses", ","),
        "malformed": ("malformed", ".2%"),
        "near_duplicates": ("near-duplicates", ".2%"),
        "same_meaning": ("same meaning", ".2%"),
        "self_similarity": ("self-similarity", ".3f"),
        "distinct_1": ("distinct-1", ".3f"),
        "distinct_2": ("distinct-2", ".3f"),
        "words": ("words per suggestion", ".1f"),
        "likeness": ("likeness to clicked", ".3f"),
        "log_ppl": ("log-perplexity", ".3f"),
    }
    columns = {key: one for key, one in columns.items() if any(arm[key] is not None for arm in quality.values())}
    rows = [
        [name, *("–" if arm[key] is None else format(arm[key], spec) for key, (_, spec) in columns.items())]
        for name, arm in quality.items()
    ]
    note = (
        "Malformed: responses without exactly as many suggestions with letters as were asked for, or cut off. "
        "Near-duplicates: responses with two suggestions that say the same thing in nearly the same words. "
        + ("Same meaning: responses with two suggestions of similar embeddings. " if "same_meaning" in columns else "")
        + "Self-similarity, 0 to 1: of two suggestions of a response, by character trigrams. Distinct-n: distinct "
        "n-grams as a share of all n-grams of the arm. Likeness, 0 to 1: to the most similar suggestion clicked under "
        "the same conversation; cold_start contains some of those itself, so compare only the other arms with each "
        "other. Log-perplexity: nats per token under the SFT policy."
    )
    heads = ["arm", *(heading for heading, _ in columns.values())]
    blocks = [_table(heads, rows, title="quality without users", note=note)]
    rewards = {name: arm["reward"] for name, arm in quality.items() if "reward" in arm}
    if rewards:
        parts = list(next(iter(rewards.values())))
        rows = [[name, *(f"{reward[part]:.3f}" for part in parts)] for name, reward in rewards.items()]
        note = "Means over each arm's responses: each part of the reward in its own unit, and the weighted total."
        blocks.append(_table(["arm", *parts], rows, title="the reward of each arm", note=note))
    return blocks


def _alarms(alarms: Sequence[Mapping[str, Any]] | None) -> list[dict]:
    if alarms is None:
        return []
    if not alarms:
        return [{"kind": "note", "text": "No monitor raised an alarm."}]
    rows = [[str(alarm["step"]), alarm["monitor"], alarm["sentence"]] for alarm in alarms]
    return [_table(["step", "monitor", "what was seen and what to do"], rows, text=True)]


def _curves(run: RunFolder, stage: str) -> list[dict]:
    """A small plot of each scalar that a stage logged: the main ones open, the rest folded."""
    scalars = read_scalars(run.tensorboard(stage))
    if stage == "grpo" and run.grpo.statistics.is_file():
        rows = read_json_lines(run.grpo.statistics)
        steps = np.array([row["step"] for row in rows])
        for name in ("proxy", "distinct_2"):
            if rows:
                scalars[f"statistics/{name}"] = steps, np.array([row[name] for row in rows])
    named = FIRST_CURVES[stage]
    first = {what: scalars[tag] for tag, what in named.items() if tag in scalars}
    rest = {
        tag.removeprefix("train/"): scalars[tag]
        for tag in sorted(scalars)
        if tag not in named and not (stage != "grpo" and tag.endswith(NO_CURVES))
    }
    blocks: list[dict] = []
    if first:
        blocks.append({"kind": "plots", "plots": [_curve(what, *curve) for what, curve in first.items()]})
    if rest:
        plots = [_curve(what, *curve) for what, curve in rest.items()]
        more = " more" if first else ""
        blocks.append({"kind": "folded", "summary": f"{len(rest)}{more} curves", "plots": plots})
    return blocks


def _curve(what: str, steps: np.ndarray, values: np.ndarray) -> dict:
    return _plot(curve(what, steps, values), f"{what}, over training steps")


def _over_kl(run: RunFolder) -> list[dict]:
    """Proxy and gold as GRPO moved away from its reference, if a judge gave the gold of every rollout."""
    found = overoptimisation_curve([run.path])
    if found is None:
        return []
    note = "Where the gold falls while the proxy rises, the policy is hacking the reward. Gold: --qs.monitor_judge."
    picture = _plot(over_kl({LAST_POLICY: found}), "Proxy and gold over KL", title="proxy and gold over training")
    return [picture, {"kind": "note", "text": note}]


def _samples(run: RunFolder) -> list[dict]:
    rows = read_json_lines(run.grpo.samples) if run.grpo.samples.is_file() else []
    return report_texts.over_training(rows) if rows else []


# How it was made


def _made(entries: Mapping[str, Mapping[str, Any]]) -> list[dict]:
    """For each finished stage its command with everything it was given, its time and commit; then the versions."""
    done = {name: one for name, one in entries.items() if one["state"] == "done"}
    if not done:
        return []
    rows = [
        [
            name,
            _duration(one["seconds"]),
            one.get("commit", "")[:10] + ("+" if one.get("commit", "").endswith("+") else ""),
            command(name, one),
        ]
        for name, one in done.items()
    ]
    all_of_them = "total" if "evaluate" in done else "total, without evaluate"
    rows.append([all_of_them, _duration(sum(one["seconds"] for one in done.values())), "", ""])
    note = "+ after a commit: with uncommitted changes." if any(row[2].endswith("+") for row in rows) else ""
    blocks = [_table(["stage", "time", "commit", "command"], rows, note=note, text=True)]
    versions = {
        f"{package} {version}": None for one in done.values() for package, version in one.get("versions", {}).items()
    }
    if versions:
        blocks.append({"kind": "note", "text": f"Versions: {', '.join(versions)}."})
    read = {
        path: printed
        for one in done.values()
        for files in one.get("files", {}).values()
        for path, printed in files.items()
    }
    rows = [[path, printed["hash"] if printed else "hub name"] for path, printed in read.items()]
    if rows:
        blocks.append(_table(["read from outside the run", "BLAKE2b"], rows, text=True))
    return blocks


def command(stage: str, entry: Mapping[str, Any]) -> str:
    """The call that repeats this stage, with every variable it was given."""
    given = [f"{name}={shlex.quote(value)}" for name, value in entry.get("given", {}).items()]
    return " ".join([*given, "bash", f"recipes/{stage}.sh", *map(shlex.quote, entry.get("flags", ()))])


# Blocks


def _table(
    heads: Iterable[str],
    rows: Iterable[Sequence[str | tuple[str, str]]],
    title: str = "",
    note: str = "",
    text: bool = False,
) -> dict[str, Any]:
    """A cell is one text, or two: the second goes beneath the first in small print."""
    return {"kind": "table", "heads": list(heads), "rows": list(rows), "title": title, "note": note, "text": text}


def _plot(figure: Figure, alt: str, title: str = "") -> dict[str, Any]:
    """The figure as an SVG inside an ``img``: nothing in it can run or reach outside."""
    return {"kind": "plot", "alt": alt, "data": base64.b64encode(svg(figure).encode()).decode("ascii"), "title": title}


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _interval(value: float, interval: Sequence[float]) -> tuple[str, str]:
    return f"{value:.1%}", f"{interval[0]:.1%} to {interval[1]:.1%}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 59.5 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
