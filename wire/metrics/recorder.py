"""Metrics' values as plain numbers. One event loop records and reads them, so they need no locks."""

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from wire.metrics.table import Metric


class Value:
    """The value of a counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Add an amount, in the metric's unit; 1 counts an event."""
        self.value += amount

    def put(self, value: float) -> None:
        """Set a gauge; or set a counter to a total that was counted elsewhere."""
        self.value = value

    def samples(self) -> Iterator[tuple[str, tuple[tuple[str, str], ...], float]]:
        """Yield the value as a sample: (suffix of the name, further labels, value)."""
        yield "", (), self.value


class Histogram:
    """Counts by bucket, and the exact sum of all observations."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Record `count` observations of the same value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def samples(self) -> Iterator[tuple[str, tuple[tuple[str, str], ...], float]]:
        """Yield cumulative buckets, sum and count as samples: (suffix of the name, further labels, value)."""
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield "_bucket", (("le", bound),), total
        yield "_sum", (), self._sum
        yield "_count", (), total


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric and its samples as Prometheus writes them: (full name, labels, value)."""

    metric: Metric
    samples: tuple[tuple[str, dict[str, str], float], ...]


class Recorder:
    """A process's values, by metric and labels. Asking for a series by `value` or `histogram` creates it, at 0."""

    def __init__(self) -> None:
        self._series: dict[Metric, dict[tuple[str, ...], Value | Histogram]] = {}

    def value(self, metric: Metric, *labels: str) -> Value:
        """A counter or gauge. Keep the object if you record often. ValueError if the number of labels is wrong."""
        series = self._of(metric, labels)
        found = series.get(labels)
        if found is None:
            found = series[labels] = Value()
        assert isinstance(found, Value)
        return found

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """A histogram. Keep the object if you record often. ValueError if the number of labels is wrong."""
        series = self._of(metric, labels)
        found = series.get(labels)
        if found is None:
            found = series[labels] = Histogram(metric.buckets)
        assert isinstance(found, Histogram)
        return found

    def clear(self, metrics: Iterable[Metric]) -> None:
        """Remove all series of these metrics."""
        for metric in metrics:
            self._series.pop(metric, None)

    def read(self) -> Iterator[Reading]:
        """Read all metrics."""
        for metric, series in self._series.items():
            yield Reading(
                metric,
                tuple(
                    (metric.name + suffix, dict((*zip(metric.labels, labels, strict=True), *more)), value)
                    for labels, kept in series.items()
                    for suffix, more, value in kept.samples()
                ),
            )

    def _of(self, metric: Metric, labels: tuple[str, ...]) -> dict[tuple[str, ...], Value | Histogram]:
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has the labels {metric.labels}, got {labels}")
        return self._series.setdefault(metric, {})
