"""Stage ``evaluate``: the policies side by side on held-out conversations, and the report.

In, under ``--run``: ``data/heldout.jsonl``, ``report/responses.NAME.jsonl``, and, if they exist,
``report/selection.NAME.jsonl``, ``data/sft.jsonl``, ``fusion/weights.json``, and ``garm/`` with
``data/preferences.heldout.jsonl``. Out: ``report/metrics.json``, ``report/report.html``, a table in the terminal, and
in each policy's ``generation_config.json`` the temperature that it is served with.

Arms: ``cold_start``, what the log showed; ``most_clicked``, the most-clicked suggestions of similar logged
conversations; each policy at the temperature it is served with, and at the others; ``NAME_best_of_8``, the sample of
several with the highest composite reward; and the limits that the judge knows of, such as ``ceiling``.

With a judge, simulated users see every arm's suggestions under the same conversations and click or not: an A/B test.
Without one, the held-out clicks are the only evidence: how well the reward model predicts them, how similar each arm's
suggestions are to clicked ones, and how valid and diverse they are.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import print as rich_print
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openrlhf_qs.evaluation import rewards, summary
from openrlhf_qs.evaluation.ab_test import (
    ArmResult,
    Judge,
    ab_metrics,
    conversation_clusters,
    load_judge,
    run_ab_test,
)
from openrlhf_qs.evaluation.arms import (
    AT,
    COLD_START,
    LAST_POLICY,
    Shown,
    as_shown,
    by_temperature,
    clicked_suggestions,
    cold_start,
    load_responses,
    on_same_conversations,
    on_same_places,
    read_impressions,
    read_responses,
)
from openrlhf_qs.evaluation.baselines import best_of, most_clicked
from openrlhf_qs.evaluation.examples import examples
from openrlhf_qs.evaluation.proxy import proxy_against_gold
from openrlhf_qs.evaluation.quality import quality_change, response_quality
from openrlhf_qs.evaluation.segments import segments
from openrlhf_qs.evaluation.temperature import choose, write_generation_config
from openrlhf_qs.files.printable import from_here, print_table
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import read_json_lines, write_whole
from openrlhf_qs.form.keys import conversation_key, text_key
from openrlhf_qs.form.task import read_task
from openrlhf_qs.garm.eval import load_on_device
from openrlhf_qs.models.embedder import load_embedder
from openrlhf_qs.registry import add_plugin_arguments, load_plugins, parse_options

MOST_CLICKED = "most_clicked"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this stage."""
    parser.add_argument(
        "--run", required=True, metavar="DIR", help="run folder with data/, report/responses.*.jsonl and garm/"
    )
    parser.add_argument(
        "--judge",
        default="none",
        metavar="NAME|FILE.py|none",
        help="the users of the A/B test: a registered judge, or a Python file that registers one; default none: "
        "no A/B test, only the held-out clicks",
    )
    add_plugin_arguments(parser, options="of a plugin, as in openai_endpoint.model=qwen3")
    parser.add_argument(
        "--n_users",
        type=int,
        default=20_000,
        help="minimum number of users per arm, rounded up so that every conversation gets equally many; default 20000",
    )
    parser.add_argument(
        "--embedder",
        default="",
        metavar="NAME",
        help="sentence-transformers model that tells which suggestions mean the same: a folder, a hub name or "
        "minilm; default: only words are compared",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of clicks, bootstrap and shown examples; default 0")


def run(args: argparse.Namespace) -> None:
    """Measure, write ``metrics.json`` and ``report.html``, show the table."""
    from openrlhf_qs.evaluation.report import write_report  # --help need not wait for matplotlib

    folder = RunFolder(args.run)
    load_plugins(args.plugin)
    judge = load_judge(args.judge, args.option)
    if args.n_users < 1:
        raise ValueError(f"--n_users {args.n_users}: give 1 or more")
    embedder = load_embedder(args.embedder) if args.embedder else None
    impressions = read_impressions(folder.data.heldout)
    scorer = load_on_device(folder.garm) if folder.garm.is_dir() else None
    has_weights = folder.weights.is_file()
    reward = rewards.RunReward(folder, scorer, parse_options(args.option)) if has_weights else None

    responses = load_responses(folder)
    served = serve(folder, responses, judge, reward)
    arms = on_same_places(on_same_conversations(make_arms(folder, impressions, responses, served, judge, reward)))
    n_heldout, n_compared = len(cold_start(impressions)), len(arms[COLD_START])
    rich_print(f"{len(arms)} arms on {n_compared:,} of {n_heldout:,} held-out conversations, those that every arm has")

    clicked = clicked_suggestions(impressions)
    metrics: dict[str, Any] = {
        "seed": args.seed,
        "judge": args.judge,
        "contexts": {"heldout": n_heldout, "compared": n_compared},
        "served": {name: one for name, one in served.items() if one},
        "quality": {name: response_quality(rows, clicked, embedder) for name, rows in arms.items()},
    }
    results: dict[str, ArmResult] = {}
    owners = {conversation_key(row["conversation"]): row.get("user_id") for row in reversed(impressions)}
    if judge is not None:
        rich_print(f"A/B test with judge {escape(args.judge)}, at least {args.n_users:,} users per arm")
        results = run_ab_test(arms, judge, args.n_users, args.seed, owners)
        if not any(result.ctr for result in results.values()):
            raise ValueError(
                f"--judge {args.judge}: its users click nothing in any of {len(arms)} arms, so that nothing can be "
                "compared; see that it returns click probabilities above 0, or give --judge none"
            )
        metrics |= ab_metrics(results, metrics["quality"])
    as_served = {name: rows for name, rows in arms.items() if AT not in name}
    policies = [name for name in as_served if name in responses]
    before, after = policies[0], LAST_POLICY if LAST_POLICY in policies else policies[-1]
    if before != after:
        clusters = conversation_clusters([row.conversation for row in arms[COLD_START]], owners)
        metrics["quality_change"] = {
            "before": before,
            "after": after,
            "ci95": quality_change(arms[before], arms[after], clicked, clusters),
        }
    if results:
        keys = {conversation_key(row["conversation"]): row.get("meta") or {} for row in reversed(impressions)}
        conversations = [row.conversation for row in arms[COLD_START]]
        metrics["segments"] = segments(
            {name: results[name].context_ctr for name in policies},
            conversations,
            [keys[conversation_key(conversation)] for conversation in conversations],
            results[COLD_START].clusters,
            before,
            after,
        )
    some = {name: rows[: rewards.N_CONTEXTS] for name, rows in as_served.items()}
    conversations = [row.conversation for row in some[COLD_START]]
    if scorer is not None:
        rich_print("reward model on held-out pairs")
        chance = judge.chance_of_a_click if judge is not None else None
        metrics["garm"] = rewards.on_heldout_pairs(folder, scorer, args.seed, chance)
        metrics["garm_on_policy"] = {}
        for name in [COLD_START, *policies] if results else []:
            rich_print(f"reward model on the clicks of arm {escape(name)}")
            suggestions, clicks = [row.suggestions for row in some[name]], results[name].clicks[: rewards.N_CONTEXTS]
            places = rewards.places_of(folder)
            found = rewards.on_clicks(scorer, conversations, suggestions, clicks, args.seed, chance=chance, **places)
            if found is not None:
                metrics["garm_on_policy"][name] = found
    totals = {}
    for name, rows in some.items() if reward is not None else ():
        metrics["quality"][name]["reward"], totals[name] = reward(rows)
    if totals and results and before != after:
        gold = {name: results[name].context_ctr[: rewards.N_CONTEXTS] for name in totals}
        clusters = results[COLD_START].clusters[np.arange(len(conversations))]
        metrics["proxy"] = proxy_against_gold(totals, gold, before, after, clusters)
    in_log: dict[str, set[str]] = {}
    for row in impressions:
        in_log.setdefault(conversation_key(row["conversation"]), set()).update(map(text_key, row["suggestions"]))
    shown = {name: arms[name] for name in (COLD_START, *policies)}
    metrics["examples"] = examples(shown, results, clicked, in_log, before, after, args.seed, scorer, reward)

    write_whole(folder.metrics, json.dumps(metrics, indent=1, allow_nan=False))
    report = write_report(folder.path, metrics)
    _print_table(metrics)
    print(f"report: {from_here(report)}")  # rich would break a long path across lines


def serve(
    run: RunFolder,
    responses: Mapping[str, Sequence[Shown]],
    judge: Judge | None,
    reward: rewards.RunReward | None,
) -> dict[str, dict[str, Any] | None]:
    """The result of :func:`openrlhf_qs.evaluation.temperature.choose` for each policy with responses at several
    temperatures; it is written into the policy's folder if that is part of the run."""
    served: dict[str, dict[str, Any] | None] = {}
    for name, rows in responses.items():
        served[name] = None
        if len({row.temperature for row in rows}) > 1 and run.selection(name).is_file():
            sample = read_responses(run.selection(name), read_task(run.sft))
            served[name] = choose(sample, judge, reward.totals if reward else None)
        folder = run.path / name
        if served[name] and (folder / "config.json").is_file() and not folder.is_symlink():  # a link is another run's
            write_generation_config(folder, served[name]["temperature"])
    return served


def make_arms(
    run: RunFolder,
    impressions: Sequence[Mapping[str, Any]],
    responses: Mapping[str, Sequence[Shown]],
    served: Mapping[str, Mapping[str, Any] | None],
    judge: Judge | None,
    reward: rewards.RunReward | None,
) -> dict[str, list[Shown]]:
    """All arms, in the order of the table."""
    arms = {COLD_START: cold_start(impressions)}
    asked = [row.conversation for row in next(iter(responses.values()))]
    asked = list({conversation_key(conversation): conversation for conversation in asked}.values())
    n = read_task(run.sft).n
    if run.data.sft.is_file():
        favourites = most_clicked(read_json_lines(run.data.sft), asked, n)
        arms[MOST_CLICKED] = [as_shown(c, texts, n) for c, texts in zip(asked, favourites, strict=True)]
    for name, rows in responses.items():
        temperature = served[name]["temperature"] if served[name] else None
        arms |= by_temperature(name, rows, temperature)
        if reward is not None:
            arms |= best_of_samples(name, rows, reward)
    if judge is not None and judge.limits is not None:
        for name, suggestions in judge.limits(asked, n).items():
            arms[name] = [as_shown(c, texts, n) for c, texts in zip(asked, suggestions, strict=True)]
    return arms


def best_of_samples(name: str, rows: Sequence[Shown], reward: rewards.RunReward) -> dict[str, list[Shown]]:
    """The arm ``NAME_best_of_8``: if a temperature has several samples per conversation, the one with the highest
    composite reward; no arm if none has."""
    counts = Counter((row.temperature, conversation_key(row.conversation)) for row in rows)
    if max(counts.values()) == 1:
        return {}
    temperature = counts.most_common(1)[0][0][0]
    sampled = [row for row in rows if row.temperature == temperature]
    best = best_of(reward.totals(sampled), [conversation_key(row.conversation) for row in sampled])
    return {f"{name}_best_of_{max(counts.values())}": [sampled[row] for row in best]}


def _print_table(metrics: Mapping[str, Any]) -> None:
    """Prints the figures of every arm and the outcome, within 80 columns."""
    console = Console()
    table = Table(
        title="clicks and quality on held-out conversations", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("arm", overflow="fold")
    for heading in ("CTR", "95 % interval", "malf.", "dupl.", "dist-2", "words", "like"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, quality in metrics["quality"].items():
        ab = metrics.get("ab", {}).get(name)
        table.add_row(
            name,
            f"{ab['ctr']:.1%}" if ab else "–",
            f"{100 * ab['ci95'][0]:.1f} to {100 * ab['ci95'][1]:.1f}" if ab else "–",
            *(
                "–" if quality[key] is None else format(quality[key], spec)
                for key, spec in (
                    ("malformed", ".1%"),
                    ("near_duplicates", ".1%"),
                    ("distinct_2", ".3f"),
                    ("words", ".1f"),
                    ("likeness", ".2f"),
                )
            ),
        )
    print_table(table)
    console.print(
        "malf.: malformed; dupl.: with near-duplicates; dist-2: distinct-2, the share of distinct word pairs; like: "
        f"likeness to clicked suggestions.{_served_at(metrics)}",
        style="dim",
    )
    console.print(escape(summary.answer(metrics)))
    for flag in summary.warnings(metrics):
        console.print(f"[{'red' if flag['kind'] == 'bad' else 'yellow'}]! {escape(flag['sentence'])}")
    if garm := metrics.get("garm"):
        _print_reward_model({"held-out clicks": garm} | metrics["garm_on_policy"])
        console.print(escape(f"On held-out clicks: {garm['verdict']}"))


def _served_at(metrics: Mapping[str, Any]) -> str:
    temperatures = [f"{name} {one['temperature']:g}" for name, one in metrics.get("served", {}).items()]
    return f" NAME@T: at temperature T; NAME: as served, at {', '.join(temperatures)}." if temperatures else ""


def _print_reward_model(measured: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table(
        title="the reward model on pairs of a clicked and an unclicked suggestion", box=SIMPLE, pad_edge=False
    )
    table.add_column("pairs from", overflow="fold")
    for heading in ("pairs", "accuracy", "95 % interval", "ECE", "floor", "NLL"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, figures in measured.items():
        if figures["n_pairs"]:
            low, high = figures["accuracy_ci95"]
            table.add_row(
                name,
                f"{figures['n_pairs']:,}",
                f"{figures['accuracy']:.1%}",
                f"{100 * low:.1f} to {100 * high:.1f}",
                *(f"{figures[key]:.3f}" for key in ("ece", "ece_if_calibrated", "nll")),
            )
    if table.row_count:
        print_table(table)
