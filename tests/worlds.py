"""Small worlds in Chinese, Hindi, and German, Chinese and English mixed: conversations, suggestions, and users who are
known.

A user clicks what is about the conversation's subject, asks for one of the aspects that people like, and is in the
language of the question; all else hardly. So a log of theirs can be learned from, and a policy that leaves the
language loses its clicks. The file registers the judge ``small_world``: ``JUDGE=tests/worlds.py``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from openrlhf_qs.registry import JUDGES

EXAMINATION = (1.0, 0.7, 0.5)
LIKED, OTHER, BAD = 0.5, 0.08, 0.005  # chance of a click where the place is looked at
# By language: subjects, questions about one, answers, liked aspects, others, what is about no subject.
LANGUAGES = {
    "zh": (
        ["牛肉面", "绿萝", "吉他", "西瓜", "相机", "皮鞋", "年假", "签证", "猫粮", "热水器", "电池", "咖啡"],
        ["我想了解{}，怎么开始？", "{}应该怎么选？", "关于{}有什么要注意的？"],
        ["{}并不难，先看清楚再动手。", "选{}的时候要多比较几家。"],
        ["{}大概要花多少钱？", "{}最常见的错误是什么？", "在家里怎么处理{}？"],
        ["{}是谁发明的？", "{}的历史有多长？", "有没有关于{}的书？"],
        ["你还能说点别的吗？", "今天的天气怎么样？"],
    ),
    "hi": (
        ["चाय", "गिटार", "पौधे", "कैमरा", "वीज़ा", "बैटरी", "जूते", "रोटी", "दही", "साइकिल", "बीमा", "कंप्यूटर"],
        ["{} के बारे में बताइए।", "{} कैसे चुनें?", "{} की शुरुआत कैसे करें?"],
        ["{} मुश्किल नहीं है, पहले ध्यान से देखिए।", "{} लेते समय तुलना कीजिए।"],
        ["{} में कितना खर्च आएगा?", "{} में आम गलती क्या है?", "घर पर {} का ध्यान कैसे रखें?"],
        ["{} का आविष्कार किसने किया?", "{} का इतिहास कितना पुराना है?", "{} पर कोई किताब है?"],
        ["और कुछ बताइए?", "आज मौसम कैसा है?"],
    ),
    "de": (
        ["Sauerteig", "Gitarre", "Zimmerpflanzen", "Kamera", "Wärmepumpe", "Fahrrad", "Versicherung", "Kaffee"],
        ["Was muss ich über {} wissen?", "Wie fange ich mit {} an?", "Worauf kommt es bei {} an?"],
        ["Mit {} ist es einfach, wenn man langsam beginnt.", "Bei {} lohnt sich ein Vergleich."],
        ["Was kostet das mit {} ungefähr?", "Welche Fehler macht man bei {} oft?", "Was brauche ich zu Hause für {}?"],
        ["Wer hat {} erfunden?", "Wie alt ist {} eigentlich?", "Gibt es Bücher über {}?"],
        ["Was gibt es sonst noch?", "Wie wird das Wetter heute?"],
    ),
    "en": (
        ["sourdough", "guitar", "houseplants", "cameras", "heat pumps", "bicycles", "insurance", "coffee"],
        ["What should I know about {}?", "How do I get started with {}?", "What matters most about {}?"],
        ["It is easy with {} if you begin slowly.", "It pays to compare when it comes to {}."],
        ["What does it cost to begin with {}?", "What mistakes are common with {}?", "What do I need at home for {}?"],
        ["Who invented {} in the first place?", "How old is the history of {}?", "Are there any books about {}?"],
        ["Can you tell me something else?", "How is the weather today?"],
    ),
}
WORLDS = {"zh": ("zh",), "hi": ("hi",), "mixed": ("de", "zh", "en")}


def conversation(language: str, rng: random.Random) -> list[dict[str, str]]:
    subjects, questions, answers, *_ = LANGUAGES[language]
    subject = rng.choice(subjects)
    return [
        {"role": "user", "content": rng.choice(questions).format(subject)},
        {"role": "assistant", "content": rng.choice(answers).format(subject)},
    ]


def scene(conversation: Sequence[dict[str, str]]) -> tuple[str, str]:
    """Language and subject of a conversation of :func:`conversation`."""
    question = conversation[0]["content"]
    return next(
        (language, subject)
        for language, (subjects, questions, *_) in LANGUAGES.items()
        for subject in subjects
        if question in [text.format(subject) for text in questions]
    )


def suggestions(world: str, conversation: Sequence[dict[str, str]], rng: random.Random) -> list[str]:
    """Three of what a mixed policy would show: liked ones, others, bland ones, another subject, another language."""
    language, subject = scene(conversation)
    texts: list[str] = []
    while len(texts) < 3:
        kind = rng.choices(["liked", "other", "bland", "elsewhere", "foreign"], [4, 4, 2, 2, 2])[0]
        spoken = rng.choice(WORLDS[world]) if kind == "foreign" else language
        subjects, _, _, liked, other, bland = LANGUAGES[spoken]
        about = subject if kind in ("liked", "other") else rng.choice(subjects)
        text = rng.choice(bland if kind == "bland" else other if kind == "other" else liked).format(about)
        if text not in texts:
            texts.append(text)
    return texts


def chance(conversation: Sequence[dict[str, str]], suggestion: str) -> float:
    """Of a click where the place is looked at."""
    language, subject = scene(conversation)
    *_, liked, other, _ = LANGUAGES[language]
    if suggestion in [text.format(subject) for text in liked]:
        return LIKED
    return OTHER if suggestion in [text.format(subject) for text in other] else BAD


def write_log(path: Path, world: str, n_impressions: int, n_contexts: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    contexts = [conversation(rng.choice(WORLDS[world]), rng) for _ in range(n_contexts)]
    with open(path, "w", encoding="utf-8") as file:
        for n in range(n_impressions):
            asked = rng.choice(contexts)
            shown = suggestions(world, asked, rng)
            clicks = [int(rng.random() < e * chance(asked, s)) for e, s in zip(EXAMINATION, shown, strict=True)]
            row = {
                "impression_id": f"i{n}",
                "timestamp": f"2025-01-{1 + n % 28:02d}T00:00:00Z",
                "conversation": asked,
                "suggestions": shown,
                "clicks": clicks,
                "user_id": f"u{n % 400}",
                "policy": "mixed",
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@JUDGES.register("small_world")
class SmallWorld:
    """The users of the small worlds: known chances, by place; what is said twice is clicked once."""

    def __call__(self, conversations, suggestions):
        return [
            [
                0.0 if text in texts[:n] else examined * chance(asked, text)
                for n, (examined, text) in enumerate(zip(EXAMINATION, texts, strict=False))
            ]
            for asked, texts in zip(conversations, suggestions, strict=True)
        ]
