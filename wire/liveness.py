"""Detects that the other end of a connection is dead although the connection still exists.

A process that ends closes its connections. A process that is stopped or hangs, or whose network is cut, does not. So
each leader sends something every BEAT_S seconds on every connection that it accepted, and its callers treat SILENT_S
seconds without a message as its end.
"""

import socket

BEAT_S = 0.2
SILENT_S = 1.5


class AwakeClock:
    """A clock of the seconds `s` in which this process ran. Call `tick` every BEAT_S seconds.

    It does not count time in which the process itself was held up: it could receive nothing then, and on an overloaded
    machine its peers are held up as well.
    """

    def __init__(self, now: float) -> None:
        self.s = 0.0
        self._ticked = now

    def tick(self, now: float) -> None:
        """Count the time since the last tick, at most two intervals of BEAT_S. now: seconds of a monotonic clock."""
        self.s += min(now - self._ticked, 2 * BEAT_S)
        self._ticked = now


def detect_dead_host(sock: socket.socket) -> None:
    """Make the kernel end a connection whose other host has not answered for 5 s."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 5000)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
