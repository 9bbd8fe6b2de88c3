"""Arms of an experiment: who is shown which policy. The same user always has the same one."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from openrlhf_qs.serve.suggester import Suggester


@dataclass(frozen=True)
class Arm:
    """A policy and its share of the users.

    Attributes:
        name: the ``policy`` of the log.
        share: in (0, 1]; the shares of all arms add up to 1.
    """

    name: str
    share: float
    suggester: Suggester


def parse_arm(value: str) -> tuple[str, str, float]:
    """``name=DIR:share`` to name, folder and share. ValueError where it is none."""
    name, equals, rest = value.partition("=")
    folder, colon, share = rest.rpartition(":")
    try:
        number = float(share)
    except ValueError:
        number = 0.0
    if not (equals and colon and name and folder) or not 0 < number <= 1:
        raise ValueError(
            f"--arm {value}: give NAME=DIR:SHARE with a share above 0, at most 1, as in new=runs/2/grpo:.1"
        )
    return name, folder, number


def check_shares(shares: Sequence[tuple[str, float]]) -> None:
    """ValueError where two arms have one name or the shares do not add up to 1."""
    names = [name for name, _ in shares]
    if len(set(names)) < len(names):
        raise ValueError(f"arms {', '.join(names)}: two have the same name, and the log could not tell them apart")
    total = sum(share for _, share in shares)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the shares of arms {', '.join(names)} add up to {total:g}; they must add up to 1")


def arm_of(arms: Sequence[Arm], who: str, salt: bytes) -> Arm:
    """The arm of a user, or of whatever is to stay in one; another salt is another assignment."""
    digest = hmac.new(salt, f"arm:{who}".encode("utf-8", "replace"), hashlib.sha256).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    for arm in arms:
        point -= arm.share
        if point < 0:
            return arm
    return arms[-1]  # rounding of the shares' sum
