"""Sampling with the real vLLM: log-probs against transformers, a killed run, two engines under Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.files.whole import read_json_lines
from openrlhf_qs.form.task import TEACHER
from openrlhf_qs.sft.small_policy import build_small_policy


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> tuple[Path, Path]:
    """A small model that was taught three suggestions, and 60 conversations, one of them too long for it."""
    folder = tmp_path_factory.mktemp("teacher")
    conversations = [[{"role": "user", "content": f"What is {n} + {n}?"}] for n in range(59)]
    conversations.append([{"role": "user", "content": "again and " * 2000}])
    suggestions = ["Why is it so?", "How do I add two numbers?", "What is 3 + 3?"]
    log = folder / "clicks.jsonl"
    with open(log, "w") as file:
        for n, conversation in enumerate(conversations):
            impression = {"impression_id": str(n), "timestamp": "2025-01-01", "conversation": conversation}
            file.write(json.dumps(impression | {"suggestions": suggestions, "clicks": [1, 0, 0]}) + "\n")
    build_small_policy(read_click_log(log), folder / "model", vocab_size=300)
    teach(folder / "model", conversations[:16], suggestions)
    return folder / "model", log


def teach(folder: Path, conversations: list[list[dict]], suggestions: list[str]) -> None:
    """Until the model mostly writes whole words: nonsense has many tokenizations, and no test could tell which."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).float()
    messages = [
        [*TEACHER.messages(conversation), {"role": "assistant", "content": suggestions[n % 3]}]
        for n, conversation in enumerate(conversations)
    ]
    batch = tokenizer.apply_chat_template(messages, padding=True, return_dict=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.bfloat16().save_pretrained(folder)


def command(teacher: tuple[Path, Path], out: Path, *flags: str) -> list[str]:
    model, log = teacher
    return [
        *(sys.executable, "-m", "openrlhf_qs.cli", "distil", "--teacher", str(model), "--prompts", str(log)),
        *("--out", str(out), "--n_samples", "3", "--max_new_tokens", "64", "--temperature", "0.5", *flags),
    ]


@pytest.fixture(scope="module")
def candidates(teacher) -> list[dict]:
    """Of a run that one engine begins, that is killed, and that two engines under Ray finish."""
    out = teacher[0].with_name("candidates.jsonl")
    part = out.with_name(".candidates.jsonl.part")
    process = subprocess.Popen(command(teacher, out, "--chunk", "2"))
    while process.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = part.read_bytes().splitlines()[:2]
    done = subprocess.run(
        command(teacher, out, "--chunk", "7", "--n_shards", "2"), check=True, capture_output=True, text=True
    )
    assert "continuing: " in done.stdout
    rows = read_json_lines(out)
    assert [json.loads(line)[1] for line in before] == rows[:2]
    assert not part.exists()
    return rows


def test_a_killed_run_goes_on_and_two_engines_under_ray_finish_it(candidates):
    assert [row["conversation"][0]["content"] for row in candidates[:59]] == [f"What is {n} + {n}?" for n in range(59)]
    assert candidates[59]["left_out"]["prompt_too_long"] == 3
    for row in candidates:
        assert sum(c["n_sampled"] for c in row["candidates"]) + sum(row["left_out"].values()) == 3


def test_log_probs_are_those_of_the_model(teacher, candidates):
    tokenizer = AutoTokenizer.from_pretrained(teacher[0])
    model = AutoModelForCausalLM.from_pretrained(teacher[0], dtype=torch.float32)
    compared = 0
    for row in candidates:
        messages = TEACHER.messages(row["conversation"])
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for candidate in row["candidates"]:
            answer = [*tokenizer.encode(candidate["text"], add_special_tokens=False), tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            log_prob = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).mean().item()
            compared += abs(log_prob - candidate["log_prob"]) < 0.03  # vLLM computes in bfloat16
    n_candidates = sum(len(row["candidates"]) for row in candidates)
    # The others were sampled in tokens that no tokenizer would choose for their text.
    assert n_candidates >= 59 and compared >= 0.9 * n_candidates
