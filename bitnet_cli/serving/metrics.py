"""Numbers for Prometheus at /metrics, where --metrics asks for them. Nothing in them tells what was written or who asked."""

from __future__ import annotations

from typing import Any

from bitnet_cli.model.generate import Timings

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counts nothing: where nobody asks for it."""

    kind = ""

    def ended(self, timings: Timings) -> None:
        """A text has ended."""

    def first_token(self, seconds: float) -> None:
        """A request has its first text, so long after it came."""

    def answered(self, path: str, status: int) -> None:
        """A request was answered."""

    def inside(self, requests: int) -> None:
        """So many requests are here."""

    def text(self) -> bytes:
        """All numbers, in Prometheus' format."""
        return b""


class Prometheus(Metrics):
    """Counts."""

    def __init__(self) -> None:
        import prometheus_client as prometheus

        self._registry = prometheus.CollectorRegistry()
        self.kind = prometheus.CONTENT_TYPE_LATEST
        self._generate = prometheus.generate_latest

        def one(kind: Any, name: str, about: str, *labels: str, **more: Any) -> Any:
            return kind(f"bitnet_{name}", about, labels, registry=self._registry, **more)

        self._requests = one(prometheus.Counter, "requests", "Answers by route and status.", "route", "status")
        self._tokens = one(prometheus.Counter, "tokens", "Tokens: of prompts, computed or found in the cache, and new ones.", "kind")
        self._texts = one(prometheus.Counter, "texts", "Texts that have ended, by why.", "finish")
        self._seconds = one(prometheus.Counter, "seconds", "Seconds of prompts and of writing, added up over texts.", "kind")
        self._first = one(prometheus.Histogram, "first_token_seconds", "From a request to its first text.", buckets=SECONDS)
        self._inside = one(prometheus.Gauge, "requests_inside", "Requests that are computed or wait.")

    def ended(self, timings: Timings) -> None:
        """As in Metrics."""
        for kind, count in (("prompt", timings.fed_tokens), ("cached", timings.cached_tokens), ("new", timings.new_tokens)):
            self._tokens.labels(kind).inc(count)
        self._seconds.labels("prompt").inc(timings.prefill_seconds)
        self._seconds.labels("new").inc(timings.decode_seconds)
        self._texts.labels(timings.finish).inc()

    def first_token(self, seconds: float) -> None:
        """As in Metrics."""
        self._first.observe(seconds)

    def answered(self, path: str, status: int) -> None:
        """As in Metrics."""
        self._requests.labels(path, status).inc()

    def inside(self, requests: int) -> None:
        """As in Metrics."""
        self._inside.set(requests)

    def text(self) -> bytes:
        """As in Metrics."""
        return bytes(self._generate(self._registry))
