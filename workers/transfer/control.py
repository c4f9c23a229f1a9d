"""A link's control connection. When one side dies, the other side sees the connection's end."""

import contextlib
import socket
import struct
import threading

from wire.codec import WireError
from wire.handshake import accept_blocking, call_blocking
from wire.tls import Tls
from workers.transfer.channel import LinkBroken
from workers.transfer.messages import LINK, LinkFault, LinkMessage
from workers.transfer.seal import Seal

# A host that vanishes sends no end of stream: probe after 1 s of silence, give up soon after.
_KEEPALIVE = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 2000}


class Control:
    """The connection. `send` may be called from any thread and never waits; `receive` from one thread only."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._seal: Seal | None = None
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def patience(self, seconds: float) -> None:
        """How long `receive` waits before the link counts as broken; 0 is for ever."""
        # Not settimeout: that would make `send` wait too.
        with contextlib.suppress(OSError):
            whole, rest = divmod(int(seconds * 1e6), 1_000_000)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", whole, rest))

    def meet(self, secret: str, tls: Tls | None, calling: bool) -> None:
        """Set up TLS if it is on, then prove the secret at both ends, before any message. LinkBroken."""
        prove = call_blocking if calling else accept_blocking
        try:
            if tls is not None:
                # Set first: if the handshake fails, the fault must not be sent in the clear.
                self._seal = Seal(tls.caller if calling else tls.acceptor, calling)
                self._seal.meet(self._some, self._socket.sendall)
            prove(self._exactly, self._write, secret)
        except EOFError:
            raise LinkBroken("the peer closed the connection before it said who it is") from None
        except OSError as error:
            raise LinkBroken(f"the connection broke: {error}") from error

    def send(self, message: LinkMessage) -> None:
        """Send a message; LinkBroken also if the peer has left so much unread that this would have to wait."""
        frame = LINK.encode(message)
        try:
            with self._lock:
                if self._seal is not None:
                    frame = self._seal.close(frame)
                sent = self._socket.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise LinkBroken(f"the connection broke: {error}") from error
        if sent < len(frame):
            raise LinkBroken("the peer stopped reading")

    def receive(self) -> LinkMessage:
        """The next message; LinkBroken at the stream's end, on a broken frame, and on the peer's own LinkFault."""
        try:
            message = LINK.read_blocking(self._exactly)
        except EOFError:
            raise LinkBroken("the peer closed the connection or died") from None
        except BlockingIOError:
            raise LinkBroken("the peer said nothing for too long") from None
        except (OSError, WireError) as error:
            raise LinkBroken(f"the connection broke: {error}") from error
        if isinstance(message, LinkFault):
            raise LinkBroken(message.reason)
        return message

    def fault(self, reason: str) -> None:
        """Tell the peer why the link closes, if it still listens; then close."""
        with contextlib.suppress(LinkBroken):
            self.send(LinkFault(reason))
        self.close()

    def gone(self) -> bool:
        """Whether the peer has closed its end; it reads nothing from the stream."""
        try:
            with self._lock:
                return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """End the connection, from any thread; a `receive` under way fails at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """End the connection and close its descriptor; for the receiving thread, when it stops."""
        self.close()
        with self._lock:
            self._socket.close()

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self._some()
            if self._seal is not None:
                with self._lock:
                    data = self._seal.open(data)
            self._buffer += data
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _some(self) -> bytes:
        if data := self._socket.recv(65536):
            return data
        raise EOFError

    def _write(self, data: bytes) -> None:
        self._socket.sendall(data if self._seal is None else self._seal.close(data))


def reason_of(error: Exception) -> str:
    """The reason why a link broke: the message of a LinkBroken, or the name of any other error."""
    return str(error) if isinstance(error, LinkBroken) else f"{type(error).__name__}: {error}"
