"""A small process that ends this one with all its descendants, and removes its folder, if a signal is not handled in
time.

Ray connects to its GCS in native code that holds Python's lock, so no signal handler runs while the GCS does not
answer. Python still writes each signal's number to the wake-up pipe, which the other process reads.
"""

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from cluster.ending import remove

_SERVES = 255  # no signal's number


class LastResort:
    """Waits `start_s` after a signal while the cluster starts, and `serving_s` once `serves` was called."""

    def __init__(self, signals: Iterable[int], folder: Path, start_s: float, serving_s: float) -> None:
        """Fork; call it before threads are started."""
        source, self._pipe = os.pipe()
        watched, process = frozenset(signals), os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            for number in watched:
                signal.signal(number, signal.SIG_IGN)
            with suppress(KeyboardInterrupt):
                if not _heeded(source, watched, (start_s, serving_s)):
                    _end(process)
                    remove(folder)
            os._exit(0)
        os.close(source)
        os.set_blocking(self._pipe, False)
        signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)

    def end(self) -> None:
        """End the process, once all is done and no other thread keeps Python's lock."""
        signal.set_wakeup_fd(-1)
        os.close(self._pipe)
        os.waitpid(self.pid, 0)

    def serves(self) -> None:
        """From now on, signals leave running requests their time to end."""
        os.write(self._pipe, bytes([_SERVES]))


def _heeded(source: int, watched: frozenset[int], patience: tuple[float, float]) -> bool:
    """Wait until the process ends, or until a signal was not handled in time."""
    serves, deadline = False, None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([source], [], [], left)[0]:
            return False
        read = os.read(source, 64)
        if not read:
            return True  # it has ended by itself
        serves = serves or _SERVES in read
        if watched.intersection(read) and deadline is None:
            deadline = time.monotonic() + patience[serves]


def _end(pid: int) -> None:
    """Kill a process and its descendants, but not this one; the parent first, so that it starts no further ones."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.suspend()
        below = [child for child in process.children(recursive=True) if child.pid != os.getpid()]
        for one in [process, *below]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
