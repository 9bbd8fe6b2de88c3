"""Clarification panes of MIMICS-Duo with clicks of Bing, as preference pairs with soft labels.

In: ``duo_clicks.SPLIT.tsv.gz`` (SIGIR 2022, Leila-Ta/MIMICS-Duo), a row a pane: a query, two to five options in the
order shown, and how the clicks on the pane spread over them. Out: a row a pane, with a pair for each two options, in
the columns of :data:`openrlhf_qs.clicks.preferences.SCHEMA`; the query is the conversation, an option is a suggestion.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import polars as pl
from rich.table import Table

from openrlhf_qs.archives.kept_apart import CALIBRATION_SHARE, is_kept_apart
from openrlhf_qs.clicks.preferences import SCHEMA, write_preferences
from openrlhf_qs.files.printable import print_table

N_OPTIONS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder with duo_clicks.SPLIT.tsv.gz")
    parser.add_argument("--split", default="train", help="train or dev; default train")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="preferences to write")
    parser.add_argument(
        "--calibration",
        metavar="FILE.jsonl",
        help=f"write the panes of {CALIBRATION_SHARE:.0%}% of the queries to this file instead",
    )


def run(args: argparse.Namespace) -> None:
    panes = read_panes(Path(args.folder) / f"duo_clicks.{args.split}.tsv.gz")
    kept = []
    if args.calibration:
        kept, panes = ([pane for pane in panes if is_kept_apart(pane[0]) == apart] for apart in (True, False))
        write_preferences(args.calibration, pane_preferences(kept))
    found = pane_preferences(panes)
    write_preferences(args.out, found)
    label = found["pairs"].explode(empty_as_null=False).struct.field("label")
    n_clicked = sum(any(shares) for _, _, shares in panes)
    table = Table("MIMICS-Duo", "", title=args.out)
    for name, count in {
        "panes kept for calibration": len(kept),
        "panes": len(panes),
        "left out: nobody clicked": len(panes) - n_clicked,
        "panes with a pair": (found["pairs"].list.len() > 0).sum(),
        "pairs": len(label),
        "pairs of equal shares (label 0.5)": (label == 0.5).sum(),
    }.items():
        table.add_row(name, f"{count:,}")
    print_table(table)


def read_panes(path: Path) -> list[tuple[str, list[str], list[float]]]:
    """Query, options in the order shown, and the share of the pane's clicks of each; all 0 where nobody clicked."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give the folder of MIMICS-Duo and a split that it has")
    table = pl.read_csv(path, separator="\t", infer_schema=False, quote_char=None).fill_null("")
    wanted = ["query", *(f"{name}_{n}" for name in ("option", "option_cctr") for n in range(1, N_OPTIONS + 1))]
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; found {', '.join(table.columns)}")
    panes = []
    for number, row in enumerate(table.iter_rows(named=True), start=1):
        options, shares = [], []
        for n in range(1, N_OPTIONS + 1):
            text, share = row[f"option_{n}"].strip(), row[f"option_cctr_{n}"]
            try:
                share = float(share)
            except ValueError:
                raise ValueError(f"{path}: row {number}: option_cctr_{n} is {share!r}; give a number") from None
            if not 0 <= share <= 1:
                raise ValueError(f"{path}: row {number}: option_cctr_{n} is {share}; give a share in [0, 1]")
            if text:
                options.append(text)
                shares.append(share)
        panes.append((row["query"], options, shares))
    return panes


def pane_preferences(panes: list[tuple[str, list[str], list[float]]]) -> pl.DataFrame:
    """A row a pane, each with a pair of the same weight in all; of two unclicked options nothing is said, nor of two
    that are the same text.

    The label is the chosen one's share of the clicks on either of the two (Luce 1959).

    Returns:
        Columns as in :data:`openrlhf_qs.clicks.preferences.SCHEMA`, ``clicks`` the shares; nobody knows the
        examination. ValueError where no pane has a click.
    """
    rows = []
    for number, (query, options, shares) in enumerate(panes, start=1):
        shown = [
            (one, other)
            for one, other in itertools.combinations(range(len(options)), 2)
            if shares[one] + shares[other] and options[one] != options[other]
        ]
        pairs = []
        for pair in shown:
            chosen, rejected = sorted(pair, key=lambda n: shares[n], reverse=True)
            label = shares[chosen] / (shares[chosen] + shares[rejected])
            pairs.append({"chosen": chosen, "rejected": rejected, "weight": 1 / len(shown), "label": label})
        rows.append(
            {
                "impression_id": f"pane-{number}",
                "conversation": [{"role": "user", "content": query}],
                "user_id": None,
                "suggestions": options,
                "clicks": shares,
                "positions": list(range(1, len(options) + 1)),
                "examination": None,
                "pairs": pairs,
            }
        )
    n_pairs = sum(len(row["pairs"]) for row in rows)
    if not n_pairs:
        raise ValueError(f"no clicked option beside another one in {len(panes)} panes; nothing to compare")
    total = sum(pair["weight"] for row in rows for pair in row["pairs"])
    for pair in itertools.chain.from_iterable(row["pairs"] for row in rows):
        pair["weight"] *= n_pairs / total
    return pl.DataFrame(rows, schema=SCHEMA)
