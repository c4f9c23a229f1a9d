"""The daemon threads of a rank's links."""

import threading
import time
from collections.abc import Callable


class Threads:
    """Starts threads and waits for their end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, name: str, body: Callable[[], None]) -> None:
        """Run `body` in a thread of its own."""
        with self._lock:
            thread = threading.Thread(target=body, name=name, daemon=True)
            thread.start()
            self._threads = [*self._alive(), thread]

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` until all have ended; one may be inside a library call that can't be interrupted."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            with self._lock:
                alive = [t for t in self._alive() if t is not threading.current_thread()]
            if not alive:
                return
            alive[0].join(left)

    def _alive(self) -> list[threading.Thread]:
        return [t for t in self._threads if t.is_alive()]
