"""What Ctrl-C and its kin do, phase by phase. Nothing is raised into code that does not expect it."""

import signal
from collections.abc import Callable
from types import FrameType

ENDING = [signal.SIGINT, signal.SIGTERM]
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else `nohup` wants it ignored
    ENDING.append(signal.SIGHUP)


class EndingSignals:
    """Handles SIGINT, SIGTERM and SIGHUP in the main thread.

    At first a signal calls `abandon` at once: nothing serves yet, nothing is lost. After `defer` it only sets
    `asked`, for the caller to look at. After `ignore` it does nothing.
    """

    def __init__(self, abandon: Callable[[], None]) -> None:
        self.asked = False
        self._abandon = abandon
        self._deferred = False
        self._before = {number: signal.getsignal(number) for number in ENDING}
        for number in ENDING:
            signal.signal(number, self._handle)

    def defer(self) -> None:
        """From now on note signals in `asked`."""
        self._deferred = True
        self.asked = False

    def ignore(self) -> None:
        """From now on do nothing."""
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Give the signals back to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._deferred:
            self.asked = True
        else:
            self._abandon()
