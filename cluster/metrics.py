"""Copies figures of routers and workers into Ray's metrics pipeline, which each node's agent shows to Prometheus.

All of them are Ray gauges with the recorded cumulative values. Ray's own counters can't start at 0, so that a first
failure would show no rate; and its histograms estimate their sums and cost time for each observation. For PromQL it
makes no difference; only the TYPE line reads gauge. Ray puts `ray_` before every name.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from ray.util.metrics import Gauge

from wire.metrics.recorder import Reading

EVERY_S = 5.0
_LOG = logging.getLogger(__name__)


class Bridge:
    """Hands over what `read` returns, twice in each of Ray's report intervals of 10 s.

    tags: labels that tell this process's series from others'.
    """

    def __init__(self, read: Callable[[], Iterable[Reading]], tags: dict[str, str]) -> None:
        self._read = read
        self._tags = tags
        self._gauges: dict[str, Gauge] = {}

    async def run(self) -> None:
        """Hand values over until cancelled. Errors are logged, once for each different one, and retried."""
        failure = ""
        while True:
            try:
                self.hand_over()
            except Exception as error:
                if repr(error) != failure:
                    failure = repr(error)
                    _LOG.exception("metrics")
            await asyncio.sleep(EVERY_S)

    def hand_over(self) -> None:
        """Hand over all values now. A series that is no longer set leaves Ray's pages after two report intervals."""
        for reading in self._read():
            for name, labels, value in reading.samples:
                tags = labels | self._tags
                gauge = self._gauges.get(name)
                if gauge is None:
                    gauge = self._gauges[name] = Gauge(name, reading.metric.text, tuple(tags))
                gauge.set(value, tags)
