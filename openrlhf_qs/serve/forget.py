"""Remove a user from the log of a server: ``openrlhf-qs log forget``. The server may run on; what was exported already
is a file of yours."""

from __future__ import annotations

import argparse

from openrlhf_qs.files.printable import counted
from openrlhf_qs.serve.live_log import forget


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", metavar="USER", help="as the chat names the user, or as the log does (user_id)")
    parser.add_argument("--log", required=True, metavar="DIR", help="folder of openrlhf-qs serve --log")


def run(args: argparse.Namespace) -> None:
    if not args.user.strip():
        raise ValueError("give a user; an empty name means every user whom the chat does not name")
    n = forget(args.log, args.user)
    print(
        f"{counted(n, 'impression')} removed from {args.log}, with their events"
        if n
        else f"{args.log} has no impression of {args.user}: nothing was removed; is that how the chat names the user?"
    )
