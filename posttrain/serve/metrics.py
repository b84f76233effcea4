"""What a Prometheus server reads: counts and times since the start, and how much waits now."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from posttrain.serve.admission import Admission
from posttrain.serve.backend import Backend

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """A registry of its own: two servers in one process do not add up."""

    def __init__(self, backend: Backend, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Present(backend, admission))
        self.requests = Counter(
            "posttrain_http_requests", "Requests answered.", ("route", "status"), registry=self._registry
        )
        self.request_seconds = Histogram(
            "posttrain_http_request_seconds",
            "From a request's first line to its reply's last.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.step_seconds = Histogram(
            "posttrain_search_step_seconds", "One round of a search.", buckets=_SECONDS, registry=self._registry
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Present(Collector):
    """Read when asked, from who knows."""

    def __init__(self, backend: Backend, admission: Admission) -> None:
        self._backend = backend
        self._admission = admission

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        stats, admission = self._backend.stats(), self._admission
        yield GaugeMetricFamily("posttrain_queue_depth", "Requests that wait for rows.", admission.n_waiting)
        yield GaugeMetricFamily("posttrain_requests_admitted", "Requests that work now.", admission.n_admitted)
        yield GaugeMetricFamily("posttrain_rows_running", "Sequences sampled now.", stats.n_running)
        yield GaugeMetricFamily("posttrain_rows_waiting", "Sequences that wait in the backend.", stats.n_waiting)
        yield CounterMetricFamily("posttrain_generated_tokens", "Tokens sampled.", value=stats.n_generated_tokens)
        yield CounterMetricFamily(
            "posttrain_value_tokens_read", "Tokens the value model read.", value=stats.n_value_tokens_read
        )
        yield CounterMetricFamily(
            "posttrain_value_tokens_cached",
            "Tokens of scored sequences that it did not have to read again.",
            value=stats.n_value_tokens_cached,
        )
