"""Where a rank's time goes: one step a second is measured by its phases, the others are left alone."""

import time

import torch

_EVERY_S = 1.0
PHASES = ("transfer", "forward", "sample")


class StepWatch:
    """A stopwatch over a step's phases. A measured step waits for its device after each, which others do not."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._due = 0.0
        self._mark = 0.0
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self.on = False

    def begin(self, now: float) -> bool:
        """A step begins; whether it is measured."""
        self.on = now >= self._due
        if self.on:
            self._due = now + _EVERY_S
            self._mark = self._settled()
        return self.on

    def lap(self, phase: str) -> None:
        """What was done since the last lap was this."""
        if self.on:
            now = self._settled()
            self._seconds[phase] += now - self._mark
            self._mark = now

    @property
    def phases(self) -> tuple[tuple[str, float], ...]:
        """Seconds of all measured steps, by phase."""
        return tuple(self._seconds.items())

    def _settled(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.monotonic()
