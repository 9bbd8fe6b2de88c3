"""Small worlds in English, Chinese, Hindi, and German, Chinese and English mixed: conversations, suggestions, and
users who are known.

A user clicks what is about the conversation's subject, asks for one of the aspects that people like, and is in the
language of the question; all else hardly. So a log of theirs can be learned from, and a policy that leaves the
language loses its clicks. The file registers the judge ``small_world``: ``JUDGE=tests/worlds.py``.

    python tests/worlds.py mixed clicks.jsonl 6000 1200      # world, file, impressions, conversations
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from openrlhf_qs.registry import JUDGES

EXAMINATION = (1.0, 0.7, 0.5)
LIKED, OTHER, BAD = 0.5, 0.08, 0.005  # chance of a click where the place is looked at
KINDS = {
    "liked": 4,
    "other": 4,
    "bland": 2,
    "elsewhere": 2,
    "foreign": 2,
}  # of suggestions, and how often each is shown


class Language(NamedTuple):
    """What is written in one language; ``{}`` stands for the subject, and in ``forms`` for its name."""

    names: list[str]
    forms: list[str]
    questions: list[str]
    answers: list[str]
    liked: list[str]
    other: list[str]
    bland: list[str]
    instruction: str

    def subjects(self) -> list[str]:
        return [form.format(name) for name in self.names for form in self.forms]


LANGUAGES = {
    "zh": Language(
        ["牛肉面", "绿萝", "吉他", "西瓜", "相机", "皮鞋", "年假", "签证", "猫粮", "热水器", "电池", "咖啡"],
        ["{}", "便宜的{}", "冬天的{}", "新的{}", "第一次用的{}", "公司的{}"],
        ["我想了解{}，怎么开始？", "{}应该怎么选？", "关于{}有什么要注意的？"],
        ["{}并不难，先看清楚再动手。", "选{}的时候要多比较几家。"],
        ["{}大概要花多少钱？", "{}最常见的错误是什么？", "在家里怎么处理{}？"],
        ["{}是谁发明的？", "{}的历史有多长？", "有没有关于{}的书？"],
        ["你还能说点别的吗？", "今天的天气怎么样？"],
        "请给出用户接下来可能会问的 $n 个简短问题，编号为 1 到 $n。",
    ),
    "hi": Language(
        ["चाय", "गिटार", "पौधे", "कैमरा", "वीज़ा", "बैटरी", "जूते", "रोटी", "दही", "साइकिल", "बीमा", "कंप्यूटर"],
        ["{}", "सस्ते {}", "सर्दियों में {}", "घर के {}", "बच्चों के {}", "पुराने {}"],
        ["{} के बारे में बताइए।", "{} कैसे चुनें?", "{} की शुरुआत कैसे करें?"],
        ["{} मुश्किल नहीं है, पहले ध्यान से देखिए।", "{} लेते समय तुलना कीजिए।"],
        ["{} में कितना खर्च आएगा?", "{} में आम गलती क्या है?", "घर पर {} का ध्यान कैसे रखें?"],
        ["{} का आविष्कार किसने किया?", "{} का इतिहास कितना पुराना है?", "{} पर कोई किताब है?"],
        ["और कुछ बताइए?", "आज मौसम कैसा है?"],
        "उपयोगकर्ता आगे जो $n छोटे सवाल पूछ सकता है, वे 1 से $n तक क्रमांक देकर लिखिए।",
    ),
    "de": Language(
        ["Sauerteig", "Gitarren", "Zimmerpflanzen", "Kameras", "Wärmepumpen", "Fahrräder", "Versicherungen", "Kaffee"],
        ["{}", "{} im Winter", "{} für Anfänger", "{} für Kinder", "{} im Büro", "{} auf Reisen"],
        ["Was muss ich über {} wissen?", "Wie fange ich mit {} an?", "Worauf kommt es bei {} an?"],
        ["Mit {} ist es einfach, wenn man langsam beginnt.", "Bei {} lohnt sich ein Vergleich."],
        ["Was kostet das mit {} ungefähr?", "Welche Fehler macht man bei {} oft?", "Was brauche ich zu Hause für {}?"],
        ["Wer hat {} erfunden?", "Wie alt ist die Idee von {}?", "Gibt es Bücher über {}?"],
        ["Was gibt es sonst noch?", "Wie wird das Wetter heute?"],
        "Schlage $n kurze Fragen vor, die der Nutzer als Nächstes stellen könnte, nummeriert von 1 bis $n.",
    ),
    "en": Language(
        ["sourdough", "guitars", "houseplants", "cameras", "heat pumps", "bicycles", "insurance", "coffee"],
        ["{}", "{} in winter", "{} for beginners", "{} for children", "{} at work", "{} on a journey"],
        ["What should I know about {}?", "How do I get started with {}?", "What matters most about {}?"],
        ["It is easy with {} if you begin slowly.", "It pays to compare when it comes to {}."],
        ["What does it cost to begin with {}?", "What mistakes are common with {}?", "What do I need at home for {}?"],
        ["Who invented {} in the first place?", "How old is the history of {}?", "Are there any books about {}?"],
        ["Can you tell me something else?", "How is the weather today?"],
        "Suggest $n short questions the user may ask next, numbered 1 to $n.",
    ),
}
WORLDS = {"en": ("en",), "zh": ("zh",), "hi": ("hi",), "mixed": ("de", "zh", "en")}
SCENES = {  # by the question: language and subject
    question.format(subject): (code, subject)
    for code, language in LANGUAGES.items()
    for subject in language.subjects()
    for question in language.questions
}


def conversation(code: str, rng: random.Random) -> list[dict[str, str]]:
    language = LANGUAGES[code]
    subject = rng.choice(language.subjects())
    return [
        {"role": "user", "content": rng.choice(language.questions).format(subject)},
        {"role": "assistant", "content": rng.choice(language.answers).format(subject)},
    ]


def suggestions(world: str, conversation: Sequence[dict[str, str]], rng: random.Random) -> list[str]:
    """Three of what a mixed policy would show: liked ones, others, bland ones, another subject, another language."""
    code, subject = SCENES[conversation[0]["content"]]
    texts: list[str] = []
    while len(texts) < 3:
        kind = rng.choices(list(KINDS), KINDS.values())[0]
        spoken = LANGUAGES[rng.choice(WORLDS[world]) if kind == "foreign" else code]
        about = subject if kind in ("liked", "other") else rng.choice(spoken.subjects())
        ways = {"bland": spoken.bland, "other": spoken.other}.get(kind, spoken.liked)
        text = rng.choice(ways).format(about)
        if text not in texts:
            texts.append(text)
    return texts


def chance(conversation: Sequence[dict[str, str]], suggestion: str) -> float:
    """Of a click where the place is looked at."""
    code, subject = SCENES[conversation[0]["content"]]
    if suggestion in [text.format(subject) for text in LANGUAGES[code].liked]:
        return LIKED
    return OTHER if suggestion in [text.format(subject) for text in LANGUAGES[code].other] else BAD


def write_log(path: str | Path, world: str, n_impressions: int, n_contexts: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    contexts = [conversation(rng.choice(WORLDS[world]), rng) for _ in range(n_contexts)]
    with open(path, "w", encoding="utf-8") as file:
        for n in range(n_impressions):
            asked = rng.choice(contexts)
            shown = suggestions(world, asked, rng)
            clicks = [int(rng.random() < e * chance(asked, s)) for e, s in zip(EXAMINATION, shown, strict=True)]
            row = {
                "impression_id": f"i{n}",
                "timestamp": f"2025-01-{1 + n % 28:02d}T{n // 28 % 24:02d}:00:00Z",
                "conversation": asked,
                "suggestions": shown,
                "clicks": clicks,
                "user_id": f"u{rng.randrange(400)}",
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


if __name__ == "__main__":
    world, path, n_impressions, n_contexts = sys.argv[1:]
    write_log(path, world, int(n_impressions), int(n_contexts))
