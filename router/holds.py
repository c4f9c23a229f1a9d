"""Measures how long the event loop was blocked. While one task runs on it, every stream of the router stands still."""

import asyncio
import time

# Seconds between two measurements. A hold is measured too short by up to this time.
_EVERY_S = 0.01
_WINDOW_S = 60


class Holds:
    """The longest hold of the last minute, measured while the gateway runs."""

    def __init__(self) -> None:
        self._longest = [0.0] * _WINDOW_S  # longest hold in each second, at its number modulo the window
        self._second = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Measure from now on, on the running event loop."""
        self._second = int(time.monotonic())
        self._wait()

    async def close(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()

    def saw(self, seconds: float, now: float) -> None:
        """Record that the measurement at `now` came `late` seconds late."""
        self._forget(now)
        at = int(now) % _WINDOW_S
        self._longest[at] = max(self._longest[at], seconds)

    def longest(self, now: float) -> float:
        """Seconds of the longest hold seen in the minute before `now`."""
        self._forget(now)
        return max(self._longest)

    def _forget(self, now: float) -> None:
        second = int(now)
        for past in range(max(self._second + 1, second - _WINDOW_S + 1), second + 1):
            self._longest[past % _WINDOW_S] = 0.0
        self._second = second

    def _wait(self) -> None:
        self._due = time.monotonic() + _EVERY_S
        self._timer = asyncio.get_running_loop().call_later(_EVERY_S, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        self.saw(now - self._due, now)
        self._wait()
