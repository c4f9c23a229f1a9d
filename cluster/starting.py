"""Watches a worker's start: reports progress while it moves, and ends the start when it does not."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from wire.progress import Progress

T = TypeVar("T")
_EVERY_S = 1.0
_LOG_EVERY_S = 10.0
_LOG = logging.getLogger(__name__)


class Hung(RuntimeError):
    """The start makes no progress, so the worker starts again."""


class Movement:
    """Notes when progress last changed. Pure; time is passed in."""

    def __init__(self, now: float) -> None:
        self.progress = Progress("starting")
        self._moved = now

    def take(self, progress: Progress, now: float) -> None:
        """Record a reported progress."""
        if (progress.stage, progress.done) != (self.progress.stage, self.progress.done):
            self._moved = now
        self.progress = progress

    def still(self, now: float) -> float:
        """The seconds since the start last made progress."""
        return now - self._moved


class Start:
    """Watches one start. report: is called with progress, and the seconds for which it has not moved."""

    def __init__(self, report: Callable[[Progress, float], Awaitable[None]], patience_s: float) -> None:
        self._report = report
        self._patience_s = patience_s
        self._movement = Movement(time.monotonic())

    def tell(self, progress: Progress) -> None:
        """Report progress, from any thread."""
        self._movement.take(progress, time.monotonic())

    async def run(self, work: Coroutine[Any, Any, T], every_s: float = _EVERY_S) -> T:
        """The work's result; Hung if its progress does not move for `patience` seconds."""
        task = asyncio.create_task(work)
        logged = time.monotonic()
        while not (await asyncio.wait((task,), timeout=every_s))[0]:
            now = time.monotonic()
            progress, still = self._movement.progress, self._movement.still(now)
            if still > self._patience_s:
                task.cancel()
                raise Hung(f"no progress for {still:.0f} s (load_stall_s), {progress}; it starts again")
            if now - logged >= _LOG_EVERY_S:
                logged = now
                _LOG.info("%s", progress)
            await self._report(progress, still)
        return task.result()
