"""What ending signals do, and what ends a process that does not heed them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.signals import EndingSignals

_UNHEEDING = """
import signal, sys
from pathlib import Path
from cluster.last_resort import LastResort

signal.signal(signal.SIGTERM, lambda number, frame: None)
LastResort([signal.SIGTERM], Path(sys.argv[1]), 0.05, 60.0)
signal.raise_signal(signal.SIGTERM)
while True:
    signal.pause()
"""


def test_a_signal_abandons_until_it_is_deferred_and_is_counted_then() -> None:
    abandoned: list[bool] = []
    signals = EndingSignals(lambda: abandoned.append(True))
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (abandoned, signals.asked) == ([True], 0)
        signals.defer()
        signal.alarm(1000)  # as Ray's handler does, which aborts the process at its end
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert (abandoned, signals.asked) == ([True], 2)
        assert signal.alarm(0) == 0
    finally:
        signals.restore()


@pytest.mark.process
def test_a_process_that_does_not_heed_a_signal_is_ended_and_its_folder_goes(tmp_path: Path) -> None:
    folder = tmp_path / "ling-x"
    folder.mkdir()
    (folder / "log").touch()
    # The process that ends it holds its output open: reading to the end waits for both.
    done = subprocess.run([sys.executable, "-c", _UNHEEDING, str(folder)], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")
    assert not folder.exists()
