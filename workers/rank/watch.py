"""Measures where a rank's time goes: one step a second is measured by phases, the others are not."""

import time
from typing import Protocol, cast

import torch

_EVERY_S = 1.0
PHASES = ("transfer", "draft", "launch", "forward", "sample")


class Mark(Protocol):
    """A moment in a device's work, with the interface of `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether the device has reached it."""

    def elapsed_time(self, later: "Mark", /) -> float:
        """Milliseconds from it to a later mark; the device must have reached both."""


class StepWatch:
    """A stopwatch over a step's phases, in the device's own time.

    On a GPU marks are put into the stream and read when the device has passed them, one measured step later at the
    soonest. Nothing waits for them: a wait for the whole device would also wait for kernels that receive snapshots.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._due = 0.0
        self._begun = 0.0
        # The measured step's start, then each phase with the mark at its end.
        self._start: Mark | None = None
        self._laps: list[tuple[str, Mark]] = []
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self.on = False

    def begin(self, now: float) -> bool:
        """A step begins; returns whether it is measured.

        It is not while the device is still busy with the previous one.
        """
        self.on = now >= self._due and self._settle()
        if self.on:
            self._due = now + _EVERY_S
            self._begun = now
            self._start = self._mark()
        return self.on

    def lap(self, phase: str) -> None:
        """Assign the time since the last lap to this phase."""
        if self.on:
            self._laps.append((phase, self._mark()))

    def launched(self) -> None:
        """The device has all of the forward pass: on a GPU the host is ahead of it."""
        if self.on and self._cuda:
            self._seconds["launch"] += time.monotonic() - self._begun

    @property
    def phases(self) -> tuple[tuple[str, float], ...]:
        """The seconds of the measured steps that the device has finished, by phase."""
        self._settle()
        return tuple(self._seconds.items())

    def _settle(self) -> bool:
        """Take over the last measured step's times; False if the device has not finished it yet."""
        if self._laps and not self._laps[-1][1].query():
            return False
        last = self._start
        for phase, mark in self._laps:
            assert last is not None
            self._seconds[phase] += last.elapsed_time(mark) / 1e3
            last = mark
        self._laps.clear()
        return True

    def _mark(self) -> Mark:
        if not self._cuda:
            return _Instant()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return cast(Mark, event)


class _Instant:
    """A moment of a CPU, which has always finished the work before it."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: Mark) -> float:
        assert isinstance(later, _Instant)
        return (later._at - self._at) * 1e3
