"""Handles Ctrl-C and other ending signals by phase, without exceptions in code that does not expect them."""

import signal
from collections.abc import Callable
from types import FrameType

ENDING = [signal.SIGINT, signal.SIGTERM]
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` wants it ignored
    ENDING.append(signal.SIGHUP)


class EndingSignals:
    """Handles SIGINT, SIGTERM and SIGHUP in the main thread.

    At first a signal calls `abandon` at once, because nothing serves yet and nothing is lost. After `defer` a signal
    only counts in `asked`, which the caller reads. After `ignore` it does nothing.
    """

    def __init__(self, abandon: Callable[[], None]) -> None:
        self.asked = 0
        self._abandon = abandon
        self._deferred = False
        self._before = {number: signal.getsignal(number) for number in ENDING}
        self.take()

    def take(self) -> None:
        """Install the handlers; call it again once Ray has connected, as its native code takes SIGTERM for itself."""
        for number in ENDING:
            signal.signal(number, self._handle)

    def abandon_by(self, abandon: Callable[[], None]) -> None:
        """From now on a signal that is not deferred calls this."""
        self._abandon = abandon

    def defer(self) -> None:
        """From now on count signals in `asked`. May be called from any thread."""
        self._deferred = True

    def ignore(self) -> None:
        """From now on do nothing."""
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Reinstall the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        # If Ray's handler took SIGTERM, it has called this one, and set an alarm that aborts the process.
        signal.alarm(0)
        if self._deferred:
            self.asked += 1
        else:
            self._abandon()
