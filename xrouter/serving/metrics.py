"""Prometheus metrics of one server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from xrouter.episode import Episode
from xrouter.serving.accounts import Charge

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters with a registry of their own, so that several apps live in one process. ``busy``
    is the number of requests that run now."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"xrouter_{name}", text, labels, registry=self.registry)

        self.http = counter("http_responses", "HTTP responses.", "route", "status")
        self.requests = counter("requests", "Chat requests by outcome.", "model", "state")
        self.strategies = counter("strategies", "Answered requests.", "strategy", "world")
        self.cost = counter("cost_usd", "USD billed, by who was paid.", "model")
        self.tokens = counter("tokens", "Tokens billed.", "model", "direction")
        self.calls = counter("model_calls", "Model calls.", "model", "outcome")
        self.seconds = Histogram(
            "xrouter_request_seconds",
            "Time from admission to bill.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "xrouter_requests_in_flight", "Requests that run now.", registry=self.registry
        )

        self.busy = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        self.busy += 1
        try:
            with self.in_flight.track_inprogress(), self.seconds.time():
                yield
        finally:
            self.busy -= 1

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Wait until every request has been billed, or the time is up."""
        deadline = time.monotonic() + timeout_s
        while self.busy and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def finished(
        self, model: str, state: str, episode: Episode | None, lines: Sequence[Charge]
    ) -> None:
        self.requests.labels(model, state).inc()
        for line in lines:
            self.cost.labels(line.model).inc(line.cost_usd)
            self.tokens.labels(line.model, "input").inc(line.input_tokens)
            self.tokens.labels(line.model, "output").inc(line.output_tokens)
        if episode is not None:
            self.strategies.labels(episode.answer_source, episode.world).inc()
            for call in episode.calls:
                self.calls.labels(call.model, "ok" if call.ok else "error").inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
