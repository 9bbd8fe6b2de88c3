"""``openrlhf-qs ab LOG``: a real A/B test, read from a click log in which several policies showed their suggestions.

In: a click log whose rows name the arm that showed them, by ``policy`` or by a key of ``meta``. Out: for each arm the
CTR (the share of its impressions with a click) with intervals by user and by conversation; the relative lift over the
control, also by position and segment; whether each arm received its share of units; the sample size that a lift needs;
and an interval of the lift that is valid at every look. As tables and as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from rich.table import Table
from scipy.special import chdtrc, stdtr, stdtrit

from openrlhf_qs.clicks.click_log import ON_ERROR, read_click_log
from openrlhf_qs.clicks.repeats import findings, heavy_users, row_hashes
from openrlhf_qs.evaluation.segments import groups
from openrlhf_qs.files.printable import counted, print_table
from openrlhf_qs.form.keys import root_keys
from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.multiple import holm
from openrlhf_qs.statistics.sequential import sequence_factor, times_as_many

LIFTS = (0.02, 0.05, 0.1)  # relative lifts whose sample size the table gives
N_LOOKS = 20
RATIO_LEVEL = 0.001  # p-value below which the arms' sizes are not due to chance (Fabijan et al. 2019, KDD)
MIN_UNITS = 20  # of a segment in each arm, and of a look
ONE_ARM = 0.99  # share of units in a single arm from which this unit is taken to be the assigned one


@dataclass(frozen=True)
class Rows:
    """The impressions of a test, ``[n]`` each; ``arm`` is an index into ``names``, the control first."""

    names: list[str]
    arm: np.ndarray
    clicked: np.ndarray
    root: np.ndarray
    user: np.ndarray | None

    def clusters(self) -> dict[str, Clusters]:
        """By ``user``, by ``conversation`` and by ``both``, as far as users are known."""
        kinds = {"conversation": Clusters.of(self.root)}
        if self.user is not None:
            kinds |= {"user": Clusters.of(self.user), "both": Clusters.of(self.root, self.user)}
        return kinds

    def main(self) -> Clusters:
        """By everything that is known."""
        return Clusters.of(self.root) if self.user is None else Clusters.of(self.root, self.user)

    def __getitem__(self, rows: np.ndarray) -> Rows:
        user = None if self.user is None else self.user[rows]
        return Rows(self.names, self.arm[rows], self.clicked[rows], self.root[rows], user)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", nargs="+", metavar="FILE", help="click log, as for log check; globs work too")
    parser.add_argument(
        "--by", default="policy", metavar="FIELD", help="field that names the arm: policy, or meta.KEY; default policy"
    )
    parser.add_argument(
        "--control", default="", metavar="ARM", help="arm the others are compared with; default: the first"
    )
    parser.add_argument(
        "--shares",
        nargs="+",
        default=[],
        metavar="ARM=SHARE",
        help="intended share of users per arm, as in a=0.9 b=0.1; what counts is their ratio, so a=9 b=1 is the same; "
        "default: equal",
    )
    parser.add_argument(
        "--planned",
        type=int,
        default=0,
        metavar="N",
        help="planned number of users (or conversations), where the always-valid interval is narrowest; "
        "default: the current number",
    )
    parser.add_argument(
        "--lift",
        nargs="+",
        type=float,
        default=list(LIFTS),
        help="relative lifts to state the sample size for; default 0.02 0.05 0.1",
    )
    parser.add_argument(
        "--on_error", choices=ON_ERROR, default="raise", help="what to do with bad rows, as in log check"
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def run(args: argparse.Namespace) -> None:
    """Read the log and print the result."""
    log = read_click_log(args.log, args.on_error)
    found = logged_ab(log, args.by, args.control, _shares(args.shares), args.planned, args.lift)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for table in _tables(found):
        print_table(table)
    print("\n".join([*found["findings"], *found["verdicts"]]))


def logged_ab(
    log: pl.DataFrame,
    by: str = "policy",
    control: str = "",
    shares: Mapping[str, float] | None = None,
    n_planned: int = 0,
    lifts: Sequence[float] = LIFTS,
) -> dict[str, Any]:
    """All figures of the test.

    Args:
        log: see :mod:`openrlhf_qs.clicks.click_log`.
        by, control, shares, n_planned, lifts: see the flags.

    Returns:
        Ready for JSON: ``arms``, of each ``n_impressions``, ``n_conversations``, ``n_users``, ``ctr``, ``ci95`` by
        ``user``, ``conversation`` and ``both``, and ``slot_ctr``; ``lifts``, of each arm but the control the figures
        of :func:`lift`, with ``p_holm`` over the arms, ``always``, the interval that holds at every look, ``looks``
        and ``needed``; ``positions`` and ``segments``, with ``p_holm`` over all of them; ``sample_ratio``;
        ``findings`` and ``verdicts``, sentences.

    Raises:
        ValueError: fewer than two arms, an unknown control or share, an arm without a click.
    """
    names, arm = _arms(log, by, control)
    log, arm = log.filter(arm >= 0), arm[arm >= 0]
    rows = Rows(
        names,
        arm,
        (log["clicks"].list.max() == 1).to_numpy().astype(float),
        root_keys(log["conversation"]).rank("dense").to_numpy().astype(int),
        _users(log),
    )
    for place, name in enumerate(names):
        if not rows.clicked[arm == place].any():
            raise ValueError(f"arm {name!r} has no click in {(arm == place).sum()} impressions: give a larger log")
    found: dict[str, Any] = {
        "by": by,
        "control": names[0],
        "arms": {name: _arm(rows, place, log) for place, name in enumerate(names)},
        "sample_ratio": sample_ratio(rows, shares or {}),
    }
    time = log["timestamp"].to_numpy()
    found["lifts"] = {
        name: lift(rows, place) | {"needed": needed(rows, place, lifts), **always(rows, place, time, n_planned)}
        for place, name in enumerate(names)
        if place
    }
    _adjust(found["lifts"].values())
    found["positions"] = _parts(rows, _places(log))
    found["segments"] = {
        key: parts
        for key, values in groups(log["conversation"].to_list(), _meta(log)).items()
        if (parts := _parts(rows, {value: np.array(values) == value for value in sorted(set(values)) if value}, 2))
    }
    _adjust([one for parts in found["segments"].values() for arms in parts.values() for one in arms.values()])
    n_doubles = log.height - row_hashes(log).n_unique()
    n_users = log["user_id"].drop_nulls().n_unique()
    found["findings"] = [
        *found["sample_ratio"].pop("findings"),
        *findings(log.height, n_users, n_doubles, heavy_users(log)),
    ]
    found["verdicts"] = [_verdict(found, name) for name in names[1:]]
    return found


def lift(rows: Rows, place: int) -> dict[str, Any]:
    r"""The lift of an arm over the control: ``value``, ``ci95`` by ``user``, ``conversation`` and ``both``, ``p`` by
    all that is known.

    :math:`R-1` with :math:`R=\bar a/\bar b`. By the delta method an impression of the arm moves it by
    :math:`(y-\bar a)/(n_a\bar b)`, one of the control by :math:`-R(y-\bar b)/(n_b\bar b)`; these are added up in each
    cluster, so that users who saw both arms are reckoned with.
    """
    pair = rows[(rows.arm == 0) | (rows.arm == place)]
    value, influence = _influence(pair, place)
    main = pair.main()
    error, n_clusters = _error(influence, main), main.n_clusters
    t = abs(value) / error if error > 0 else math.inf
    return {
        "value": value,
        "ci95": {kind: _interval(value, influence, clusters) for kind, clusters in pair.clusters().items()},
        "error": error,
        "p": float(2 * stdtr(max(n_clusters - 1, 1), -t)),
    }


def _influence(pair: Rows, place: int) -> tuple[float, np.ndarray]:
    """The lift, and what each impression brings to its error."""
    of_arm, of_control = pair.arm == place, pair.arm == 0
    a, b = pair.clicked[of_arm].mean(), pair.clicked[of_control].mean()
    influence = np.where(of_arm, (pair.clicked - a) / of_arm.sum(), -(a / b) * (pair.clicked - b) / of_control.sum())
    return float(a / b - 1), influence / b


def _error(influence: np.ndarray, clusters: Clusters) -> float:
    few = clusters.n_clusters / max(clusters.n_clusters - 1, 1)
    return math.sqrt(few * float(clusters.squares(influence[:, None])[0, 0]))


def _interval(value: float, influence: np.ndarray, clusters: Clusters) -> list[float]:
    half = float(stdtrit(max(clusters.n_clusters - 1, 1), 0.975)) * _error(influence, clusters)
    return [value - half, value + half]


def needed(rows: Rows, place: int, lifts: Sequence[float]) -> dict[str, int]:
    """For each lift the units (users or conversations) of arm and control together that detect it with power .8."""
    pair = rows[(rows.arm == 0) | (rows.arm == place)]
    error, n_units = _error(_influence(pair, place)[1], pair.main()), pair.main().n_clusters
    return {f"{one:g}": math.ceil(n_units * times_as_many(error, one)) for one in lifts}


def always(rows: Rows, place: int, time: np.ndarray, n_planned: int = 0) -> dict[str, Any]:
    """``always``, the 95 % interval of the lift that holds at every look, at the end; ``looks``, at up to ``N_LOOKS``
    times: ``until``, ``n_units``, ``value`` and ``ci95``, each of all that was there by then."""
    kept = (rows.arm == 0) | (rows.arm == place)
    order = np.flatnonzero(kept)[np.argsort(time[kept], kind="stable")]
    planned, looks = n_planned or rows[order].main().n_clusters, []
    for end in np.unique(np.linspace(0, len(order), N_LOOKS + 1).astype(int)[1:]):
        pair = rows[order[:end]]
        counts = [pair.clicked[pair.arm == one] for one in (0, place)]
        clusters = pair.main()
        if clusters.n_clusters < 2 * MIN_UNITS or not all(len(one) and one.any() for one in counts):
            continue
        value, influence = _influence(pair, place)
        half = sequence_factor(clusters.n_clusters, planned) * _error(influence, clusters)
        until = str(np.datetime_as_string(time[order[end - 1]], unit="s"))
        looks.append(
            {"until": until, "n_units": clusters.n_clusters, "value": value, "ci95": [value - half, value + half]}
        )
    return {"always": looks[-1]["ci95"] if looks else None, "looks": looks}


def sample_ratio(rows: Rows, shares: Mapping[str, float]) -> dict[str, Any]:
    """Whether the arms have the intended numbers of units, by Pearson's chi-squared test.

    Args:
        shares: of every arm, above 0; they need not add up to 1, for what counts is their ratio. Empty: equal ones.

    Returns:
        ``unit``, what was assigned: the first of user, conversation and impression that nearly always stays in one
        arm; ``counts`` and ``expected`` by arm, ``p``; ``findings``.
    """
    if shares and (set(shares) != set(rows.names) or not all(0 < share < math.inf for share in shares.values())):
        given = " ".join(f"{name}={share:g}" for name, share in shares.items())
        raise ValueError(f"--shares {given}: give a share above 0 for each of the arms {', '.join(rows.names)}")
    kinds = {"user": rows.user, "conversation": rows.root, "impression": np.arange(len(rows.arm))}
    arms_of = {
        kind: np.unique(np.stack([number, rows.arm]), axis=1) for kind, number in kinds.items() if number is not None
    }
    n_arms = {kind: np.unique(pairs[0], return_counts=True)[1] for kind, pairs in arms_of.items()}
    unit = next(kind for kind, n in n_arms.items() if (n == 1).mean() >= ONE_ARM)
    n_units, n_single = len(n_arms[unit]), int((n_arms[unit] == 1).sum())
    counts = np.bincount(arms_of[unit][1], minlength=len(rows.names))
    given = np.array([shares.get(name, 1.0) for name in rows.names])
    expected = counts.sum() * given / given.sum()
    # Pearson's chi-squared test; scipy.stats has it too, and takes a second to import
    p = float(chdtrc(len(counts) - 1, ((counts - expected) ** 2 / expected).sum()))
    found = []
    if p < RATIO_LEVEL:
        there, due = (", ".join(f"{n:,.0f}" for n in side) for side in (counts, expected))
        found.append(
            f"the arms have {there} {unit}s instead of the expected {due} (p = {p:.1e}): assignment to the arms was "
            "not random, so no lift can be trusted"
        )
    if n_single < n_units:
        found.append(f"{n_units - n_single:,} of {n_units:,} {unit}s saw several arms")
    names = rows.names
    return {
        "unit": unit,
        "counts": dict(zip(names, counts.tolist(), strict=True)),
        "expected": dict(zip(names, expected.tolist(), strict=True)),
        "p": p,
        "findings": found,
    }


def _arm(rows: Rows, place: int, log: pl.DataFrame) -> dict[str, Any]:
    mine = rows.arm == place
    one = rows[mine]
    ctr = float(one.clicked.mean())
    influence = (one.clicked - ctr) / len(one.clicked)
    shown = log.filter(mine)["clicks"]
    slots = [shown.list.get(slot, null_on_oob=True).mean() for slot in range(shown.list.len().max())]
    return {
        "n_impressions": len(one.clicked),
        "n_conversations": len(np.unique(one.root)),
        "n_users": None if one.user is None else len(np.unique(one.user)),
        "ctr": ctr,
        "ci95": {kind: _interval(ctr, influence, clusters) for kind, clusters in one.clusters().items()},
        "slot_ctr": slots,
    }


def _parts(rows: Rows, parts: Mapping[str, Any], least: int = 1) -> dict[str, dict[str, Any]]:
    """The lifts on each part: a mask of the rows, or a column of clicks, nan where a row has none. Parts with too few
    clusters in an arm, or without a click, are left out; where fewer than ``least`` are left, all."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in parts.items():
        some = rows[values] if values.dtype == bool else rows[np.isfinite(values)]
        if values.dtype != bool:
            some = Rows(some.names, some.arm, values[np.isfinite(values)], some.root, some.user)
        sides = [some.arm == place for place in range(len(rows.names))]
        if all(
            side.any() and some.clicked[side].any() and some[side].main().n_clusters >= MIN_UNITS for side in sides
        ):
            ctr = {other: float(some.clicked[side].mean()) for other, side in zip(rows.names, sides, strict=True)}
            found[name] = {
                other: {"ctr": ctr[other], "control": ctr[rows.names[0]], **lift(some, place)}
                for place, other in enumerate(rows.names)
                if place
            }
    return found if len(found) >= least else {}


def _places(log: pl.DataFrame) -> dict[str, np.ndarray]:
    """Clicks at each position, nan where nothing was shown there."""
    clicks = log["clicks"]
    n_places = clicks.list.len().max()
    return {
        str(place + 1): clicks.list.get(place, null_on_oob=True).cast(pl.Float64).fill_null(math.nan).to_numpy()
        for place in range(n_places)
    }


def _adjust(some) -> None:
    """Put ``p_holm`` to each of the lifts."""
    some = list(some)
    adjusted = holm({str(n): one["p"] for n, one in enumerate(some)})
    for n, one in enumerate(some):
        one["p_holm"] = adjusted[str(n)]


def _arms(log: pl.DataFrame, by: str, control: str) -> tuple[list[str], np.ndarray]:
    """The names, the control first, and for each row the index of its arm in them, -1 if it names none."""
    if by == "policy":
        values = log["policy"].to_list()
    elif by.startswith("meta."):
        values = [one.get(by.removeprefix("meta.")) for one in _meta(log)]
    else:
        raise ValueError(f"--by {by}: give policy, or meta.KEY")
    told = [None if value is None else str(value) for value in values]
    names = sorted({value for value in told if value is not None})
    if len(names) < 2:
        found = f"only {names[0]}" if names else "no arm"
        raise ValueError(f"--by {by}: {found} in {counted(log.height, 'row')}; a test needs at least two arms")
    if control and control not in names:
        raise ValueError(f"--control {control}: no such arm; there are {', '.join(names)}")
    names.sort(key=lambda name: name != control)
    place = {name: n for n, name in enumerate(names)}
    return names, np.array([place.get(value, -1) for value in told])


def _users(log: pl.DataFrame) -> np.ndarray | None:
    """A number for each user; a row without one counts as a user of its own; None if no row has one."""
    if log["user_id"].null_count() == log.height:
        return None
    numbers = log["user_id"].rank("dense").cast(pl.Int64).to_numpy()
    return np.where(np.isnan(numbers), -1.0 - np.arange(log.height), numbers).astype(int)


def _meta(log: pl.DataFrame) -> list[dict[str, Any]]:
    return [json.loads(one) if one else {} for one in log["meta"].to_list()]


def _shares(texts: Sequence[str]) -> dict[str, float]:
    try:
        shares = {name: float(share) for name, share in (text.rsplit("=", 1) for text in texts)}
    except ValueError:
        raise ValueError(f"--shares {' '.join(texts)}: give ARM=SHARE for each arm, as in a=0.9 b=0.1") from None
    if len(shares) < len(texts):
        raise ValueError(f"--shares {' '.join(texts)}: an arm is there twice; give each arm one share")
    return shares


def _verdict(found: Mapping[str, Any], name: str) -> str:
    one, control = found["lifts"][name], found["control"]
    kind = "both" if "both" in one["ci95"] else "conversation"
    low, high = one["ci95"][kind]
    word = "beats" if low > 0 else "loses to" if high < 0 else "does not differ clearly from"
    sentence = (
        f"{name} {word} {control}: CTR {found['arms'][name]['ctr']:.2%} against {found['arms'][control]['ctr']:.2%}, "
        f"lift {one['value']:+.1%} (95 % interval {low:+.1%} to {high:+.1%} for a single look"
    )
    if one["always"]:
        sentence += ", {:+.1%} to {:+.1%} for every look".format(*one["always"])
    return sentence + ")."


def _tables(found: Mapping[str, Any]) -> list[Table]:
    """The result, for a terminal of 80 columns."""

    def of(interval: Sequence[float]) -> str:
        return "{:.2%} to {:.2%}".format(*interval)

    arms = Table(title=f"arms by {found['by']}")
    for heading in ("arm", "shown", "users", "CTR", "95 % by user", "by conversation"):
        arms.add_column(heading, justify="left" if heading == "arm" else "right", overflow="fold")
    for name, one in found["arms"].items():
        by_user = of(one["ci95"]["user"]) if "user" in one["ci95"] else "–"
        users = "–" if one["n_users"] is None else f"{one['n_users']:,}"
        arms.add_row(
            name, f"{one['n_impressions']:,}", users, f"{one['ctr']:.2%}", by_user, of(one["ci95"]["conversation"])
        )
    ratio = found["sample_ratio"]
    lifts = Table(
        title=f"over {found['control']}",
        caption=f"sample ratio, by {ratio['unit']}: p = {ratio['p']:.2g}; needed: {ratio['unit']}s in both arms "
        "together to detect that lift with power .8",
    )
    sizes = list(next(iter(found["lifts"].values()))["needed"])
    for heading in ("arm", "lift", "one look", "every look", "p, Holm", *(f"needed {float(n):.0%}" for n in sizes)):
        lifts.add_column(heading, justify="left" if heading == "arm" else "right", overflow="fold")
    for name, one in found["lifts"].items():
        low, high = one["ci95"].get("both", one["ci95"]["conversation"])
        every = "–" if one["always"] is None else "{:+.1%} {:+.1%}".format(*one["always"])
        sizes = [f"{n:,}" for n in one["needed"].values()]
        lifts.add_row(name, f"{one['value']:+.1%}", f"{low:+.1%} {high:+.1%}", every, f"{one['p_holm']:.2g}", *sizes)
    parts = Table(title="by position and segment")
    for heading in ("part", "arm", "CTR", "control", "lift", "95 %", "p, Holm"):
        parts.add_column(heading, justify="left" if heading in ("part", "arm") else "right", overflow="fold")
    for key, values in {"position": found["positions"], **found["segments"]}.items():
        for value, of_arms in values.items():
            for name, one in of_arms.items():
                interval = "{:+.1%} {:+.1%}".format(*one["ci95"].get("both", one["ci95"]["conversation"]))
                p = f"{one['p_holm']:.2g}" if "p_holm" in one else "–"
                figures = (f"{one['ctr']:.2%}", f"{one['control']:.2%}", f"{one['value']:+.1%}", interval, p)
                parts.add_row(f"{key} {value}", name, *figures)
    return [arms, lifts, parts]
