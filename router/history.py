"""The last minutes of all routers' metrics, so that the live page can show the past when it is opened."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from prometheus_client.core import Metric
from typing_extensions import TypedDict

EVERY_S = 2.0
KEPT = 150
# Takes this router's figures and returns those of all other routers, by their names.
Exchange = Callable[[dict[str, float]], Awaitable[Mapping[str, Mapping[str, float]]]]
# Figures about workers, which every router reports alike.
_OF_WORKERS = "ling_worker"
_LOG = logging.getLogger(__name__)


class Series(TypedDict):
    """All series of this router's /metrics, and those of other routers with their names as the label `router`.

    times: Unix time in seconds. series: a value at each time; None if there was none.
    """

    times: list[float]
    series: dict[str, list[float | None]]


class History:
    """Records every series each `EVERY_S` seconds, and keeps the last `KEPT` values."""

    def __init__(self, collect: Callable[[], Iterable[Metric]], exchange: Exchange | None = None) -> None:
        """exchange: None if this router is the only one."""
        self._collect = collect
        self._exchange = exchange
        self._moments: deque[tuple[float, dict[str, float]]] = deque(maxlen=KEPT)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Record from now on, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Record no more."""
        if self._task is not None:
            self._task.cancel()

    def record(self, now: float, others: Mapping[str, Mapping[str, float]] | None = None) -> None:
        """Record this router's present figures and those of other routers. now: Unix time in seconds."""
        values = self._own()
        for router, theirs in (others or {}).items():
            values |= {_labelled(series, router): value for series, value in theirs.items()}
        self._moments.append((now, values))

    def _own(self) -> dict[str, float]:
        return {_series(s): s.value for family in self._collect() for s in family.samples}

    async def _run(self) -> None:
        while True:
            self.record(time.time(), await self._others())
            await asyncio.sleep(EVERY_S)

    async def _others(self) -> Mapping[str, Mapping[str, float]]:
        """The other routers' figures; none if they can't be asked now, which the page shows as a gap."""
        if self._exchange is None:
            return {}
        own = {series: value for series, value in self._own().items() if not series.startswith(_OF_WORKERS)}
        try:
            return await self._exchange(own)
        except Exception as error:
            _LOG.debug("could not get the figures of other routers: %r", error)
            return {}

    def since(self, moment: float) -> Series:
        """The times after `moment` and every series' value at each; None if there was none."""
        kept = [(at, values) for at, values in self._moments if at > moment]
        names = sorted({name for _, values in kept for name in values})
        return {
            "times": [at for at, _ in kept],
            "series": {name: [values.get(name) for _, values in kept] for name in names},
        }


def _series(sample: Any) -> str:
    labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
    return f"{sample.name}{{{labels}}}" if labels else str(sample.name)


def _labelled(series: str, router: str) -> str:
    name, _, labels = series.partition("{")
    return f"{name}{{router={router}{',' + labels if labels else '}'}"
