"""A worker's progress in loading, summed over its ranks' reports. Pure; time is passed in."""

from wire.progress import Progress
from workers.schedule.step import Loading


class LoadProgress:
    """The sum of the ranks' progress."""

    def __init__(self) -> None:
        self._ranks: dict[int, Loading] = {}
        self._stage = ""
        self._began = 0.0

    def take(self, told: Loading, now: float) -> Progress:
        """Take a rank's report and return the worker's progress. A report of another stage starts a new sum."""
        if told.stage != self._stage:
            self._stage, self._began = told.stage, now
            self._ranks.clear()
        self._ranks[told.rank] = told
        done = sum(rank.done for rank in self._ranks.values())
        total = sum(rank.total for rank in self._ranks.values())
        seconds = now - self._began
        return Progress(told.stage, done, total, rate=done / seconds if seconds > 0 else 0.0)
