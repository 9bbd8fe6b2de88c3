"""The language of the built-in world: what is said in it, and how a text is read.

A conversation is a question about one aspect of a topic and an answer that names a second aspect. Everything is
composed: ``topic x intent x aspect x wording`` makes several hundred thousand contexts out of about a thousand words,
few enough for a small model that learns from nothing to speak it within minutes.

:func:`read` goes the other way: from any text to the topics, aspects and intents it names, and how fluent it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Domain:
    """A field of interest.

    Attributes:
        facet: how an aspect of a topic is named, with ``{topic}`` and ``{aspect}``.
        topics, aspects: noun phrases of one or two words, all singular, so that ``is`` and ``does`` fit.
    """

    facet: str
    topics: tuple[str, ...]
    aspects: tuple[str, ...]


@dataclass(frozen=True)
class Intent:
    """What a question is after.

    Attributes:
        cues: the words that tell this intent from the others.
        questions: wordings; ``{it}`` is a topic, an aspect, or an aspect of a topic.
        answers: what the assistant says, with ``{topic}`` and ``{aspect}``.
        next: the intents that are a natural next step after such an answer.
    """

    cues: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    next: tuple[str, ...]


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


_BESIDE, _WITHIN = "{topic} {aspect}", "{aspect} in {topic}"

DOMAINS: dict[str, Domain] = {
    "baking": Domain(
        _BESIDE,
        _phrases(
            """sourdough, brioche, focaccia, ciabatta, cornbread, shortbread, gingerbread, banana bread, pizza dough,
            puff pastry, rye bread"""
        ),
        _phrases("mixing, resting, shaping, oven heat, flour choice, sweetness, browning, freezing, moisture"),
    ),
    "cooking": Domain(
        _BESIDE,
        _phrases(
            """risotto, ramen, paella, lasagna, pad thai, tomato soup, fried rice, beef stew, ratatouille, fish curry,
            bean chili"""
        ),
        _phrases(
            """seasoning, garnish, simmering, reheating, plating, knife work, pan choice, portion size, spice level"""
        ),
    ),
    "gardening": Domain(
        _BESIDE,
        _phrases("basil, lavender, mint, spinach, garlic, rosemary, kale, parsley, thyme, jasmine, lettuce"),
        _phrases(
            """watering, pruning, soil care, sunlight, pest control, harvesting, seed spacing, pot choice,
            fertilizing"""
        ),
    ),
    "pets": Domain(
        _WITHIN,
        _phrases(
            """puppy care, kitten care, rabbit care, hamster care, parrot care, ferret care, pony care, gerbil care,
            chinchilla care, hedgehog care, mouse care"""
        ),
        _phrases("diet, bedding, grooming, handling, exercise, playtime, vaccination, nail trimming, dental hygiene"),
    ),
    "travel": Domain(
        _WITHIN,
        _phrases("Japan, Portugal, Iceland, Morocco, Peru, Vietnam, Greece, Norway, Kenya, Jordan, Scotland"),
        _phrases(
            """train travel, street food, hotel booking, car rental, tipping, sightseeing, trip planning,
            mountain hiking, souvenir shopping"""
        ),
    ),
    "fitness": Domain(
        _BESIDE,
        _phrases(
            """yoga, running, swimming, cycling, rowing, boxing, pilates, climbing, weightlifting, kickboxing,
            gymnastics"""
        ),
        _phrases("breathing, posture, stretching, recovery, hydration, pacing, endurance, balance, nutrition"),
    ),
    "health": Domain(
        _BESIDE,
        _phrases(
            """asthma, migraine, insomnia, anemia, eczema, arthritis, diabetes, hay fever, back pain, tinnitus,
            heartburn"""
        ),
        _phrases(
            """medication, diagnosis, stress relief, meal planning, sleep quality, prevention, symptom logging,
            doctor choice, home treatment"""
        ),
    ),
    "money": Domain(
        _WITHIN,
        _phrases(
            """budgeting, retirement saving, index investing, stock trading, tax filing, debt repayment,
            estate planning, house flipping, car leasing, credit building, currency trading"""
        ),
        _phrases(
            """record keeping, goal setting, interest planning, fee control, timing, paperwork, account choice,
            advisor choice, fraud protection"""
        ),
    ),
    "programming": Domain(
        _WITHIN,
        _phrases("Python, Rust, Java, Kotlin, Haskell, Julia, Ruby, Scala, TypeScript, Perl, Fortran"),
        _phrases(
            """error handling, memory use, unit testing, type checking, debugging, packaging, concurrency, code review,
            file access"""
        ),
    ),
    "machine learning": Domain(
        _WITHIN,
        _phrases(
            """linear regression, gradient boosting, deep learning, transfer learning, speech recognition,
            text classification, object detection, topic modeling, machine translation, anomaly detection,
            image segmentation"""
        ),
        _phrases(
            """data cleaning, feature choice, model tuning, overfitting, evaluation, labeling, deployment,
            bias control, error analysis"""
        ),
    ),
    "photography": Domain(
        _WITHIN,
        _phrases(
            """portrait photography, street photography, wildlife photography, food photography, wedding photography,
            sports photography, landscape photography, night photography, fashion photography, product photography,
            pet photography"""
        ),
        _phrases(
            """lighting, lens choice, shutter speed, composition, focus, photo editing, background choice, flash use,
            color grading"""
        ),
    ),
    "music": Domain(
        _BESIDE,
        _phrases("piano, guitar, violin, cello, flute, saxophone, trumpet, harp, ukulele, banjo, clarinet"),
        _phrases(
            """rhythm, sight reading, tuning, ear training, improvisation, memorization, tone control, finger speed,
            stage presence"""
        ),
    ),
    "crafts": Domain(
        _WITHIN,
        _phrases(
            """knitting, pottery, origami, calligraphy, woodworking, embroidery, quilting, candle making, soap making,
            leatherwork, weaving"""
        ),
        _phrases(
            """pattern design, color choice, material choice, finishing, cutting, workspace setup, decoration,
            texture work, waste reduction"""
        ),
    ),
    "languages": Domain(
        _BESIDE,
        _phrases("Spanish, French, Mandarin, German, Italian, Korean, Arabic, Russian, Swahili, Turkish, Dutch"),
        _phrases(
            """grammar, pronunciation, vocabulary, listening, spelling, small talk, slang, sentence order, writing"""
        ),
    ),
    "home repair": Domain(
        _WITHIN,
        _phrases(
            """roof repair, drywall repair, faucet repair, tile repair, fence repair, window repair, wall painting,
            floor sanding, deck staining, door hanging, carpet laying"""
        ),
        _phrases(
            """surface preparation, dust control, sealing, drying, crack filling, cleanup, edge work, moisture control,
            ladder safety"""
        ),
    ),
    "parenting": Domain(
        _WITHIN,
        _phrases(
            """potty training, sleep training, breastfeeding, homeschooling, baby weaning, toddler discipline,
            bedtime reading, sibling rivalry, tantrum control, daycare transition, screen weaning"""
        ),
        _phrases(
            """praise, routine building, patience, calm talk, reward use, eye contact, boundary setting,
            partner support, comfort"""
        ),
    ),
    "career": Domain(
        _WITHIN,
        _phrases(
            """interviewing, networking, public speaking, resume writing, salary negotiation, remote work, freelancing,
            team leadership, project planning, time management, job searching"""
        ),
        _phrases(
            """preparation, confidence, feedback, body language, storytelling, email etiquette, self promotion,
            note taking, conflict handling"""
        ),
    ),
    "games": Domain(
        _BESIDE,
        _phrases("chess, poker, bridge, backgammon, scrabble, checkers, mahjong, sudoku, blackjack, cribbage, rummy"),
        _phrases(
            """opening strategy, endgame play, pattern reading, concentration, scoring, online play, tournament play,
            rule learning, speed play"""
        ),
    ),
    "energy": Domain(
        _BESIDE,
        _phrases(
            """solar heating, wind power, rainwater storage, geothermal heating, battery storage, biogas,
            home insulation, electric driving, wood heating, heat recovery, floor heating"""
        ),
        _phrases(
            """installation, upkeep, sizing, noise control, permit handling, efficiency, supplier choice, subsidy use,
            leak testing"""
        ),
    ),
    "outdoors": Domain(
        _BESIDE,
        _phrases(
            """camping, fishing, kayaking, surfing, skiing, sailing, snowboarding, birdwatching, foraging, backpacking,
            snorkeling"""
        ),
        _phrases(
            """gear packing, clothing, navigation, weather reading, first aid, site choice, sun protection,
            group safety, snack planning"""
        ),
    ),
}

INTENTS: dict[str, Intent] = {
    "begin": Intent(
        ("begin", "beginner"),
        ("How do I begin with {it}?", "What should a beginner know about {it}?", "What is an easy way to begin {it}?"),
        (
            "Start small. Try {aspect} once this week, keep it simple, and write down what you notice.",
            "Most people learn {topic} slowly, so give {aspect} ten quiet minutes every week.",
        ),
        ("steps", "tools", "mistakes", "time"),
    ),
    "explain": Intent(
        ("explain",),
        ("Can you explain {it} simply?", "Could you explain how {it} works?", "Please explain the idea behind {it}."),
        (
            "In short, {aspect} is the part of {topic} that turns a rough try into a good result.",
            "Think of {aspect} as a quiet helper that decides the result before anything else does.",
        ),
        ("example", "reason", "begin", "myths"),
    ),
    "reason": Intent(
        ("matter", "important"),
        ("Why does {it} matter so much?", "Why is {it} important?", "Does {it} really matter?"),
        (
            "It decides the whole result: without good {aspect}, the rest of {topic} becomes much harder.",
            "Good {aspect} saves effort later and makes {topic} far more pleasant.",
        ),
        ("improve", "experts", "begin", "mistakes"),
    ),
    "mistakes": Intent(
        ("mistake", "mistakes", "avoid"),
        (
            "Which mistakes with {it} should I avoid?",
            "What is a common mistake with {it}?",
            "What should I avoid with {it}?",
        ),
        (
            "Many people rush {aspect} or skip it, and then {topic} lets them down.",
            "The usual error is to do too much {aspect} at once and to change everything together.",
        ),
        ("fix", "track", "habits", "risk"),
    ),
    "example": Intent(
        ("example",),
        (
            "Can you give an example of good {it}?",
            "What does a real example of {it} look like?",
            "Do you have a simple example of {it}?",
        ),
        (
            "Picture a neighbor who plans {aspect} on Sunday and then enjoys {topic} all week.",
            "A simple case is someone who keeps {aspect} modest and checks the result each evening.",
        ),
        ("steps", "options", "advanced", "begin"),
    ),
    "steps": Intent(
        ("step", "steps"),
        ("What are the steps of {it}?", "Which step of {it} comes first?", "Can you list the steps of {it}?"),
        (
            "First plan {aspect}, then try it, then look at the result and adjust.",
            "You get ready, you do {aspect} slowly, and you check {topic} at the end.",
        ),
        ("time", "tools", "mistakes", "cost"),
    ),
    "improve": Intent(
        ("improve", "better"),
        ("How can I improve {it}?", "How do I get better at {it}?", "What would improve {it} quickly?"),
        (
            "Change one small thing about {aspect}, wait a week, and keep whatever works for {topic}.",
            "Ask a friend to watch your {aspect} and tell you honestly what to change.",
        ),
        ("habits", "track", "advanced", "tools"),
    ),
    "tools": Intent(
        ("tool", "tools"),
        ("Which tools help with {it}?", "Do I need special tools for {it}?", "What is the best tool for {it}?"),
        (
            "A few simple things are enough for {aspect}, and most shops sell them.",
            "You can do {aspect} with what you have at home, at least at first.",
        ),
        ("cost", "options", "books", "begin"),
    ),
    "time": Intent(
        ("time", "long"),
        (
            "How much time does {it} need?",
            "How long does {it} usually take?",
            "How much time should I give {it}?",
        ),
        (
            "Plan about an hour a week for {aspect}, and a little more at the start.",
            "It depends on your goal, but {aspect} rarely needs more than two evenings.",
        ),
        ("improve", "habits", "track", "cost"),
    ),
    "cost": Intent(
        ("cost", "expensive"),
        ("How much does {it} cost?", "Is {it} expensive?", "What does {it} usually cost?"),
        (
            "You can do {aspect} for about twenty dollars, and careful people pay even less.",
            "Prices differ a lot, yet {aspect} is seldom the largest part of the bill.",
        ),
        ("options", "tools", "risk", "time"),
    ),
    "options": Intent(
        ("option", "options", "compare"),
        ("What are my options with {it}?", "Which option is best for {it}?", "Can you compare options for {it}?"),
        (
            "There are three common ways to do {aspect}: a cheap one, a fast one and a careful one.",
            "You can do {aspect} alone, with a friend, or pay someone who knows {topic}.",
        ),
        ("cost", "experts", "risk", "trends"),
    ),
    "risk": Intent(
        ("risk", "risks", "risky"),
        ("What are the risks of {it}?", "How risky is {it}?", "Is there any risk with {it}?"),
        (
            "Serious harm is rare, but careless {aspect} can spoil the whole effort.",
            "There is a little danger in {aspect}, so go slowly and stop when unsure.",
        ),
        ("mistakes", "fix", "experts", "myths"),
    ),
    "fix": Intent(
        ("fix", "problems", "wrong"),
        ("What if {it} goes wrong?", "How do I fix problems with {it}?", "What causes problems with {it}?"),
        (
            "Stop, look at {aspect} calmly, and undo the last change you made.",
            "When {aspect} fails, go back to the last point where {topic} went well.",
        ),
        ("mistakes", "improve", "experts", "track"),
    ),
    "track": Intent(
        ("track", "progress", "measure"),
        ("How do I track progress with {it}?", "How can I measure {it}?", "What is a good way to measure {it}?"),
        (
            "Write one line about {aspect} every evening and look back after a month.",
            "Pick one number for {aspect} and note it each week in a small table.",
        ),
        ("improve", "habits", "tools", "example"),
    ),
    "experts": Intent(
        ("expert", "experts"),
        (
            "What do experts say about {it}?",
            "How do experts handle {it}?",
            "What would an expert do about {it}?",
        ),
        (
            "People with long experience in {topic} keep {aspect} plain and never rush it.",
            "Teachers of {topic} usually agree that {aspect} deserves care from the start.",
        ),
        ("books", "trends", "myths", "advanced"),
    ),
    "myths": Intent(
        ("myth", "myths"),
        (
            "Which myths about {it} are false?",
            "What is the biggest myth about {it}?",
            "Are there any myths about {it}?",
        ),
        (
            "Many believe that {aspect} needs talent, but steady effort counts far more.",
            "A popular story says {aspect} is only for rich people, which is simply untrue.",
        ),
        ("experts", "reason", "risk", "explain"),
    ),
    "books": Intent(
        ("book", "books"),
        (
            "Which book covers {it} well?",
            "Can you recommend a book about {it}?",
            "Are there good books on {it}?",
        ),
        (
            "Most libraries have a short guide to {topic} with a chapter about {aspect}.",
            "Look for a recent guide with pictures, since {aspect} is hard to describe in words.",
        ),
        ("begin", "example", "advanced", "steps"),
    ),
    "habits": Intent(
        ("habit", "habits"),
        (
            "Which daily habits help with {it}?",
            "What habit makes {it} easier?",
            "Can a small habit support {it}?",
        ),
        (
            "Do a little {aspect} at the same hour each day and it soon feels natural.",
            "Put a note near your door, so that {aspect} comes to mind each morning.",
        ),
        ("time", "track", "improve", "example"),
    ),
    "trends": Intent(
        ("trend", "trends", "new"),
        ("What are the latest trends in {it}?", "Which trend is changing {it}?", "What is new in {it}?"),
        (
            "More people now share {aspect} ideas online, and small groups meet to talk about {topic}.",
            "Recently, simple {aspect} has become popular again, because it saves effort.",
        ),
        ("experts", "tools", "books", "options"),
    ),
    "advanced": Intent(
        ("advanced",),
        (
            "What are advanced tricks for {it}?",
            "Can you share an advanced trick for {it}?",
            "Which advanced ideas exist for {it}?",
        ),
        (
            "Once the basics feel easy, combine {aspect} with other skills and set a harder goal.",
            "Skilled people vary {aspect} on purpose and watch how {topic} responds.",
        ),
        ("trends", "experts", "books", "fix"),
    ),
}

# What a bland assistant suggests whatever was asked: no cue of any intent.
VAGUE_QUESTIONS = (
    "Can you tell me more about {it}?",
    "What else should I know about {it}?",
    "Do you have any tips about {it}?",
)
# The user's first sentence; a question about an aspect follows.
OPENERS = (
    "I have a question about {topic}.",
    "I have been thinking about {topic} lately.",
    "I want to understand {topic} more deeply.",
    "Let us talk about {topic}.",
    "My question today is about {topic}.",
)
# The assistant's last sentence: the aspect it adds.
TAILS = (
    "Remember that {other} plays a part too.",
    "Also keep {other} in mind.",
    "Later, you can look at {other} as well.",
)

DOMAIN_OF_TOPIC = {topic: name for name, domain in DOMAINS.items() for topic in domain.topics}
INTENT_OF_CUE = {cue: name for name, intent in INTENTS.items() for cue in intent.cues}

_TOPIC, _ASPECT, _IT, _EDGE = "<topic>", "<aspect>", "<it>", "<edge>"
_FACET = re.compile(f"{_TOPIC} {_ASPECT}|{_ASPECT} in {_TOPIC}|{_TOPIC}|{_ASPECT}")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SLOT_OF_PHRASE = {
    **{tuple(aspect.lower().split()): (_ASPECT, aspect) for domain in DOMAINS.values() for aspect in domain.aspects},
    **{tuple(topic.lower().split()): (_TOPIC, topic) for topic in DOMAIN_OF_TOPIC},
}
# Words that a good sentence may hold twice: "trends in tipping in Peru".
_SMALL_WORDS = frozenset({"in", "a", "the", "about", "of", "with", "for"})


@dataclass(frozen=True)
class Reading:
    """What a text says.

    Attributes:
        words: its words, lower case, without punctuation.
        topics, aspects, intents: those it names, each once.
        n_repeats: words, topics and aspects that it says again, small words aside.
        fluency: the share of its word pairs (edges of the text included) that the language knows, in [0, 1]; a topic,
            an aspect or an aspect of a topic counts as one word.
        finished: whether its last three words end some question of the language; false for a text that is cut off.
    """

    words: tuple[str, ...]
    topics: frozenset[str]
    aspects: frozenset[str]
    intents: frozenset[str]
    n_repeats: int
    fluency: float
    finished: bool


def facet(topic: str, aspect: str) -> str:
    """How ``aspect`` of ``topic`` is named: ``Spanish grammar``, ``tipping in Peru``."""
    return DOMAINS[DOMAIN_OF_TOPIC[topic]].facet.format(topic=topic, aspect=aspect)


@lru_cache(maxsize=1 << 15)
def read(text: str) -> Reading:
    """Read any text, whoever wrote it; never raises."""
    words = tuple(_WORD.findall(text.lower()))
    tokens, topics, aspects = [], [], []
    position = 0
    while position < len(words):
        for length in (2, 1):  # the longest phrase wins: "battery storage", "sight reading"
            slot = _SLOT_OF_PHRASE.get(words[position : position + length])
            if slot is not None:
                tokens.append(slot[0])
                (topics if slot[0] == _TOPIC else aspects).append(slot[1])
                position += length
                break
        else:
            tokens.append(words[position])
            position += 1
    plain = [token for token in tokens if token not in _SMALL_WORDS and token not in (_TOPIC, _ASPECT)]
    sentence = _FACET.sub(_IT, " ".join(tokens)).split()
    pairs = _pairs(sentence)
    return Reading(
        words=words,
        topics=frozenset(topics),
        aspects=frozenset(aspects),
        intents=frozenset(INTENT_OF_CUE[token] for token in plain if token in INTENT_OF_CUE),
        n_repeats=sum(len(named) - len(set(named)) for named in (plain, topics, aspects)),
        fluency=sum(pair in _KNOWN_PAIRS for pair in pairs) / len(pairs),
        finished=tuple(sentence[-3:]) in _KNOWN_ENDINGS,
    )


def _pairs(sentence: list[str]) -> list[tuple[str, str]]:
    edged = [_EDGE, *sentence, _EDGE]
    return list(zip(edged, edged[1:], strict=False))


_QUESTIONS = [
    question.strip("?.").lower().format(it=_IT).split()
    for question in (*VAGUE_QUESTIONS, *(question for intent in INTENTS.values() for question in intent.questions))
]
_KNOWN_PAIRS = frozenset(pair for question in _QUESTIONS for pair in _pairs(question))
_KNOWN_ENDINGS = frozenset(tuple(question[-3:]) for question in _QUESTIONS)
