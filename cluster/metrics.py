"""Figures of routers and workers into Ray's metrics pipeline, which every node's agent shows to Prometheus.

All of them go as Ray's gauges, with their cumulative values as they were recorded: Ray's own counters can't start at
0, so that the first failure would raise no rate; and its histograms guess their sums, at a cost for each observation.
To PromQL it is the same; only the TYPE line reads gauge. Ray puts `ray_` before every name.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from ray.util.metrics import Gauge

from wire.metrics.recorder import Reading

EVERY_S = 5.0
_LOG = logging.getLogger(__name__)


class Bridge:
    """Hands over what `read` gives, twice in each of Ray's report intervals of 10 s.

    tags: what tells this process's series from others'.
    """

    def __init__(self, read: Callable[[], Iterable[Reading]], tags: dict[str, str]) -> None:
        self._read = read
        self._tags = tags
        self._gauges: dict[str, Gauge] = {}

    async def run(self) -> None:
        """Until cancelled. What fails is tried again, and logged where it is not what failed before."""
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
        """All values, now. A series that is not set any more leaves Ray's pages after two of its report intervals."""
        for reading in self._read():
            for name, labels, value in reading.samples:
                tags = labels | self._tags
                gauge = self._gauges.get(name)
                if gauge is None:
                    gauge = self._gauges[name] = Gauge(name, reading.metric.text, tuple(tags))
                gauge.set(value, tags)
