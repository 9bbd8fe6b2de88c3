"""SFT's dataset: the assembly plugin makes responses from candidates, OpenRLHF's class makes tokens of them.

In: rows of ``sft.jsonl``, or of a teacher's samples (:mod:`openrlhf_qs.sft.sft_set`). Imported by its patch alone, for
its base is OpenRLHF's class.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import Dataset
from openrlhf.datasets import SFTDataset
from rich.console import Console

from openrlhf_qs.form.prompt import Message, policy_messages, teacher_messages
from openrlhf_qs.form.response import format_response
from openrlhf_qs.sft.sft_set import assemble, report_table, write_report

Instance = tuple[list[Message], str]  # what is asked, what is answered


class AssembledSFTDataset(SFTDataset):
    """OpenRLHF's dataset of the responses that an assembly makes."""

    def __init__(
        self,
        name: str,
        choose: Callable,
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
            report_names: the file beside the checkpoint that this dataset's report goes to comes next.
            dataset, tokenizer, max_length, strategy, kwargs: of OpenRLHF.
        """
        rows = dataset.to_list()
        one_each = getattr(choose, "single", False)  # each text is an instance: the teacher's way
        if one_each:
            instances = teacher_instances(choose, rows)
        else:
            instances, report = policy_instances(choose, rows)
            if strategy.is_rank_0():
                write_report(Path(strategy.args.ckpt.output_dir) / next(report_names), report)
                Console(markup=False, emoji=False).print(report_table(f"sft dataset {name}", report))
        strategy.print(f"{name}: {len(instances)} instances of {len(rows)} conversations")
        if not instances:
            raise ValueError(f"sft dataset {name!r} made no instance of {len(rows)} conversations")
        data = strategy.args.data
        made = [
            {data.input_key: messages, data.output_key: [{"role": "assistant", "content": response}]}
            for messages, response in instances
        ]
        kwargs["num_processors"] = os.cpu_count()
        super().__init__(Dataset.from_list(made), tokenizer, max_length, strategy, **kwargs)


def teacher_instances(choose: Callable, rows: list[dict]) -> list[Instance]:
    """Each text that the assembly takes, as an answer of its own."""
    answers = zip(rows, choose(rows), strict=True)
    return [(teacher_messages(row["conversation"]), text) for row, texts in answers for text in texts or ()]


def policy_instances(choose: Callable, rows: list[dict]) -> tuple[list[Instance], dict]:
    """Three suggestions a response, and the report of the assembly."""
    assembled, report = assemble(choose, rows)
    instances = [(policy_messages(row["conversation"]), format_response(row["suggestions"])) for row in assembled]
    return instances, report
