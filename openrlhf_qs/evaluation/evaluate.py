"""Stage ``evaluate``: the policies side by side on held-out conversations, and the report.

In, under ``--run``: ``data/heldout.jsonl`` (arm ``cold_start``: what the log showed), ``report/responses.NAME.jsonl``
(arm NAME), and, where they are, ``garm/`` with ``data/preferences.heldout.jsonl``. Out: ``report/metrics.json``,
``report/report.html`` and a table in the terminal.

With a judge, simulated users see every arm's suggestions under the same conversations and click or not: an A/B test.
Without one, the held-out clicks speak: how well the reward model foretells them, and how like the clicked suggestions,
how valid and how diverse each arm's are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import print as rich_print
from rich.markup import escape
from rich.table import Table

from openrlhf_qs.evaluation import rewards
from openrlhf_qs.evaluation.ab_test import ArmResult, ab_metrics, load_judge, run_ab_test
from openrlhf_qs.evaluation.arms import (
    COLD_START,
    Shown,
    clicked_suggestions,
    load_arms,
    on_same_conversations,
    on_same_places,
    read_impressions,
)
from openrlhf_qs.evaluation.quality import response_quality
from openrlhf_qs.evaluation.report import write_report
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import write_whole
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.garm.eval import load_on_device
from openrlhf_qs.models.embedder import load_embedder
from openrlhf_qs.registry import load_plugins, parse_options

N_EXAMPLES = 12  # conversations that the report shows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this stage."""
    parser.add_argument(
        "--run", required=True, metavar="DIR", help="run folder: data/, report/responses.*.jsonl, garm/"
    )
    parser.add_argument(
        "--judge",
        default="none",
        metavar="NAME|FILE.py|none",
        help="the users of the A/B test: a registered judge, or a Python file that registers one; default none: "
        "no A/B test, the held-out clicks alone",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME.OPTION=VALUE",
        help="option of a plugin, as in openai_endpoint.model=qwen3; may be repeated",
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="registers plugins; repeatable"
    )
    parser.add_argument(
        "--n_users",
        type=int,
        default=20_000,
        help="users of each arm at least, rounded up to the same number for every conversation; default 20000",
    )
    parser.add_argument(
        "--embedder",
        default="",
        metavar="NAME",
        help="sentence-transformers model that tells which suggestions mean the same: a folder, a hub name or minilm; "
        "default: words alone are compared",
    )
    parser.add_argument("--seed", type=int, default=0, help="of clicks, bootstrap and shown examples; default 0")


def run(args: argparse.Namespace) -> None:
    """Measure, write ``metrics.json`` and ``report.html``, show the table."""
    folder = RunFolder(args.run)
    load_plugins(args.plugin)
    judge = load_judge(args.judge, args.option)
    impressions = read_impressions(folder.data.heldout)
    arms = load_arms(folder, impressions)
    n_heldout = len(arms[COLD_START])
    arms = on_same_places(on_same_conversations(arms))
    n_compared = len(arms[COLD_START])
    rich_print(
        f"{n_compared:,} of {n_heldout:,} held-out conversations have suggestions of all arms: {', '.join(arms)}"
    )

    clicked = clicked_suggestions(impressions)
    embedder = load_embedder(args.embedder) if args.embedder else None
    metrics: dict[str, Any] = {
        "seed": args.seed,
        "judge": args.judge,
        "contexts": {"heldout": n_heldout, "compared": n_compared},
        "quality": {name: response_quality(rows, clicked, embedder) for name, rows in arms.items()},
    }
    results: dict[str, ArmResult] = {}
    if judge is not None:
        rich_print(f"A/B test with judge {escape(args.judge)}, at least {args.n_users:,} users an arm")
        results = run_ab_test(arms, judge, args.n_users, args.seed)
        metrics |= ab_metrics(results, metrics["quality"])
    some = {name: rows[: rewards.N_CONTEXTS] for name, rows in arms.items()}
    conversations = [row.conversation for row in some[COLD_START]]
    scorer = load_on_device(folder.garm) if folder.garm.is_dir() else None
    if scorer is not None:
        rich_print("reward model on held-out pairs")
        metrics["garm"] = rewards.on_heldout_pairs(folder, scorer, args.seed)
        metrics["garm_on_policy"] = {}
        for name, result in results.items():
            rich_print(f"reward model on the clicks of arm {escape(name)}")
            suggestions, clicks = [row.suggestions for row in some[name]], result.clicks[: rewards.N_CONTEXTS]
            found = rewards.on_clicks(scorer, conversations, suggestions, clicks, args.seed)
            if found is not None:
                metrics["garm_on_policy"][name] = found
    if folder.weights.is_file():
        reward = rewards.RunReward(folder, scorer, parse_options(args.option))
        for name, rows in some.items():
            metrics["quality"][name]["reward"] = reward(rows)
    metrics["examples"] = _examples(arms, results, clicked, args.seed)

    write_whole(folder.metrics, json.dumps(metrics, indent=1, allow_nan=False))
    report = write_report(folder.path, metrics)
    _print_table(metrics)
    rich_print(f"report: {escape(str(report))}")


def _examples(
    arms: Mapping[str, Sequence[Shown]],
    results: Mapping[str, ArmResult],
    clicked: Mapping[str, Sequence[str]],
    seed: int,
) -> list[dict[str, Any]]:
    n = len(arms[COLD_START])
    drawn = np.sort(np.random.default_rng(seed).choice(n, size=min(n, N_EXAMPLES), replace=False)).tolist()
    return [
        {
            "conversation": arms[COLD_START][c].conversation,
            "clicked": list(dict.fromkeys(clicked.get(conversation_key(arms[COLD_START][c].conversation), []))),
            "arms": {
                name: {
                    "suggestions": list(rows[c].suggestions),
                    "malformed": not rows[c].well_formed,
                    "ctr": float(results[name].context_ctr[c]) if results else None,
                }
                for name, rows in arms.items()
            },
        }
        for c in drawn
    ]


def _print_table(metrics: Mapping[str, Any]) -> None:
    """The figures of every arm, and the verdicts, in the terminal."""
    table = Table(title="held-out conversations", title_justify="left")
    table.add_column("arm")
    for heading in ("CTR", "95 % interval", "users", "malformed", "near dup.", "distinct-2", "words", "likeness"):
        table.add_column(heading, justify="right")
    for name, quality in metrics["quality"].items():
        ab = metrics.get("ab", {}).get(name)
        table.add_row(
            escape(name),
            f"{ab['ctr']:.2%}" if ab else "–",
            f"{ab['ci95'][0]:.2%} to {ab['ci95'][1]:.2%}" if ab else "–",
            f"{ab['n_users']:,}" if ab else "–",
            *(
                "–" if quality[key] is None else format(quality[key], spec)
                for key, spec in (
                    ("malformed", ".2%"),
                    ("near_duplicates", ".2%"),
                    ("distinct_2", ".3f"),
                    ("words", ".1f"),
                    ("likeness", ".3f"),
                )
            ),
        )
    rich_print(table)
    if verdict := metrics.get("verdict"):
        rich_print(escape(verdict))
    if garm := metrics.get("garm"):
        _print_reward_model({"held-out clicks": garm} | metrics["garm_on_policy"])
        rich_print(escape(garm["verdict"]))


def _print_reward_model(measured: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table(title="the reward model on pairs of", title_justify="left")
    table.add_column("")
    for heading in ("pairs", "accuracy", "95 % interval", "ECE", "if calibrated", "NLL"):
        table.add_column(heading, justify="right")
    for name, figures in measured.items():
        if figures["n_pairs"]:
            table.add_row(
                escape(name),
                f"{figures['n_pairs']:,}",
                f"{figures['accuracy']:.1%}",
                "{:.1%} to {:.1%}".format(*figures["accuracy_ci95"]),
                *(f"{figures[key]:.3f}" for key in ("ece", "ece_if_calibrated", "nll")),
            )
    if table.row_count:
        rich_print(table)
