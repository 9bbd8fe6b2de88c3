"""A small zero-query log: what is clicked hangs on two features together, and the thing asked about on a third."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from openrlhf_qs.rank.impressions import Impressions, Intents

ACTIONS, NOUNS = ("return", "repair"), ("kettle", "sofa", "lamp")
INTENTS = Intents(
    tuple(f"{action}-{noun}" for action in ACTIONS for noun in NOUNS),
    tuple(f"How do I {action} my {noun}?" for action in ACTIONS for noun in NOUNS),
)
EXAMINATION = np.array([1.0, 0.6, 0.3])


def visits(n: int, seed: int = 0, n_users: int = 200) -> Impressions:
    """``n`` impressions in random order; 0.8 of those who look at what they came for click it, 0.05 at others."""
    rng = np.random.default_rng(seed)
    features, shown, wanted = [], np.empty((n, 3), dtype=np.int32), np.empty(n, dtype=int)
    for row in range(n):
        seller, paid = rng.choice(["near", "far"]), rng.choice(["card", "cash"])
        noun = int(rng.integers(3))
        features.append(
            {"seller": str(seller), "paid": str(paid), "article": NOUNS[noun], "visits": int(rng.integers(9))}
        )
        wanted[row] = 3 * ((seller == "far") != (paid == "cash")) + noun
        shown[row] = rng.permutation(6)[:3]
    chance = np.where(shown == wanted[:, None], 0.8, 0.05) * EXAMINATION
    clicks = (rng.random((n, 3)) < chance).astype(np.int8)
    users = np.array([f"user-{user}" for user in rng.integers(n_users, size=n)])
    times = np.datetime64("2025-01-01T00:00") + np.arange(n)
    return Impressions(features, shown, clicks, users, times, EXAMINATION)


def wanted_intents(log: Impressions) -> list[int]:
    """What each visitor came for."""
    return [
        3 * ((one["seller"] == "far") != (one["paid"] == "cash")) + NOUNS.index(one["article"]) for one in log.features
    ]


def write(folder: Path, log: Impressions, intents: Intents = INTENTS) -> tuple[Path, Path]:
    """The log and the knowledge base as files."""
    rows = [
        {
            "impression_id": str(n),
            "timestamp": str(log.times[n]),
            "conversation": [],
            "features": dict(log.features[n]),
            "suggestions": [INTENTS.texts[intent] for intent in log.shown[n]],
            "clicks": log.clicks[n].tolist(),
            "user_id": str(log.users[n]),
        }
        for n in range(len(log))
    ]
    clicks, base = folder / "clicks.jsonl", folder / "intents.jsonl"
    clicks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = zip(intents.ids, intents.texts, strict=True)
    base.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in pairs))
    return clicks, base
