"""Payload through a TCP connection with TLS, for payload that leaves the host and must not be readable.

The sender listens for the one receiver, which shows by the offer's key that it has read the offer, over the control
connection.
"""

import contextlib
import secrets
import socket
import threading

import torch
from torch import Tensor

from wire.handshake import accept_blocking, call_blocking
from wire.tls import Tls
from workers.transfer.channel import Channel, LinkBroken, ReceiveChannel, SendChannel
from workers.transfer.messages import StreamOffer
from workers.transfer.torch_dist import address_family

_MEET_S = 5.0


class StreamMeeting:
    """The sender's open port; `offer` says where."""

    def __init__(self, host: str) -> None:
        self._listener = socket.create_server((host, 0), family=address_family(host), backlog=1)
        self.offer = StreamOffer(host, self._listener.getsockname()[1], secrets.token_hex(32))

    def join(self, tls: Tls) -> "StreamSender":
        """Wait until the receiver has connected; LinkBroken if it does not, or if another process does."""
        try:
            self._listener.settimeout(_MEET_S)
            return StreamSender(self._listener.accept()[0], tls, self.offer.key)
        except OSError as error:
            raise LinkBroken(f"no TLS connection for payload: {error}") from error
        finally:
            self.close()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


class StreamVisit:
    """The receiver's connection to the sender's port; OSError if it can't connect."""

    def __init__(self, offer: StreamOffer) -> None:
        self._key = offer.key
        self._connection = socket.create_connection((offer.host, offer.port), timeout=_MEET_S)

    def join(self, tls: Tls) -> "StreamReceiver":
        """Wait until the sender has accepted; LinkBroken if it is another process."""
        try:
            return StreamReceiver(self._connection, tls, self._key)
        except OSError as error:
            raise LinkBroken(f"no TLS connection for payload: {error}") from error


class _Stream(Channel):
    """One end, in use by one thread; `close` by any."""

    kind = "tls"
    device = torch.device("cpu")
    # Pieces are not messages here; they only bound what one call moves.
    piece = 64 * 1024 * 1024

    def __init__(self, connection: socket.socket, tls: Tls, key: str) -> None:
        """OSError if the other end has not the right certificate, or not the key."""
        calling = isinstance(self, ReceiveChannel)
        self._lock = threading.Lock()
        connection.settimeout(_MEET_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = tls.caller if calling else tls.acceptor
        self._socket = context.wrap_socket(connection, server_side=not calling)
        try:
            (call_blocking if calling else accept_blocking)(self._exactly, self._socket.sendall, key)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        # Wakes a thread that waits in it; the descriptor is closed when none does.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        with self._lock:
            self._socket.close()

    def _fill(self, room: memoryview) -> None:
        while room:
            count = self._socket.recv_into(room)
            if not count:
                raise ConnectionError("the peer closed it or died")
            room = room[count:]

    def _exactly(self, count: int) -> bytes:
        data = bytearray(count)
        self._fill(memoryview(data))
        return bytes(data)


class StreamSender(_Stream, SendChannel):
    """The prefill rank's end."""

    def send(self, piece: Tensor) -> None:
        try:
            with self._lock:
                self._socket.settimeout(self.allowed_s(piece.numel()))
                self._socket.sendall(piece.numpy().data)
        except OSError as error:
            raise LinkBroken(f"tls: {error}") from error


class StreamReceiver(_Stream, ReceiveChannel):
    """The decode rank's end."""

    def receive(self, piece: Tensor) -> None:
        try:
            with self._lock:
                self._socket.settimeout(self.allowed_s(piece.numel()))
                self._fill(piece.numpy().data)
        except OSError as error:
            raise LinkBroken(f"tls: {error}") from error
