"""Stage ``evaluate``: the policies side by side on held-out conversations, and the report.

In, under ``--run``: ``data/heldout.jsonl`` (arm ``cold_start``: what the log showed), ``report/responses.NAME.jsonl``
(arm NAME), and, where they are, ``garm/`` with ``data/pairs.heldout.jsonl``. Out: ``report/metrics.json``,
``report/report.html`` and a table in the terminal.

With a judge, simulated users see every arm's suggestions under the same conversations and click or not: an A/B test.
Without one, the held-out clicks speak: how well the reward model foretells them, and how like the clicked suggestions,
how valid and how diverse each arm's are.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz
from rapidfuzz.utils import default_process
from rich import print as rich_print
from rich.markup import escape
from rich.table import Table

from openrlhf_qs.evaluation import rewards
from openrlhf_qs.evaluation.report import write_report
from openrlhf_qs.files import read_json_lines, write_whole
from openrlhf_qs.garm.calibration import Z_95
from openrlhf_qs.garm.eval import load_on_device
from openrlhf_qs.prompt import Message
from openrlhf_qs.registry import JUDGES, check_options, load_plugins, origin, parse_options
from openrlhf_qs.response import N_SUGGESTIONS, format_response, parse_response
from openrlhf_qs.sft import assembly
from openrlhf_qs.sft.embedding import embed, load_embedder

Judge = Callable[[Sequence[list[Message]], Sequence[Sequence[str]]], list[list[float]]]

COLD_START = "cold_start"
SAME_MEANING = 0.85  # cosine of two suggestions' vectors from which they mean the same
NEAR_DUPLICATE = 90  # token_set_ratio of rapidfuzz, 0 to 100, from which two suggestions say the same
N_EXAMPLES = 12  # conversations that the report shows
SHOWN_PROBLEMS = 20


class Shown(NamedTuple):
    """What one arm shows under one conversation; ``log_ppl`` in nats per token, None where nobody measured it."""

    conversation: list[Message]
    suggestions: Sequence[str]
    well_formed: bool
    log_ppl: float | None = None
    response: str = ""  # the text that the suggestions were read from


@dataclass(frozen=True)
class ArmResult:
    """How one arm did in the A/B test.

    Attributes:
        ctr: share of users with at least one click.
        ci95: its interval, clustered by context: the users of one context see the same suggestions.
        n_users, n_contexts: users are spread evenly over contexts.
        slot_ctr: share of all users who clicked each slot, top first.
        context_ctr: ``[n_contexts]``, ``ctr`` of each context.
        clicks: ``[n_contexts, users of a context, n_slots]``.
    """

    ctr: float
    ci95: tuple[float, float]
    n_users: int
    n_contexts: int
    slot_ctr: list[float]
    context_ctr: np.ndarray
    clicks: np.ndarray


class Lift(NamedTuple):
    """``ctr / ctr of the other arm - 1`` and its 95 % interval."""

    value: float
    ci95: tuple[float, float]


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
    folder = Path(args.run)
    load_plugins(args.plugin)
    judge = load_judge(args.judge, args.option)
    impressions = read_impressions(folder / "data" / "heldout.jsonl")
    arms = load_arms(folder, impressions)
    n_heldout = len(arms[COLD_START])
    arms = on_same_conversations(arms)
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
    scorer = load_on_device(folder / "garm") if (folder / "garm").is_dir() else None
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
    if (folder / "fusion" / "weights.json").is_file():
        reward = rewards.RunReward(folder, scorer, parse_options(args.option))
        for name, rows in some.items():
            log_ppl = [row.log_ppl for row in rows]
            metrics["quality"][name]["reward"] = reward(
                conversations, [row.response for row in rows], None if None in log_ppl else log_ppl
            )
    metrics["examples"] = _examples(arms, results, clicked, args.seed)

    write_whole(folder / "report" / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False))
    report = write_report(folder, metrics)
    _print_table(metrics)
    rich_print(f"report: {escape(str(report))}")


def run_ab_test(
    arms: Mapping[str, Sequence[tuple]], judge: Judge, n_users: int = 20_000, seed: int = 0
) -> dict[str, ArmResult]:
    """Show every arm's suggestions to simulated users under the same conversations.

    Args:
        arms: name to rows that begin with (conversation, suggestions); of a conversation an arm has twice, the first
            counts, and conversations that are not in every arm are left out.
        judge: called once an arm, each row one fresh user; answers with click probabilities.
        n_users: users of each arm at least.
        seed: of the clicks. An arm's clicks do not depend on which other arms there are.

    Returns:
        The result of each arm. ValueError where fewer than two conversations are left, or the judge breaks its word.
    """
    if n_users < 1:
        raise ValueError(f"n_users = {n_users}: give at least 1")
    arms = on_same_conversations(arms)
    n_contexts = len(next(iter(arms.values())))
    if n_contexts < 2:
        raise ValueError(f"{n_contexts} conversation is in every arm; an interval needs at least 2")
    users_per_context = math.ceil(n_users / n_contexts)
    results = {}
    for name, rows in arms.items():
        users = [row for row in rows for _ in range(users_per_context)]
        probability = click_probabilities(judge, [u[0] for u in users], [u[1] for u in users], where=f"arm {name}")
        rng = np.random.default_rng([seed, *name.encode()])
        clicks = rng.random(probability.shape) < probability  # [n_users, n_slots]
        clicks = clicks.reshape(n_contexts, users_per_context, -1)
        context_ctr = clicks.any(axis=2).mean(axis=1)
        ctr = float(context_ctr.mean())
        half = Z_95 * float(context_ctr.std(ddof=1)) / math.sqrt(n_contexts)
        results[name] = ArmResult(
            ctr=ctr,
            ci95=(max(ctr - half, 0.0), min(ctr + half, 1.0)),
            n_users=len(users),
            n_contexts=n_contexts,
            slot_ctr=clicks.mean(axis=(0, 1)).tolist(),
            context_ctr=context_ctr,
            clicks=clicks,
        )
    return results


def relative_lift(arm: ArmResult, over: ArmResult) -> Lift | None:
    r"""How much higher ``arm``'s CTR is, relative to that of ``over``; None where nobody clicked in ``over``.

    :math:`R-1` with :math:`R=\bar a/\bar b` over contexts; by the delta method its standard error is that of the mean
    of :math:`(a_c-R\,b_c)/\bar b`. The arms share their contexts, so what makes one easy for both cancels.
    """
    if over.ctr == 0:
        return None
    ratio = arm.ctr / over.ctr
    influence = (arm.context_ctr - ratio * over.context_ctr) / over.ctr
    half = Z_95 * float(influence.std(ddof=1)) / math.sqrt(len(influence))
    return Lift(ratio - 1, (ratio - 1 - half, ratio - 1 + half))


def click_probabilities(
    judge: Judge, conversations: Sequence[list[Message]], suggestions: Sequence[Sequence[str]], where: str
) -> np.ndarray:
    """The judge's answer as one array ``[n, most suggestions of a row]``; slots that a row does not have are 0.

    ValueError names judge, ``where`` and row if the answer has another shape than ``suggestions`` or leaves [0, 1].
    """
    judge_name = getattr(judge, "__name__", type(judge).__name__)
    answer = judge(conversations, suggestions)
    if len(answer) != len(suggestions):
        raise ValueError(
            f"judge {judge_name}, {where}: {len(answer)} rows for {len(suggestions)} users; return one row a user"
        )
    probability = np.zeros((len(suggestions), max(map(len, suggestions), default=0)))
    for n, (row, texts) in enumerate(zip(answer, suggestions, strict=True)):
        if len(row) != len(texts):
            raise ValueError(
                f"judge {judge_name}, {where}, row {n}: {len(row)} probabilities for {len(texts)} suggestions; "
                "return one a suggestion"
            )
        probability[n, : len(row)] = row
    bad = np.argwhere(~((probability >= 0) & (probability <= 1)))
    if len(bad):
        n, slot = map(int, bad[0])
        raise ValueError(
            f"judge {judge_name}, {where}, row {n}: {probability[n, slot]} for suggestion {slot + 1}; "
            "return a click probability in [0, 1]"
        )
    return probability


def load_judge(judge: str, settings: Sequence[str] = ()) -> Judge | None:
    """The judge of that name, or of that Python file, with its options; None for ``none``.

    ValueError where a file registers no judge or several, and where an option is of no plugin: it would be ignored.
    """
    options = parse_options(settings)
    name = judge
    if judge == "none":
        name = ""
    elif judge.endswith(".py"):
        file = Path(judge).resolve()
        load_plugins([file])
        names = [name for name in JUDGES if origin(JUDGES[name]) == str(file)]
        if len(names) != 1:
            raise ValueError(
                f"--judge {judge}: it registers {len(names)} judges {names}; it must register exactly one"
            )
        name = names[0]
    else:
        load_plugins()
    check_options(options)  # one list of options serves all stages: those of other plugins are well formed too
    return JUDGES.create(name, **options.get(name, {})) if name else None


def read_impressions(path: Path) -> list[dict]:
    """Held-out impressions of the click log. ValueError names the first 20 rows that are none."""

    def problem(row: dict) -> str:
        if not _is_conversation(row.get("conversation")):
            return "no conversation"
        suggestions, clicks = row.get("suggestions"), row.get("clicks")
        if not (isinstance(suggestions, list) and all(isinstance(text, str) for text in suggestions)):
            return "no list of suggestions"
        if not (isinstance(clicks, list) and len(clicks) == len(suggestions) and all(c in (0, 1) for c in clicks)):
            return f"clicks {clicks!r} for {len(suggestions)} suggestions; give one 0/1 per suggestion"
        return ""

    return _read_checked(path, problem)


def load_arms(run_dir: Path, impressions: Sequence[Mapping[str, Any]]) -> dict[str, list[Shown]]:
    """The arms of a run: ``cold_start``, ``sft``, ``grpo``, then any other ``report/responses.NAME.jsonl`` by name.

    Of ``impressions``, the first of each conversation is shown as it was logged. Of a malformed response, the
    suggestions that can be read are shown.
    """
    files = {
        path.name.split(".", 1)[1].removesuffix(".jsonl"): path for path in run_dir.glob("report/responses.*.jsonl")
    }
    if not files:
        raise ValueError(f"{run_dir / 'report'}: no responses.NAME.jsonl there; run `openrlhf-qs generate` first")
    if COLD_START in files:
        raise ValueError(
            f"{files[COLD_START]}: the arm {COLD_START} is what the log shows; give this one another name"
        )
    arms = {COLD_START: []}
    for row in _first_of_each(impressions, "conversation").values():
        arms[COLD_START].append(
            Shown(
                row["conversation"],
                row["suggestions"],
                _three_with_letters(row["suggestions"]),
                response=format_response(row["suggestions"]),
            )
        )

    def problem(row: dict) -> str:
        if not _is_conversation(row.get("conversation")):
            return "no conversation"
        if not isinstance(row.get("response"), str):
            return "no response; give the text the policy wrote"
        if row.get("log_ppl") is not None and not _is_number(row["log_ppl"]):
            return f"log_ppl {row['log_ppl']!r}; give nats per token, or leave it out"
        return ""

    for name in sorted(files, key=lambda name: ({"sft": 0, "grpo": 1}.get(name, 2), name)):
        arms[name] = []
        for row in _read_checked(files[name], problem):
            parsed = parse_response(row["response"])
            arms[name].append(
                Shown(row["conversation"], parsed.suggestions, parsed.well_formed, row.get("log_ppl"), row["response"])
            )
    return arms


def on_same_conversations(arms: Mapping[str, Sequence[tuple]]) -> dict[str, list[tuple]]:
    """Each arm's rows for the conversations that all arms have, in the order of the first arm, one row a conversation.

    Conversations are the same if their roles and texts are. ValueError where none is left.
    """
    rows = {name: _first_of_each(arm, 0) for name, arm in arms.items()}
    keys = [key for key in next(iter(rows.values())) if all(key in by_key for by_key in rows.values())]
    if not keys:
        counts = ", ".join(f"{name} {len(by_key)}" for name, by_key in rows.items())
        raise ValueError(f"no conversation is in every arm ({counts}); generate responses for data/heldout.jsonl")
    return {name: [by_key[key] for key in keys] for name, by_key in rows.items()}


def clicked_suggestions(impressions: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What was clicked under each conversation that has a click, over all its impressions, by :func:`_key`."""
    clicked: dict[str, list[str]] = {}
    for row in impressions:
        texts = [text for text, click in zip(row["suggestions"], row["clicks"], strict=True) if click]
        if texts:
            clicked.setdefault(_key(row["conversation"]), []).extend(texts)
    return clicked


def response_quality(
    rows: Sequence[Shown], clicked: Mapping[str, Sequence[str]], embedder: Any = None
) -> dict[str, Any]:
    """What can be said of an arm's suggestions without anybody looking at them; None for a figure of nothing.

    Args:
        rows: the arm.
        clicked: from :func:`clicked_suggestions`.
        embedder: a ``SentenceTransformer``, for ``same_meaning``.

    Returns:
        ``n_responses``; ``malformed``, share that is not three suggestions with letters; ``distinct_1`` and
        ``distinct_2``, different words and word pairs per word and pair of the whole arm; ``near_duplicates``, share
        of responses with two suggestions that say the same in nearly the same words; ``same_meaning``, share of those
        with two whose vectors have a cosine of ``SAME_MEANING`` or more; ``self_similarity`` in [0, 1], how alike two
        suggestions of a response are, mean cosine of their character trigrams; ``words`` of a suggestion, mean;
        ``likeness`` in [0, 1], how like the clicked suggestion nearest to it a suggestion is, mean over the
        ``n_likeness`` suggestions under a conversation with a click; ``log_ppl``, mean, nats per token.
    """
    words = [re.findall(r"\w+", text.casefold()) for row in rows for text in row.suggestions]
    likeness = [
        max(fuzz.ratio(text, target, processor=default_process) for target in clicked[_key(row.conversation)]) / 100
        for row in rows
        if _key(row.conversation) in clicked
        for text in row.suggestions
    ]
    return {
        "n_responses": len(rows),
        "malformed": _mean([not row.well_formed for row in rows]),
        "distinct_1": _distinct([(word,) for text in words for word in text]),
        "distinct_2": _distinct([pair for text in words for pair in zip(text, text[1:], strict=False)]),
        "near_duplicates": _mean([_has_near_duplicates(row.suggestions) for row in rows]),
        "same_meaning": None if embedder is None else _mean(_most_alike(rows, embedder) >= SAME_MEANING),
        "self_similarity": _mean(_self_similarity(rows)),
        "words": _mean([len(text) for text in words]),
        "likeness": _mean(likeness),
        "n_likeness": len(likeness),
        "log_ppl": _mean([row.log_ppl for row in rows if row.log_ppl is not None]),
    }


def ab_metrics(results: Mapping[str, ArmResult], quality: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``ab``, ``lift``, ``lift_ci95`` and ``verdict`` of metrics.json; each arm over every arm before it."""
    metrics: dict[str, Any] = {"ab": {}, "lift": {}, "lift_ci95": {}}
    for name, result in results.items():
        metrics["ab"][name] = {
            "ctr": result.ctr,
            "ci95": list(result.ci95),
            "malformed": quality[name]["malformed"],
            "n_users": result.n_users,
            "n_contexts": result.n_contexts,
            "slot_ctr": result.slot_ctr,
        }
    sentences = []
    names = list(results)
    for position, name in enumerate(names):
        for other in names[:position]:
            lift = relative_lift(results[name], results[other])
            metrics["lift"][f"{name}_over_{other}"] = lift and lift.value
            metrics["lift_ci95"][f"{name}_over_{other}"] = lift and list(lift.ci95)
            sentences.append(compare(name, results[name], other, results[other]))
    metrics["verdict"] = " ".join(sentences)
    return metrics


def compare(name: str, arm: ArmResult, other: str, over: ArmResult) -> str:
    """One sentence: who beats whom, by how much, and whether the intervals of the two CTRs are apart."""
    rates = f"CTR {arm.ctr:.1%} against {over.ctr:.1%}"
    lift = relative_lift(arm, over)
    if lift is None:
        return f"{name} cannot be compared with {other}, where nobody clicked: {rates}."
    low, high = lift.ci95
    apart = arm.ci95[0] > over.ci95[1] or arm.ci95[1] < over.ci95[0]
    word = "beats" if low > 0 else "loses to" if high < 0 else "cannot be told from"
    return (
        f"{name} {word} {other}: {rates}, lift {lift.value:+.1%} (95 % interval {low:+.1%} to {high:+.1%}), "
        f"the two intervals {'are apart' if apart else 'overlap'}."
    )


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
            "clicked": list(dict.fromkeys(clicked.get(_key(arms[COLD_START][c].conversation), []))),
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


def _read_checked(path: Path, problem: Callable[[dict], str]) -> list[dict]:
    """Rows of a file; the first 20 with a problem are raised together, by line."""
    rows = read_json_lines(path)
    problems = [f"{path}:{n}: {found}" for n, row in enumerate(rows, start=1) if (found := problem(row))]
    if problems:
        more = f"\nand {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise ValueError("\n".join(problems[:SHOWN_PROBLEMS]) + more)
    return rows


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value)
        and all(isinstance(m.get("content"), str) for m in value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _key(conversation: Sequence[Message]) -> str:
    return json.dumps([[message["role"], message["content"]] for message in conversation])


def _first_of_each(rows: Sequence[Any], conversation_at: str | int) -> dict[str, Any]:
    """The first row of each conversation, by :func:`_key`, in the order of the rows."""
    first: dict[str, Any] = {}
    for row in rows:
        first.setdefault(_key(row[conversation_at]), row)
    return first


def _three_with_letters(suggestions: Sequence[str]) -> bool:
    return len(suggestions) == N_SUGGESTIONS and all(any(map(str.isalpha, text)) for text in suggestions)


def _has_near_duplicates(suggestions: Sequence[str]) -> bool:
    return any(
        fuzz.token_set_ratio(one, other, processor=default_process) >= NEAR_DUPLICATE
        for n, one in enumerate(suggestions)
        for other in suggestions[:n]
    )


def _self_similarity(rows: Sequence[Shown]) -> NDArray[np.float64]:
    """``[pairs]``: how alike each two suggestions of a response are."""
    found: list[NDArray] = []
    for first in range(0, len(rows), assembly.MAX_ROWS):
        texts, row, slot = _flat(rows[first : first + assembly.MAX_ROWS])
        if texts:
            keys = [assembly.normalise(text) for text in texts]
            cosine = assembly.trigram_cosine(keys, row, slot, (row.max() + 1, slot.max() + 1))
            one, other = np.nonzero((row[:, None] == row) & (slot[:, None] < slot))
            found.append(cosine[row[one], slot[one], slot[other]])
    return np.concatenate(found) if found else np.zeros(0)


def _most_alike(rows: Sequence[Shown], embedder: Any) -> NDArray[np.float64]:
    """``[rows]``: the largest cosine of two suggestions of each response; 0 where there are fewer than two."""
    texts, row, slot = _flat(rows)
    if not texts:
        return np.zeros(len(rows))
    distinct, index = np.unique(texts, return_inverse=True)
    embedded = embed(embedder, distinct.tolist())[index]
    vectors = np.zeros((len(rows), slot.max() + 1, embedded.shape[1]), dtype=np.float32)
    vectors[row, slot] = embedded
    return np.triu(assembly.cosine(vectors), k=1).max(axis=(1, 2))


def _flat(rows: Sequence[Shown]) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """The suggestions of all responses, and the row and the slot of each."""
    places = [(text, n, slot) for n, one in enumerate(rows) for slot, text in enumerate(one.suggestions)]
    texts, row, slot = zip(*places, strict=True) if places else ((), (), ())
    return list(texts), np.array(row, dtype=np.int64), np.array(slot, dtype=np.int64)


def _distinct(ngrams: Sequence[tuple[str, ...]]) -> float | None:
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def _mean(values: Sequence[float] | NDArray) -> float | None:
    return float(np.mean(values)) if len(values) else None
