"""The last minutes of the router's metrics, so that a page opened now shows what came before."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client.core import Metric
from typing_extensions import TypedDict

EVERY_S = 2.0
KEPT = 150


class Series(TypedDict):
    """Every series of /metrics. times: Unix time in seconds; series: a value at each, None where there was none."""

    times: list[float]
    series: dict[str, list[float | None]]


class History:
    """Every series that /metrics has, once every `EVERY_S`, the last `KEPT` times."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect
        self._moments: deque[tuple[float, dict[str, float]]] = deque(maxlen=KEPT)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Record from now on, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Record no more."""
        if self._task is not None:
            self._task.cancel()

    def record(self, now: float) -> None:
        """Take the figures as of now, in seconds since the epoch."""
        self._moments.append((now, {_series(s): s.value for family in self._collect() for s in family.samples}))

    async def _run(self) -> None:
        while True:
            self.record(time.time())
            await asyncio.sleep(EVERY_S)

    def since(self, moment: float) -> Series:
        """Moments after `moment`, and every series' value at each: None where there was none."""
        kept = [(at, values) for at, values in self._moments if at > moment]
        names = sorted({name for _, values in kept for name in values})
        return {
            "times": [at for at, _ in kept],
            "series": {name: [values.get(name) for _, values in kept] for name in names},
        }


def _series(sample: Any) -> str:
    labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
    return f"{sample.name}{{{labels}}}" if labels else str(sample.name)
