"""Ends everything that this process has started: its descendants, by process id, and its folder."""

import os
import shutil
import time
from pathlib import Path
from typing import NoReturn

import psutil

_WAIT_S = 0.2
_TRIES = 5
ABANDONED = 130  # what a shell reports after Ctrl-C


def abandon(folder: Path, spared: int | None = None) -> NoReturn:
    """End the descendants, remove the folder and end this process at once, whatever its threads are doing."""
    end_descendants(patience_s=0, spared=spared)
    remove(folder)
    os._exit(ABANDONED)


def end_descendants(patience_s: float, spared: int | None = None) -> None:
    """Terminate all descendants, kill them after `patience_s`, and repeat until none is left.

    An end may leave new orphans.

    spared: the pid of `LastResort`'s process, which ends by itself after this one. Waiting here gives Python's lock
    away, and a thread in Ray's native code may keep it for as long as a dead GCS does not answer.
    """
    kill_from = time.monotonic() + patience_s
    own = psutil.Process()
    while living := [p for p in own.children(recursive=True) if p.pid != spared and _runs(p)]:
        for process in living:
            try:
                if time.monotonic() < kill_from:
                    process.terminate()
                else:
                    process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(living, timeout=_WAIT_S)


def remove(folder: Path) -> None:
    """Remove a folder into which a thread that starts Ray may still write: such a file makes one removal fail."""
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return


def _runs(process: psutil.Process) -> bool:
    """Whether a process still runs; reaps an adopted one that has ended."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            process.wait(timeout=0)
            return False
        return True
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        return False
