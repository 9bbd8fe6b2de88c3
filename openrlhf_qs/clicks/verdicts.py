"""What ``log check`` makes of its figures: pass, unknown, warn or fail, and which stage a finding will hurt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from openrlhf_qs.clicks.repeats import DOUBLE_SHARE, MIN_ROWS, TEXT_SHARE
from openrlhf_qs.clicks.rows import FIELDS, REQUIRED
from openrlhf_qs.files.printable import counted
from openrlhf_qs.form.response import N_SUGGESTIONS
from openrlhf_qs.form.task import MAX_SUGGESTIONS
from openrlhf_qs.registry import did_you_mean

LEVELS = ("pass", "unknown", "warn", "fail")  # from the best to the worst
FEW_PAIRS = 1000  # from fewer GaRM learns little: the default log gives some 20,000
FEW_AGAIN = 50  # conversations that come again, below which the fusion compares impressions of different ones
FEW_CONVERSATIONS = 1000  # from which a policy without any training learns little
OTHER_LANGUAGE_SHARE = 0.02  # of the suggestions looked at, above which it is said
REPEATING_SHARE = 0.01  # of the rows, above which those that show one text twice are pointed out
SHOWN_FIELDS = 5  # of those that nothing reads


class Verdict(NamedTuple):
    """A finding, or that there is none.

    Attributes:
        level: ``pass``; ``unknown``, there is too little to tell; ``warn``, a stage will run, but on something else
            than it takes it for; ``fail``, one stops.
        about: what was looked at, in a word or two.
        stages: that it hurts, in their order; none where it passes.
    """

    level: str
    about: str
    stages: tuple[str, ...]
    sentence: str


def verdicts(found: Mapping[str, Any]) -> list[Verdict]:
    """What is to be said of a log, one or more for each thing that was looked at.

    Args:
        found: as :func:`openrlhf_qs.clicks.check.check_log` returns it, with ``repeats`` and ``examination``, the
            sentences of :mod:`openrlhf_qs.clicks.repeats` and :mod:`openrlhf_qs.clicks.propensity`.
    """
    return [
        *_of_rows(found),
        *_of_fields(found["fields"]),
        *_of_clicks(found),
        *_of_suggestions(found),
        *_of_languages(found["languages"]),
        *_of_conversations(found),
        *_of_repeats(found),
        *_of_order(found),
    ]


def worst(some: list[Verdict]) -> str:
    """The worst level there is."""
    return max((one.level for one in some), key=LEVELS.index, default="pass")


def _of_rows(found: Mapping[str, Any]) -> list[Verdict]:
    n_bad = sum(found["skipped"].values())
    if not n_bad:
        return [Verdict("pass", "rows", (), f"{found['n_impressions']:,}, none of them bad")]
    reasons = ", ".join(f"{reason} ({n:,})" for reason, n in found["skipped"].items())
    return [
        Verdict(
            "warn", "rows", ("data",), f"{counted(n_bad, 'bad row')}: {reasons}; data needs --on_error skip for them"
        )
    ]


def _of_fields(fields: Sequence[str]) -> list[Verdict]:
    optional = [name for name in FIELDS if name not in REQUIRED and name in fields]
    not_read = [name for name in fields if name not in FIELDS]
    absent = [name for name in FIELDS if name not in fields]
    hints = [f"{name!r} is not read{meant}" for name in not_read if (meant := did_you_mean(name, absent))]
    if hints:
        return [Verdict("warn", "fields", ("data",), hint) for hint in hints]
    sentence = f"with {', '.join(optional)}" if optional else "only the required ones are read"
    if not_read:
        n_left = len(not_read) - SHOWN_FIELDS
        sentence += (
            f"; not read: {', '.join(map(repr, not_read[:SHOWN_FIELDS]))}{f' and {n_left} more' if n_left > 0 else ''}"
        )
    return [Verdict("pass", "fields", (), sentence)]


def _of_clicks(found: Mapping[str, Any]) -> list[Verdict]:
    if not found["n_clicks"]:
        return [Verdict("fail", "clicks", ("data",), "there are none: nothing can be learned from this log")]
    verdicts = [Verdict("pass", "clicks", (), f"{found['clicked_share']:.1%} of the rows have one")]
    n_pairs = found["n_pairs"]
    if not n_pairs:
        sentence = "no row has a clicked and an unclicked suggestion: no pair to learn a reward from"
        return [*verdicts, Verdict("fail", "pairs", ("data", "garm"), sentence)]
    sentence = f"{counted(n_pairs, 'pair')} of a clicked and an unclicked suggestion, before the log is split"
    if n_pairs < FEW_PAIRS:
        few = f"{sentence}; with fewer than {FEW_PAIRS:,} a reward model learns little"
        return [*verdicts, Verdict("warn", "pairs", ("garm", "fusion", "grpo"), few)]
    return [*verdicts, Verdict("pass", "pairs", (), sentence)]


def _of_suggestions(found: Mapping[str, Any]) -> list[Verdict]:
    counts = found["n_suggestions"]
    usual = max(counts, key=counts.get)
    some = f"{usual} in all rows" if len(counts) == 1 else f"{min(counts)} to {max(counts)} per row, mostly {usual}"
    verdicts = [Verdict("pass", "suggestions", (), some)]
    if usual != N_SUGGESTIONS:
        wanted = min(usual, MAX_SUGGESTIONS)
        sentence = f"{some}: a policy writes {N_SUGGESTIONS}, unless the run sets N_SUGGESTIONS={wanted}"
        verdicts = [Verdict("warn", "suggestions", ("sft", "grpo", "evaluate"), sentence)]
    n_repeating, n_rows = found["n_repeating"], found["n_impressions"]
    if n_repeating > REPEATING_SHARE * n_rows:
        sentence = f"{counted(n_repeating, 'row')} of {n_rows:,} show one text twice: a placeholder?"
        verdicts.append(Verdict("warn", "suggestions", ("sft", "garm"), sentence))
    if found["n_control"]:
        sentence = (
            f"{counted(found['n_control'], 'row')} with a control character, or one that overrides the direction of "
            "text, in a suggestion: a policy learns to write it; take it out"
        )
        verdicts.append(Verdict("warn", "suggestions", ("sft", "garm"), sentence))
    return verdicts


def _of_languages(languages: Mapping[str, Any]) -> list[Verdict]:
    some = ", ".join(f"{name} ({share:.0%})" for name, share in languages["users"].items())
    in_words = f"users write {some}" if some else "too little text to tell what users write"
    other = languages["other_than_users"]
    if other <= OTHER_LANGUAGE_SHARE:
        in_their_own = Verdict("pass", "languages", (), f"{in_words}; suggestions are in their language")
        return [in_their_own if some else Verdict("unknown", "languages", (), in_words)]
    sentence = f"{in_words}; {other:.0%} of the suggestions are clearly in another language or script"
    return [Verdict("warn", "languages", ("sft", "garm"), f"{sentence}: sft leaves them out, garm learns from them")]


def _of_conversations(found: Mapping[str, Any]) -> list[Verdict]:
    again, turns = found["n_conversations_again"], found["n_turns"]
    seen = f"{found['n_conversations']:,} in all, {again:,} of them more than once"
    length = (
        f"{min(turns)} to {max(turns)} messages long" if len(turns) > 1 else f"{counted(min(turns), 'message')} long"
    )
    verdicts = [Verdict("pass", "conversations", (), f"{seen}, {length}")]
    if again < FEW_AGAIN:
        sentence = f"{seen}, {length}: the weights come from impressions of different conversations"
        verdicts = [Verdict("warn", "conversations", ("fusion",), sentence)]
    if found["n_conversations"] < FEW_CONVERSATIONS:
        sentence = f"fewer than {FEW_CONVERSATIONS:,} teach a randomly initialised policy little: name one that writes"
        verdicts.append(Verdict("warn", "conversations", ("sft",), sentence))
    return verdicts


def _of_repeats(found: Mapping[str, Any]) -> list[Verdict]:
    n_rows = found["n_impressions"]
    verdicts = [Verdict("warn", "repeats", ("garm", "fusion", "evaluate"), sentence) for sentence in found["repeats"]]
    verdicts += [
        Verdict(
            "warn", "repeats", ("sft", "garm"), f"{text!r} is shown in {counted(n, 'row')} or more ({n / n_rows:.0%})"
        )
        for text, n in found["frequent_texts"].items()
        if n_rows >= MIN_ROWS and n > TEXT_SHARE * n_rows
    ]
    if not verdicts and n_rows < MIN_ROWS:
        return [Verdict("unknown", "repeats", (), "too few rows to tell whether a user or a text has a large share")]
    clean = f"fewer than {DOUBLE_SHARE:.0%} of the rows are duplicates, no user and no text has a large share"
    return verdicts or [Verdict("pass", "repeats", (), clean)]


def _of_order(found: Mapping[str, Any]) -> list[Verdict]:
    order = {
        "random": Verdict("pass", "order", (), "the order shown looks random"),
        "chosen": Verdict("warn", "order", ("garm", "fusion"), "the order shown was chosen, for example by a ranker"),
    }.get(found["order"], Verdict("warn", "order", ("garm", "fusion"), "how the order came about is unclear"))
    sentences = found["examination"]
    if found["positions"][0]["examination"] is None:
        return [order, Verdict("fail", "examination", ("data",), found["propensity"])]
    if not sentences:
        return [order, Verdict("pass", "examination", (), f"nothing speaks against {found['propensity']}")]
    return [order, *(Verdict("warn", "examination", ("garm", "fusion"), sentence) for sentence in sentences)]
