"""How a process learns that the other end of a connection lives no more, though the connection stands.

A process that ends closes its connections. One that is stopped or hangs, or whose network is cut, does not: so each
leader sends something every BEAT_S on every connection that it accepted, and its callers take SILENT_S without a
message for its end.
"""

import socket

BEAT_S = 0.2
SILENT_S = 1.5


class AwakeClock:
    """Seconds during which this process ran, as far as its ticks tell; `tick` is to be called every BEAT_S.

    What is measured with it does not count time in which the process itself was held up: it could hear nobody then,
    and on a machine that is too busy its peers are held up as well.
    """

    def __init__(self, now: float) -> None:
        self.s = 0.0
        self._ticked = now

    def tick(self, now: float) -> None:
        """Count the time since the last tick, but no more than two of them may be apart."""
        self.s += min(now - self._ticked, 2 * BEAT_S)
        self._ticked = now


def detect_dead_host(sock: socket.socket) -> None:
    """Have the kernel end a connection whose other host does not answer for 5 s."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 5000)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
