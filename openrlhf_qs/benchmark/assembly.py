"""``openrlhf-qs benchmark assembly``: how fast suggestions are assembled, and what each option is worth.

Candidates are drawn in the language of the built-in world. Each size of the curve runs in a process of its own: a file
is read, assembled and written, as ``openrlhf-qs assemble`` does it. ``--quality`` measures options on the users of the
built-in world, who know what a suggestion is worth; the assembly sees clicks or a noisy reward model only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from openrlhf_qs.clicks.candidates import click_candidates
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.clicks.propensity import examination_propensities
from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.models.embedder import embed, load_embedder
from openrlhf_qs.registry import SFT_DATASETS, check_options, load_plugins, parse_options
from openrlhf_qs.sft.sft_set import assemble
from openrlhf_qs.world.click_log import COLD_START, contexts, suggestion_of_kind, write_click_log
from openrlhf_qs.world.users import click_probabilities, draw_users, gold_utility, read_scene

GIB = 2**30
GARM_ERROR = 1.0  # standard deviation of the simulated reward model's error, log-odds of a click
# What --quality measures: every diversity with every limit, then one other option at a time.
DIVERSITIES, LIMITS, LIMITS_BY_MEANING = (0.0, 0.1, 0.3, 0.5), (0.5, 0.6, 0.7, 1.0), (0.75, 0.8, 0.85, 0.9, 1.0)
OTHERS = {"near_duplicate": (0.7, 1.0), "boilerplate": (0.001, 1.0), "min_quality": (0.1, 0.3, 0.5)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--n_contexts",
        default="1000,10000",
        metavar="N,N",
        help="numbers of contexts to measure, separated by commas; default 1000,10000; 100000 takes about 4 GiB "
        "with its input",
    )
    parser.add_argument("--n_candidates", type=int, default=16, help="suggestions per context; default 16")
    parser.add_argument(
        "--option", action="append", default=[], metavar="diverse.OPTION=VALUE", help="for example diverse.method=dpp"
    )
    parser.add_argument(
        "--embedder",
        default="",
        help="also measure this embedder, for example minilm; default: none; the size curve never uses one",
    )
    parser.add_argument("--n_texts", type=int, default=2048, help="texts to measure the embedder on; default 2048")
    parser.add_argument(
        "--quality", type=int, default=0, metavar="N", help="also measure every option on N contexts; default: off"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other candidates; default 0")


def run(args: argparse.Namespace) -> None:
    """Measure, print one JSON object."""
    load_plugins()
    options = parse_options(args.option)
    check_options(options)
    options = options.get("diverse", {})
    sizes = [int(size) for size in args.n_contexts.split(",") if size]
    result: dict[str, Any] = {"n_candidates": args.n_candidates, "options": options}
    result["curve"] = [_in_its_own_process(n, args.n_candidates, options, args.seed) for n in sizes]
    if len(sizes) > 1:
        cpu_s = [point["cpu_s"] for point in result["curve"]]  # one process, and what else runs does not count
        result["exponent"] = round(float(np.polyfit(np.log(sizes), np.log(cpu_s), 1)[0]), 3)
    if args.embedder:
        result["embedding"] = embedding_speed(args.embedder, args.n_texts, args.seed)
    if args.quality:
        result["quality"] = quality_grid(args.quality, args.n_candidates, options, args.embedder, args.seed)
    print(json.dumps(result, indent=1))


def candidate_rows(n_contexts: int, n_candidates: int, seed: int) -> Iterator[dict[str, Any]]:
    """Contexts of the built-in world with candidates of every kind that its cold start makes, and a ``log_prob``."""
    rng = random.Random(seed)
    kinds = {kind: share for kind, share in COLD_START.items() if kind != "duplicate"}
    for conversation in contexts(n_contexts, seed):
        scene = read_scene(conversation)
        drawn = rng.choices(list(kinds), kinds.values(), k=n_candidates)
        candidates = [
            {"text": suggestion_of_kind(kind, scene, rng), "log_prob": round(rng.gauss(-1.0, 0.5), 4)}
            for kind in drawn
        ]
        yield {"conversation": conversation, "candidates": candidates}


def _in_its_own_process(*args: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(assembly_speed, *args).result()


def assembly_speed(n_contexts: int, n_candidates: int, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Seconds and peak memory of this process for one size, from file to file."""
    load_plugins()
    choose = SFT_DATASETS.create("diverse", **options)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "candidates.jsonl", Path(folder) / "triples.jsonl"
        write_json_lines(source, candidate_rows(n_contexts, n_candidates, seed))
        peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        start, cpu_start = time.perf_counter(), time.process_time()
        rows = read_json_lines(source)
        read_s = time.perf_counter() - start
        assembled, _ = assemble(choose, rows)
        assemble_s = time.perf_counter() - start - read_s
        write_json_lines(target, assembled)
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    return {
        "n_contexts": n_contexts,
        "n_assembled": len(assembled),
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu_s, 2),
        "read_s": round(read_s, 2),
        "assemble_s": round(assemble_s, 2),
        "contexts_per_second": round(n_contexts / seconds, 1),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2),
        "peak_memory_before_gib": round(peak_before / GIB, 2),
    }


def embedding_speed(embedder: str, n_texts: int, seed: int) -> dict[str, Any]:
    """Texts a second of :func:`openrlhf_qs.models.embedder.embed`, and of the bare model on batches that are ready."""
    import torch
    from sentence_transformers.util import batch_to_device

    model, batch_size = load_embedder(embedder), 256
    rows = candidate_rows(n_texts // 8, 16, seed)
    texts = list(dict.fromkeys(c["text"] for row in rows for c in row["candidates"]))[:n_texts]
    by_length = sorted(texts, key=len)
    batches = [
        batch_to_device(model.preprocess(by_length[start : start + batch_size]), model.device)
        for start in range(0, len(texts), batch_size)
    ]

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                model.forward(dict(batch))["sentence_embedding"].cpu()

    ours_s, bare_s = [], []
    for _ in range(3):  # the first round warms up
        for measured, task in ((ours_s, lambda: embed(model, texts, batch_size)), (bare_s, bare)):
            start = time.perf_counter()
            task()
            measured.append(time.perf_counter() - start)
    ours, alone = len(texts) / min(ours_s[1:]), len(texts) / min(bare_s[1:])
    return {
        "embedder": embedder,
        "n_texts": len(texts),
        "texts_per_second": round(ours, 1),
        "bare_model_texts_per_second": round(alone, 1),
        "share_of_the_model": round(ours / alone, 3),
    }


def quality_grid(
    n_contexts: int, n_candidates: int, options: Mapping[str, Any], embedder: str, seed: int
) -> list[dict[str, Any]]:
    """What the users of the built-in world think of what is assembled, by options, from two kinds of rows.

    ``clicks``: a click log of eight impressions a context. ``garm``: ``n_candidates`` a context with the mean of a
    reward model that is off by ``GARM_ERROR``.
    """
    sources = {"clicks": _rows_from_clicks(n_contexts, seed), "garm": _rows_with_garm(n_contexts, n_candidates, seed)}
    settings: list[dict[str, Any]] = [
        {"method": method, "diversity": diversity, "max_similarity": limit}
        for method, diversity, limit in product(("mmr", "dpp"), DIVERSITIES, LIMITS)
    ]
    settings += [{option: value} for option, values in OTHERS.items() for value in values]
    if embedder:
        settings += [{"embedder": embedder, "max_similarity": limit} for limit in LIMITS_BY_MEANING]
    table = []
    for setting in track(settings, "measuring options", console=Console(stderr=True)):
        choose = SFT_DATASETS.create("diverse", **{**options, **setting})
        for source, rows in sources.items():
            table.append({"rows": source, **setting, **judged(rows, choose(rows), seed)})
    return table


def judged(rows: Sequence[Mapping[str, Any]], answers: Sequence[list[str] | None], seed: int) -> dict[str, float]:
    """What the users think of what was assembled; every triple meets the same 8 of them, positions count.

    Returns:
        ``kept``: share of the rows that have a triple; and of these ``clicks``, expected of an impression,
        ``clicked``, the share of impressions with one or more, and ``same_meaning``, the share of triples two of which
        say the same.
    """
    users = draw_users(np.random.default_rng([seed, 1]), 8)
    clicks, clicked, same = [], [], []
    for row, three in zip(rows, answers, strict=True):
        if three is None:
            continue
        conversation = row["conversation"]
        shown = np.array([click_probabilities(conversation, three, user) for user in users])
        alone = [click_probabilities(conversation, [text], users[0])[0] > 0 for text in three]
        clicks.append(shown.sum(1).mean())
        clicked.append(1 - (1 - shown).prod(1).mean())
        same.append(bool(((shown[0] == 0) & alone).any()))  # not clicked only because of what stands above
    n = max(len(clicks), 1)
    return {
        "kept": round(len(clicks) / len(rows), 3),
        "clicks": round(sum(clicks) / n, 4),
        "clicked": round(sum(clicked) / n, 4),
        "same_meaning": round(sum(same) / n, 4),
    }


def _rows_from_clicks(n_contexts: int, seed: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clicks.jsonl"
        write_click_log(path, 8 * n_contexts, n_contexts, seed)
        log = read_click_log(path)
    return click_candidates(log, examination_propensities(log))


def _rows_with_garm(n_contexts: int, n_candidates: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = list(candidate_rows(n_contexts, n_candidates, seed))
    for row in rows:
        texts = [candidate["text"] for candidate in row["candidates"]]
        gold, _ = gold_utility([row["conversation"]] * len(texts), texts)
        garm = gold + GARM_ERROR * rng.standard_normal(len(texts))
        row["candidates"] = [{"text": t, "garm_mean": g} for t, g in zip(texts, garm.tolist(), strict=True)]
    return rows
