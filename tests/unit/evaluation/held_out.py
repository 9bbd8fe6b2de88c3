"""Held-out conversations and impressions, for the tests of evaluate and its modules."""


def conversation(n):
    return [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Answer {n}."}]


def impression(n, suggestions, clicks, impression_id="i"):
    return {
        "impression_id": impression_id,
        "timestamp": "2025-01-01T00:00:00Z",
        "conversation": conversation(n),
        "suggestions": suggestions,
        "clicks": clicks,
    }
