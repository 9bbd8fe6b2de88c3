"""SFT's dataset: the assembly plugin makes responses from candidates, OpenRLHF's class makes tokens of them.

In: rows of ``sft.jsonl``, or of a teacher's samples (:mod:`openrlhf_qs.sft.sft_set`). Imported by its patch alone, for
its base is OpenRLHF's class.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from datasets import Dataset
from openrlhf.datasets import SFTDataset
from rich.console import Console

from openrlhf_qs.clicks.lengths import N_END
from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.task import Task, write_task
from openrlhf_qs.models.template import as_plain_text, end_token, fitted, prepared
from openrlhf_qs.sft.sft_set import assemble, report_table, write_report

Instance = tuple[list[Message], str]  # what is asked, what is answered


class AssembledSFTDataset(SFTDataset):
    """OpenRLHF's dataset of the responses that an assembly makes."""

    def __init__(
        self,
        name: str,
        choose: Callable,
        task: Task,
        report_names: Iterator[str],
        dataset,
        tokenizer,
        max_length,
        strategy,
        **kwargs,
    ) -> None:
        """
        Args:
            name: of the assembly.
            choose: the assembly.
            task: what the policy is asked for.
            report_names: the file beside the checkpoint that this dataset's report goes to comes next.
            dataset, tokenizer, max_length, strategy, kwargs: of OpenRLHF.
        """
        rows = dataset.to_list()
        report = {}
        if task.form == "text":
            instances = teacher_instances(choose, rows, task)
        else:
            instances, report = policy_instances(choose, rows, task)
        end_token(tokenizer)
        n_made = len(instances)
        instances, n_cut = fitting(instances, tokenizer, max_length)
        lengths = {"cut": n_cut, "left_out": n_made - len(instances)}
        strategy.print(f"conversations too long for {max_length} tokens: {lengths}")
        if report:
            report |= {"too_long": lengths}
            if strategy.is_rank_0():
                write_report(Path(strategy.args.ckpt.output_dir) / next(report_names), report)
                Console(markup=False, emoji=False).print(report_table(f"sft dataset {name}", report))
        strategy.print(f"{name}: {len(instances)} instances from {len(rows)} conversations")
        if not instances:
            raise ValueError(f"sft dataset {name!r} made no instances from {len(rows)} conversations")
        if strategy.is_rank_0():
            # who asks this policy asks as it was taught
            write_task(strategy.args.ckpt.output_dir, replace(task, max_len=max_length))
        data = strategy.args.data
        made = [
            {data.input_key: messages, data.output_key: [{"role": "assistant", "content": response}]}
            for messages, response in instances
        ]
        kwargs["num_processors"] = os.cpu_count()
        super().__init__(Dataset.from_list(made), tokenizer, max_length, strategy, **kwargs)


def fitting(instances: list[Instance], tokenizer, max_length: int) -> tuple[list[Instance], int]:
    """The instances whose prompt and whole response have room, and how many of them had to be cut."""
    found, n_cut = [], 0
    for messages, written in instances:
        response = as_plain_text(tokenizer, written)
        n_response = len(tokenizer(response, add_special_tokens=False)["input_ids"])
        prompt = fitted(tokenizer, messages, max_length - n_response - N_END)
        if prompt is not None:
            found.append((prompt, response))
            n_cut += prompt != prepared(tokenizer, messages)
    return found, n_cut


def teacher_instances(choose: Callable, rows: list[dict], task: Task) -> list[Instance]:
    """Each text that the assembly takes, as an answer of its own."""
    answers = zip(rows, choose(rows, task.n), strict=True)
    return [(task.messages(row["conversation"]), text) for row, texts in answers for text in texts or ()]


def policy_instances(choose: Callable, rows: list[dict], task: Task) -> tuple[list[Instance], dict]:
    """The responses, and the report of the assembly."""
    assembled, report = assemble(choose, rows, task)
    instances = [(task.messages(row["conversation"]), task.write(row["suggestions"])) for row in assembled]
    return instances, report
