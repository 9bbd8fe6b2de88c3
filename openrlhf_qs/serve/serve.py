"""A server of suggestions that keeps what was shown and what was clicked: ``openrlhf-qs serve``.

In: the folder of a policy, or of several as the arms of an experiment, and a reward model that chooses. Out: answers
over HTTP (docs/SERVING.md), and a log for ``openrlhf-qs log export``.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import socket
from pathlib import Path

from openrlhf_qs.serve.arms import parse_arm
from openrlhf_qs.serve.live_log import CLICK_WINDOW_S, LiveLog
from openrlhf_qs.serve.options import add_suggester_arguments, make_arms, name_of

# No web sockets and no HTTP/2: who offers to change to one, as Java's client does with its first request, is answered
# in what was asked in. uvicorn's other parser, httptools, drops the body of such a request.
HTTP = {"http": "h11", "ws": "none"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--policy", metavar="DIR", help="folder or hub name of the policy")
    which.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=DIR:SHARE",
        help="a policy for a share of the users, always the same ones; repeatable; the shares add up to 1",
    )
    parser.add_argument("--name", default="", help="name of --policy in the log; default: its run and stage")
    parser.add_argument(
        "--log", required=True, metavar="DIR", help="folder for impressions and clicks, on a local disk"
    )
    add_suggester_arguments(parser)
    parser.add_argument(
        "--explore",
        type=float,
        default=0.0,
        help="share of answers in which something is randomised; default 0",
    )
    parser.add_argument(
        "--explore_by",
        choices=("order", "place", "response"),
        default="place",
        help="what is randomised: the display order; one position, filled with a random other candidate "
        "(default); or everything: one unmodified response, with its log_prob as propensity",
    )
    parser.add_argument("--upstream", default="", metavar="URL", help="OpenAI-compatible server for all other tasks")
    parser.add_argument("--upstream_model", default="", help="its model, if the chat asks for one of ours")
    parser.add_argument(
        "--upstream_key_env",
        default="UPSTREAM_API_KEY",
        help="environment variable with its key; default UPSTREAM_API_KEY",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="any address but loopback needs --key_file; default 127.0.0.1"
    )
    parser.add_argument("--port", type=int, default=8765, help="port to listen on; default 8765")
    parser.add_argument(
        "--replicas",
        default="",
        metavar="N",
        help="number of replicas, or LEAST:MOST, under Ray Serve; default: in this process",
    )
    parser.add_argument(
        "--key_file",
        default="",
        metavar="FILE",
        help="text file with one key per line, each of which opens the server",
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="requests per second for each client; default: no limit"
    )
    parser.add_argument(
        "--body_bytes", type=int, default=262_144, help="largest request body, in bytes; default 262144"
    )
    parser.add_argument(
        "--max_in_flight", type=int, default=64, help="requests beyond this get no suggestions; default 64"
    )
    parser.add_argument(
        "--answer_s", type=float, default=20.0, help="seconds for an answer, after which nothing is shown; default 20"
    )
    parser.add_argument(
        "--next_message_s",
        type=float,
        default=1800.0,
        help="seconds in which a chat's next message can count as a click; default 1800",
    )
    parser.add_argument(
        "--click_window_s",
        type=float,
        default=CLICK_WINDOW_S,
        help="seconds after which a click counts as late; default 86400",
    )
    parser.add_argument(
        "--retention_days", type=float, default=None, help="days after which entries are removed; default: never"
    )


def run(args: argparse.Namespace) -> None:
    if args.replicas:
        from openrlhf_qs.serve import on_ray

        on_ray.run(args)
        return
    import uvloop  # as vLLM's own server

    try:
        uvloop.run(serve(args))
    except KeyboardInterrupt:
        pass  # how a server is ended


async def serve(args: argparse.Namespace) -> None:
    """Load, listen, say where, and end when told to."""
    import uvicorn

    place = bound(args.host, args.port)  # a port that is taken is said before the engines are loaded, which takes long
    config = uvicorn.Config(
        make_app(args),
        **HTTP,
        log_level="error",  # its warnings are of requests that strangers may send as often as they like
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,  # proxies keep theirs for 60: what they send while this end closes would be lost
        timeout_graceful_shutdown=30,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([place]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    if server.started:
        address = address_of(args.host, place.getsockname()[1])
        print(f"{address}   the log is in {args.log}", flush=True)
    await serving


def bound(host: str, port: int) -> socket.socket:
    """A socket that is this process's, where nobody can connect yet. ValueError where it cannot be had."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: give 1 to 65535, or 0 for any that is free")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        place = socket.socket(family, socket.SOCK_STREAM)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
    except OSError as error:
        raise ValueError(f"{host}, port {port}, is not available ({error}); give another --port or --host") from None
    return place


def make_app(args: argparse.Namespace):
    """The ASGI application of these flags, its engines loaded; where an event loop runs."""
    from openrlhf_qs.serve.app import build_app
    from openrlhf_qs.serve.gate import Limits
    from openrlhf_qs.serve.metrics import Metrics
    from openrlhf_qs.serve.service import Rules, Service
    from openrlhf_qs.serve.upstream import Upstream

    keys = checked_keys(args)
    upstream = None
    if args.upstream:
        upstream = Upstream(args.upstream, args.upstream_model, os.environ.get(args.upstream_key_env, ""))
    arms = [parse_arm(one) for one in args.arm] or [(args.name or name_of(args.policy), args.policy, 1.0)]
    made = make_arms(args, arms)
    retention_s = None if args.retention_days is None else args.retention_days * 86400
    service = Service(
        made,
        LiveLog(args.log, retention_s, args.click_window_s),
        Metrics(),
        Rules(args.answer_s, args.max_in_flight, args.next_message_s),
    )
    return build_app(service, upstream, keys, Limits(body_bytes=args.body_bytes, rate=args.rate))


def checked_keys(args: argparse.Namespace) -> list[str]:
    """The keys that open the server. ValueError where there are none and others could ask."""
    keys = read_keys(args.key_file)
    if not keys and not is_loopback(args.host):
        raise ValueError(f"--host {args.host} accepts outside connections: give --key_file, or listen on 127.0.0.1")
    return keys


def read_keys(file: str) -> list[str]:
    """The keys in a file. ValueError where one is short enough to be guessed; no key is ever shown."""
    if not file:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--key_file {file} cannot be read: {error}; give a text file with one key per line"
        ) from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys or min(map(len, keys)) < 16:
        raise ValueError(
            f"--key_file {file}: give one key per line, each of 16 characters or more, as from openssl rand -hex 16"
        )
    return keys


def address_of(host: str, port: int) -> str:
    """For a browser."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
