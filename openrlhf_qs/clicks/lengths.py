"""``openrlhf-qs lengths``: what fits a policy, found in the data of a run before anything is trained on them.

In: what the stage ``data`` wrote, and the policy that will be trained. With its tokenizer and chat template are found

- the tokens that a response may have, from the responses of the log;
- the orders of roles that the template refuses, with a row that has each, and what is made of them;
- the conversations that leave no room for a response. They are cut here once, by whole turns from the beginning, the
  system's message and the last question kept (:func:`openrlhf_qs.models.template.shortened`), so that SFT, the reward
  model, GRPO, generation and evaluation all read the same. Impressions whose last question alone is too long go out.

Out: the same files, where there was something to cut, and ``lengths.json``; ``max_new_tokens`` is a file of its own,
for the recipes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_qs.files.printable import counted
from openrlhf_qs.files.run_folder import DataFolder
from openrlhf_qs.files.whole import read_json_lines, write_json_lines, write_whole
from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import Task, add_task_arguments, task_of
from openrlhf_qs.models.template import alternating, refused_roles, shortened

N_END = 4  # tokens after a response: its end, and what OpenRLHF keeps free
N_RESPONSES = 5000  # of the log that are measured
QUANTILE, MORE = 0.999, 1.1  # of the responses that must fit, and what a policy may write beyond the longest of them
LEAST = 16  # tokens of a response
N_AROUND, N_BEFORE = 12, 64  # tokens that a template puts around a turn, and before the first one, at most

REFUSED_ROLES = {
    "fold": "the system message goes into the user's turn, and consecutive turns of one role become one",
    "drop": "they are left out, and counted",
    "stop": "nothing is written",
}

Conversation = Sequence[Message]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that `openrlhf-qs data` wrote")
    parser.add_argument("--policy", required=True, metavar="DIR|NAME", help="the policy to be trained")
    parser.add_argument(
        "--max_len", type=int, default=512, help="tokens of a conversation and what follows it; default 512"
    )
    parser.add_argument(
        "--refused_roles",
        choices=REFUSED_ROLES,
        default="fold",
        help="what to do with conversations whose roles the chat template refuses. "
        + "; ".join(f"{name}: {what}" for name, what in REFUSED_ROLES.items())
        + "; default fold",
    )
    add_task_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, cut, say what was found. ValueError where the policy has no chat template, or nothing fits."""
    from transformers import AutoTokenizer

    out, task = DataFolder(args.data), task_of(args)
    tokenizer = AutoTokenizer.from_pretrained(args.policy)
    if not tokenizer.chat_template:
        raise ValueError(f"{args.policy} has no chat template, so it cannot read a conversation; give one that has")
    files = {
        file: read_json_lines(file)
        for file in (
            *(out.preferences, out.preferences_calibration, out.preferences_heldout),
            *(out.sft, out.prompts, out.fusion, out.heldout),
        )
    }
    shown = [row["suggestions"] for row in files[out.preferences]]
    max_new_tokens = response_tokens(tokenizer, shown, task, args.max_len)
    refused = refusals(tokenizer, task, files)
    if refused and args.refused_roles == "stop":
        raise ValueError("; ".join(map(_of_refusal, refused)) + ": use --refused_roles fold or drop, or fix the log")
    dropped = [one["roles"] for one in refused] if args.refused_roles == "drop" else []
    cut = Cut(tokenizer, task, args.max_len - max_new_tokens - N_END, dropped)
    written = {}
    for file, rows in files.items():
        kept = [new for row in rows if (new := cut.of_row(row)) is not None]
        if not kept and rows:
            raise ValueError(
                f"{file}: no conversation leaves room for a response of {max_new_tokens} tokens in {args.max_len}"
                + (", or has only roles that the template accepts" if dropped else "")
                + "; increase MAX_LEN"
            )
        if kept != rows:
            write_json_lines(file, kept)
        written[file.name] = len(kept)
    _count(out, written)
    found = {
        "policy": str(args.policy),
        "max_len": args.max_len,
        "max_new_tokens": max_new_tokens,
        "n_conversations": len(cut.known),
        "n_cut": sum(new != old for old, new in cut.known.values() if new is not None),
        "n_left_out": sum(new is None and not cut.is_dropped(old) for old, new in cut.known.values()),
        "n_dropped": sum(cut.is_dropped(old) for old, _ in cut.known.values()),
        "refused_roles": refused,
    }
    write_whole(out.max_new_tokens, f"{max_new_tokens}\n")
    write_whole(out.lengths, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    for sentence in sentences(found):
        print(sentence)


def _count(out: DataFolder, written: Mapping[str, int]) -> None:
    """Say in ``log.json`` how many rows the files have now: who reads them holds them against it."""
    (summary,) = read_json_lines(out.log)
    write_json_lines(out.log, [summary | {"written": summary["written"] | written}])


def response_tokens(tokenizer, shown: Sequence[Sequence[str]], task: Task, max_len: int) -> int:
    """The tokens that a response may have: enough for nearly all that the log shows, were they the policy's own.

    Args:
        shown: what impressions showed; fewer suggestions than a response has are taken again, of more the first ones.
    """
    step = max(1, len(shown) // N_RESPONSES)
    some = [[texts[n % len(texts)] for n in range(task.n)] for texts in shown[::step] if texts]
    if not some:
        raise ValueError("no impressions to measure responses on; run the stage data again")
    lengths = [
        len(ids) for ids in tokenizer([task.write(texts) for texts in some], add_special_tokens=False)["input_ids"]
    ]
    most = math.ceil((float(np.quantile(lengths, QUANTILE)) * MORE + N_END) / 8) * 8
    if most > max_len // 2:
        raise ValueError(
            f"responses of the log have {most} tokens, more than half of MAX_LEN={max_len}: increase MAX_LEN, or "
            "set MAX_NEW_TOKENS yourself"
        )
    return max(most, LEAST)


class Cut:
    """Conversations as the policy has room for them.

    Attributes:
        known: key to the conversation as it was, and as it is kept; None where it cannot be.
    """

    def __init__(self, tokenizer, task: Task, n_most: int, dropped: Sequence[Sequence[str]] = ()) -> None:
        """``dropped``: orders of roles that are left out."""
        self.tokenizer, self.task, self.n_most = tokenizer, task, n_most
        self.dropped = set(map(tuple, dropped))
        self.known: dict[str, tuple[Conversation, Conversation | None]] = {}
        self.n_tokens: dict[str, int] = {}

    def _n_tokens(self, text: str) -> int:
        if text not in self.n_tokens:
            self.n_tokens[text] = len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return self.n_tokens[text]

    def of(self, conversation: Conversation) -> Conversation | None:
        key = conversation_key(conversation)
        if key not in self.known:
            self.known[key] = (conversation, self._cut(conversation))
        return self.known[key][1]

    def of_row(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """A row of one of the files with its conversation as it is kept; None where it cannot be."""
        if "label" not in row:
            kept = self.of(row["conversation"])
            return None if kept is None else {**row, "conversation": list(kept)}
        request = Request.of_label(row["label"])
        kept = self.of(request.conversation)
        if kept is None:
            return None
        request = Request(kept, request.user_id, request.features)
        return {**row, "prompt": self.task.messages(kept), "label": request.label()}

    def is_dropped(self, conversation: Conversation) -> bool:
        """Whether a conversation is left out for its roles."""
        return bool(self.dropped) and tuple(message["role"] for message in conversation) in self.dropped

    def _cut(self, conversation: Conversation) -> Conversation | None:
        if self.is_dropped(conversation):
            return None
        messages = [*conversation, {"role": "user", "content": self.task.instruction}]
        if sum(self._n_tokens(one["content"]) + N_AROUND for one in messages) + N_BEFORE <= self.n_most:
            return conversation  # the template takes longer than the tokenizer
        kept = shortened(self.tokenizer, messages, self.n_most)
        return None if kept is None else conversation if kept == messages else kept[:-1]


def refusals(tokenizer, task: Task, files: Mapping[Path, Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The orders of roles that the chat template refuses: each with how many rows have it and where the first stands.

    ValueError where it refuses them in turns of user and assistant too.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for file, rows in files.items():
        for number, row in enumerate(rows, start=1):
            if "conversation" not in row:
                continue
            roles = tuple(message["role"] for message in row["conversation"])
            one = found.setdefault(roles, {"n_rows": 0, "first": f"{file}:{number}"})
            one["n_rows"] += 1
            if "impression_id" not in one and "impression_id" in row:
                one["impression_id"] = row["impression_id"]
    refused = []
    for roles, one in found.items():
        messages = task.messages([{"role": role, "content": "x"} for role in roles])
        reason = refused_roles(tokenizer, messages)
        if reason:
            again = refused_roles(tokenizer, alternating(messages))
            if again:
                raise ValueError(
                    f"{one['first']}: the chat template takes neither {', '.join(roles)} ({reason}) nor turns of user "
                    f"and assistant ({again}); give a policy with another template"
                )
            refused.append({"roles": list(roles), "reason": reason, **one})
    return refused


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What was found, for the terminal."""
    n, max_len, room = found["n_conversations"], found["max_len"], found["max_new_tokens"]
    told = [f"responses have room for {room} tokens (MAX_NEW_TOKENS), as many as those of the log need"]
    if found["n_cut"]:
        told.append(
            f"{found['n_cut']:,} of {n:,} conversations were cut by whole turns from the beginning, to leave room for "
            f"a response in {max_len} tokens (MAX_LEN)"
        )
    if found["n_left_out"]:
        told.append(
            f"{found['n_left_out']:,} of {n:,} conversations are left out: their last question alone is too long"
        )
    what = f"{found['n_dropped']:,} conversations are left out" if found["n_dropped"] else REFUSED_ROLES["fold"]
    return [*told, *(f"{_of_refusal(one)}: {what}" for one in found["refused_roles"])]


def _of_refusal(one: Mapping[str, Any]) -> str:
    return (
        f"the roles {' '.join(one['roles'])} occur in {counted(one['n_rows'], 'row')}, the first {one['first']} "
        f"({one.get('impression_id', 'no id')}), which the chat template refuses ({one['reason']})"
    )
