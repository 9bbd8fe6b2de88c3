"""``openrlhf-qs benchmark garm-training``: impressions a second of training, OpenRLHF's own way and ours.

Every impression has three suggestions and one click, that is two pairs. OpenRLHF's ``RewardDataset`` and
``RewardModelTrainer`` read the conversation four times for it, ours once. Both train the same random Qwen3 on the same
pairs, in one process and in turns, each by its trainer's own loop with AdamW in place of DeepSpeed. Our time includes
reading and tokenizing the pairs; OpenRLHF's leaves out its rendering of the chat template, which it does beforehand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.progress import track

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.files.whole import write_whole
from openrlhf_qs.form.prompt import Message, suggestion_messages
from openrlhf_qs.form.response import N_SUGGESTIONS
from openrlhf_qs.host import flash_attn_stand_in
from openrlhf_qs.host.seams import head_and_objective
from openrlhf_qs.host.settings import GarmSettings, Settings
from openrlhf_qs.registry import load_plugins
from openrlhf_qs.sft.small_policy import MAX_TOKENS, build_small_policy
from openrlhf_qs.world.click_log import write_click_log

RATIO_AT = 128  # tokens of a conversation
MAX_CONVERSATION = 768  # tokens; the rest of MAX_TOKENS is for the suggestion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--n_tokens",
        default="32,64,128,256,512",
        metavar="N,N",
        help=f"tokens per conversation; default 32,64,128,256,512; {RATIO_AT}, at which `ratio` is measured, is "
        "always included",
    )
    parser.add_argument(
        "--n_impressions", type=int, default=16, help="impressions per step, on both sides; default 16"
    )
    parser.add_argument("--n_steps", type=int, default=2, help="steps per repetition; default 2")
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser, hidden_size: int = 256) -> None:
    parser.add_argument(
        "--hidden_size",
        type=int,
        default=hidden_size,
        help=f"hidden size of the backbone, a Qwen3; default {hidden_size}",
    )
    parser.add_argument("--n_layers", type=int, default=4, help="layers of the backbone; default 4")
    parser.add_argument("--n_repeats", type=int, default=7, help="repetitions, both sides taking turns; default 7")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and texts; default 0")
    parser.add_argument("--out", metavar="FILE", help="also write the JSON to this file")


def run(args: argparse.Namespace) -> None:
    """Measure, print one JSON object."""
    print_result(measure, args)


def print_result(measure: Callable[[argparse.Namespace], dict[str, Any]], args: argparse.Namespace) -> None:
    """JSON on stdout, and in the file ``--out``; what OpenRLHF and DeepSpeed say goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        text = json.dumps(measure(args))
    print(text)
    if args.out:
        write_whole(Path(args.out), text + "\n")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Time both sides at each length.

    Returns:
        ``ratio`` (ours over OpenRLHF's impressions a second, the median of the repetitions) at ``RATIO_AT`` tokens,
        ``peak_memory_mib`` there (resident memory at its highest in a repetition, over what the process holds before
        its first step; each side in a process of its own), and ``curve``, with ``ratio`` and the median
        ``impressions_per_second`` of both sides at each length.
    """
    lengths = conversation_lengths(args.n_tokens)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_backbone(folder, args)
        curve = []
        for n_tokens in lengths:
            rows = make_preferences(tokenizer, n_tokens, args)
            both = {side: make(folder, rows, args) for side, make in SIDES.items()}
            seconds = in_turns(both, args.n_repeats, f"{n_tokens} tokens")
            rate = args.n_impressions * args.n_steps
            curve.append(
                {
                    "n_tokens": n_tokens,
                    "ratio": median_ratio(seconds["openrlhf"], seconds["ours"]),
                    "impressions_per_second": {
                        side: rate / statistics.median(times) for side, times in seconds.items()
                    },
                }
            )
        memory = {}
        for side in track(SIDES, "memory", console=Console(stderr=True), transient=True):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                memory[side] = pool.apply(_peak_memory_mib, (folder, side, args))
    return {
        "ratio": next(point["ratio"] for point in curve if point["n_tokens"] == RATIO_AT),
        "n_tokens": RATIO_AT,
        "peak_memory_mib": memory,
        "curve": curve,
        **setting(args, "n_impressions", "n_steps"),
    }


def conversation_lengths(text: str) -> list[int]:
    """The lengths that a flag names, and ``RATIO_AT``. ValueError for one that is too short or too long."""
    lengths = sorted({RATIO_AT, *(int(n) for n in text.split(",") if n)})
    if lengths[0] < 16 or lengths[-1] > MAX_CONVERSATION:
        raise ValueError(f"n_tokens {text}: give lengths from 16 to {MAX_CONVERSATION}")
    return lengths


def in_turns(sides: dict[str, Callable[[], None]], n_repeats: int, what: str) -> dict[str, list[float]]:
    """Seconds of each call; the sides take turns, after one call of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for n in track(range(-1, n_repeats), what, console=Console(stderr=True), transient=True):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            if n >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """The median of how many times longer each call of ``slow`` took than its neighbour of ``fast``."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def setting(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What was measured with."""
    import torch

    names = (*names, "hidden_size", "n_layers", "n_repeats", "seed")
    return {name: getattr(args, name) for name in names} | {"n_threads": torch.get_num_threads()}


# The model and the texts


def write_backbone(folder: str | Path, args: argparse.Namespace):
    """A random Qwen3 in ``folder``; returns its tokenizer, trained on a log of the built-in world."""
    from transformers import AutoTokenizer

    log = Path(folder) / "clicks.jsonl"
    write_click_log(log, 2000, 500, args.seed)
    build_small_policy(
        read_click_log(log), folder, hidden_size=args.hidden_size, n_layers=args.n_layers, seed=args.seed
    )
    return AutoTokenizer.from_pretrained(folder)


def make_conversation(tokenizer, n_tokens: int, rng: random.Random) -> list[Message]:
    """A user's turn of random words; ``n_tokens`` with the marks of its turn."""
    words = [word for word in tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalpha()]
    tokens = rng.choices(sorted(words), k=n_tokens)
    empty = len(tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=True)["input_ids"])
    text = tokenizer.convert_tokens_to_string(tokens[: n_tokens - empty])
    return [{"role": "user", "content": text}]


def make_suggestion(tokenizer, rng: random.Random) -> str:
    """A question of seven to ten random words."""
    words = sorted(word[1:] for word in tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalpha())
    return " ".join(["How", *rng.choices(words, k=rng.randint(6, 9))]) + "?"


def make_preferences(tokenizer, n_tokens: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The impressions of a repetition, the first suggestion of each chosen over every other one."""
    rng = random.Random(args.seed)
    return [
        {
            "impression_id": str(n),
            "conversation": make_conversation(tokenizer, n_tokens, rng),
            "suggestions": [make_suggestion(tokenizer, rng) for _ in range(N_SUGGESTIONS)],
            "pairs": [[0, rejected, 1.0, 1.0] for rejected in range(1, N_SUGGESTIONS)],
        }
        for n in range(args.n_impressions * args.n_steps)
    ]


def host_pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same as OpenRLHF wants it: a row a pair, with the conversation in both texts."""
    return [
        {
            side: suggestion_messages(row["conversation"], row["suggestions"][place])
            for side, place in (("chosen", chosen), ("rejected", rejected))
        }
        for row in rows
        for chosen, rejected, *_ in row["pairs"]
    ]


# The two sides


class OneProcess:
    """What a trainer asks of its strategy, without DeepSpeed."""

    ring_attn_group = None
    accumulated_gradient = 1

    def __init__(self, folder: str | Path) -> None:
        self.args = SimpleNamespace(
            data=SimpleNamespace(
                prompt_key=None,
                chosen_key="chosen",
                rejected_key="rejected",
                apply_chat_template=True,
                max_len=MAX_TOKENS,
            ),
            model=SimpleNamespace(
                model_name_or_path=str(folder),
                aux_loss_coef=0.0,
                margin_loss_enable=False,
                compute_fp32_loss_enable=False,
            ),
            ds=SimpleNamespace(packing_samples=False, attn_implementation="sdpa"),
            logger=SimpleNamespace(wandb=SimpleNamespace(key=None), tensorboard_dir=None, logging_steps=1),
            eval=SimpleNamespace(steps=-1),
            ckpt=SimpleNamespace(save_steps=-1),
        )

    def print(self, *words: object) -> None:
        pass

    def is_rank_0(self) -> bool:
        return False  # so that it draws no progress bars

    def _unwrap_model(self, model):
        return model

    def backward(self, loss, model, optimizer) -> None:
        loss.backward()

    def optimizer_step(self, optimizer, model, scheduler) -> None:
        import torch

        self.grad_norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()

    def get_grad_norm(self, model) -> float:
        return self.grad_norm

    def all_reduce(self, logs: dict[str, float]) -> dict[str, float]:
        return logs


def openrlhf_side(folder: str | Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> Callable[[], None]:
    """One repetition of OpenRLHF's own training on the pairs of ``rows``."""
    flash_attn_stand_in.install()
    import datasets
    from openrlhf.datasets import RewardDataset
    from openrlhf.trainer.rm_trainer import RewardModelTrainer

    datasets.disable_progress_bars()
    strategy = OneProcess(folder)
    model, tokenizer = _load(folder, Settings())
    pairs = host_pairs(rows)
    dataset = RewardDataset(datasets.Dataset.from_list(pairs), tokenizer, MAX_TOKENS, strategy, num_processors=None)
    return _repetition(
        RewardModelTrainer, strategy, model, tokenizer, lambda: dataset, args, n_items=len(pairs) // args.n_steps
    )


def our_side(folder: str | Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> Callable[[], None]:
    """One repetition of our training on ``rows``, which it reads and tokenizes first."""
    flash_attn_stand_in.install()
    import datasets

    from openrlhf_qs.host.reward_dataset import SuggestionRewardDataset
    from openrlhf_qs.host.reward_model_trainer import SuggestionRewardModelTrainer

    load_plugins()
    settings = Settings(stage=GarmSettings(reward_model="gaussian"))
    strategy = OneProcess(folder)
    model, tokenizer = _load(folder, settings)
    dataset = datasets.Dataset.from_list(rows)
    return _repetition(
        partial(SuggestionRewardModelTrainer, *head_and_objective(settings)),
        strategy,
        model,
        tokenizer,
        lambda: SuggestionRewardDataset(False, dataset, tokenizer, MAX_TOKENS, strategy),
        args,
        n_items=args.n_impressions,
    )


SIDES = {"openrlhf": openrlhf_side, "ours": our_side}


def _load(folder: str | Path, settings: Settings):
    """The reward model that ``train_rm`` would begin with, and its tokenizer."""
    import openrlhf.models.model as models
    from openrlhf.utils.utils import get_tokenizer

    from openrlhf_qs.host.reward_model_loading import RewardModelLoader

    load = RewardModelLoader(models, settings)
    model = load(str(folder), "reward", attn_implementation="sdpa", init_value_head=True).float()
    return model, get_tokenizer(str(folder), model)


def _repetition(trainer_class, strategy, model, tokenizer, dataset, args, n_items: int) -> Callable[[], None]:
    import torch
    from torch.utils.data import DataLoader

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    scheduler = SimpleNamespace(get_last_lr=lambda: [1e-5])
    strategy.args.train = SimpleNamespace(batch_size=n_items)
    trainer = trainer_class(model, strategy, optimizer, None, None, scheduler, tokenizer, max_epochs=1)

    def repetition() -> None:
        data = dataset()
        trainer.train_dataloader = DataLoader(data, n_items, shuffle=True, collate_fn=data.collate_fn, drop_last=True)
        trainer.fit(strategy.args, num_update_steps_per_epoch=args.n_steps)

    return repetition


def _peak_memory_mib(folder: str, side: str, args: argparse.Namespace) -> float:
    from transformers import AutoTokenizer

    with contextlib.redirect_stdout(sys.stderr):
        rows = make_preferences(AutoTokenizer.from_pretrained(folder), RATIO_AT, args)
        repetition = SIDES[side](folder, rows, args)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
        before = _peak_kib()
        repetition()
        return (_peak_kib() - before) / 1024


def _peak_kib() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])
