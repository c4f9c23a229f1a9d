"""Tests that phases are timed without waiting for the GPU, with events of a fake stream."""

import pytest
import torch

from workers.rank.watch import PHASES, StepWatch

CUDA = torch.device("cuda", 0)


class Device:
    """A fake device with a stream of events, some of which it has passed; any synchronisation is an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[object] = []
        self.passed = 0
        device = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = len(device.recorded)
                device.recorded.append(self)

            def query(self) -> bool:
                return self.at < device.passed

            def elapsed_time(self, later: "Event") -> float:
                assert self.query()
                assert later.query()
                return 1000.0 * (later.at - self.at)

            def synchronize(self) -> None:
                raise AssertionError("waited for the device")

        def refuse(*_: object) -> None:
            raise AssertionError("waited for the device")

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", refuse)


def _step(watch: StepWatch, now: float) -> bool:
    on = watch.begin(now)
    for phase in ("transfer", "forward", "sample", "transfer"):
        watch.lap(phase)
    watch.on = False
    return on


def test_a_measured_step_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    watch = StepWatch(CUDA)
    assert _step(watch, 10.0)
    assert len(device.recorded) == 5
    assert not _step(watch, 10.5)
    assert len(device.recorded) == 5  # a step that is not measured records nothing
    assert dict(watch.phases) == dict.fromkeys(PHASES, 0.0)
    device.passed = 4
    # The device is still at the measured step: its events can't be read, and the next waits for its turn.
    assert not _step(watch, 11.0)
    device.passed = 5
    assert dict(watch.phases) == {"transfer": 2.0, "draft": 0.0, "launch": 0.0, "forward": 1.0, "sample": 1.0}
    assert _step(watch, 11.1)
    device.passed = 10
    assert _step(watch, 12.1)
    assert dict(watch.phases) == {"transfer": 4.0, "draft": 0.0, "launch": 0.0, "forward": 2.0, "sample": 2.0}
