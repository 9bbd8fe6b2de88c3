"""The fusion stage: from clicks and the SFT policy's responses to the weights of the composite reward.

In: held-back impressions, samples of the SFT policy with their log-perplexity, the reward model. Every part is scored
on both, and on hacked responses made from the samples (:mod:`openrlhf_qs.reward.hacked`); a fusion plugin learns the
weights.
Out: ``weights.json``, and ``front.svg`` beside it where the plugin found a Pareto front.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import read_json_lines, write_whole
from openrlhf_qs.form.keys import conversation_key, root_key
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import format_response
from openrlhf_qs.form.task import Task, read_task
from openrlhf_qs.models.reference import reference_log_ppl, reference_tokens
from openrlhf_qs.registry import FUSIONS, REWARDS, add_plugin_arguments, load_plugins, parse_options
from openrlhf_qs.reward.fusion_data import FusionData, impression_pairs, suggestion_pairs, topics
from openrlhf_qs.reward.hacked import hacked_responses
from openrlhf_qs.reward.normalisation import NORMALISATIONS
from openrlhf_qs.reward.offline import offline_batch
from openrlhf_qs.reward.rollout import RolloutBatch

if TYPE_CHECKING:  # --help need not wait for torch
    import polars as pl
    from torch import Tensor

    from openrlhf_qs.reward.composite import CompositeReward, Part, Weights

N_HACKED = 200  # responses that hacked ones are made from
N_TOPICS = 8
SAME = 1e-6  # a part whose values deviate by less is the same for every response


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reward", default="garm,ood,rules,relevance,diversity", help="parts of the reward, separated by commas"
    )
    parser.add_argument("--fusion", default="logistic_regression", help="fusion plugin; default: logistic_regression")
    parser.add_argument(
        "--normalisation",
        choices=NORMALISATIONS,
        default="sft",
        help="how parts are made comparable, here and in grpo. "
        + "; ".join(f"{name}: {what}" for name, what in NORMALISATIONS.items())
        + "; default sft",
    )
    parser.add_argument("--reference", required=True, help="folder of the SFT policy, the reference of GRPO")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="temperature of grpo's rollouts, at which the reference is evaluated, as it was for log_ppl in "
        "--responses; default 1",
    )
    parser.add_argument("--reward_model", default="", help="folder of the reward model, if a part needs one")
    parser.add_argument(
        "--impressions", required=True, metavar="FILE", help="logged impressions, not used in training"
    )
    parser.add_argument(
        "--responses", required=True, metavar="FILE", help="the SFT policy's responses, from openrlhf-qs generate"
    )
    parser.add_argument(
        "--propensities",
        default="",
        metavar="FILE",
        help="log.json of the data stage, with each position's examination; default: estimated from the impressions",
    )
    parser.add_argument(
        "--n_max", type=int, default=4000, help="maximum number of impressions, the first ones; default 4000"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="weights.json to write")
    add_plugin_arguments(parser, options="of a part, as in ood.threshold=3")


def run(args: argparse.Namespace) -> None:
    from openrlhf_qs.clicks.click_log import read_click_log
    from openrlhf_qs.reward.composite import CompositeReward, Part, Weights

    load_plugins(args.plugin)
    options = parse_options(args.option)
    composite = CompositeReward(args.reward.split(","), options)
    fusion = FUSIONS.create(args.fusion, **options.get(args.fusion, {}))
    scorer = load_scorer(composite, args.reward_model)

    responses = read_json_lines(args.responses)
    log = read_click_log(args.impressions).head(args.n_max)
    impressions = log.to_dicts()
    task = read_task(args.reference)
    sampled = sampled_batch(responses, scorer, task)
    calibrated = calibrate(composite, sampled, clicked_texts(log))
    reference = partial(reference_log_ppl, args.reference, temperature=args.temperature)
    logged = logged_batch(impressions, args.reference, args.temperature, scorer, task)

    names = list(composite.parts)
    raw, raw_logged, group = composite.raw(sampled), composite.raw(logged), sampled.group.numpy()
    scale = part_scale(names, stack(raw, names), stack(raw_logged, names), group, args.normalisation)
    varies = scale.seen > 0
    if not varies.any():
        raise ValueError(f"reward {args.reward}: every part is the same for every response: nothing to weight")
    weighed, seen = [name for name, one in zip(names, varies, strict=True) if one], scale.seen[varies]
    hacks = fusion.wants_hacked
    data = FusionData(
        weighed,
        **_click_pairs(composite, logged, raw_logged, weighed, seen, log, _places(args, log)),
        **(_against_hacked(composite, *hacked_batches(sampled, reference, scorer), weighed, seen) if hacks else {}),
        **_samples(raw, sampled, (stack(raw, weighed) - scale.mean[varies]) / seen, composite.gates),
    )
    if not len(data.difference):
        kind = "has a click" if any(map(any, (row["clicks"] for row in impressions))) else "is without a click"
        warnings.warn(
            f"every impression of {args.impressions} {kind}, so nothing tells the weights: all parts get the same "
            "share, as with FUSION=equal; log impressions without a click too",
            stacklevel=2,
        )
        fusion = FUSIONS.create("equal")
    learned = np.zeros(len(names))
    learned[varies] = np.array(fusion(data)) * scale.std[varies] / seen  # of deviations as grpo will have them
    parts = {
        name: Part(float(weight), float(mean), float(std), calibrated.get(name, {}))
        for name, weight, mean, std in zip(names, learned / learned.sum(), scale.mean, scale.std, strict=True)
    }
    report = {
        "n_impressions": len(impressions),
        "n_responses": len(responses),
        **fusion.report,
        "shares": shares(parts, raw, group),
    }
    write(args.out, Weights(parts, args.normalisation, args.temperature), args.fusion, report)
    show(parts, report)


def shares(parts: Mapping[str, Part], raw: Mapping[str, Tensor], group: np.ndarray) -> dict[str, float]:
    """Of each part, its share of the variance of the total between the samples to one prompt: what it has to say in
    GRPO, which logs the same of its rollouts as ``share/NAME``. Before gates."""
    import torch

    from openrlhf_qs.reward.composite import variance_shares

    columns = {name: part.weight * (raw[name].double() - part.mean) / part.std for name, part in parts.items()}
    number = torch.from_numpy(np.unique(group, return_inverse=True)[1])
    return variance_shares(columns, torch.stack([*columns.values()]).sum(0), number)


def load_scorer(composite: CompositeReward, reward_model: str):
    """The reward model where a part needs it, else None. ValueError where it is not given."""
    if "reward_model" not in composite.needs():
        return None
    if not reward_model:
        raise ValueError(
            f"reward {','.join(composite.rewards)} needs a reward model: give its folder as --reward_model"
        )
    from openrlhf_qs.garm.eval import load_on_device

    return load_on_device(reward_model)


def sampled_batch(rows: Sequence[Mapping[str, Any]], scorer, task: Task) -> RolloutBatch:
    """The SFT policy's samples; those of one conversation are a group."""
    numbers: dict[str, int] = {}
    group = [numbers.setdefault(conversation_key(row["conversation"]), len(numbers)) for row in rows]
    return offline_batch(
        [Request(row["conversation"], row.get("user_id")) for row in rows],
        [row["response"] for row in rows],
        [row["log_ppl"] for row in rows],
        scorer,
        group,
        task,
        [row["finish_reason"] for row in rows],
    )


def calibrate(
    composite: CompositeReward, sampled: RolloutBatch, clicked: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """By part, the options that the SFT policy's samples and what was clicked decide; the parts hold them from now
    on."""
    found = {}
    for name, reward in composite.rewards.items():
        for ability, read, given in (("calibrate", reward.calibrate, sampled), ("measure", reward.measure, clicked)):
            try:
                found[name] = found.get(name, {}) | (dict(read(given)) if read else {})
            except Exception as error:
                what = str(error) if isinstance(error, ValueError) else f"it raised {error!r}"
                raise ValueError(f"reward {name!r}, {ability}: {what}") from error
    return {name: options for name, options in found.items() if options}


def clicked_texts(log: pl.DataFrame) -> list[str]:
    """What was clicked, as often as it was."""
    shown = log.select("suggestions", "clicks").explode("suggestions", "clicks")
    return shown.filter(shown["clicks"] == 1)["suggestions"].to_list()


def hacked_batches(sampled: RolloutBatch, reference: Callable, scorer) -> tuple[RolloutBatch, dict[str, RolloutBatch]]:
    """Well-formed samples, one a conversation, and by the kind of hack all the variants that are made of each."""
    first: dict[int, int] = {}
    for row, (number, parsed) in enumerate(zip(sampled.group.tolist(), sampled.parsed, strict=True)):
        if parsed.well_formed:
            first.setdefault(number, row)
    rows = list(first.values())[:N_HACKED]
    if not rows:
        raise ValueError("the SFT policy gave no well-formed response: train it longer, or give it MAX_NEW_TOKENS")
    clean = sampled.take(rows)
    topic = topics([_text(conversation) for conversation in clean.conversations], N_TOPICS)
    made = hacked_responses(clean.conversations, [parsed.suggestions for parsed in clean.parsed], topic.tolist())
    texts = {kind: [text for some in variants for text in some] for kind, variants in made.items()}
    requests = {
        kind: [one for one, some in zip(clean.requests, variants, strict=True) for _ in some]
        for kind, variants in made.items()
    }
    conversations = [request.conversation for request in chain(*requests.values())]
    log_ppl = iter(reference(conversations, [*chain(*texts.values())]))
    return clean, {
        kind: offline_batch(requests[kind], some, [*islice(log_ppl, len(some))], scorer, task=sampled.task)
        for kind, some in texts.items()
    }


class Scale(NamedTuple):
    """What parts are measured by, ``[k]`` each.

    Attributes:
        mean: of the SFT policy's samples, the zero from which training measures.
        seen: deviation between samples to one prompt, which is all that GRPO sees of a part; fusions weigh parts in
            these. 0 for a part that is the same for every response.
        std: what the composite reward divides by; never 0.
    """

    mean: np.ndarray
    seen: np.ndarray
    std: np.ndarray


def part_scale(
    names: Sequence[str], sampled: np.ndarray, logged: np.ndarray, group: np.ndarray, normalisation: str
) -> Scale:
    """The scale of each part for that normalisation.

    GRPO compares responses to one prompt. So it is by the deviation among these that a weight says how much a part
    counts: measured by samples and logged impressions together, which differ in the prompt and in the policy, a part
    as the log-perplexity would look ten times as wide as any group of samples is. A part that no two samples to one
    prompt differ in is measured by all of both: it counts nothing until the policy finds where it differs.

    Args:
        sampled: ``[m, k]``, raw parts of the SFT policy's samples; ``group``: ``[m]``, their prompts.
        logged: ``[n, k]``, raw parts of logged impressions.

    Warns:
        of parts that are the same for every response, and where there is one sample to each prompt: then the
        deviation of all samples stands in.
    """
    of_all = np.concatenate((sampled, logged)).std(0)
    of_all[of_all < SAME] = 0.0
    for name in [name for name, one in zip(names, of_all, strict=True) if not one]:
        warnings.warn(
            f"reward {name!r} is the same for every response: nothing shows what it is worth, so its weight is 0",
            stacklevel=2,
        )
    of_groups, of_samples = within_group(sampled, group), sampled.std(0)
    if of_groups is None:
        several = "openrlhf-qs generate --n_samples 4"
        if normalisation == "group":
            raise ValueError(f"--normalisation group needs several responses per conversation: {several}")
        warnings.warn(
            "one response a conversation does not tell how far parts differ within a group, so that weights are no "
            f"shares of what GRPO sees: {several}",
            stacklevel=2,
        )
        of_groups = of_samples
    seen = np.where(of_groups < SAME, of_all, of_groups)
    std = np.where(of_samples < SAME, of_all, of_samples) if normalisation == "running" else seen
    return Scale(sampled.mean(0), seen, np.where(std == 0, 1.0, std))


def within_group(values: np.ndarray, group: np.ndarray) -> np.ndarray | None:
    """Deviation ``[k]`` of ``values`` ``[m, k]`` around the mean of their group; None where no group has two."""
    number = np.unique(group, return_inverse=True)[1]
    n_groups = number.max() + 1
    if n_groups == len(values):
        return None
    means = np.stack([np.bincount(number, column) / np.bincount(number) for column in values.T], axis=-1)
    return np.sqrt(((values - means[number]) ** 2).sum(0) / (len(values) - n_groups))


def stack(raw: Mapping[str, Tensor], names: Sequence[str]) -> np.ndarray:
    """``[n, k]``, the parts in the order of ``names``."""
    return np.stack([raw[name].double().numpy() for name in names], axis=-1)


def logged_batch(
    impressions: Sequence[Mapping[str, Any]], reference: str, temperature: float, scorer, task: Task
) -> RolloutBatch:
    """What was shown, as responses; ``ref_log_ppl_share`` is as wide as the longest list."""
    import torch

    from openrlhf_qs.reward.credit import NO_SUGGESTION, suggestion_of_tokens

    conversations = [row["conversation"] for row in impressions]
    n_shown = [len(row["suggestions"]) for row in impressions]
    shown = [format_response(row["suggestions"]) for row in impressions]
    tokens = reference_tokens(reference, conversations, shown, temperature)
    share = torch.zeros(len(impressions), max(n_shown))
    for row, n, some in zip(share, n_shown, tokens, strict=True):
        for place, (_, nll) in zip(suggestion_of_tokens([piece for piece, _ in some], n), some, strict=True):
            if place == NO_SUGGESTION:
                row[:n] += nll / len(some) / n
            else:
                row[place] += nll / len(some)
    batch = offline_batch(
        [Request(row["conversation"], row["user_id"]) for row in impressions],
        shown,
        share.sum(1).tolist(),
        scorer,
        task=task,
        n_shown=n_shown,
    )
    return replace(batch, ref_log_ppl_share=share)


def suggestion_values(
    composite: CompositeReward,
    batch: RolloutBatch,
    raw: Mapping[str, Tensor],
    rows: np.ndarray,
    names: Sequence[str],
) -> dict[int, np.ndarray]:
    """For each of ``rows``, impressions, the parts ``[n_shown, k]`` that a response would have were all of it like one
    suggestion: what it brought, times their number. A part that tells no suggestion from another is the same for all
    of them."""
    n_shown = np.array([len(parsed.suggestions) for parsed in batch.parsed])
    values = {}
    for n in np.unique(n_shown[rows]):
        some = rows[n_shown[rows] == n]
        taken = replace(batch.take(some.tolist()), task=replace(batch.task, n=int(n)))
        taken = replace(taken, ref_log_ppl_share=taken.ref_log_ppl_share[:, :n])
        credit = composite.credit(taken, {name: value[some] for name, value in raw.items()})
        values |= dict(zip(some.tolist(), n * stack(credit, names), strict=True))
    return values


def _click_pairs(
    composite: CompositeReward,
    logged: RolloutBatch,
    raw: Mapping[str, Tensor],
    names: Sequence[str],
    seen: np.ndarray,
    log: pl.DataFrame,
    places: Mapping[str, list[float]],
) -> dict:
    from openrlhf_qs.clicks.propensity import inverse_propensity

    conversations, users = log["conversation"].to_list(), log["user_id"].to_list()
    asked = np.unique(list(map(conversation_key, conversations)), return_inverse=True)[1]
    root = np.unique(list(map(root_key, conversations)), return_inverse=True)[1]
    topic = topics([_text(conversation) for conversation in conversations], N_TOPICS)

    readable = np.array([parsed.well_formed for parsed in logged.parsed])
    within = suggestion_pairs(log, places, readable)
    parts, values = stack(raw, names), suggestion_values(composite, logged, raw, np.unique(within.row), names)
    differences = [values[row][c] - values[row][r] for row, c, r in zip(*within[:3], strict=True)]
    looks = places["propensities"] if any(places["trust"]) else places["average"] or places["propensities"]
    clicks = [
        sum(click * inverse_propensity(p) for click, p in zip(some, looks, strict=False))
        for some in log["clicks"].to_list()
    ]
    chosen, rejected, weight, across = impression_pairs(asked, clicks, topic, n_others=len(within.row))
    of_chosen, of_rejected = np.concatenate((within.row, chosen)), np.concatenate((within.row, rejected))
    return {
        "difference": np.concatenate((np.reshape(differences, (-1, len(names))), parts[chosen] - parts[rejected]))
        / seen,
        "weight": np.concatenate((within.weight, weight)),
        "conversation": root[of_chosen],
        "other": root[of_rejected] if across else None,
        "users": tuple([users[row] for row in side] for side in (of_chosen, of_rejected)),
        "topic": topic[of_chosen],
    }


def _against_hacked(composite, clean: RolloutBatch, hacked: Mapping[str, RolloutBatch], names, seen) -> dict:
    good, differences, stopped = stack(composite.raw(clean), names)[:, None], {}, {}
    for kind, batch in hacked.items():
        raw = composite.raw(batch)
        shape = len(good), len(batch.responses) // len(good)
        differences[kind] = (good - stack(raw, names).reshape(*shape, len(names))) / seen
        stopped[kind] = ~_passed(raw, composite.gates).reshape(shape)
    return {"clean_minus_hacked": differences, "stopped": stopped}


def _samples(raw: Mapping[str, Tensor], sampled: RolloutBatch, parts: np.ndarray, gates: Sequence[str]) -> dict:
    """The samples as ``[c, n, ...]``: of the conversations that have the most of them."""
    group = sampled.group.tolist()
    counts = Counter(group)
    n = max(counts.values())
    rows = np.array(sorted((row for row, g in enumerate(group) if counts[g] == n), key=lambda row: group[row]))
    rows = rows.reshape(-1, n)
    diversity = REWARDS.create("diversity")(sampled).double().numpy()
    valid = np.array([parsed.well_formed for parsed in sampled.parsed])
    passed = _passed(raw, gates)
    return {"samples": parts[rows], "valid": valid[rows], "diversity": diversity[rows], "passed": passed[rows]}


def _passed(raw: Mapping[str, Tensor], gates: Sequence[str]) -> np.ndarray:
    passed = np.ones(len(next(iter(raw.values()))), dtype=bool)
    for name in gates:
        passed &= raw[name].numpy() == 1
    return passed


def _places(args: argparse.Namespace, log: pl.DataFrame) -> dict[str, list[float]]:
    """What each place does to clicks, by the names in log.json: ``propensities`` and those of ``PLACES``."""
    from openrlhf_qs.clicks.propensity import PLACES, estimate_log

    if not args.propensities:
        found = estimate_log(log)
        return {"propensities": list(found.values)} | {name: list(getattr(found, name)) for name in PLACES}
    try:
        found = json.loads(Path(args.propensities).read_text())
        return {name: [float(p) for p in found.get(name, [])] for name in ("propensities", *PLACES)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{args.propensities} has no propensities from the data stage: {error!r}") from None


def _text(conversation: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in conversation)


def write(path: str, weights: Weights, fusion: str, report: Mapping[str, Any]) -> None:
    """Write the weights file, and the picture of the front where ``report`` has one."""
    content = {
        "normalisation": weights.normalisation,
        "temperature": weights.temperature,
        "rewards": {name: vars(part) for name, part in weights.parts.items()},
        "fusion": fusion,
        **report,
    }
    if "front" in report:
        from openrlhf_qs.plots.front import front_figure
        from openrlhf_qs.plots.style import svg

        marked = {"first stage": report["start"], f"chosen: {report['chosen']['rule']}": report["chosen"]}
        figure = front_figure(
            [point["objectives"] for point in report["front"]],
            {label: point["objectives"] for label, point in marked.items()},
        )
        write_whole(Path(path).with_name("front.svg"), svg(figure))
    write_whole(Path(path), json.dumps(content, indent=2))


def show(parts: Mapping[str, Part], report: Mapping[str, Any]) -> None:
    """Print the weights, the first stage's coefficients with their errors, and the objectives of the choice."""
    from rich.table import Table

    first, share = report.get("first_stage"), report.get("shares", {})
    table = Table(
        title="composite reward: weight * (reward - mean) / deviation",
        caption="share: of the variance between the samples to one prompt",
    )
    headings = ("reward", "weight", "share", "mean", "deviation", *(("log-odds", "standard error") if first else ()))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "reward" else "right")
    for name, part in parts.items():
        numbers = [part.weight, share.get(name), part.mean, part.std]
        numbers += [first[key].get(name) for key in ("coefficient", "standard_error")] if first else []
        table.add_row(name, *("–" if number is None else f"{number:.3f}" for number in numbers))
    print_table(table)
    if "front" in report:
        table = Table(title=f"{len(report['front'])} weights on the Pareto front; chosen: {report['chosen']['rule']}")
        for heading in ("objective", "first stage", "chosen", "best on the front"):
            table.add_column(heading, justify="left" if heading == "objective" else "right")
        for name, value in report["chosen"]["objectives"].items():
            best = max(point["objectives"][name] for point in report["front"])
            table.add_row(name, *(f"{v:.3f}" for v in (report["start"]["objectives"][name], value, best)))
            if name == "resistance":
                for kind, share in report["resistance"]["chosen"].items():
                    table.add_row(f"  to {kind}", f"{report['resistance']['start'][kind]:.3f}", f"{share:.3f}", "")
        print_table(table)
