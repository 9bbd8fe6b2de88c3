"""A conversation in, suggestions out: ``openrlhf-qs suggest``, by what ``serve`` shows, without a server or a log.

In: text on the command line (the user's, the assistant's, in turn), or JSON Lines with a ``conversation`` a row. Out:
the suggestions on the terminal, or a row each with ``suggestions``, ``left_out``, ``reason`` and ``click_chance``.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any

from openrlhf_qs.files.printable import printable
from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.form.request import Request
from openrlhf_qs.serve.forms import as_messages
from openrlhf_qs.serve.options import add_suggester_arguments, make_arms, name_of
from openrlhf_qs.serve.suggester import Choice

N_AT_ONCE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "turn", nargs="*", metavar="TEXT", help="what the user said, what the assistant said, and so on"
    )
    parser.add_argument("--policy", required=True, metavar="DIR", help="folder or hub name of the policy")
    parser.add_argument(
        "--conversations", default="", metavar="FILE", help="JSON Lines of conversations, instead of TEXT"
    )
    parser.add_argument("--out", default="", metavar="FILE", help="JSON Lines to write, with --conversations")
    parser.add_argument(
        "--n", type=int, default=None, help="maximum number of suggestions; default: as many as in training"
    )
    parser.add_argument("--explain_enable", action="store_true", help="show what was left out, and why")
    add_suggester_arguments(parser)


def run(args: argparse.Namespace) -> None:
    if bool(args.turn) == bool(args.conversations) or bool(args.conversations) != bool(args.out):
        raise ValueError("give TEXT, or --conversations FILE with --out FILE")
    rows = read_json_lines(args.conversations) if args.conversations else [{"conversation": _turns(args.turn)}]
    requests = [
        Request(as_messages(row.get("conversation")), row.get("user_id"), row.get("features") or {}) for row in rows
    ]
    choices = asyncio.run(_suggested(args, requests))
    if args.out:
        write_json_lines(args.out, [row | _as_row(choice) for row, choice in zip(rows, choices, strict=True)])
        n = sum(bool(choice.shown) for choice in choices)
        print(f"{len(rows):,} conversations, {n:,} with suggestions, in {args.out}")
        return
    _show(choices[0], args.explain_enable)


async def _suggested(args: argparse.Namespace, requests: Sequence[Request]) -> list[Choice]:
    suggester = make_arms(args, [(name_of(args.policy), args.policy, 1.0)])[0].suggester
    at_once = asyncio.Semaphore(N_AT_ONCE)

    async def one(request: Request) -> Choice:
        async with at_once:
            return await suggester(request, args.n)

    try:
        return await asyncio.gather(*map(one, requests))
    finally:
        suggester.close()


def _turns(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def _as_row(choice: Choice) -> dict[str, Any]:
    left_out = [{"text": one.text, "reason": one.reason} for one in choice.left_out]
    known = {"click_chance": choice.click_chance, "log_prob": choice.log_prob, "reason": choice.reason}
    return {
        "suggestions": choice.texts,
        "left_out": left_out,
        **{name: value for name, value in known.items() if value not in (None, "")},
    }


def _show(choice: Choice, explain: bool) -> None:
    for number, one in enumerate(choice.shown, start=1):
        score = "" if one.mean is None else f"   {one.mean:.2f} ± {one.std:.2f}"
        print(printable(f"{number}. {one.text}{score}"))
    if choice.reason:
        print(f"nothing is shown: {choice.reason.replace('_', ' ')}")
    if explain and choice.left_out:
        print("\nleft out:")
        for one in choice.left_out:
            print(printable(f"   {one.text or '(a response)'}   [{one.reason.replace('_', ' ')}] {one.why}".rstrip()))
