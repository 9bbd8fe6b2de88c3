"""What a judge answers, checked: a plugin may return anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from openrlhf_qs.files.whole import short
from openrlhf_qs.form.prompt import Message

Judge = Callable[[Sequence[list[Message]], Sequence[Sequence[str]]], list[list[float]]]


def click_probabilities(
    judge: Judge, conversations: Sequence[list[Message]], suggestions: Sequence[Sequence[str]], where: str
) -> np.ndarray:
    """The judge's answer as one array ``[n, most suggestions of a row]``; slots that a row does not have are 0.

    ValueError names judge, ``where`` and row if it raises, or the answer has another shape than ``suggestions`` or
    leaves [0, 1].
    """
    name = f"judge {getattr(judge, '__name__', type(judge).__name__)}, {where}"
    try:
        answer = judge(conversations, suggestions)
        rows = list(answer) if isinstance(answer, Iterable) else None  # a generator raises here
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name}: it raised {error!r}") from error
    if rows is None:
        raise ValueError(f"{name}: it returned {short(answer)}; return click probabilities, one row per user")
    if len(rows) != len(suggestions):
        raise ValueError(f"{name}: {len(rows)} rows for {len(suggestions)} users; return one row per user")
    probability = np.zeros((len(suggestions), max(map(len, suggestions), default=0)))
    for n, (row, texts) in enumerate(zip(rows, suggestions, strict=True)):
        try:
            numbers = [float(one) for one in row]
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name}, row {n}: {short(row)}; return one number per suggestion") from None
        if len(numbers) != len(texts):
            raise ValueError(
                f"{name}, row {n}: {len(numbers)} probabilities for {len(texts)} suggestions; return one for each"
            )
        probability[n, : len(numbers)] = numbers
    bad = np.argwhere(~((probability >= 0) & (probability <= 1)))
    if len(bad):
        n, slot = map(int, bad[0])
        raise ValueError(
            f"{name}, row {n}: {probability[n, slot]} for suggestion {slot + 1}; return a click probability in [0, 1]"
        )
    return probability
