"""The sending half of a rank: links that decode ranks opened, and the parts that wait to be sent over them."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from workers.schedule.step import LinkLost, Moved, Sent
from workers.transfer.channel import LinkBroken, SendChannel
from workers.transfer.control import Control, reason_of
from workers.transfer.device import own_stream
from workers.transfer.lending import Lending
from workers.transfer.messages import Emptied, Hail, LinkMessage, PartHead, Unwant, Want, WantWeights, Whole
from workers.transfer.negotiation import Identity, offer_channel
from workers.transfer.outbox import Outbox
from workers.transfer.payload import Part, blob, send_tensor, size_of
from workers.transfer.ring import RingSender
from workers.transfer.threads import Threads

PATIENCE_S = 30.0
HANDSHAKE_S = 15
Receiver = tuple[str, int]  # a rank of another worker


@dataclass(slots=True, eq=False)
class _Link:
    number: int
    control: Control
    ready: threading.Condition  # of the common lock: there is a part to send, or the link is closed
    peer: Receiver | None = None  # None until the handshake is done
    channel: SendChannel | None = None


class Outgoing:
    """All links over which snapshots are sent, with two threads each: one reads messages, one sends parts."""

    def __init__(self, me: Identity, notify: Callable[[Sent | LinkLost], None], threads: Threads) -> None:
        self._me = me
        self._notify = notify
        self._threads = threads
        self._lock = threading.Lock()
        self._outbox: Outbox[Receiver, Part] = Outbox(PATIENCE_S)
        self._links: dict[int, _Link] = {}
        self._numbers = itertools.count()
        self._closed = False
        self.moved = Moved(0, 0.0)  # so far
        self.lending = Lending()

    def __len__(self) -> int:
        """The number of snapshots not yet sent and acknowledged, including those only asked for."""
        return len(self._outbox)

    def accept(self, connection: socket.socket) -> None:
        """A decode rank connected."""
        link = _Link(next(self._numbers), Control(connection), threading.Condition(self._lock))
        with self._lock:
            if self._closed:
                link.control.release()
                return
            self._links[link.number] = link
        self._threads.start(f"transfer-in-{link.number}", lambda: self._serve(link))

    def put(self, request_id: str, parts: Mapping[Receiver, Part], now: float) -> None:
        """Queue a part for each receiving rank."""
        with self._lock:
            for peer, part in parts.items():
                number = self._outbox.put(request_id, peer, part, part.state is not None, now)
                if number is not None:
                    self._links[number].ready.notify()

    def discard(self, request_id: str) -> None:
        """Send no further part of a snapshot."""
        with self._lock:
            self._outbox.discard(request_id)

    def drop(self, peer: str) -> None:
        """Forget everything for a peer, and close its links."""
        with self._lock:
            for receiver in self._outbox.receivers:
                if receiver[0] == peer:
                    self._outbox.drop(receiver)
            links = [link for link in self._links.values() if link.peer is not None and link.peer[0] == peer]
        for link in links:
            self._end(link)

    def expire(self, now: float) -> None:
        """Give up snapshots that nobody asked for or acknowledged in time."""
        with self._lock:
            overdue = self._outbox.overdue(now)
        for (peer, _), request_ids in overdue.items():
            reason = f"{peer} did not ask for the snapshot, or not acknowledge it, within {PATIENCE_S:g} s"
            self._notify(LinkLost(self._me.rank, peer, request_ids, reason, leaving=True))

    def close(self) -> None:
        """Close all links."""
        with self._lock:
            self._closed = True
            links = list(self._links.values())
        for link in links:
            self._end(link)

    def _serve(self, link: _Link) -> None:
        try:
            with own_stream(self._me.device):
                self._open(link)
            self._threads.start(f"transfer-out-{link.number}", lambda: self._write(link))
            while True:
                self._handle(link, link.control.receive())
        except Exception as error:
            self._break(link, reason_of(error))
        finally:
            link.control.release()

    def _open(self, link: _Link) -> None:
        """Do the handshake; returns the channel."""
        link.control.patience(HANDSHAKE_S)
        link.control.meet(self._me.secret, self._me.tls, calling=False)
        peer = link.control.receive()
        if not isinstance(peer, Hail):
            raise LinkBroken(f"expected Hail, got {type(peer).__name__}")
        me = self._me
        few, many = sorted(((me.ranks, me.rank), (peer.ranks, peer.rank)))
        if few[1] != many[1] * few[0] // many[0]:
            raise LinkBroken(f"rank {peer.rank} of {peer.worker_id} has come to rank {me.rank}")
        link.channel = offer_channel(self._me, peer, link.control)
        link.control.patience(0)
        with self._lock:
            if link.number not in self._links:
                raise LinkBroken("the link is closed")
            link.peer = (peer.worker_id, peer.rank)
            self._outbox.open(link.number, link.peer)

    def _handle(self, link: _Link, message: LinkMessage) -> None:
        match message:
            case Emptied() if isinstance(link.channel, RingSender):
                link.channel.emptied()
            case Want():
                with self._lock:
                    if link.number in self._links:
                        self._outbox.want(link.number, message.request_id, message.serial, time.monotonic())
                        link.ready.notify()
            case Unwant():
                with self._lock:
                    request_id = self._outbox.unwant(link.number, message.serial)
                if request_id is not None and link.peer is not None:
                    peer, _ = link.peer
                    self._notify(LinkLost(self._me.rank, peer, (request_id,), f"{peer} gave it up", leaving=True))
            case Whole():
                with self._lock:
                    request_id = self._outbox.acknowledged(link.number, message.serial)
                    more = request_id is not None and self._outbox.leaves(request_id)
                if request_id is not None and not more:
                    self._notify(Sent(self._me.rank, request_id))
            case WantWeights():
                self._threads.start(f"transfer-lend-{link.number}", lambda: self._lend(link, message.identity))
            case _:
                raise LinkBroken(f"{type(message).__name__} does not come from a receiver")

    def _lend(self, link: _Link, identity: str) -> None:
        channel = link.channel
        assert channel is not None
        try:
            with own_stream(self._me.device):
                self.lending.lend(identity, link.control, channel)
        except Exception as error:
            self._break(link, reason_of(error))

    def _write(self, link: _Link) -> None:
        try:
            with own_stream(self._me.device):
                while (due := self._next(link)) is not None:
                    self._send(link, *due)
        except Exception as error:
            self._break(link, reason_of(error))

    def _next(self, link: _Link) -> tuple[int, Part] | None:
        with self._lock:
            while link.number in self._links:
                due = self._outbox.next(link.number, time.monotonic())
                if due is not None:
                    return due
                link.ready.wait()
        return None

    def _send(self, link: _Link, serial: int, part: Part) -> None:
        channel = link.channel
        assert channel is not None
        state = blob(part.state) if part.state is not None else None
        latents = blob(part.latents)
        # From the announcement on, a kernel of the receiving GPU waits for this one and holds multiprocessors.
        part.computed()
        link.control.send(PartHead(serial, part.start, part.stop, latents, state))
        began = time.monotonic()
        send_tensor(channel, part.latents)
        if part.state is not None:
            send_tensor(channel, part.state)
        with self._lock:
            self.moved = self.moved.plus(size_of(latents, state), time.monotonic() - began)

    def _break(self, link: _Link, reason: str) -> None:
        """Handle a broken link; the first thread that notices it reports it."""
        with self._lock:
            known = link.number in self._links
            lost = self._forget(link)
        link.control.fault(reason)
        if link.channel is not None:
            link.channel.close()
        if known and link.peer is not None:
            self._notify(LinkLost(self._me.rank, link.peer[0], lost, reason, leaving=True))

    def _end(self, link: _Link) -> None:
        """Close the link on purpose, without a report."""
        with self._lock:
            self._forget(link)
        link.control.close()
        if link.channel is not None:
            link.channel.close()

    def _forget(self, link: _Link) -> tuple[str, ...]:
        self._links.pop(link.number, None)
        link.ready.notify_all()
        return self._outbox.close(link.number)
