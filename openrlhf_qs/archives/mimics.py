"""Clarification panes of MIMICS-Duo with clicks of Bing, as preference pairs with soft labels.

In: ``duo_clicks.SPLIT.tsv.gz`` (SIGIR 2022, Leila-Ta/MIMICS-Duo), a row a pane: a query, two to five options in the
order shown, and how the clicks on the pane spread over them. Out: a pair for each two options of a pane, in the
columns of :data:`openrlhf_qs.clicks.pairs.SCHEMA`; the query is the conversation, an option is a suggestion.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import polars as pl
from rich import print as rich_print
from rich.table import Table

from openrlhf_qs.clicks.pairs import SCHEMA
from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.form.prompt import suggestion_messages

N_OPTIONS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="holds duo_clicks.SPLIT.tsv.gz")
    parser.add_argument("--split", default="train", help="train or dev; default train")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="preference pairs")


def run(args: argparse.Namespace) -> None:
    panes = read_panes(Path(args.folder) / f"duo_clicks.{args.split}.tsv.gz")
    found = pane_pairs(panes)
    write_json_lines(args.out, found.iter_rows(named=True))
    n_clicked = sum(any(shares) for _, _, shares in panes)
    table = Table("MIMICS-Duo", "", title=args.out, title_justify="left")
    for name, count in {
        "panes": len(panes),
        "left out: nobody clicked": len(panes) - n_clicked,
        "panes with a pair": found["impression_id"].n_unique(),
        "pairs": found.height,
        "pairs of equal shares (label 0.5)": (found["label"] == 0.5).sum(),
    }.items():
        table.add_row(name, f"{count:,}")
    rich_print(table)


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


def pane_pairs(panes: list[tuple[str, list[str], list[float]]]) -> pl.DataFrame:
    """Preference pairs of panes, each pane of the same weight in all; of two unclicked options nothing is said.

    The label is the chosen one's share of the clicks on either of the two (Luce 1959).

    Returns:
        Columns as in :data:`openrlhf_qs.clicks.pairs.SCHEMA`. ValueError where no pane has a click.
    """
    rows = []
    for number, (query, options, shares) in enumerate(panes, start=1):
        conversation = [{"role": "user", "content": query}]
        shown = [pair for pair in itertools.combinations(range(len(options)), 2) if shares[pair[0]] + shares[pair[1]]]
        for pair in shown:
            chosen, rejected = sorted(pair, key=lambda n: shares[n], reverse=True)
            rows.append(
                {
                    "impression_id": f"pane-{number}",
                    "chosen": suggestion_messages(conversation, options[chosen]),
                    "rejected": suggestion_messages(conversation, options[rejected]),
                    "chosen_position": chosen + 1,
                    "rejected_position": rejected + 1,
                    "weight": 1 / len(shown),
                    "label": shares[chosen] / (shares[chosen] + shares[rejected]),
                }
            )
    if not rows:
        raise ValueError(f"no clicked option beside another one in {len(panes)} panes; nothing to compare")
    table = pl.DataFrame(rows, schema=SCHEMA)
    return table.with_columns(pl.col("weight") / pl.col("weight").mean())
