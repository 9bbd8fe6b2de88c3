"""``openrlhf-qs reward score``: a reward tried on a file, before a GPU is spent on it.

In: JSON Lines, CSV or Parquet, a row with ``conversation`` and ``response`` (or ``suggestions``, a list). Rows of one
conversation are a group, as in GRPO. Out: a table of each part raw and weighted, the gates and the total; under
``--out`` the rows with these numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from openrlhf_qs.files.printable import print_table
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.prompt import check_conversation
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import Task
from openrlhf_qs.registry import add_plugin_arguments, load_plugins, parse_options

N_SHOWN = 5  # responses in the table, the first ones


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="rows to score: .jsonl, .csv (both optionally .gz) or .parquet")
    parser.add_argument("--reward", required=True, help="parts of the reward, separated by commas")
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="weights.json; default: raw parts, each with weight 1"
    )
    parser.add_argument(
        "--normalisation",
        default=None,
        help="sft, group or running; default: the one that the weights were learned for",
    )
    parser.add_argument("--reward_model", default="", help="folder of the reward model, if a part needs one")
    parser.add_argument(
        "--reference",
        default="",
        help="policy whose log-perplexity a part needs, usually the SFT policy; default: the column log_ppl",
    )
    parser.add_argument(
        "--n_suggestions", type=int, default=3, help="suggestions that a response should have, 1 to 8; default 3"
    )
    parser.add_argument("--out", default="", metavar="FILE", help=".jsonl, .csv or .parquet to write; default: none")
    add_plugin_arguments(parser, options="of a part, as in ood.threshold=3")


def run(args: argparse.Namespace) -> None:
    from openrlhf_qs.garm.score import read_rows, write_rows
    from openrlhf_qs.reward.composite import CompositeReward, read_weights
    from openrlhf_qs.reward.fusion import load_scorer

    load_plugins(args.plugin)
    weights = read_weights(args.weights) if args.weights else None
    composite = CompositeReward(args.reward.split(","), parse_options(args.option), weights, args.normalisation)
    scorer = load_scorer(composite, args.reward_model)
    columns, rows = read_rows(args.file)
    task = Task(args.n_suggestions)
    texts = read_texts(args.file, rows, task)
    log_ppl = None
    if "reference" in composite.needs():
        log_ppl = _log_ppl(args, rows, texts, composite.temperature)
    scored = score(composite, texts, log_ppl, scorer, task)
    show(texts.responses, scored, composite)
    if args.out:
        table = {name: value.tolist() for name, value in scored.logged().items()} | {"reward": scored.total.tolist()}
        added = [{name: values[n] for name, values in table.items()} for n in range(len(rows))]
        write_rows(args.out, [*dict.fromkeys([*columns, *table])], [a | b for a, b in zip(rows, added, strict=True)])
        print(f"{len(rows)} rows in {args.out}")


class Texts(NamedTuple):
    """The rows' texts, ``[n]`` each, as :func:`openrlhf_qs.reward.offline.offline_batch` takes them."""

    requests: list[Request]
    responses: list[str]
    finish_reasons: list[str]
    n_shown: list[int]


def score(composite, texts: Texts, log_ppl: Sequence[float] | None, scorer, task: Task):
    """The :class:`~openrlhf_qs.reward.composite.Scored` of these responses; those to one conversation are a group."""
    from openrlhf_qs.reward.offline import offline_batch

    numbers: dict[str, int] = {}
    group = [numbers.setdefault(conversation_key(request.conversation), len(numbers)) for request in texts.requests]
    return composite.score(
        offline_batch(
            texts.requests,
            texts.responses,
            log_ppl,
            scorer,
            group,
            task,
            finish_reasons=texts.finish_reasons,
            n_shown=texts.n_shown,
        )
    )


def read_texts(where: str, rows: Sequence[Mapping[str, Any]], task: Task) -> Texts:
    """Requests and responses of the rows. ValueError names the row that has none, and what to give."""
    from openrlhf_qs.form.response import format_response

    texts = Texts([], [], [], [])
    for number, row in enumerate(rows, start=1):
        try:
            texts.requests.append(Request(_conversation(row.get("conversation")), row.get("user_id")))
            texts.finish_reasons.append(row.get("finish_reason") or "stop")
            if row.get("response") is not None:
                texts.responses.append(_response(row["response"]))
                texts.n_shown.append(task.n)
            else:
                suggestions = _suggestions(row.get("suggestions"))
                texts.responses.append(format_response(suggestions))
                texts.n_shown.append(len(suggestions))
        except ValueError as error:
            raise ValueError(f"{where}: row {number}: {error}") from None
    return texts


def _conversation(value: Any) -> list[dict[str, str]]:
    """Messages, as a list or as JSON; other text is one user turn."""
    if isinstance(value, str) and not value.startswith("["):
        return [{"role": "user", "content": value}]
    conversation = _from_json(value)
    check_conversation(conversation)
    return conversation


def _response(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"response {str(value)[:40]!r}; give text")
    return value


def _suggestions(value: Any) -> list[str]:
    texts = _from_json(value)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        found = "no suggestions" if value is None else f"suggestions {str(value)[:40]!r}"
        raise ValueError(f"no response, and {found}; give a response or a list of suggestions")
    return texts


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _log_ppl(args: argparse.Namespace, rows: Sequence[Mapping], texts: Texts, temperature: float):
    if args.reference:
        from openrlhf_qs.models.reference import reference_log_ppl

        conversations = [request.conversation for request in texts.requests]
        return reference_log_ppl(args.reference, conversations, texts.responses, temperature)
    try:
        return [float(row["log_ppl"]) for row in rows]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"reward {args.reward} needs the log-perplexity of every response: give the SFT policy as --reference, or "
            "a column log_ppl in nats per token"
        ) from None


def show(responses: Sequence[str], scored, composite) -> None:
    """Print every number of the first responses, then the averages over all of them."""
    from rich.table import Table

    table = Table(title=f"{len(responses)} responses, normalisation {composite.normalisation}")
    table.add_column("response, its parts", overflow="ellipsis", no_wrap=True, max_width=34)
    for heading in ("raw", "normalised", "weight", "reward"):
        table.add_column(heading, justify="right")

    def add_parts(number) -> None:
        for name, part in composite.parts.items():
            values = (number(scored.raw[name]), number(scored.normalised[name]), part.weight)
            table.add_row(f"  {name}", *(f"{value:z.3f}" for value in (*values, number(scored.weighted[name]))))
        for name in composite.gates:
            table.add_row(f"  {name}", f"{number(scored.raw[name]):z.3f}", "", "gate", "")
        table.add_section()

    for n, response in enumerate(responses[:N_SHOWN]):
        mark = "closed" if scored.closed[n] else ""
        table.add_row(" / ".join(response.split("\n")), "", "", mark, f"{scored.total[n].item():z.3f}")
        add_parts(lambda value, n=n: value[n].item())
    table.add_row(f"average of {len(responses)}", "", "", "", f"{scored.total.mean().item():z.3f}")
    add_parts(lambda value: value.mean().item())
    print_table(table)
    print(f"gate closed: {int(scored.closed.sum())} of {len(responses)}")
    if not scored.no_signal.all():
        shares = ", ".join(f"{name} {share:.0%}" for name, share in scored.share.items())
        print(f"share of the variance within a conversation: {shares}")
