"""Tests what signals do to `ling serve`, and what ends a process that does not react to them."""

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
def test_a_process_that_ignores_a_signal_is_ended_and_its_folder_removed(tmp_path: Path) -> None:
    folder = tmp_path / "ling-x"
    folder.mkdir()
    (folder / "log").touch()
    # The process that ends it holds its output open: reading to the end waits for both.
    done = subprocess.run([sys.executable, "-c", _UNHEEDING, str(folder)], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")
    assert not folder.exists()


# A child process that a signal ends first, and a thread that then keeps Python's lock, as Ray's does.
_LOCKED = """
import ctypes, functools, signal, subprocess, sys, threading
from pathlib import Path
import psutil
from cluster import ending
from cluster.last_resort import LastResort
from cluster.signals import EndingSignals

folder, entered, asleep = Path(sys.argv[1]), threading.Event(), ctypes.PyDLL(None).sleep

def lock():
    entered.wait()
    asleep(1000)

def waits(processes, timeout):
    entered.set()
    thread.join()

thread = threading.Thread(target=lock)
signals = EndingSignals(functools.partial(ending.abandon, folder))
last = LastResort([signal.SIGTERM], folder, 0.05, 60.0)
signals.abandon_by(functools.partial(ending.abandon, folder, last.pid))
subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
thread.start()
ending.psutil.wait_procs = waits
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.process
def test_a_process_whose_lock_is_kept_while_it_ends_its_children_is_ended_too(tmp_path: Path) -> None:
    folder = tmp_path / "ling-x"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", _LOCKED, str(folder)], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")
    assert not folder.exists()
