"""The metrics of a router: its own figures and its view of the workers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from prometheus_client import generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from router.priority import LATEST
from router.relay.fleet import WorkerState
from router.relay.policy import NoPlanReason
from router.relay.recovery import Cause
from wire.metrics import table
from wire.metrics.load import LOAD, record_load
from wire.metrics.recorder import Histogram, Reading, Recorder, Value
from wire.protocol import Role

# The classes of priorities. They are few, so that each can have histograms of its own.
Class = Literal["high", "normal", "low", "batch"]
Routed = Literal["room", "wait"] | NoPlanReason
ErrorClass = Literal["invalid", "unauthorized", "throttled", "internal", "unavailable", "timeout", "stream", "left"]
_ERRORS: dict[str, ErrorClass] = {
    "401": "unauthorized",
    "408": "timeout",
    "429": "throttled",
    "503": "unavailable",
    "504": "timeout",
    "error": "stream",
    "disconnected": "left",
}


def class_of(priority: int) -> Class:
    """The class of a request with this priority."""
    if priority > LATEST:
        return "batch"
    return "normal" if priority == 0 else "high" if priority < 0 else "low"


class StreamTimes(Protocol):
    """What a running sequence reports."""

    def first_token(self, seconds: float, tokens: int) -> None:
        """The first token arrived, so many seconds after submission."""

    def token_gap(self, seconds: float, tokens: int) -> None:
        """An output of `tokens` tokens arrived, so many seconds after the previous one."""


class _Times:
    """The histograms of a class. They are held here to spare a look-up for each token."""

    __slots__ = ("_generated", "_itl", "_ttft")

    def __init__(self, ttft: Histogram, itl: Histogram, generated: Value) -> None:
        self._ttft, self._itl, self._generated = ttft, itl, generated

    def first_token(self, seconds: float, tokens: int) -> None:
        """The first token arrived, so many seconds after submission."""
        self._ttft.observe(seconds)
        self._generated.value += tokens

    def token_gap(self, seconds: float, tokens: int) -> None:
        """An output of `tokens` tokens arrived, so many seconds after the previous one."""
        self._itl.observe(seconds / tokens, tokens)
        self._generated.value += tokens


@dataclass(frozen=True, slots=True)
class State:
    """The state of a router when its metrics are read. configured: the number of workers that each pool should have."""

    workers: Sequence[WorkerState]
    configured: Mapping[Role, int]
    in_flight: int
    waiting: int
    limit: int
    loop_hold_s: float


class Metrics(Collector):
    """The metrics of one replica. observe: returns its present state."""

    def __init__(self, observe: Callable[[], State]) -> None:
        self._observe = observe
        self._recorder = Recorder()
        value = self._recorder.value
        self._prompt_tokens = value(table.PROMPT_TOKENS)
        self._prompt_length = self._recorder.histogram(table.PROMPT_LENGTH)
        self._answer_length = self._recorder.histogram(table.ANSWER_LENGTH)
        self.refused = value(table.REFUSED)
        self.late = value(table.LATE)
        self._generated = value(table.GENERATED_TOKENS)
        self._times: dict[Class, _Times] = {}
        self.times(0)
        self._recorder.histogram(table.E2E, "chat", class_of(0))
        for error in (*_ERRORS.values(), "internal", "invalid"):
            value(table.ERRORS, error)
        for reason in ("room", "wait"):
            self.routed(reason, 0)
        value(table.BATCH_LINES, "200")
        for cause in ("death", "silence", "moved"):
            value(table.RESUMED, cause)

    def times(self, priority: int) -> StreamTimes:
        """The recorder for the times of sequences with this priority."""
        name = class_of(priority)
        if name not in self._times:
            of = self._recorder.histogram
            self._times[name] = _Times(of(table.TTFT, name), of(table.ITL, name), self._generated)
        return self._times[name]

    def routed(self, reason: Routed, count: int = 1) -> None:
        """A sequence was given to workers, or no workers could be found for it."""
        self._recorder.value(table.ROUTING, reason).add(count)

    def resumed(self, cause: Cause) -> None:
        """A sequence's workers failed, and it is tried at others."""
        self._recorder.value(table.RESUMED, cause).add()

    def accepted(self, lengths: Iterable[int]) -> None:
        """Prompts of so many tokens were accepted."""
        for length in lengths:
            self._prompt_tokens.add(length)
            self._prompt_length.observe(length)

    def ended(self, lengths: Iterable[int]) -> None:
        """Choices are over, with so many tokens generated."""
        for length in lengths:
            self._answer_length.observe(length)

    def asked(self, tenant: str) -> None:
        """A request with the tenant's key arrived."""
        self._recorder.value(table.TENANT_REQUESTS, tenant).add()

    def used(self, tenant: str, prompt: int, generated: int) -> None:
        """A request with the tenant's key used so many tokens."""
        for kind, tokens in (("prompt", prompt), ("generated", generated)):
            self._recorder.value(table.TENANT_TOKENS, tenant, kind).add(tokens)

    def batch_line(self, status: int) -> None:
        """A line of a batch was answered."""
        self._recorder.value(table.BATCH_LINES, str(status)).add()

    def refuse(self, status: int) -> None:
        """A request was refused before it reached an API."""
        self._recorder.value(table.ERRORS, _error(str(status))).add()

    def answered(self, api: str, status: str, seconds: float, priority: int = 0) -> None:
        """A request is over. `status`: the HTTP status, "disconnected", or "error" within a stream."""
        self._recorder.value(table.REQUESTS, api, status).add()
        if status == "200":
            self._recorder.histogram(table.E2E, api, class_of(priority)).observe(seconds)
        else:
            self._recorder.value(table.ERRORS, _error(status)).add()

    def read(self) -> Iterator[Reading]:
        """Read all metrics."""
        state, value = self._observe(), self._recorder.value
        self._recorder.clear(LOAD)
        for worker in state.workers:
            record_load(self._recorder, worker.info, worker.load)
        for role, count in state.configured.items():
            value(table.WORKERS_CONFIGURED, role).put(count)
            value(table.WORKERS_LIVE, role).put(sum(w.info.role == role for w in state.workers))
        value(table.IN_FLIGHT).put(state.in_flight)
        value(table.WAITING).put(state.waiting)
        value(table.IN_FLIGHT_LIMIT).put(state.limit)
        value(table.LOOP_HOLD).put(state.loop_hold_s)
        return self._recorder.read()

    def collect(self) -> Iterable[Family]:
        """Read all metrics as objects of the Prometheus library."""
        for reading in self.read():
            metric = reading.metric
            family = Family(metric.name.removesuffix("_total"), metric.text, metric.kind)
            for name, labels, value in reading.samples:
                family.add_sample(name, labels, value)
            yield family

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self)


def _error(status: str) -> ErrorClass:
    return _ERRORS.get(status) or ("internal" if status.startswith("5") else "invalid")
