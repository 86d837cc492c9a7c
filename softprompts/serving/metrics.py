"""Metrics of a server, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Metrics of one server; ``queued`` and ``prompts`` return its waiting rows and loaded prompts."""

    def __init__(self, queued: Callable[[], int], prompts: Callable[[], int]):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "softprompts_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=registry
        )
        seconds = "Seconds from the first byte of a request to the last of its answer."
        self.seconds = Histogram(
            "softprompts_request_seconds", seconds, ["endpoint"], buckets=_SECONDS, registry=registry
        )
        self.batch_rows = Histogram("softprompts_batch_rows", "Rows of each batch.", buckets=_ROWS, registry=registry)
        self.batch_seconds = Histogram(
            "softprompts_batch_seconds", "Seconds that each batch ran.", buckets=_SECONDS, registry=registry
        )
        Gauge("softprompts_queue_rows", "Rows that wait or run.", registry=registry).set_function(queued)
        Gauge("softprompts_prompts", "Prompts that are loaded.", registry=registry).set_function(prompts)

    def count_batch(self, rows: int, seconds: float) -> None:
        """Counts a batch."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self.requests.labels(endpoint, str(status)).inc()
        self.seconds.labels(endpoint).observe(seconds)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
