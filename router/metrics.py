"""The router's own figures and its view of the workers, as Prometheus text."""

import bisect
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from router.policy import WorkerState

_SECONDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0),
)
_WORKER_GAUGES = {
    "queued": "Sequences waiting in the worker",
    "queued_tokens": "Prompt tokens waiting in the worker",
    "running": "Sequences in the worker's steps",
    "free_pages": "Free latent pages",
    "free_slots": "Free state slots",
    "transferring": "Snapshots on their way",
    "step_s": "Seconds the latest step took",
}


class Histogram:
    """Counts in buckets. Observed once a token, so without the locks and labels of the library's own."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, count: int = 1) -> None:
        """`count` observations of the same length."""
        self._counts[bisect.bisect_left(_SECONDS, seconds)] += count
        self._sum += seconds * count

    def family(self) -> HistogramMetricFamily:
        """As the library writes it."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class Metrics(Collector):
    """One replica's metrics. `workers`: the table as of now; `in_flight`: choices as of now."""

    def __init__(self, workers: Callable[[], Iterable[WorkerState]], in_flight: Callable[[], int]) -> None:
        self._workers, self._in_flight = workers, in_flight
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ling_requests", "Requests answered, by API and status", ("api", "status"), registry=self._registry
        )
        self._tenants = Counter(
            "ling_tenant_requests", "Requests that came with a tenant's API key", ("tenant",), registry=self._registry
        )
        self.prompt_tokens = Counter("ling_prompt_tokens", "Prompt tokens accepted", registry=self._registry)
        self.refused = Counter("ling_requests_refused", "Requests beyond the queue: 429", registry=self._registry)
        self._ttft = Histogram("ling_ttft_seconds", "From submission to the first token")
        self._itl = Histogram("ling_itl_seconds", "Between tokens")
        self._e2e = Histogram("ling_request_seconds", "From arrival to the answer's end")
        self._generated = 0
        self._registry.register(self)

    def first_token(self, seconds: float, tokens: int) -> None:
        """A sequence's first output."""
        self._ttft.observe(seconds)
        self._generated += tokens

    def token_gap(self, seconds: float, tokens: int) -> None:
        """A later output of `tokens` tokens, so long after the one before."""
        self._itl.observe(seconds / tokens, tokens)
        self._generated += tokens

    def asked(self, tenant: str) -> None:
        """A request with the tenant's key."""
        self._tenants.labels(tenant).inc()

    def answered(self, api: str, status: str, seconds: float) -> None:
        """A request is over. `status`: the HTTP status, "disconnected", or "error" within a stream."""
        self._requests.labels(api, status).inc()
        if status == "200":
            self._e2e.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """What is read at scrape time."""
        yield self._ttft.family()
        yield self._itl.family()
        yield self._e2e.family()
        generated = Metric("ling_generated_tokens", "Tokens received from workers", "counter")
        generated.add_sample("ling_generated_tokens_total", {}, self._generated)
        yield generated
        yield GaugeMetricFamily("ling_in_flight", "Choices in flight in this router", value=self._in_flight())
        states = list(self._workers())
        for name, text in _WORKER_GAUGES.items():
            family = GaugeMetricFamily(f"ling_worker_{name}", text, labels=("worker", "role"))
            for state in states:
                family.add_metric((state.info.worker_id, state.info.role), getattr(state.load, name))
            yield family

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
