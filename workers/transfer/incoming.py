"""The receiving half of a rank: the links that it opened to prefill ranks, and what has come over them.

Where the sender has more ranks, this one has a link to each that holds some of its heads; where it has fewer, several
receiving ranks have a link to the same one, which sends each its share.
"""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
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


@dataclass(frozen=True, slots=True)
class ReceivedSnapshot:
    """This rank's share of a snapshot, on its device.

    parts: (n, rows) in order of position: of n latents this rank's shard, [rows, latent_layers, width]; the n add up to
    the tokens that were to come. state: [linear_layers, heads/tp, head_dim, head_dim]. split: ranks of the sender,
    which had ceil(n / split) rows each; see `write_shards`. skip: latents at the beginning of the first part that are
    not wanted.
    """

    parts: tuple[tuple[int, Tensor], ...]
    state: Tensor
    split: int
    skip: int = 0


@dataclass(slots=True, eq=False)
class _Link:
    """A link to one rank of a peer. at: its index among this rank's links to the peer."""

    peer: str
    at: int
    closed: threading.Event
    control: Control | None = None
    channel: ReceiveChannel | None = None
    standing: bool = False  # the handshake is done: requests may be sent


class Incoming:
    """All links over which snapshots come, with one thread for each."""

    def __init__(self, me: Identity, notify: Callable[[Received | LinkLost], None], threads: Threads) -> None:
        self._me = me
        self._notify = notify
        self._threads = threads
        self._lock = threading.Lock()
        self._inbox: Inbox[Tensor] = Inbox()
        self.moved = Moved(0, 0.0)  # of wanted parts, so far
        self._links: dict[str, list[_Link]] = {}
        self._split: dict[str, int] = {}  # ranks of each peer
        self._closed = False

    def __len__(self) -> int:
        """The number of snapshots expected and not yet taken."""
        return len(self._inbox)

    def link(self, to: Sequence[Link]) -> None:
        """Connect to the ranks of a peer in the background, and drop older links to it."""
        peer = to[0].peer
        self.unlink(peer)
        links = [_Link(peer, at, threading.Event()) for at in range(len(to))]
        with self._lock:
            if self._closed:
                return
            self._links[peer] = links
            self._split[peer] = to[0].senders
        for link, where in zip(links, to, strict=True):
            self._threads.start(f"transfer-from-{peer}", partial(self._serve, link, where))

    def unlink(self, peer: str) -> None:
        """Close a peer's links and forget snapshots that have not fully arrived; whole ones can still be taken."""
        with self._lock:
            links = self._links.pop(peer, [])
            self._inbox.lose(peer)
        for link in links:
            _close(link)

    def expect(self, expect: Expect) -> None:
        """Ask the peer for a snapshot. ValueError if it was asked for already."""
        with self._lock:
            links = self._links.get(expect.peer)
            if links is not None:
                serial = self._inbox.expect(expect.request_id, expect.peer, expect.tokens, expect.start, len(links))
                for link in links:
                    if link.standing:
                        _tell(link, Want(expect.request_id, serial))
                return
        self._notify(LinkLost(self._me.rank, expect.peer, (expect.request_id,), "there is no link to it"))

    def discard(self, request_id: str) -> None:
        """Give up a snapshot and drop what has arrived of it."""
        with self._lock:
            asked = self._inbox.discard(request_id)
            if asked is not None:
                peer, serial = asked
                for link in self._links.get(peer, ()):
                    if link.standing:
                        _tell(link, Unwant(serial))

    def take(self, request_id: str) -> ReceivedSnapshot:
        """Hand out a snapshot that was notified as Received, once; KeyError for any other."""
        with self._lock:
            peer, shares = self._inbox.take(request_id)
            split = self._split[peer]
        # All ranks of a sender cut their parts in the same way.
        alike = zip(*(share.parts for share in shares), strict=True)
        parts = tuple((of[0][0], _joined([rows for _, rows in of], 0)) for of in alike)
        state = _joined([share.state for share in shares if share.state is not None], 1)
        return ReceivedSnapshot(parts, state, split, shares[0].skip)

    def channels(self) -> dict[str, int]:
        """The number of links that stand, by channel."""
        with self._lock:
            standing = [link.channel for links in self._links.values() for link in links if link.standing]
        return Counter(channel.kind for channel in standing if channel is not None)

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
            if link not in self._links.get(link.peer, ()):
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
            wanted = self._inbox.begin(head.serial, link.peer, span, link.at)
        # Within a part bytes come without a pause, so a sender that stops there is stuck.
        control.patience(channel.allowed_s(channel.piece))
        whole: str | None = None
        if wanted:
            began = time.monotonic()
            # This thread copies onto the rank's device, because its stream is the one that waits for the copy.
            latents = receive_tensor(channel, head.latents).to(self._me.device)
            state = receive_tensor(channel, head.state).to(self._me.device) if head.state is not None else None
            with self._lock:
                self.moved = self.moved.plus(size_of(head.latents, head.state), time.monotonic() - began)
                whole = self._inbox.finish(head.serial, span, latents, state, link.at)
        else:
            skip_tensor(channel, head.latents)
            if head.state is not None:
                skip_tensor(channel, head.state)
        control.patience(0)
        if whole is not None:
            self._notify(Received(self._me.rank, whole))
        if wanted and span.last:
            control.send(Whole(head.serial))

    def _break(self, link: _Link, reason: str) -> None:
        """Handle a broken link, unless it was closed on purpose."""
        lost: tuple[str, ...] = ()
        with self._lock:
            links = self._links.get(link.peer, [])
            known = link in links
            if known:
                del self._links[link.peer]
                lost = self._inbox.lose(link.peer)
        if link.control is not None:
            link.control.fault(reason)
        _close(link)
        if known:
            for other in links:
                _close(other)
            self._notify(LinkLost(self._me.rank, link.peer, lost, reason))


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _tell(link: _Link, message: Want | Unwant) -> None:
    """Send from the rank's loop; the link's own thread reports a failure."""
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
