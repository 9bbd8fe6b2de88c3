"""A small policy built on the spot: a tokenizer trained on the click log, a small random Qwen3.

In: a click log. Out: a Hugging Face folder that transformers, vLLM and OpenRLHF load as any other model, so that the
whole way runs on a laptop, without a GPU and without a download. It knows nothing yet: SFT teaches it.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.clicks.verdicts import FEW_CONVERSATIONS
from openrlhf_qs.files.printable import from_here
from openrlhf_qs.form.keys import UNSPACED, conversation_keys
from openrlhf_qs.form.response import format_response
from openrlhf_qs.form.task import SUGGEST, Task, add_task_arguments, task_of
from openrlhf_qs.form.text import pieces
from openrlhf_qs.models.folder import make_usable

if TYPE_CHECKING:  # --help need not wait for torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

PAD, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MAX_TOKENS = 1024
HEAD_DIM = 64
# Marks, joiners and the stroke between Tibetan syllables are parts of words.
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?[\p{L}\p{M}\u0f0b\u200c\u200d]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}\u0f0b]+|\s+(?!\S)|\s+"

_WITHOUT_BLANKS = re.compile(f" ?[{UNSPACED}]+")

# The special tokens all begin with "<|". Written "< |" they are plain text, so no message can end its own turn or
# forge another, and the replacement cannot bring forth a new "<|". OpenRLHF's PromptDataset turns a text with
# "<image>" in it into a list of parts: they are put together again.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('role ' ~ message.role ~ ': give system, user or assistant') -}}
{%- endif -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' -}}
{%- if message.content is string -%}
{{- message.content | replace('<|', '< |') -}}
{%- else -%}
{%- for part in message.content -%}
{{- (part.text | replace('<|', '< |')) if part.type == 'text' else '<image>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log", required=True, nargs="+", metavar="FILE", help="click log whose words the tokenizer should know"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the model; an existing model is replaced"
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        default=4096,
        help="maximum size of the vocabulary, at least 259 (bytes); default 4096",
    )
    parser.add_argument("--hidden_size", type=int, default=256, help="width, a multiple of 128; default 256")
    parser.add_argument("--n_layers", type=int, default=2, help="depth; default 2")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights; default 0")
    add_task_arguments(parser)


def run(args: argparse.Namespace) -> None:
    log = read_click_log(args.log, on_error="skip")  # the stage data has said what is wrong
    task = task_of(args)
    n_parameters = build_small_policy(log, args.out, args.vocab_size, args.hidden_size, args.n_layers, args.seed, task)
    told = too_small(log)
    if told:
        print(told)
    print(f"small policy of {n_parameters / 1e6:.1f} million random parameters in {from_here(args.out)}")


def too_small(log: pl.DataFrame) -> str:
    """What is to be said of a log that hardly teaches random weights to write; empty where it is large enough."""
    clicked = log.filter(pl.col("clicks").list.max() == 1)
    n = conversation_keys(clicked["conversation"]).n_unique()
    if n >= FEW_CONVERSATIONS:
        return ""
    return (
        f"{n:,} conversations with a click are few for a randomly initialised policy, which learns to write from them "
        f"alone: with fewer than {FEW_CONVERSATIONS:,} expect malformed and copied suggestions; POLICY=... names a "
        "model that can write"
    )


def build_small_policy(
    log: pl.DataFrame,
    out_dir: str | Path,
    vocab_size: int = 4096,
    hidden_size: int = 256,
    n_layers: int = 2,
    seed: int = 0,
    task: Task = SUGGEST,
) -> int:
    """Write the model and its tokenizer to ``out_dir``; the same arguments give the same files.

    Args:
        log: its texts train the tokenizer, see :mod:`openrlhf_qs.clicks.click_log`.
        out_dir: made where it is missing; a model in it is replaced, file by file, its ``config.json`` last.
        vocab_size: tokens at most; a small log may yield fewer.
        hidden_size: width, a multiple of 128 (two query heads of 64 share a key head).
        n_layers: depth, >= 1.
        seed: of the random weights.
        task: what the policy will be asked, so that its tokenizer knows the instruction.

    Returns:
        The number of parameters; the embedding, which is the output layer too, counts once.
    """
    if vocab_size < 259:
        raise ValueError(f"vocab_size {vocab_size}: give 259 (256 bytes, 3 special tokens) or more")
    if hidden_size < 128 or hidden_size % 128 or n_layers < 1:
        raise ValueError(f"hidden_size {hidden_size}, n_layers {n_layers}: give a multiple of 128, and 1 or more")
    tokenizer = train_tokenizer(log, vocab_size, task)
    model = random_policy(tokenizer, hidden_size, n_layers, seed)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".writing", dir=out_dir) as temporary:
        tokenizer.save_pretrained(temporary)
        model.bfloat16().save_pretrained(temporary)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, out_dir / file.name)
    make_usable(out_dir)
    return model.num_parameters()


def train_tokenizer(log: pl.DataFrame, vocab_size: int, task: Task = SUGGEST) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a chat template: any text comes back as it was, and the log's words are one token each."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # As ByteLevel splits by itself, but with marks beside their letters, or Hindi words are cut at every vowel.
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (PAD, TURN, END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_word_by_word(_texts(log, task)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[TURN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def random_policy(tokenizer: PreTrainedTokenizerFast, hidden_size: int, n_layers: int, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights whose scale suits training from scratch."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    n_heads = hidden_size // HEAD_DIM
    config = Qwen3Config(
        vocab_size=64 * math.ceil(len(tokenizer) / 64),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads // 2,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.04,  # learns faster at first than 0.02, and no worse later, at this width
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    return model


def _word_by_word(texts: Iterable[str]) -> Iterator[str]:
    """``texts`` in parts: where no blanks stand between words, each word is one.

    So no token is learned that joins two words. Else the questions of a Chinese log are a token each, and a policy
    that was taught them cannot say their words of another subject.
    """
    for text in texts:
        end = 0
        for run in _WITHOUT_BLANKS.finditer(text):
            yield text[end : run.start()]
            written = run[0].lstrip()
            first, *others = pieces(written)
            yield run[0][: -len(written)] + first
            yield from others
            end = run.end()
        yield text[end:]


def _texts(log: pl.DataFrame, task: Task) -> Iterator[str]:
    """What the policy reads and writes: each conversation once, the instruction as often, responses, suggestions."""
    for conversation in log.filter(conversation_keys(log["conversation"]).is_first_distinct())[
        "conversation"
    ].to_list():
        yield "\n".join(f"{message['role']}\n{message['content']}" for message in conversation)
        yield task.instruction
    for suggestions in log["suggestions"].to_list():
        yield format_response(suggestions)
        yield from suggestions
