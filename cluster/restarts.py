"""Limits how often something that ends is started again, before its ending counts as a fault."""

from collections import deque

# If a process ends so often in this time, another start does not help.
_MOST = 3
_WITHIN_S = 60.0


class Restarts:
    """Counts the starts of one thing; times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_MOST)

    def allow(self, now: float) -> bool:
        """Whether it may be started once more; a start that is allowed counts."""
        if len(self._times) == _MOST and now - self._times[0] < _WITHIN_S:
            return False
        self._times.append(now)
        return True
