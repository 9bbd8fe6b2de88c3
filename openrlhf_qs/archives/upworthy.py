r"""Headline tests of the Upworthy Research Archive as preference pairs with soft labels.

In: the archive's CSV (doi 10.1038/s41597-021-00934-7), a row a package: a headline with an image, how many visitors
saw it and how many clicked. Out: a row a test in the columns of :data:`SCHEMA`, its headlines with clicks and visitors
(the examination), and a pair for each two of them with the same image, the one with the higher CTR chosen. A headline
has no conversation and no position: each visitor saw one.

How sure the counts are is in the label. With the pooled rate :math:`p` the relative difference
:math:`r=(p_c-p_r)/p` has the standard error :math:`s=\sqrt{(1-p)/p\,(1/n_c+1/n_r)}`, and :math:`z=r/s`. Repeated arms
of the archive differ by more than chance, with a variance of z of 1.75; true differences of headlines are taken as
:math:`N(0,\tau^2)`. So the probability that the chosen headline is truly the better one is

.. math:: y=\Phi\Big(\frac{z}{\sqrt{1.75}}\cdot\frac{\tau}{\sqrt{\tau^2+1.75\,s^2}}\Big).
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
import polars as pl
from rich.table import Table
from scipy.special import ndtr

from openrlhf_qs.archives.kept_apart import CALIBRATION_SHARE, is_kept_apart
from openrlhf_qs.clicks import preferences
from openrlhf_qs.clicks.preferences import PAIR, write_preferences
from openrlhf_qs.clicks.rows import MESSAGES
from openrlhf_qs.files.printable import print_table
from openrlhf_qs.statistics.intervals import SIGNIFICANT_Z

COLUMNS = {
    "clickability_test_id": pl.String,
    "eyecatcher_id": pl.String,
    "headline": pl.String,
    "impressions": pl.Int64,
    "clicks": pl.Int64,
    "test_week": pl.Int64,
}
STORY = ("story", pl.String)  # tests of one article; optional
SCHEMA = {
    **preferences.SCHEMA,  # the impression is a test, the positions are null, labels are at least 0.5
    "z": pl.List(pl.Float64),  # of each pair: of the difference in CTR, binomial, at least 0
}
FAULTY_WEEKS = (201326, 201402)  # the archive's authors warn of the randomisation of these and all between
OVERDISPERSION = 1.75  # variance of z between repeats of one arm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("packages", metavar="FILE.csv[.gz]", help="packages of the archive, one row per arm")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="preferences to write")
    parser.add_argument(
        "--prior_std",
        type=float,
        help="standard deviation of the true relative differences in CTR; inf takes the counts at face value; "
        "default: estimated from the file",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE.jsonl",
        help=f"write the tests of {CALIBRATION_SHARE:.0%}% of the stories to this file instead",
    )


def run(args: argparse.Namespace) -> None:
    packages = read_packages(args.packages)
    usable = usable_packages(packages)
    arms = headline_arms(usable)
    found = headline_preferences(arms, args.prior_std)
    n_kept = 0
    if args.calibration:
        kept = keep_stories(found, usable)
        n_kept = found.filter(kept)["pairs"].list.len().sum()
        if not 0 < kept.sum() < found.height:
            raise ValueError(f"--calibration would keep {kept.sum()} of {found.height} tests: give more stories")
        write_preferences(args.calibration, found.filter(kept))
        found = found.filter(~kept)
    write_preferences(args.out, found)
    z, label = found["z"].explode(), found["pairs"].explode().struct.field("label")
    counts = {
        "packages": packages.height,
        "left out: weeks of faulty randomisation": packages["test_week"].is_between(*FAULTY_WEEKS).sum(),
        "left out: no headline or nobody saw it": packages.height
        - usable.height
        - packages["test_week"].is_between(*FAULTY_WEEKS).sum(),
        "arms, repeats added up": arms.height,
        "pairs kept for calibration": n_kept,
        "tests with a pair": found.height,
        "pairs": len(z),
        f"pairs with |z| > {SIGNIFICANT_Z}": (z > SIGNIFICANT_Z).sum(),
        "pairs of equal CTR (label 0.5)": (z == 0).sum(),
    }
    table = Table("Upworthy", "", title=args.out)
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    prior_std = relative_difference_std(count_pairs(arms)) if args.prior_std is None else args.prior_std
    table.add_row("std of true relative differences", f"{prior_std:.3f}")
    table.add_row("mean label", f"{label.mean():.3f}")
    print_table(table)


def read_packages(path: str | Path) -> pl.DataFrame:
    """The columns of ``COLUMNS`` and ``story``, which is the test where there is none.

    ValueError where the file, a column or a number is missing.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file; give the archive's packages, .csv or .csv.gz")
    try:
        packages = pl.read_csv(path, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: not CSV: {str(error).splitlines()[0]}") from None
    missing = [name for name in COLUMNS if name not in packages.columns]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; found {', '.join(packages.columns)}")
    if "story" not in packages.columns:
        packages = packages.with_columns(story=pl.col("clickability_test_id"))
    typed = packages.select(pl.col(name).cast(kind, strict=False) for name, kind in [*COLUMNS.items(), STORY])
    for name in ("impressions", "clicks", "test_week"):
        bad = typed[name].is_null() | (typed[name] < 0)
        if bad.any():
            row = bad.arg_true()[0]
            raise ValueError(f"{path}: row {row + 1}: {name} is {packages[name][row]!r}; give a whole number, >= 0")
    bad = (typed["clicks"] > typed["impressions"]).arg_true()
    if len(bad):
        raise ValueError(f"{path}: row {bad[0] + 1}: more clicks than impressions; check the file")
    return typed


def usable_packages(packages: pl.DataFrame) -> pl.DataFrame:
    """Without the weeks of faulty randomisation, empty headlines and arms that nobody saw."""
    return packages.filter(
        ~pl.col("test_week").is_between(*FAULTY_WEEKS),
        pl.col("headline").fill_null("").str.strip_chars() != "",
        pl.col("impressions") > 0,
    )


def headline_arms(packages: pl.DataFrame) -> pl.DataFrame:
    """One row a test, image and headline, in the order of the file; counts of repeats are added up."""
    return packages.group_by("clickability_test_id", "eyecatcher_id", "headline", maintain_order=True).agg(
        pl.col("impressions").sum(), pl.col("clicks").sum()
    )


def count_pairs(arms: pl.DataFrame) -> pl.DataFrame:
    """Every two headlines of one test and image, that of higher CTR as ``chosen``.

    Returns:
        ``chosen`` and ``rejected``, rows of ``arms``; their ``*_impressions`` and ``*_clicks``; ``difference``,
        relative to the pooled rate; ``std_error`` of it; ``z``. Pairs without any click are left out.
    """
    rows = []
    numbered = arms.with_row_index("arm")
    for _, group in numbered.group_by("clickability_test_id", "eyecatcher_id", maintain_order=True):
        shown = group.select("arm", "impressions", "clicks").rows()
        for one, other in itertools.combinations(shown, 2):
            chosen, rejected = sorted((one, other), key=lambda arm: arm[2] / arm[1], reverse=True)
            if chosen[2]:
                rows.append((*chosen, *rejected))
    columns = [f"{side}{count}" for side in ("chosen", "rejected") for count in ("", "_impressions", "_clicks")]
    table = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.Int64), orient="row")
    n_chosen, n_rejected = pl.col("chosen_impressions"), pl.col("rejected_impressions")
    pooled = (pl.col("chosen_clicks") + pl.col("rejected_clicks")) / (n_chosen + n_rejected)
    difference = (pl.col("chosen_clicks") / n_chosen - pl.col("rejected_clicks") / n_rejected) / pooled
    return (
        table.with_columns(
            difference=difference,
            std_error=((1 - pooled) / pooled * (1 / n_chosen + 1 / n_rejected)).sqrt(),
        )
        .filter(pl.col("std_error") > 0)  # everybody clicked both
        .with_columns(z=pl.col("difference") / pl.col("std_error"))
    )


def relative_difference_std(counts: pl.DataFrame) -> float:
    r"""Standard deviation :math:`\tau` of the true relative differences: their variance beyond that of the counts.

    Mean of :math:`r^2-1.75\,s^2` over pairs; ValueError where that is not positive: then the counts tell nothing.
    """
    variance = (counts["difference"] ** 2 - OVERDISPERSION * counts["std_error"] ** 2).mean()
    if not variance or variance <= 0:
        raise ValueError(
            f"{counts.height} pairs differ no more than chance does; give more tests, or set --prior_std yourself"
        )
    return math.sqrt(variance)


def keep_stories(found: pl.DataFrame, packages: pl.DataFrame) -> pl.Series:
    """Of each test, whether its story is among those that are kept apart."""
    story_of_test = dict(packages.select("clickability_test_id", "story").iter_rows())
    return pl.Series([is_kept_apart(story_of_test[test]) for test in found["impression_id"]], dtype=pl.Boolean)


def soft_labels(z: np.ndarray, std_error: np.ndarray, prior_std: float) -> np.ndarray:
    """Probability that the difference is truly positive, ``[n]``; see the head of this module.

    Args:
        z: ``[n]``, of the difference.
        std_error: ``[n]``, of the relative difference, binomial, > 0.
        prior_std: of the true relative differences, > 0; ``inf``: nothing is known before.
    """
    if not prior_std > 0:
        raise ValueError(f"prior_std = {prior_std}: give a number greater than 0")
    shrinkage = 1 / np.sqrt(1 + OVERDISPERSION * (std_error / prior_std) ** 2)
    return ndtr(z / math.sqrt(OVERDISPERSION) * shrinkage)


def headline_preferences(arms: pl.DataFrame, prior_std: float | None = None) -> pl.DataFrame:
    """The tests of :func:`headline_arms` that have a pair, each of the same weight in all.

    Args:
        prior_std: of :func:`soft_labels`; None takes :func:`relative_difference_std`.

    Returns:
        Columns as in ``SCHEMA``. ValueError where there is no pair.
    """
    counts = count_pairs(arms)
    if not counts.height:
        raise ValueError(
            f"no two headlines with the same image in one test, of {arms.height} arms; nothing to compare"
        )
    if prior_std is None:
        prior_std = relative_difference_std(counts)
    test = arms["clickability_test_id"]
    place = arms.select(pl.int_range(pl.len()).over("clickability_test_id")).to_series()
    pairs = counts.select(
        "z",
        test=test.gather(counts["chosen"]),
        chosen=place.gather(counts["chosen"]),
        rejected=place.gather(counts["rejected"]),
        label=soft_labels(counts["z"].to_numpy(), counts["std_error"].to_numpy(), prior_std),
    )
    pairs = pairs.with_columns(weight=1 / pl.len().over("test"))
    of_test = (
        pairs.with_columns(pl.col("weight") / pl.col("weight").mean())
        .group_by("test", maintain_order=True)
        .agg(pl.struct(field.name for field in PAIR.fields).alias("pairs"), "z")
    )
    shown = arms.group_by("clickability_test_id").agg("headline", "clicks", "impressions")
    found = of_test.join(shown, left_on="test", right_on="clickability_test_id", how="left", maintain_order="left")
    return found.select(
        impression_id="test",
        conversation=pl.lit([], MESSAGES),
        user_id=pl.lit(None, pl.String),
        suggestions="headline",
        clicks=pl.col("clicks").cast(pl.List(pl.Float64)),
        positions=pl.lit(None, pl.List(pl.Int64)),
        examination=pl.col("impressions").cast(pl.List(pl.Float64)),
        pairs="pairs",
        z="z",
    )
