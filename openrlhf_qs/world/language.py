"""The language of the built-in world: what is said in it.

A conversation is a question about one aspect of a topic and an answer that names a second aspect. Everything is
composed: ``topic x intent x aspect x wording`` makes several hundred thousand contexts out of about a thousand words,
few enough for a small model that learns from nothing to speak it within minutes.

Users understand more than is said here: :mod:`openrlhf_qs.world.reading` reads paraphrases too. What it needs to know
stands beside each thing: other names of a topic or an aspect, and the cues of an intent.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """A field of interest.

    Attributes:
        facet: how an aspect of a topic is named in the log, with ``{topic}`` and ``{aspect}``.
        topics, aspects: noun phrases of one or two words, all singular, so that ``is`` and ``does`` fit. Each with its
            other names, which users understand and the log never says; inflections need no name of their own.
    """

    facet: str
    topic_names: dict[str, tuple[str, ...]]
    aspect_names: dict[str, tuple[str, ...]]

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(self.topic_names)

    @property
    def aspects(self) -> tuple[str, ...]:
        return tuple(self.aspect_names)


@dataclass(frozen=True)
class Intent:
    """What a question is after.

    Attributes:
        cues: phrases that tell this intent from the others, in three ranks: a cue of a lower rank counts only where
            the text holds none of a higher one ("better" in "How do I know whether I get better?" is no wish to
            improve). Any inflection counts, ``*`` is up to three words, ``<it>`` a topic or an aspect, ``$`` the end.
        questions: wordings in the log; ``{it}`` is a topic, an aspect, or an aspect of a topic.
        answers: what the assistant says, with ``{topic}`` and ``{aspect}``.
        next: the intents that are a natural next step after such an answer; each intent is one of four others.
    """

    cues: tuple[tuple[str, ...], ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    next: tuple[str, ...]


def _phrases(text: str) -> tuple[str, ...]:
    """``"a, b c"`` -> ``("a", "b c")``."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(",") if phrase.strip())


def _names(text: str) -> dict[str, tuple[str, ...]]:
    """``"a / b, c"`` -> ``{"a": ("b",), "c": ()}``: what it is called in the log, and its other names."""
    called = [[" ".join(name.split()) for name in phrase.split("/")] for phrase in text.split(",")]
    return {name: tuple(others) for name, *others in called}


def _cues(*ranks: str) -> tuple[tuple[str, ...], ...]:
    return tuple(_phrases(rank) for rank in ranks)


_BESIDE, _WITHIN = "{topic} {aspect}", "{aspect} in {topic}"

DOMAINS: dict[str, Domain] = {
    "baking": Domain(
        _BESIDE,
        _names(
            """sourdough, brioche, focaccia, ciabatta, cornbread / corn bread, shortbread, gingerbread, banana
            bread, pizza dough / pizza base, puff pastry, rye bread / rye loaf"""
        ),
        _names(
            """mixing / kneading / stirring, resting / rising / proofing / fermentation, shaping / forming /
            folding, oven heat / oven temperature / baking temperature, flour choice / flour, sweetness / sugar /
            sweetener, browning / crust color / golden crust, freezing / frozen, moisture / moist / dry / dryness"""
        ),
    ),
    "cooking": Domain(
        _BESIDE,
        _names(
            """risotto, ramen, paella, lasagna / lasagne, pad thai, tomato soup, fried rice, beef stew, ratatouille,
            fish curry, bean chili"""
        ),
        _names(
            """seasoning / salt / spices, garnish / topping, simmering / slow cooking, reheating / warming up /
            leftovers, plating / presentation / serving, knife work / chopping / cutting / knife skills, pan choice
            / pan / pot, portion size / portion, spice level / spiciness / heat / hot"""
        ),
    ),
    "gardening": Domain(
        _BESIDE,
        _names("basil, lavender, mint, spinach, garlic, rosemary, kale, parsley, thyme, jasmine, lettuce"),
        _names(
            """watering / water / irrigation, pruning / trimming / cutting back, soil care / soil / compost,
            sunlight / sun / light / shade, pest control / pest / bug / aphid, harvesting / picking, seed spacing /
            spacing / sowing, pot choice / pot / container, fertilizing / fertilizer / feeding / manure"""
        ),
    ),
    "pets": Domain(
        _WITHIN,
        _names(
            """puppy care / puppy / puppies, kitten care / kitten, rabbit care / rabbit / bunny, hamster care /
            hamster, parrot care / parrot, ferret care / ferret, pony care / pony / ponies, gerbil care / gerbil,
            chinchilla care / chinchilla, hedgehog care / hedgehog, mouse care / mouse / mice"""
        ),
        _names(
            """diet / food / feeding / eating, bedding / litter, grooming / brushing, handling / holding / picking
            up, exercise / workout, playtime / playing with / toy, vaccination / vaccine / shot, nail trimming /
            nails / claws, dental hygiene / teeth / dental care"""
        ),
    ),
    "travel": Domain(
        _WITHIN,
        _names("Japan, Portugal, Iceland, Morocco, Peru, Vietnam, Greece, Norway, Kenya, Jordan, Scotland"),
        _names(
            """train travel / train / rail / railway, street food / food stall, hotel booking / hotel /
            accommodation, car rental / rental car / renting a car / hire car, tipping, sightseeing / sights /
            attractions, trip planning / itinerary, mountain hiking / hiking / trekking, souvenir shopping /
            souvenir / gift"""
        ),
    ),
    "fitness": Domain(
        _BESIDE,
        _names(
            """yoga, running / jogging, swimming, cycling / biking, rowing, boxing, pilates, climbing, weightlifting
            / weight training / lifting weights, kickboxing, gymnastics"""
        ),
        _names(
            """breathing / breath, posture / form, stretching / flexibility, recovery / rest day / resting,
            hydration / drinking / water, pacing / pace, endurance / stamina, balance / stability, nutrition / food
            / eating / diet"""
        ),
    ),
    "health": Domain(
        _BESIDE,
        _names(
            """asthma, migraine, insomnia / sleeplessness, anemia, eczema, arthritis, diabetes, hay fever / pollen
            allergy, back pain / backache / sore back, tinnitus, heartburn / acid reflux"""
        ),
        _names(
            """medication / medicine / drug / pill, diagnosis / being diagnosed, stress relief / stress /
            relaxation, meal planning / meal / diet, sleep quality / sleep, prevention, symptom logging / symptom /
            symptom diary, doctor choice / doctor / physician, home treatment / home remedy / home remedies"""
        ),
    ),
    "money": Domain(
        _WITHIN,
        _names(
            """budgeting, retirement saving / saving for retirement / pension, index investing / index fund, stock
            trading / trading stocks / stock market, tax filing / tax return / taxes, debt repayment / paying off
            debt / debt, estate planning / will and inheritance, house flipping / flipping houses, car leasing /
            leasing a car / car lease, credit building / credit score, currency trading / forex"""
        ),
        _names(
            """record keeping / keeping records / bookkeeping, goal setting, interest planning / interest rate /
            interest, fee control / fee / charges, timing / right moment, paperwork / documents / forms, account
            choice / account / bank, advisor choice / advisor / adviser, fraud protection / fraud / scam"""
        ),
    ),
    "programming": Domain(
        _WITHIN,
        _names("Python, Rust, Java, Kotlin, Haskell, Julia, Ruby, Scala, TypeScript, Perl, Fortran"),
        _names(
            """error handling / exceptions / exception handling, memory use / memory / memory consumption, unit
            testing / unit test / testing, type checking / type / static typing, debugging / debugger / bug,
            packaging / package / publishing, concurrency / threads / parallel code, code review / reviewing code,
            file access / file / reading files"""
        ),
    ),
    "machine learning": Domain(
        _WITHIN,
        _names(
            """linear regression, gradient boosting / boosted trees, deep learning / neural network, transfer
            learning, speech recognition / recognizing speech, text classification / classifying text, object
            detection / detecting objects, topic modeling / topic model, machine translation, anomaly detection /
            outlier detection, image segmentation / segmenting images"""
        ),
        _names(
            """data cleaning / clean data / messy data, feature choice / feature selection / feature, model tuning /
            hyperparameter / tuning, overfitting, evaluation / validation / test score, labeling / label /
            annotation, deployment / production, bias control / bias / fairness, error analysis / analyzing errors"""
        ),
    ),
    "photography": Domain(
        _WITHIN,
        _names(
            """portrait photography / portrait, street photography / street photo, wildlife photography / wildlife
            photo / photographing animals, food photography / food photo / photographing food, wedding photography /
            wedding photo, sports photography / sports photo, landscape photography / landscape photo /
            photographing landscapes, night photography / photos at night / night photo, fashion photography /
            fashion photo, product photography / product photo, pet photography / pet photo"""
        ),
        _names(
            """lighting / light, lens choice / lens / lenses, shutter speed / shutter / exposure time, composition /
            framing, focus / sharpness, photo editing / editing / retouching, background choice / background /
            backdrop, flash use / flash, color grading / color / tone"""
        ),
    ),
    "music": Domain(
        _BESIDE,
        _names("piano, guitar, violin, cello, flute, saxophone / sax, trumpet, harp, ukulele, banjo, clarinet"),
        _names(
            """rhythm / beat / tempo, sight reading / reading music / sheet music, tuning / in tune, ear training /
            ear, improvisation / jamming, memorization / by heart, tone control / tone / sound, finger speed / fast
            fingers, stage presence / stage fright / on stage"""
        ),
    ),
    "crafts": Domain(
        _WITHIN,
        _names(
            """knitting, pottery / ceramics, origami / paper folding, calligraphy, woodworking / carpentry,
            embroidery, quilting / quilt, candle making / candle, soap making / soap, leatherwork / leather, weaving
            / loom"""
        ),
        _names(
            """pattern design / pattern, color choice / color, material choice / material / fabric / yarn, finishing
            / finish / final touch, cutting, workspace setup / workspace / workshop, decoration / ornament, texture
            work / texture, waste reduction / waste / scraps"""
        ),
    ),
    "languages": Domain(
        _BESIDE,
        _names("Spanish, French, Mandarin, German, Italian, Korean, Arabic, Russian, Swahili, Turkish, Dutch"),
        _names(
            """grammar, pronunciation / accent / pronouncing, vocabulary / words, listening / hearing, spelling,
            small talk / chatting / casual conversation, slang / colloquial, sentence order / word order, writing"""
        ),
    ),
    "home repair": Domain(
        _WITHIN,
        _names(
            """roof repair / roof, drywall repair / drywall, faucet repair / faucet / tap, tile repair / tile, fence
            repair / fence, window repair / window, wall painting / painting walls / walls, floor sanding / floor /
            floorboard, deck staining / deck, door hanging / door, carpet laying / carpet"""
        ),
        _names(
            """surface preparation / surface / prep work, dust control / dust, sealing / sealant, drying / dry,
            crack filling / crack / gap, cleanup / cleaning up, edge work / edge / corner, moisture control /
            moisture / damp / mold, ladder safety / ladder"""
        ),
    ),
    "parenting": Domain(
        _WITHIN,
        _names(
            """potty training / potty, sleep training, breastfeeding / nursing, homeschooling / school at home, baby
            weaning / baby food, toddler discipline / disciplining a toddler, bedtime reading / bedtime story /
            bedtime stories, sibling rivalry / jealous siblings, tantrum control / tantrum, daycare transition /
            daycare, screen weaning / screen time"""
        ),
        _names(
            """praise / encouragement, routine building / regular routine, patience / staying patient, calm talk /
            calm voice / talking calmly, reward use / reward / sticker, eye contact, boundary setting / boundary /
            limits, partner support / partner, comfort / cuddle"""
        ),
    ),
    "career": Domain(
        _WITHIN,
        _names(
            """interviewing / job interview / interview, networking, public speaking / giving a speech / speech,
            resume writing / resume / cv, salary negotiation / salary / pay raise, remote work / working from home,
            freelancing / freelance, team leadership / leading a team, project planning / project, time management /
            managing my time, job searching / job search / job hunt / finding a job"""
        ),
        _names(
            """preparation, confidence / nerves / self esteem, feedback / criticism, body language / gesture,
            storytelling / telling a story, email etiquette / email, self promotion / selling myself, note taking,
            conflict handling / conflict / argument"""
        ),
    ),
    "games": Domain(
        _BESIDE,
        _names("chess, poker, bridge, backgammon, scrabble, checkers, mahjong, sudoku, blackjack, cribbage, rummy"),
        _names(
            """opening strategy / opening / first move, endgame play / endgame, pattern reading / pattern,
            concentration / focus, scoring / score / points, online play / online / playing online, tournament play
            / tournament / competition, rule learning / rules, speed play / playing fast / blitz"""
        ),
    ),
    "energy": Domain(
        _BESIDE,
        _names(
            """solar heating / solar panel / solar, wind power / wind turbine, rainwater storage / rainwater,
            geothermal heating / geothermal, battery storage / home battery / batteries, biogas, home insulation /
            insulating a house / insulation, electric driving / electric car, wood heating / wood stove, heat
            recovery, floor heating / heated floor"""
        ),
        _names(
            """installation / setup, upkeep / maintenance, sizing / size / capacity, noise control / noise / loud,
            permit handling / permit / permission, efficiency / output, supplier choice / supplier / vendor, subsidy
            use / subsidy / subsidies / grant, leak testing / leak"""
        ),
    ),
    "outdoors": Domain(
        _BESIDE,
        _names(
            """camping / camp, fishing, kayaking / kayak, surfing, skiing, sailing, snowboarding, birdwatching /
            watching birds, foraging, backpacking, snorkeling"""
        ),
        _names(
            """gear packing / packing / pack, clothing / clothes / wear, navigation / map / compass, weather reading
            / weather / forecast, first aid / injury kit, site choice / site / spot / location, sun protection /
            sunscreen / sunburn, group safety, snack planning / snack"""
        ),
    ),
}

INTENTS: dict[str, Intent] = {
    "begin": Intent(
        _cues(
            "begin, start, get into, first time, newcomer, newbie, from scratch, get going",
            "beginner, novice, basics, new to",
        ),
        ("How do I begin with {it}?", "What should a beginner know about {it}?", "What is an easy way to begin {it}?"),
        (
            "Start small. Try {aspect} once this week, keep it simple, and keep in mind what you notice.",
            "Most people learn {topic} slowly, so give {aspect} ten quiet minutes every week.",
        ),
        ("steps", "tools", "mistakes", "time"),
    ),
    "explain": Intent(
        _cues(
            """explain, explanation, meaning, definition, define, describe, description, clarify, how * work, idea
            behind, in simple terms, in plain words, overview, summary, understand""",
            "what does * mean",
            "what is <it> $, what is <it> about, what exactly is",
        ),
        ("Can you explain {it} simply?", "Could you explain how {it} works?", "Please explain the idea behind {it}."),
        (
            "In short, {aspect} is the part of {topic} that turns a rough try into a good result.",
            "Think of {aspect} as a quiet helper that decides the result before anything else does.",
        ),
        ("example", "reason", "begin", "myths"),
    ),
    "reason": Intent(
        _cues(
            """matter, important, importance, purpose, benefit, point of, worth, reason, necessary, advantage,
            bother with, need to bother""",
            "why, do i really need",
        ),
        ("Why does {it} matter so much?", "Why is {it} important?", "Does {it} really matter?"),
        (
            "It decides the whole result: without good {aspect}, the rest of {topic} becomes much harder.",
            "Good {aspect} saves effort later and makes {topic} far more pleasant.",
        ),
        ("improve", "explain", "begin", "risk"),
    ),
    "mistakes": Intent(
        _cues(
            """mistake, error, pitfall, blunder, do wrong, get wrong, get it wrong, not do, not to do, watch out,
            beware, never do, bad habit, trap""",
            "avoid, wrong",
        ),
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
        _cues(
            """example, instance, sample, illustrate, illustration, show me, demonstrate, demonstration, look like,
            case study, real life""",
        ),
        (
            "Can you give an example of good {it}?",
            "What does a real example of {it} look like?",
            "Do you have a simple example of {it}?",
        ),
        (
            "Picture a neighbor who plans {aspect} on Sunday and then enjoys {topic} all week.",
            "A simple case is someone who keeps {aspect} modest and checks the result each evening.",
        ),
        ("steps", "options", "advanced", "explain"),
    ),
    "steps": Intent(
        _cues(
            """step, stage, procedure, sequence, what order, which order, walk me through, take me through, guide me
            through, instruction, checklist, process""",
            "way to, ways to",
            "how do, how should, how can, how could, how would, how to",
        ),
        ("What are the steps of {it}?", "Which step of {it} comes first?", "Can you list the steps of {it}?"),
        (
            "First plan {aspect}, then try it, then look at the result and adjust.",
            "You get ready, you do {aspect} slowly, and you check {topic} at the end.",
        ),
        ("time", "tools", "mistakes", "example"),
    ),
    "improve": Intent(
        _cues(
            """improve, improvement, enhance, boost, level up, get good, get better, become better, make * better,
            increase, sharpen, strengthen, optimize, refine, perfect, more effective""",
            "better",
        ),
        ("How can I improve {it}?", "How do I get better at {it}?", "What would improve {it} quickly?"),
        (
            "Change one small thing about {aspect}, wait a week, and keep whatever works for {topic}.",
            "Ask a friend to watch your {aspect} and tell you honestly what to change.",
        ),
        ("habits", "track", "advanced", "books"),
    ),
    "tools": Intent(
        _cues(
            "tool, equipment, supplies, gadget, device, app, software, utensil, kit, accessory, accessories",
            "do i need, need to buy, need to have, should i buy, what to buy",
        ),
        ("Which tools help with {it}?", "Do I need special tools for {it}?", "What is the best tool for {it}?"),
        (
            "A few simple things are enough for {aspect}, and most shops sell them.",
            "You can do {aspect} with what you have at home, at least at first.",
        ),
        ("cost", "options", "begin", "trends"),
    ),
    "time": Intent(
        _cues(
            """how long, how much time, how many minutes, how many hours, how many days, how many weeks, how many
            months, how many years, how soon, how quickly, how fast, duration, long enough, time * take, take *
            time, time does, time should, time is needed, need * time, hours, minutes, time consuming, overnight""",
            "time, long, when, spend",
        ),
        (
            "How much time does {it} need?",
            "How long does {it} usually take?",
            "How much time should I give {it}?",
        ),
        (
            "Plan about an hour a week for {aspect}, and a little more at the start.",
            "It depends on your goal, but {aspect} rarely needs more than two evenings.",
        ),
        ("improve", "habits", "reason", "cost"),
    ),
    "cost": Intent(
        _cues(
            """cost, price, pricey, expensive, cheap, cheaper, cheaply, afford, affordable, how much money, budget,
            pay, dollar, money, save money""",
            "how much is, how much do, how much will, how much would, how much should",
        ),
        ("How much does {it} cost?", "Is {it} expensive?", "What does {it} usually cost?"),
        (
            "You can do {aspect} for about twenty dollars, and careful people pay even less.",
            "Prices differ a lot, yet {aspect} is seldom the largest part of the bill.",
        ),
        ("options", "tools", "time", "fix"),
    ),
    "options": Intent(
        _cues(
            """option, alternative, compare, comparison, versus, vs, choice, different way, other way, another way,
            difference, differ, pros and cons, variant""",
            "choose, kind of, kinds of, type of, which way, which one, is best, suit",
        ),
        ("What are my options with {it}?", "Which option is best for {it}?", "Can you compare options for {it}?"),
        (
            "There are three common ways to do {aspect}: a cheap one, a fast one and a careful one.",
            "You can do {aspect} alone, with a friend, or pay someone who knows {topic}.",
        ),
        ("cost", "experts", "risk", "trends"),
    ),
    "risk": Intent(
        _cues(
            """risk, risky, danger, dangerous, safe, safely, unsafe, safety, harm, harmful, hazard, side effect,
            hurt, injury, injuries, downside, worry about, threat""",
        ),
        ("What are the risks of {it}?", "How risky is {it}?", "Is there any risk with {it}?"),
        (
            "Serious harm is rare, but careless {aspect} can spoil the whole effort.",
            "There is a little danger in {aspect}, so go slowly and stop when unsure.",
        ),
        ("mistakes", "fix", "experts", "reason"),
    ),
    "fix": Intent(
        _cues(
            """fix, problem, trouble, troubleshoot, go wrong, goes wrong, went wrong, gone wrong, solve, issue,
            fail, failure, rescue, not work, stop working, broken, struggle, difficulty, difficulties""",
            "what if",
        ),
        ("What if {it} goes wrong?", "How do I fix problems with {it}?", "What causes problems with {it}?"),
        (
            "Stop, look at {aspect} calmly, and undo the last change you made.",
            "When {aspect} fails, go back to the last point where {topic} went well.",
        ),
        ("mistakes", "improve", "explain", "track"),
    ),
    "track": Intent(
        _cues(
            """track, progress, measure, monitor, metric, know if, know whether, know that, tell if, tell whether,
            see if, see whether, how well, assess, judge, on the right track, keep an eye, sign of, signs of""",
        ),
        ("How do I track progress with {it}?", "How can I measure {it}?", "What is a good way to measure {it}?"),
        (
            "Note one thing about {aspect} every evening and look back after a month.",
            "Take one number for {aspect} and note it each week in a small table.",
        ),
        ("improve", "habits", "reason", "example"),
    ),
    "experts": Intent(
        _cues(
            "expert, professional, pro, pros, specialist, veteran, master, experienced people",
        ),
        (
            "What do experts say about {it}?",
            "How do experts approach {it}?",
            "What would an expert do about {it}?",
        ),
        (
            "People with long experience in {topic} keep {aspect} plain and never rush it.",
            "Teachers of {topic} usually agree that {aspect} deserves care from the start.",
        ),
        ("books", "trends", "myths", "advanced"),
    ),
    "myths": Intent(
        _cues(
            """myth, misconception, believe, belief, is it true, true that, rumor, legend, superstition, untrue,
            misunderstand, falsehood, old wives""",
            "false, true",
        ),
        (
            "Which myths about {it} are false?",
            "What is the biggest myth about {it}?",
            "Are there any myths about {it}?",
        ),
        (
            "Many believe that {aspect} needs talent, but steady effort counts far more.",
            "A popular story says {aspect} is only for rich people, which is simply untrue.",
        ),
        ("experts", "explain", "risk", "books"),
    ),
    "books": Intent(
        _cues(
            """book, read, author, literature, resource, tutorial, course, textbook, guide, website, article,
            podcast, video""",
        ),
        (
            "Which book covers {it} well?",
            "Can you recommend a book about {it}?",
            "Are there good books on {it}?",
        ),
        (
            "Most libraries have a short guide to {topic} with a chapter about {aspect}.",
            "Look for a recent guide with pictures, since {aspect} is hard to describe in a few lines.",
        ),
        ("begin", "example", "advanced", "steps"),
    ),
    "habits": Intent(
        _cues(
            """habit, routine, daily, every day, each day, ritual, everyday, every morning, every evening, every
            week, regular, regularly, day to day""",
        ),
        (
            "Which daily habits help with {it}?",
            "What habit makes {it} easier?",
            "Can a small habit support {it}?",
        ),
        (
            "Do a little {aspect} at the same hour each day and it soon feels natural.",
            "Put a note near your door, so that {aspect} comes to mind each morning.",
        ),
        ("time", "track", "options", "cost"),
    ),
    "trends": Intent(
        _cues(
            """trend, latest, recent, recently, these days, nowadays, modern, fashionable, future, what is
            new, anything new, new in, new about, new development, change lately, changed lately, this year""",
            "new, popular",
        ),
        ("What are the latest trends in {it}?", "Which trend is changing {it}?", "What is new in {it}?"),
        (
            "More people now share {aspect} ideas with others, and clubs meet to discuss {topic}.",
            "Recently, simple {aspect} has become popular again, because it saves effort.",
        ),
        ("experts", "tools", "books", "myths"),
    ),
    "advanced": Intent(
        _cues(
            """advanced, trick, next level, sophisticated, beyond the basics, expert level, hardest, challenging,
            more difficult, harder, deeper""",
        ),
        (
            "What are advanced tricks for {it}?",
            "Can you share an advanced trick for {it}?",
            "Which advanced ideas exist for {it}?",
        ),
        (
            "Once the basics feel easy, combine {aspect} with other skills and try something harder.",
            "Skilled people vary {aspect} on purpose and watch how {topic} responds.",
        ),
        ("trends", "myths", "fix", "steps"),
    ),
}

# What a bland assistant suggests whatever was asked: no cue of any intent.
VAGUE_QUESTIONS = (
    "Can you tell me more about {it}?",
    "What else should I know about {it}?",
    "Do you have any advice about {it}?",
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

# No log that trains anything speaks of these: one in each domain. They are for a second test.
UNSEEN_TOPICS = frozenset(domain.topics[-1] for domain in DOMAINS.values())


def facet(topic: str, aspect: str) -> str:
    """How ``aspect`` of ``topic`` is named: ``Spanish grammar``, ``tipping in Peru``."""
    return DOMAINS[DOMAIN_OF_TOPIC[topic]].facet.format(topic=topic, aspect=aspect)
