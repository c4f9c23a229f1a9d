"""Forks test processes from one that has imported torch and the ranks' code, because importing takes seconds."""

import asyncio
import multiprocessing
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["workers.rank.process"])


def start_forks() -> None:
    """Start the process that forks, if it does not run. Call it before a test changes the environment.

    Test processes get the environment that this process had when it started.
    """
    forkserver.ensure_running()


async def forked(target: Callable[..., None], *args: Any) -> None:
    """Run a test process to its end; a cancelled call kills it. RuntimeError if it ends with an exit code but 0."""
    process = FORKS.Process(target=target, args=args, daemon=True)
    process.start()
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
        process.kill()
        process.join()
    if process.exitcode:
        raise RuntimeError(f"{target.__name__} ended with exit code {process.exitcode}")
