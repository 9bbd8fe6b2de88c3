import random

import pytest
from paraphrases import PARAPHRASES, UNSEEN

from openrlhf_qs.world.english import is_avoided, is_finished, n_faults
from openrlhf_qs.world.language import DOMAIN_OF_TOPIC, DOMAINS, INTENTS, VAGUE_QUESTIONS, facet
from openrlhf_qs.world.reading import read
from openrlhf_qs.world.users import MAX_WORDS, gold_utility

CASES = [(intent, *case) for intent, cases in PARAPHRASES.items() for case in cases]
NEW_CASES = [(intent, *case) for intent, cases in UNSEEN.items() for case in cases]


def asked_about(topic, aspect):
    """A conversation about the topic that has not come to the aspect."""
    other = next(name for name in DOMAINS[DOMAIN_OF_TOPIC[topic]].aspects if name != aspect)
    return [{"role": "user", "content": f"Let us talk about {topic}. How do I begin with {other}?"}]


def in_words_of_the_log(intent, topic, aspect):
    return INTENTS[intent].questions[0].format(it=facet(topic, aspect) if aspect else topic)


def understood(intent, topic, aspect, text):
    reading = read(text, DOMAIN_OF_TOPIC[topic])
    return (reading.topics, reading.aspects, reading.intents) == ({topic}, {aspect} - {None}, {intent})


def worth_the_same(intent, topic, aspect, text):
    conversation = asked_about(topic, aspect)
    (paraphrase, plain), _ = gold_utility([conversation] * 2, [text, in_words_of_the_log(intent, topic, aspect)])
    return paraphrase == pytest.approx(plain)


def shuffled(rng, text):
    words = text.strip("?.").split()
    rng.shuffle(words)
    return " ".join(words)


def test_there_are_many_paraphrases_and_none_is_a_wording_of_the_log():
    assert (
        len(CASES) == 160
        and {len(cases) for cases in PARAPHRASES.values()} == {8}
        and set(PARAPHRASES) == set(INTENTS)
    )
    assert len(NEW_CASES) == 40
    wordings = [question for intent in INTENTS.values() for question in intent.questions] + list(VAGUE_QUESTIONS)
    openings = {" ".join(wording.format(it="it").split()[:4]) for wording in wordings}
    for _, topic, aspect, text in CASES:
        named = facet(topic, aspect) if aspect else topic
        assert text not in {wording.format(it=named) for wording in wordings}
    assert sum(" ".join(text.split()[:4]) in openings for *_, text in CASES) < 16  # less than a tenth begin alike


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[-1])
def test_a_paraphrase_is_worth_what_it_means(case):
    *_, text = case
    assert understood(*case)
    if len(read(text).words) <= MAX_WORDS:
        assert worth_the_same(*case)


def test_most_paraphrases_that_no_rule_was_made_for_are_worth_what_they_mean():
    assert sum(understood(*case) and worth_the_same(*case) for case in NEW_CASES) >= 36  # of 40


def test_every_question_of_the_log_is_read_back_as_it_was_meant():
    for topic, domain in DOMAIN_OF_TOPIC.items():
        aspect = DOMAINS[domain].aspects[len(topic) % 9]
        for name, intent in INTENTS.items():
            for question in intent.questions:
                reading = read(question.format(it=facet(topic, aspect)), domain)
                assert (reading.topics, reading.aspects, reading.intents) == ({topic}, {aspect}, {name})
                assert (reading.n_repeats, reading.n_faults, reading.finished) == (0, 0, True)


@pytest.mark.parametrize(
    "text, domain, aspects, intents",
    [
        ("How long does it need to rise?", "baking", {"resting"}, {"time"}),
        ("What about the rest of sourdough?", "baking", set(), set()),  # "rest" with "the" is what remains
        ("How much time and money?", "money", set(), {"time", "cost"}),  # no timing
        ("How do I choose the right pan?", "cooking", {"pan choice"}, {"steps"}),
        ("Which trip should I plan?", "travel", {"trip planning"}, set()),
        ("What does rising mean?", "career", set(), {"explain"}),  # another domain's word
        ("How do I know if this is better?", None, set(), {"track"}),  # no wish to improve
    ],
)
def test_names_and_cues_are_understood_in_their_domain(text, domain, aspects, intents):
    reading = read(text, domain)
    assert (reading.aspects, reading.intents) == (aspects, intents)


def test_word_salad_is_seen_and_paraphrases_are_not_taken_for_it():
    rng = random.Random(0)
    for lower in (False, True):
        n_seen, n_worthless, n = 0, 0, 0
        for intent, topic, aspect, text in CASES + NEW_CASES:
            for plain in (text, in_words_of_the_log(intent, topic, aspect)):
                salad = shuffled(rng, plain.lower() if lower else plain)
                reading = read(salad, DOMAIN_OF_TOPIC[topic])
                n_seen += reading.n_faults > 0 or not reading.finished
                utility = gold_utility([asked_about(topic, aspect)] * 2, [salad, plain])[0]
                n_worthless += utility[0] <= utility[1] - 2
                n += 1
        assert n_seen / n > (0.85 if lower else 0.92)
        assert n_worthless / n > (0.8 if lower else 0.9)
    assert sum(read(text, DOMAIN_OF_TOPIC[topic]).n_faults > 0 for _, topic, _, text in CASES + NEW_CASES) <= 2


@pytest.mark.parametrize(
    "text, finished",
    [
        ("How much time does sourdough resting need", True),
        ("How much time does sourdough resting", False),
        ("How long does sourdough usually", False),
        ("Which mistakes with sourdough", False),
        ("Which flour suits sourdough", True),
        ("What is sourdough good for", True),
        ("How do I begin with", False),
        ("What are the steps of the", False),
        ("What about freezing sourdough", True),
        ("Is sourdough resting", False),
        ("Is sourdough resting important", True),
        ("Sourdough resting for beginners", True),  # a query in keywords
    ],
)
def test_a_sentence_that_is_cut_off_is_noticed(text, finished):
    assert read(text, "baking").finished is finished


def test_english_knows_no_wording_of_the_world_but_which_pairs_english_avoids():
    # frequent words that general English does not put side by side; pairs that it does; a pair too rare to tell
    assert is_avoided("the", "are") and is_avoided("need", "what") and is_avoided("long", "how")
    assert not is_avoided("how", "long") and not is_avoided("to", "rise") and not is_avoided("purple", "ukulele")
    assert is_avoided("resting", "resting") and is_avoided("a", "oven") and is_avoided("an", "pan")
    assert n_faults("how do i stop it from xqzt".split()) == 1  # in no list of English words
    assert n_faults([]) == 0 and not is_finished([])
