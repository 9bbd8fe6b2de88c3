"""Who answers on the page where there is no upstream: a partner that says that it is a demo, and knows the topics of
the built-in world, which the small policy of the CPU form was trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence

from openrlhf_qs.form.prompt import Message, last_question
from openrlhf_qs.world.language import DOMAIN_OF_TOPIC, DOMAINS, INTENTS, TAILS
from openrlhf_qs.world.reading import what_is_asked, what_is_named
from openrlhf_qs.world.users import conversation_seed, read_scene


def demo_answer(conversation: Sequence[Message]) -> str:
    """An answer; the same conversation has the same one."""
    rng, scene = random.Random(conversation_seed(conversation)), read_scene(conversation)
    if scene.topic is None:
        topics = ", ".join(rng.sample(sorted(DOMAIN_OF_TOPIC), 4))
        return (
            "I am a demo partner, not a language model: I have prepared sentences about some topics, such as "
            f"{topics}. Start the server with --upstream to talk to a real model. The suggestions below my answers "
            "are what this server is for."
        )
    question, aspects = last_question(conversation), DOMAINS[scene.domain].aspects
    named = what_is_named(question, scene.domain).aspects or (rng.choice(aspects),)
    asked = sorted(what_is_asked(question, scene.domain)) or sorted(INTENTS)
    answer = rng.choice(INTENTS[rng.choice(asked)].answers).format(topic=scene.topic, aspect=named[-1])
    other = rng.choice([aspect for aspect in aspects if aspect != named[-1]])
    return f"{answer} {rng.choice(TAILS).format(other=other)}"
