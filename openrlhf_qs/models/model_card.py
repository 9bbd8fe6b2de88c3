"""The model card: a README.md in every folder with a model, for anyone who comes across that folder.

In: ``run.json``, ``task.json`` and, once it exists, ``report/metrics.json``. Out: what the model is and was made from,
how to use it, results with intervals, its terms, and which files can be deleted. The recipes call it when a stage
ends, and for all stages when ``evaluate`` ends::

    python -m openrlhf_qs.models.model_card --run RUN --stage STAGE

Needs only the standard library, so that it does not wait for torch.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_qs.files.record import read_record
from openrlhf_qs.files.run_folder import RunFolder
from openrlhf_qs.files.whole import write_whole
from openrlhf_qs.form.task import read_task

# Stage to the model it makes: its folder in the run, and a sentence.
MODELS = {
    "data": (
        "data/policy",
        "A small policy with random weights and a tokenizer made from the log, not trained yet.",
    ),
    "distil": ("distil/teacher", "A teacher of single suggestions, trained on clicked suggestions."),
    "sft": ("sft", "The SFT policy: trained to write suggestions from what was clicked."),
    "garm": ("garm", "The reward model: a mean and a standard deviation for a suggestion under a conversation."),
    "rft": ("rft", "The SFT policy, fine-tuned on the best suggestions from its own samples."),
    "grpo": ("grpo", "The final policy: trained with GRPO on the composite reward."),
}
MAY_GO = {
    "tensorboard": "training curves, which the report shows",
    "log.txt": "the output of the processes",
    "statistics.jsonl": "what the monitors read, one row per step",
    "alarms.jsonl": "alarms that the monitors raised",
    "samples.jsonl": "what the policy wrote during training",
}
ASK_POLICY = """\
After the conversation, the last user turn is {instruction}. User text must not become control tokens of the chat
template: `prompt_ids` prevents that, and tells a model that can think not to.

```python
from vllm import LLM, SamplingParams

from openrlhf_qs.form.task import read_task
from openrlhf_qs.models.template import prompt_ids

task, llm = read_task("{folder}"), LLM("{folder}")
conversation = [{{"role": "user", "content": "How do I bake?"}}, {{"role": "assistant", "content": "Use flour."}}]
ids = prompt_ids(llm.get_tokenizer(), task.messages(conversation))
sampling = SamplingParams(temperature={temperature}, max_tokens={max_tokens})
answer = llm.generate({{"prompt_token_ids": ids}}, sampling)[0].outputs[0]
suggestions = task.read(answer.text, answer.finish_reason).suggestions
```

or with transformers

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf_qs.form.task import read_task
from openrlhf_qs.models.template import prompt_ids

task = read_task("{folder}")
conversation = [{{"role": "user", "content": "How do I bake?"}}, {{"role": "assistant", "content": "Use flour."}}]
tokenizer, model = AutoTokenizer.from_pretrained("{folder}"), AutoModelForCausalLM.from_pretrained("{folder}")
ids = torch.tensor([prompt_ids(tokenizer, task.messages(conversation))])
tokens = model.generate(ids, do_sample=True, temperature={temperature}, max_new_tokens={max_tokens})
suggestions = task.read(tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)).suggestions
```

or `openrlhf-qs suggest --policy {folder} "How do I bake?" "Use flour."`"""
ASK_GARM = """\
```python
from openrlhf_qs.garm.reward_model import SuggestionScorer

scorer = SuggestionScorer("{folder}")
conversation = [{{"role": "user", "content": "How do I bake?"}}, {{"role": "assistant", "content": "Use flour."}}]
mean, std, _ = scorer([conversation] * 2, ["Which flour is best?", "How long does it rise?"])
```

Only differences of means under one conversation are meaningful. transformers' `AutoModelForSequenceClassification`
rejects this folder with a mismatch of `score.weight`: its head is a different one and would give wrong numbers."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="model_card", allow_abbrev=False)
    parser.add_argument("--run", required=True)
    parser.add_argument("--stage", required=True)
    args = parser.parse_args(argv)
    run = RunFolder(args.run)
    for stage in MODELS if args.stage == "evaluate" else [args.stage]:
        folder = run.path / MODELS[stage][0] if stage in MODELS else None
        if folder and (folder / "config.json").is_file() and not folder.is_symlink():  # a link is another run's
            write_whole(folder / "README.md", card(run, stage))


def card(run: RunFolder, stage: str) -> str:
    """The text of the card for the model of ``stage``."""
    entries = read_record(run)
    entry = entries.get(stage, {})
    folder, what = MODELS[stage]
    name = f"{run.path.resolve().name}/{folder}"
    metrics = json.loads(run.metrics.read_text(encoding="utf-8")) if run.metrics.is_file() else {}
    base = base_of(entries, stage)
    front = ["license: other", "library_name: transformers", "tags: [query-suggestion, openrlhf-qs]"]
    if "/" in base and not base.startswith(("/", ".")) and base.count("/") == 1:
        front.append(f"base_model: {base}")
    if stage != "garm":
        front.append("pipeline_tag: text-generation")
    versions = ", ".join(f"{package} {version}" for package, version in entry.get("versions", {}).items())
    parts = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {name}",
        what,
        "\n".join(
            f"- {key}: {value}"
            for key, value in {
                "starts from": base,
                "data": data_of(entries),
                "made by": f"stage `{stage}` of openrlhf-qs, commit {entry.get('commit', '')[:10] or 'unknown'}",
                "given": ", ".join(f"`{k}={v}`" for k, v in entry.get("given", {}).items()) or "only defaults",
                "versions": versions or "unknown",
            }.items()
        ),
        "## How to use it",
        how_to_ask(run, stage, name, metrics),
        "## Results",
        figures(stage, metrics),
        "## Terms",
        "The weights are subject to the terms of the model they start from and of the click log; nothing here grants "
        "more. The code that made them is licensed under Apache-2.0.",
    ]
    there = {file: why for file, why in MAY_GO.items() if (run.path / folder / file).exists()}
    checkpoints = run.path / "ckpt" / folder
    if checkpoints.exists():
        there[os.path.relpath(checkpoints, run.path / folder)] = (
            "optimiser and training state, separate from the model; without it an interrupted training starts over"
        )
    if there:
        parts += [
            "## What can be deleted",
            "The folder can be copied to where the model is used. These files are not needed there:",
            "\n".join(f"- `{file}`: {why}" for file, why in there.items()),
        ]
    return "\n\n".join(parts) + "\n"


def base_of(entries: Mapping[str, Any], stage: str) -> str:
    """What the stage's model started from: a given name or folder, or an earlier stage."""
    if stage == "data":
        return "random weights"
    entry = entries.get(stage, {})
    if stage == "grpo":
        return "rft, with sft as reference" if entry.get("variables", {}).get("RFT") == "1" else "sft"
    names = {"garm": ("GARM_BASE",), "distil": ("TEACHER", "POLICY"), "sft": ("POLICY",)}.get(stage, ())
    given = next((list(entry["files"][name]) for name in names if entry.get("files", {}).get(name)), [])
    if given:
        return str(Path(given[0]).parent) if Path(given[0]).is_file() else given[0]
    return "sft" if stage in ("garm", "rft") else "data/policy, random weights"


def data_of(entries: Mapping[str, Any]) -> str:
    """The click log with the hash of its content."""
    logs = entries.get("data", {}).get("files", {}).get("CLICK_LOG", {})
    if logs:
        return ", ".join(f"{Path(path).name} (BLAKE2b {one['hash']})" for path, one in logs.items() if one)
    made = entries.get("data", {}).get("products", {}).get("clicks.jsonl")
    return f"clicks of simulated users (BLAKE2b {made['hash']})" if made else "unknown"


def how_to_ask(run: RunFolder, stage: str, name: str, metrics: Mapping[str, Any]) -> str:
    """Code that asks the model the way it was trained."""
    if stage == "garm":
        return ASK_GARM.format(folder=name)
    if stage == "data":
        return "Train it first."
    served = metrics.get("served", {}).get(stage, {}).get("temperature")
    instruction = read_task(run.path / MODELS[stage][0]).instruction
    tokens = run.data.max_new_tokens
    return ASK_POLICY.format(
        folder=name,
        instruction=json.dumps(instruction, ensure_ascii=False),
        temperature=1.0 if served is None else served,
        max_tokens=tokens.read_text().strip() if tokens.is_file() else 64,
    )


def figures(stage: str, metrics: Mapping[str, Any]) -> str:
    """What ``evaluate`` measured, with 95 % intervals."""
    if stage == "garm" and metrics.get("garm", {}).get("n_pairs"):
        one = metrics["garm"]
        rows = [
            f"- {name}: {one[key]:.3f} ({one[f'{key}_ci95'][0]:.3f} to {one[f'{key}_ci95'][1]:.3f})"
            for key, name in {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier", "ece": "ECE"}.items()
        ]
        of = f"On {one['n_pairs']:,} pairs of held-out impressions, seed {metrics.get('seed', 0)}, one training:"
        return "\n".join([of, "", *rows])
    quality = metrics.get("quality", {}).get(stage)
    if quality is None:
        return "Not measured yet: the stage `evaluate` does that and completes this card."
    rows = []
    if ab := metrics.get("ab", {}).get(stage):
        low, high = ab["ci95"]
        rows.append(
            f"- users who click: {ab['ctr']:.1%} ({low:.1%} to {high:.1%}), users of the judge `{metrics['judge']}`"
        )
    for key, words in {
        "malformed": "malformed responses",
        "near_duplicates": "responses with near-duplicates",
    }.items():
        if quality.get(key) is not None:
            rows.append(f"- {words}: {quality[key]:.1%}")
    served = metrics.get("served", {}).get(stage, {}).get("temperature")
    at = "" if served is None else f" at temperature {served:g}"
    n = quality.get("n_responses", 0)
    seed = metrics.get("seed", 0)
    of = f"On {n:,} held-out conversations{at}, seed {seed}, one training, whose noise no interval includes:"
    return "\n".join([of, "", *rows])


if __name__ == "__main__":
    main()
