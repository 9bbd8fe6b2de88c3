"""The zero-query world: what is known of a visitor before the first word, what it makes them ask, and their click log.

``openrlhf-qs world zero-query --out DIR`` writes ``clicks.jsonl``, a click log with ``features`` in place of a
conversation and intents as ``suggestions``, and ``intents.jsonl``, the knowledge base, ``{"id", "text"}``.

A visitor of a shop has twenty discrete features. Eight are noise; several matter only together (``RULES``: whether an
order from overseas is to be returned or refunded depends on how it was paid). An intent is an action on a kind of
thing ("How do I return my headphones?") or a general one. The things are in the features by the names of articles
("studio headphones"), so an article that was never seen is still legible to who reads words, and not to who reads
ids. From ``NEW_FROM`` on there are new kinds of things, new intents about them, and a sale.

The truth is :func:`attraction`: how probable it is that a visitor who looks at an intent clicks it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.world.click_models import EXAMINATION

N_SHOWN = 3
FIRST_DAY, N_DAYS = datetime(2025, 1, 1, tzinfo=UTC), 30
NEW_FROM = 0.8  # share of the time from which new things, their intents and the sale are there
SHUFFLED = 0.2  # share of the impressions that show the old ranker's three in random order
NONE = "none"

NOUNS = (
    *("headphones", "kettle", "sofa", "bicycle", "jacket", "camera", "laptop", "printer", "stroller", "lamp"),
    *("watch", "keyboard", "mattress", "blender", "drone", "telescope"),
)
NEW_NOUNS = ("drone", "telescope")
KINDS = ("studio", "travel", "vintage", "kids'", "foldable", "budget", "premium", "outdoor", "compact", "wireless")

# Values of each feature with how often they occur; what decides nothing is noise.
FEATURES: dict[str, dict[str, float]] = {
    "last order": {},  # an article, by its noun and kind
    "order status": {"paid": 2, "packed": 1, "on the way": 2, "delayed": 1, "delivered": 4, "returned": 1},
    "days since delivery": {"0 to 2": 2, "3 to 14": 3, "15 to 30": 1, "over 30": 2},
    "seller": {"local": 2, "overseas": 2, "official store": 2},
    "payment": {"card": 3, "wallet": 2, "cash": 2, "instalments": 1},
    "last payment": {"fine": 7, "failed": 1, "disputed": 1},
    "last page": {"home": 2, "article": 4, "orders": 2, "wallet": 1, "vouchers": 1, "settings": 1},
    "last search": {},  # an article, or none
    "membership": {NONE: 5, "silver": 2, "gold": 2},
    "voucher": {NONE: 4, "expires today": 1, "several": 2},
    "login": {"usual device": 8, "new device": 2},
    "season": {"usual": 8, "sale": 2},
    # noise
    "device": {"phone": 6, "tablet": 1, "web": 3},
    "app version": {"4.1": 1, "4.2": 2, "4.3": 4, "4.4": 2},
    "weekday": dict.fromkeys(("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"), 1),
    "hour": {"morning": 2, "noon": 2, "evening": 4, "night": 1},
    "language": {"en": 6, "es": 2, "pt": 1},
    "age": {"18 to 24": 2, "25 to 34": 3, "35 to 49": 3, "over 50": 2},
    "region": dict.fromkeys(("north", "south", "east", "west"), 1),
    "notifications": {"on": 3, "off": 2},
}
ARTICLES = ("last order", "last search")
OF_USER = ("payment", "membership", "device", "language", "age", "region", "notifications")  # stay over the visits

# An action on a thing: the words, and the feature that says which thing.
ACTIONS: dict[str, tuple[str, str]] = {
    "track": ("Where is my {noun}?", "last order"),
    "cancel": ("How do I cancel the order of my {noun}?", "last order"),
    "return": ("How do I return my {noun}?", "last order"),
    "refund": ("When do I get the money for my {noun} back?", "last order"),
    "repair": ("Is the repair of my {noun} covered by the warranty?", "last order"),
    "set up": ("How do I set up my new {noun}?", "last order"),
    "price": ("Will the price of the {noun} drop?", "last search"),
    "stock": ("When is the {noun} back in stock?", "last search"),
}
GENERAL: dict[str, str] = {
    "pay again": "My payment failed, how do I pay again?",
    "card": "Which cards do you take?",
    "instalment": "When is my next instalment due?",
    "early": "Can I pay my instalments early?",
    "cash": "Can I still pay in cash at the door?",
    "wallet": "How do I top up my wallet?",
    "withdraw": "How do I withdraw money from my wallet?",
    "dispute": "What happens to my disputed payment?",
    "customs": "Do I have to pay customs?",
    "overseas": "How long does delivery from overseas take?",
    "use voucher": "How do I use my voucher?",
    "expiry": "Can my voucher be extended?",
    "combine": "Can I combine several vouchers?",
    "sale": "When does the sale end?",
    "gold": "What does a gold membership bring?",
    "upgrade": "How do I become a gold member?",
    "points": "How many points do I have?",
    "leave": "How do I end my membership?",
    "password": "How do I change my password?",
    "device": "Why was I asked to confirm a new device?",
    "hacked": "Somebody else uses my account, what now?",
    "address": "How do I change my address?",
    "slot": "Can I choose the time of delivery?",
    "neighbour": "Can a neighbour take my parcel?",
    "invoice": "Where is my invoice?",
    "company": "Can I have an invoice for my company?",
    "seller": "How do I reach the seller?",
    "rate": "How do I rate a seller?",
    "fake": "Is this seller genuine?",
    "messages": "How do I switch off messages?",
    "delete": "How do I delete my account?",
    "human": "Can I talk to a person?",
}
POPULAR = {
    "track": 0.5,
    "return": 0.3,
    "use voucher": 0.5,
    "human": 0.4,
    "delete": -1.0,
    "fake": -1.0,
    "company": -0.7,
}

# What makes a visitor want an action: log-odds, and the values that must all be there.
RULES: tuple[tuple[str, float, Mapping[str, Sequence[str]]], ...] = (
    ("track", 3.5, {"order status": ["on the way"]}),
    ("track", 4.0, {"order status": ["delayed"], "membership": [NONE, "silver"]}),
    ("cancel", 4.2, {"order status": ["delayed"], "membership": ["gold"]}),
    ("cancel", 3.6, {"order status": ["paid", "packed"], "last page": ["orders"]}),
    ("cancel", 3.0, {"order status": ["paid"], "payment": ["cash"]}),
    # Only together: of the other two combinations the one is wanted as much as the other is not.
    ("return", 4.2, {"order status": ["delivered"], "days since delivery": ["3 to 14"], "seller": ["local"]}),
    ("return", 4.2, {"order status": ["delivered"], "seller": ["overseas"], "payment": ["card", "instalments"]}),
    ("refund", 4.2, {"order status": ["delivered"], "seller": ["overseas"], "payment": ["wallet", "cash"]}),
    ("refund", 4.5, {"order status": ["returned"], "last payment": ["fine"]}),
    ("dispute", 4.5, {"order status": ["returned"], "last payment": ["failed", "disputed"]}),
    ("repair", 4.2, {"order status": ["delivered"], "days since delivery": ["over 30"], "seller": ["official store"]}),
    ("set up", 4.2, {"order status": ["delivered"], "days since delivery": ["0 to 2"], "seller": ["official store"]}),
    ("seller", 3.5, {"days since delivery": ["15 to 30"], "seller": ["local"], "order status": ["delivered"]}),
    ("price", 4.5, {"last page": ["article"], "season": ["usual"], "membership": [NONE]}),
    ("stock", 4.5, {"last page": ["article"], "season": ["sale"]}),
    ("stock", 4.0, {"last page": ["article"], "season": ["usual"], "membership": ["gold"]}),
    ("pay again", 4.5, {"last payment": ["failed"], "order status": ["paid", "packed"]}),
    ("card", 3.0, {"last payment": ["failed"], "payment": ["card"]}),
    ("dispute", 3.5, {"last payment": ["disputed"]}),
    ("instalment", 3.0, {"payment": ["instalments"], "last page": ["wallet", "orders"]}),
    ("early", 3.0, {"payment": ["instalments"], "membership": ["gold"]}),
    ("cash", 3.0, {"payment": ["cash"], "order status": ["on the way"]}),
    ("slot", 3.0, {"payment": ["cash"], "order status": ["packed"]}),
    ("wallet", 3.2, {"last page": ["wallet"], "payment": ["wallet"]}),
    ("withdraw", 3.0, {"last page": ["wallet"], "order status": ["returned"]}),
    ("customs", 3.0, {"seller": ["overseas"], "order status": ["paid", "packed"]}),
    ("overseas", 3.2, {"seller": ["overseas"], "order status": ["on the way", "delayed"]}),
    ("use voucher", 3.5, {"last page": ["vouchers"], "voucher": ["several"], "season": ["usual"]}),
    ("combine", 4.0, {"last page": ["vouchers", "article"], "voucher": ["several"], "season": ["sale"]}),
    ("expiry", 3.8, {"voucher": ["expires today"], "season": ["usual"]}),
    ("sale", 4.0, {"voucher": ["expires today"], "season": ["sale"]}),
    ("gold", 3.0, {"membership": ["silver"], "last page": ["home"]}),
    ("upgrade", 3.0, {"membership": ["silver"], "voucher": [NONE], "last page": ["vouchers", "settings"]}),
    ("points", 3.0, {"membership": ["gold"], "last page": ["home", "vouchers"]}),
    ("leave", 3.0, {"membership": ["gold", "silver"], "last page": ["settings"], "login": ["usual device"]}),
    ("device", 4.0, {"login": ["new device"], "last payment": ["fine"]}),
    ("hacked", 4.5, {"login": ["new device"], "last payment": ["failed", "disputed"]}),
    ("password", 3.0, {"login": ["new device"], "last page": ["settings"]}),
    ("address", 3.5, {"order status": ["paid", "packed"], "last page": ["settings"]}),
    ("invoice", 3.0, {"order status": ["delivered"], "last page": ["orders"], "payment": ["card"]}),
    ("messages", 3.0, {"last page": ["settings"], "membership": [NONE]}),
    ("human", 1.5, {"last payment": ["disputed"]}),
)
BASE, ANOTHER_THING = -4.5, -3.5  # log-odds: of an action that nothing speaks for, and of one on another thing


@cache
def intents() -> tuple[tuple[str, str, str, str], ...]:
    """Of every intent its id, its text, its action and its noun, which is empty for a general one."""
    of_things = [
        (f"{action} {noun}".replace(" ", "-"), text.format(noun=noun), action, noun)
        for noun in NOUNS
        for action, (text, _) in ACTIONS.items()
    ]
    return tuple(of_things + [(action.replace(" ", "-"), text, action, "") for action, text in GENERAL.items()])


def is_new() -> np.ndarray:
    """``[intents]``, bool: those that are there from ``NEW_FROM`` on only."""
    return np.array([noun in NEW_NOUNS for _, _, _, noun in intents()])


def utility(visitors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Log-odds ``[n, intents]`` that a visitor clicks an intent that is looked at.

    Args:
        visitors: every feature of ``FEATURES`` to its values ``[n]``, as text.
    """
    n = len(visitors["seller"])
    wanted = {action: np.full(n, BASE + POPULAR.get(action, 0.0)) for action in (*ACTIONS, *GENERAL)}
    is_among = {}  # feature and values, for several rules ask the same
    for action, log_odds, values in RULES:
        met = np.ones(n, dtype=bool)
        for name, some in values.items():
            key = (name, tuple(some))
            if key not in is_among:
                is_among[key] = np.isin(visitors[name], some)
            met &= is_among[key]
        wanted[action] += log_odds * met
    nouns = {name: np.array([article.rpartition(" ")[2] for article in visitors[name]]) for name in ARTICLES}
    columns = []
    for _, _, action, noun in intents():
        own = 0.0 if not noun else np.where(nouns[ACTIONS[action][1]] == noun, 0.0, ANOTHER_THING)
        columns.append(wanted[action] + own)
    return np.stack(columns, axis=1)


def attraction(visitors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The chance ``[n, intents]`` that a visitor clicks an intent that is looked at."""
    return 1 / (1 + np.exp(-utility(visitors)))


def draw_visitors(rng: np.random.Generator, moments: np.ndarray, users: np.ndarray) -> dict[str, np.ndarray]:
    """Features of visits, each a column of texts ``[n]``.

    Args:
        moments: ``[n]``, share of the time, in [0, 1).
        users: ``[n]``, numbers from 0; what is in ``OF_USER`` is the same in all visits of one.
    """
    n, n_users = len(moments), int(users.max()) + 1
    is_late = moments >= NEW_FROM
    visitors = {}
    for name, shares in FEATURES.items():
        if name in ARTICLES:
            visitors[name] = _articles(rng, is_late)
            continue
        values, weights = np.array(list(shares)), np.array(list(shares.values())) / sum(shares.values())
        if name in OF_USER:
            visitors[name] = rng.choice(values, n_users, p=weights)[users]
        elif name == "season":
            visitors[name] = np.where(rng.random(n) < np.where(is_late, 0.5, 0.15), "sale", "usual")
        else:
            visitors[name] = rng.choice(values, n, p=weights)
    not_there = ~np.isin(visitors["order status"], ["delivered", "returned"])
    visitors["days since delivery"] = np.where(not_there, NONE, visitors["days since delivery"])
    visitors["last search"] = np.where(rng.random(n) < 0.25, NONE, visitors["last search"])
    return visitors


def _articles(rng: np.random.Generator, is_late: np.ndarray) -> np.ndarray:
    """Articles ``[n]``; some kinds and nouns are rare."""
    nouns, kinds = np.array(NOUNS), np.array(KINDS)
    n_new = len(NEW_NOUNS)
    often = 1 / np.arange(2, len(nouns) - n_new + 2) ** 0.7
    drawn = rng.choice(len(nouns) - n_new, len(is_late), p=often / often.sum())
    new = rng.integers(len(nouns) - n_new, len(nouns), len(is_late))
    noun = np.where(is_late & (rng.random(len(is_late)) < 0.25), new, drawn)
    often = 1 / np.arange(1, len(kinds) + 1) ** 1.2
    kind = (rng.choice(len(kinds), len(is_late), p=often / often.sum()) + 3 * noun) % len(kinds)
    return np.char.add(np.char.add(kinds[kind], " "), nouns[noun])


def draw_log(n: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Impressions of an old ranker in the order of time; some show its three in random order.

    It knows a part of what visitors want, with noise. It does not show what is not there yet.

    Returns:
        The features; the intents shown ``[n, 3]``, by their number; clicks ``[n, 3]``; and ``moment``, ``user`` and
        ``is_shuffled``, ``[n]`` each.
    """
    rng = np.random.default_rng([seed, 20])
    moments, users = np.sort(rng.random(n)), rng.integers(max(n // 3, 1), size=n)
    is_shuffled = rng.random(n) < SHUFFLED
    visitors = draw_visitors(rng, moments, users)
    shown, clicks = np.empty((n, N_SHOWN), dtype=int), np.empty((n, N_SHOWN), dtype=int)
    for start in range(0, n, 50_000):
        part = slice(start, start + 50_000)
        log_odds = utility({name: values[part] for name, values in visitors.items()})
        seen = 0.6 * log_odds + rng.gumbel(0, 1.0, log_odds.shape)
        seen[(moments[part] < NEW_FROM)[:, None] & is_new()] = -np.inf
        best = np.argsort(-seen, axis=1)[:, :N_SHOWN]
        shown[part] = np.where(is_shuffled[part, None], rng.permuted(best, axis=1), best)
        chance = np.take_along_axis(1 / (1 + np.exp(-log_odds)), shown[part], axis=1) * EXAMINATION[:N_SHOWN]
        clicks[part] = rng.random(chance.shape) < chance
    return visitors, shown, clicks, {"moment": moments, "user": users, "is_shuffled": is_shuffled}


def write_zero_query_log(out: str | Path, n_impressions: int, seed: int) -> np.ndarray:
    """Write ``clicks.jsonl`` and ``intents.jsonl`` into the folder ``out``; the clicks ``[n, 3]`` come back."""
    if n_impressions < 1:
        raise ValueError(f"n_impressions {n_impressions}: give 1 or more")
    visitors, shown, clicks, others = draw_log(n_impressions, seed)
    texts = [text for _, text, _, _ in intents()]
    rows = (
        {
            "impression_id": f"visit-{row:07d}",
            "timestamp": (FIRST_DAY + timedelta(days=N_DAYS * float(others["moment"][row]))).isoformat(),
            "conversation": [],
            "suggestions": [texts[intent] for intent in shown[row]],
            "clicks": clicks[row].tolist(),
            "user_id": f"user-{others['user'][row]:06d}",
            "policy": "shuffled" if others["is_shuffled"][row] else "old ranker",
            "features": {name: str(values[row]) for name, values in visitors.items()},
        }
        for row in range(n_impressions)
    )
    out = Path(out)
    write_json_lines(out / "clicks.jsonl", rows)
    write_json_lines(out / "intents.jsonl", ({"id": key, "text": text} for key, text, _, _ in intents()))
    return clicks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for clicks.jsonl and intents.jsonl")
    parser.add_argument("--n_impressions", type=int, default=60_000, help="number of visits; default 60000")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    clicks = write_zero_query_log(args.out, args.n_impressions, args.seed)
    print(f"{len(clicks):,} visits, {int(clicks.sum()):,} clicks, {len(intents())} intents in {args.out}")


def features_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Feature dictionaries as the columns that :func:`attraction` takes. ValueError where one is not of this world."""
    for row in rows:
        missing = [name for name in FEATURES if name not in row]
        if missing:
            raise ValueError(f"not a visitor of the zero-query world: without {', '.join(missing[:3])}")
    return {name: np.array([row[name] for row in rows]) for name in FEATURES}
