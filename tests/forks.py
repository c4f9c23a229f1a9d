"""Forks test processes from one that has imported torch and the ranks' code, because importing takes seconds."""

import multiprocessing
from multiprocessing import forkserver

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["workers.rank.process"])


def start_forks() -> None:
    """Start the process that forks, if it does not run. Call it before a test changes the environment.

    Test processes get the environment that this process had when it started.
    """
    forkserver.ensure_running()
