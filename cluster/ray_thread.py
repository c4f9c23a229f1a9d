"""One thread that makes all calls to Ray, so that the main thread is free for signals and to watch Ray's processes."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
_POLL_S = 0.2


class RayThread:
    """Runs one piece of work after another. It lives as long as its process, because Ray's daemons end with the thread
    that started them.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._given = self._done = 0
        threading.Thread(target=self._run, name="ray", daemon=True).start()

    def do(self, work: Callable[[], T], check: Callable[[], None]) -> T:
        """The result or error of `work`. Meanwhile `check` is called often; an error of `check` ends only the wait."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = work()
            except BaseException as error:
                self._done += 1
                future.set_exception(error)
            else:
                self._done += 1
                future.set_result(result)

        self._given += 1
        self._work.put(run)
        while not wait([future], timeout=_POLL_S).done:
            check()
        return future.result()

    @property
    def idle(self) -> bool:
        """Whether all work given to it has ended."""
        return self._done == self._given

    def _run(self) -> None:
        while True:
            self._work.get()()
