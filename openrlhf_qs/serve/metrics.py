"""What a server counts, for Prometheus. No label holds what a user wrote or who a user is."""

from __future__ import annotations

from collections import defaultdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        prefix = {"namespace": "openrlhf_qs", "registry": registry}
        self.registry = registry
        self.seconds = Histogram(
            "suggest_seconds", "from a request to its suggestions", ["policy"], buckets=SECONDS, **prefix
        )
        self.impressions = Counter("impressions", "answers with a suggestion", ["policy"], **prefix)
        self.shown = Counter("suggestions", "suggestions in answers", ["policy"], **prefix)
        self.silent = Counter("silent", "answers without a suggestion", ["policy", "reason"], **prefix)
        self.left_out = Counter(
            "left_out", "suggestions that were sampled and not shown", ["policy", "reason"], **prefix
        )
        self.clicks = Counter("clicks", "clicks that were accepted", ["policy"], **prefix)
        self.ctr = Gauge("ctr", "accepted clicks for each answer with a suggestion", ["policy"], **prefix)
        self.events = Counter("events", "events", ["kind", "status"], **prefix)
        self.upstream = Counter("upstream", "requests that were passed on", ["status"], **prefix)
        self.refused = Counter("refused", "requests that were refused", ["reason"], **prefix)
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def impression(self, policy: str, n_shown: int) -> None:
        self.impressions.labels(policy).inc()
        self.shown.labels(policy).inc(n_shown)
        self._ctr(policy, 0)

    def click(self, policy: str) -> None:
        self.clicks.labels(policy).inc()
        self._ctr(policy, 1)

    def _ctr(self, policy: str, click: int) -> None:
        counts = self._counts[policy]
        counts[0] += 1 - click
        counts[1] += click
        self.ctr.labels(policy).set(counts[1] / max(counts[0], 1))

    def text(self) -> bytes:
        return generate_latest(self.registry)
