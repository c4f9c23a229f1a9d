"""Threads for work that would block the event loop."""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
# Characters of a prompt or bytes of a body. Reading, rendering and encoding fewer takes less than a millisecond.
_SHORT = 2048
# Seconds after which a thread that computes in Python gives way to the event loop; Python's default is 5 ms.
_SWITCH_S = 0.0005


class Apart:
    """Runs long work in one of a few threads, and short work at once."""

    def __init__(self, threads: int = 2) -> None:
        sys.setswitchinterval(_SWITCH_S)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="apart")

    async def __call__(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of `work`. characters: how many it reads, which decides where it runs."""
        if size < _SHORT:
            return work(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
