"""Measures a fetch's progress by the files on disk, so that processes that wait for another's fetch see it too."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wire.progress import Progress

Tell = Callable[[Progress], None]
_EVERY_S = 0.5


def silent(progress: Progress) -> None:
    """Show no progress."""


@dataclass(frozen=True, slots=True)
class Size:
    """The number of complete files, and the bytes on disk."""

    files: int
    bytes: int


class Meter:
    """Makes a Progress of each measurement; the rate counts from the first. Time is passed in."""

    def __init__(self, stage: str, total: Size, first: Size, now: float) -> None:
        self._stage, self._total, self._first, self._began = stage, total, first, now

    def read(self, size: Size, now: float) -> Progress:
        """Progress at `now`."""
        total, seconds = self._total, now - self._began
        rate = max(0.0, (size.bytes - self._first.bytes) / seconds) if seconds > 0 else 0.0
        return Progress(self._stage, min(size.bytes, total.bytes), total.bytes, size.files, total.files, rate)


@contextmanager
def watched(stage: str, total: Size, measure: Callable[[], Size], tell: Tell) -> Iterator[None]:
    """Report progress from a thread while the body runs, and once at its end."""
    meter = Meter(stage, total, measure(), time.monotonic())
    over = threading.Event()

    def follow() -> None:
        while not over.wait(_EVERY_S):
            tell(meter.read(measure(), time.monotonic()))

    thread = threading.Thread(target=follow, name="fetch-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    tell(meter.read(measure(), time.monotonic()))
