"""Judge ``zero_query_world``: visitors of the zero-query world, who click what they would ask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.registry import JUDGES
from openrlhf_qs.world.click_models import click_chances
from openrlhf_qs.world.zero_query import attraction, features_of, intents


@JUDGES.register("zero_query_world")
class ZeroQueryWorld:
    """The true click probability, including examination of the position; 0 for anything but an intent of this world.

    A conversation is the visitor's features in words, one ``name: value`` per line, as the reasoner reads them.
    """

    def __init__(self) -> None:
        self.number = {text: n for n, (_, text, _, _) in enumerate(intents())}
        self.known: dict[str, np.ndarray] = {}

    def __call__(
        self, conversations: Sequence[list[Message]], suggestions: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Click probabilities ``[n][k]``. ValueError for features that are not from this world."""
        texts = [conversation[-1]["content"] for conversation in conversations]
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            visitors = [dict(line.partition(": ")[::2] for line in text.splitlines()) for text in new]
            self.known |= dict(zip(new, attraction(features_of(visitors)), strict=True))
        chances = []
        for text, shown in zip(texts, suggestions, strict=True):
            of_shown = [self.known[text][self.number[one]] if one in self.number else 0.0 for one in shown]
            chances.append(click_chances("pbm", np.array(of_shown)).tolist())
        return chances
