"""Tests the clock by which peers count as silent."""

import pytest

from wire.liveness import BEAT_S, SILENT_S, AwakeClock


def test_time_in_which_the_process_itself_was_held_up_hardly_counts() -> None:
    clock = AwakeClock(100.0)
    for tick in range(1, 6):
        clock.tick(100.0 + tick * BEAT_S)
    assert clock.s == pytest.approx(5 * BEAT_S)
    clock.tick(160.0)
    assert clock.s == pytest.approx(7 * BEAT_S)
    assert 2 * BEAT_S < SILENT_S
