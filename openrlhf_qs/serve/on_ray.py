"""The same application under Ray Serve, for more than one engine or machine: ``openrlhf-qs serve --replicas 2``.

Each replica has its own engines; those of one machine write into one log. Where ``RAY_ADDRESS`` names a cluster the
application is left running there, and the same call with another policy replaces it, replica by replica. Without one
a Ray of this call's own serves until the call is ended, and ``kill -HUP`` replaces the replicas by what the folders of
the policies hold now. A replica ends after it has answered what it was asked. One whose engine is dead is replaced.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from openrlhf_qs.models import own_ray

NAME = "openrlhf_qs"
DRAIN_S = 30.0


def parse_replicas(value: str) -> tuple[int, int]:
    """``2`` or ``1:4`` to the least and the most. ValueError for anything else."""
    least, colon, most = value.partition(":")
    most = most if colon else least
    if not (least.isdecimal() and most.isdecimal()) or not 1 <= int(least) <= int(most):
        raise ValueError(f"--replicas {value}: give a number, or LEAST:MOST, as in 1:4")
    return int(least), int(most)


def run(args: argparse.Namespace) -> None:
    """Serve what the flags say."""
    from openrlhf_qs.serve.serve import address_of, checked_keys, is_loopback, make_app

    check_protobuf()
    checked_keys(args)
    args.log = str(Path(args.log).resolve())  # a replica works in another folder
    args.policy = _resolved(args.policy) if args.policy else args.policy
    args.reward_model = _resolved(args.reward_model)
    args.key_file = _resolved(args.key_file)
    replicas = parse_replicas(args.replicas)
    own_ray.prepare_environment(is_loopback(args.host))
    start(replicas[1], args.host, args.port)
    n_gpus = args.tensor_parallel_size if _has_gpus() else 0

    def again() -> None:
        deploy(lambda: make_app(args), replicas, args.max_in_flight, n_gpus)

    again()
    print(f"{address_of(args.host, args.port)}   {args.replicas} replicas; the log is in {args.log}", flush=True)
    if own_ray.is_own():
        _until_ended(again)


def check_protobuf() -> None:
    """ValueError where Ray Serve would stop in the middle: 2.55 asks protobuf for ``FieldDescriptor.label``, which
    protobuf 7 no longer has."""
    from google.protobuf.descriptor import FieldDescriptor

    if not hasattr(FieldDescriptor, "label"):
        raise ValueError(
            f"Ray Serve does not work with protobuf {version('protobuf')}: pip install 'protobuf<7', or leave out "
            "--replicas"
        )


def start(n_replicas: int, host: str, port: int) -> None:
    """Ray, with room in its books for that many replicas on this machine where it is a Ray of our own, and its HTTP
    proxy."""
    n_cpus = {"num_cpus": max(os.cpu_count() or 1, n_replicas + 2)} if own_ray.is_own() else {}
    own_ray.start(**n_cpus)
    from ray import serve

    serve.start(http_options={"host": host, "port": port})


def deploy(
    build: Callable[[], Any],
    replicas: tuple[int, int],
    max_in_flight: int = 64,
    n_gpus: int = 0,
) -> None:
    """Start the application, or replace the one that runs, replica by replica; back when the new ones answer.

    Args:
        build: makes the ASGI application, in each replica.
    """
    from ray import serve

    least, most = replicas
    how: dict[str, Any] = {"num_replicas": least}
    if most > least:
        target = max(1, max_in_flight // 4)
        how = {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target}}
    deployment = serve.deployment(
        serve.ingress(_as_function(build))(Replica),
        name=NAME,
        ray_actor_options={"num_cpus": 1, "num_gpus": n_gpus},
        max_ongoing_requests=2 * max_in_flight,  # more than it works on: it says so itself, in the chat's own form
        graceful_shutdown_timeout_s=DRAIN_S,
        **how,
    )
    serve.run(deployment.bind(), name=NAME, route_prefix="/")


class Replica:
    """What Ray Serve asks beside the application, which is ``self.app``; a replica whose check raises is replaced."""

    app: Any

    async def check_health(self) -> None:
        await self.app.state.check()


def _as_function(build: Callable[[], Any]) -> Callable[[], Any]:
    """What Ray Serve takes for a builder: a plain function."""

    def application() -> Any:
        return build()

    return application


def _until_ended(again: Callable[[], None]) -> None:
    """Wait for the signals; those that end it end the replicas too, after what they were asked."""
    from ray import serve

    wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    while signal.sigwait(wanted) == signal.SIGHUP:
        again()
    serve.shutdown()


def _resolved(path: str) -> str:
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def _has_gpus() -> bool:
    from openrlhf_qs.models.device import n_gpus

    return n_gpus() > 0
