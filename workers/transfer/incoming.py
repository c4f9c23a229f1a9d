"""The receiving half of a rank: links it opened to prefill ranks, and what has come over them."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from workers.schedule.step import Expect, Link, LinkLost, Moved, Received
from workers.transfer.channel import LinkBroken, ReceiveChannel
from workers.transfer.control import Control, reason_of
from workers.transfer.device import own_stream
from workers.transfer.messages import PartHead, Unwant, Want, Whole
from workers.transfer.negotiation import Identity, accept_channel
from workers.transfer.payload import receive_tensor, size_of, skip_tensor
from workers.transfer.staging import Inbox, Span
from workers.transfer.threads import Threads

HANDSHAKE_S = 15
_CONNECT_S = 5.0
_RETRY_S = 0.05
# Within a part bytes come without a pause; a sender that stops there is stuck.
_STALL_S = 30


@dataclass(frozen=True, slots=True)
class ReceivedSnapshot:
    """This rank's share of a snapshot, on its device.

    parts: (n, rows) in order of position: of n latents this rank's shard, [ceil(n / ranks), latent_layers, width];
    the n add up to the tokens that were to come. state: [linear_layers, heads/tp, head_dim, head_dim]. skip: latents
    at the beginning of the first part that are not wanted.
    """

    parts: tuple[tuple[int, Tensor], ...]
    state: Tensor
    skip: int = 0


@dataclass(slots=True, eq=False)
class _Link:
    peer: str
    closed: threading.Event
    control: Control | None = None
    channel: ReceiveChannel | None = None
    standing: bool = False  # the handshake is done: requests may be sent


class Incoming:
    """One thread a link."""

    def __init__(self, me: Identity, notify: Callable[[Received | LinkLost], None], threads: Threads) -> None:
        self._me = me
        self._notify = notify
        self._threads = threads
        self._lock = threading.Lock()
        self._inbox: Inbox[Tensor] = Inbox()
        self.moved = Moved(0, 0.0)  # of what was wanted, so far
        self._links: dict[str, _Link] = {}
        self._closed = False

    def __len__(self) -> int:
        """Snapshots expected and not yet taken."""
        return len(self._inbox)

    def link(self, to: Link) -> None:
        """Connect in the background; an older link to the same peer is dropped."""
        self.unlink(to.peer)
        link = _Link(to.peer, threading.Event())
        with self._lock:
            if self._closed:
                return
            self._links[to.peer] = link
        self._threads.start(f"transfer-from-{to.peer}", lambda: self._serve(link, to))

    def unlink(self, peer: str) -> None:
        """Close the link and forget what has not wholly come over it; whole snapshots can still be taken."""
        with self._lock:
            link = self._links.pop(peer, None)
            self._inbox.lose(peer)
        if link is not None:
            _close(link)

    def expect(self, expect: Expect) -> None:
        """Ask the peer for a snapshot. ValueError if it was asked for already."""
        with self._lock:
            link = self._links.get(expect.peer)
            if link is not None:
                serial = self._inbox.expect(expect.request_id, expect.peer, expect.tokens, expect.start)
                if link.standing:
                    _tell(link, Want(expect.request_id, serial))
                return
        self._notify(LinkLost(self._me.rank, expect.peer, (expect.request_id,), "there is no link to it"))

    def discard(self, request_id: str) -> None:
        """Give a snapshot up, whatever has come of it."""
        with self._lock:
            asked = self._inbox.discard(request_id)
            if asked is not None:
                peer, serial = asked
                link = self._links.get(peer)
                if link is not None and link.standing:
                    _tell(link, Unwant(serial))

    def take(self, request_id: str) -> ReceivedSnapshot:
        """Hand out a snapshot that was notified as Received, once; KeyError for any other."""
        with self._lock:
            return ReceivedSnapshot(*self._inbox.take(request_id))

    def close(self) -> None:
        """Close all links."""
        with self._lock:
            self._closed = True
            peers = list(self._links)
        for peer in peers:
            self.unlink(peer)

    def _serve(self, link: _Link, to: Link) -> None:
        try:
            with own_stream(self._me.device):
                self._take_parts(link, to)
        except Exception as error:
            self._break(link, reason_of(error))
        finally:
            if link.control is not None:
                link.control.release()

    def _take_parts(self, link: _Link, to: Link) -> None:
        control = link.control = Control(self._connect(link, to))
        if link.closed.is_set():
            raise LinkBroken("the link is closed")
        control.patience(HANDSHAKE_S)
        control.meet(self._me.secret, self._me.tls, calling=True)
        channel = link.channel = accept_channel(self._me, control)
        control.patience(0)
        with self._lock:
            if self._links.get(link.peer) is not link:
                raise LinkBroken("the link is closed")
            for serial, request_id in self._inbox.awaited(link.peer):
                control.send(Want(request_id, serial))
            link.standing = True
        while True:
            message = control.receive()
            if not isinstance(message, PartHead):
                raise LinkBroken(f"{type(message).__name__} does not come from a sender")
            self._receive(link, control, channel, message)

    def _connect(self, link: _Link, to: Link) -> socket.socket:
        deadline = time.monotonic() + _CONNECT_S
        while True:
            try:
                return socket.create_connection((to.host, to.port), timeout=_CONNECT_S)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LinkBroken(f"{to.host}:{to.port} can't be reached: {error}") from error
            if link.closed.wait(_RETRY_S):
                raise LinkBroken("the link is closed")

    def _receive(self, link: _Link, control: Control, channel: ReceiveChannel, head: PartHead) -> None:
        rows, *row = head.latents.shape
        span = Span(head.start, head.stop, head.state is not None, (*row, head.latents.dtype))
        if not (0 < rows <= head.stop - head.start or rows == head.stop - head.start == 0):
            raise LinkBroken(f"{rows} rows can't be a share of latents [{head.start}, {head.stop})")
        with self._lock:
            wanted = self._inbox.begin(head.serial, link.peer, span)
        control.patience(_STALL_S)
        whole: str | None = None
        if wanted:
            began = time.monotonic()
            # Onto the rank's device by this thread: its stream is the one that waits for the copy.
            latents = receive_tensor(channel, head.latents).to(self._me.device)
            state = receive_tensor(channel, head.state).to(self._me.device) if head.state is not None else None
            with self._lock:
                self.moved = self.moved.plus(size_of(head.latents, head.state), time.monotonic() - began)
                whole = self._inbox.finish(head.serial, span, latents, state)
        else:
            skip_tensor(channel, head.latents)
            if head.state is not None:
                skip_tensor(channel, head.state)
        control.patience(0)
        if whole is not None:
            self._notify(Received(self._me.rank, whole))
            control.send(Whole(head.serial))

    def _break(self, link: _Link, reason: str) -> None:
        """The link broke, by itself unless it is no longer among the links."""
        lost: tuple[str, ...] = ()
        with self._lock:
            known = self._links.get(link.peer) is link
            if known:
                del self._links[link.peer]
                lost = self._inbox.lose(link.peer)
        if link.control is not None:
            link.control.fault(reason)
        _close(link)
        if known:
            self._notify(LinkLost(self._me.rank, link.peer, lost, reason))


def _tell(link: _Link, message: Want | Unwant) -> None:
    """From the rank's loop: a link that fails is left to its own thread to report."""
    assert link.control is not None
    try:
        link.control.send(message)
    except LinkBroken:
        link.control.close()


def _close(link: _Link) -> None:
    link.closed.set()
    if link.control is not None:
        link.control.close()
    if link.channel is not None:
        link.channel.close()
