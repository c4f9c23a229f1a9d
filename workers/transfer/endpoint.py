"""A rank's end of all its transfer links: it sends snapshots to decode ranks and receives them from prefill ranks."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from wire.tls import tls
from workers.schedule.step import Expect, Export, Link, LinkLost, Moved, Received, Sent
from workers.transfer.borrowing import Borrowing
from workers.transfer.device import once_computed
from workers.transfer.incoming import Incoming, ReceivedSnapshot
from workers.transfer.lending import Lending
from workers.transfer.messages import Choice
from workers.transfer.negotiation import Identity
from workers.transfer.nixl_agent import INSTALL, ability
from workers.transfer.outgoing import Outgoing
from workers.transfer.payload import Part, shares_of
from workers.transfer.threads import Threads
from workers.transfer.torch_dist import address_family

_TICK_S = 1.0
_JOIN_S = 2.0


class Transfers:
    """All links of a rank, used from its loop.

    No call waits for the network: threads move the data and call `notify`.

    host, port: where this rank accepts links.
    """

    host: str
    port: int

    def __init__(
        self,
        rank: int,
        worker_id: str,
        host: str,
        device: torch.device,
        channel: Choice,
        notify: Callable[[Received | Sent | LinkLost], None],
        secret: str = "",
        ranks: int = 1,
    ) -> None:
        """Listens on `host`, at a free port; OSError if that is not an address of this machine, TlsError.

        ranks: of this worker. RuntimeError if `channel` asks for NIXL and it is not installed.
        """
        if channel == "nixl" and ability() == "none":
            raise RuntimeError(f"handoff.channel: nixl is not installed here: {INSTALL}, or set channel to auto")
        self._device = device
        self._me = me = Identity(worker_id, rank, ranks, host, device, channel, secret, tls())
        self._threads = Threads()
        self._incoming = Incoming(me, notify, self._threads)
        self._outgoing = Outgoing(me, notify, self._threads)
        self._closing = threading.Event()
        self._listener = socket.create_server((host, 0), family=address_family(host), backlog=128)
        self._listener.settimeout(_TICK_S)
        self.host = host
        self.port = self._listener.getsockname()[1]
        self._threads.start("transfer-listen", self._listen)

    # Receiving

    def link(self, *links: Link) -> None:
        """Connect to ranks of one peer, in the background; LinkLost is notified if that fails."""
        self._incoming.link(links)

    def unlink(self, peer: str) -> None:
        """The peer is gone: close its links, and forget what was to go to it and what has not completely come from it.

        Snapshots that were notified as Received can still be taken, or discarded.
        """
        self._incoming.unlink(peer)
        self._outgoing.drop(peer)

    def expect(self, expect: Expect) -> None:
        """Pull a snapshot; Received or LinkLost is notified. ValueError if it was pulled already."""
        self._incoming.expect(expect)

    def discard(self, request_id: str, leaving: bool = True) -> None:
        """Drop what has arrived, or still arrives, of a snapshot; with `leaving`, also what waits to be sent."""
        self._incoming.discard(request_id)
        if leaving:
            self._outgoing.discard(request_id)

    def take(self, request_id: str) -> ReceivedSnapshot:
        """Hand out a snapshot that was notified as Received, once; KeyError for any other."""
        return self._incoming.take(request_id)

    # Sending

    def send(self, export: Export, latent_rows: Tensor, state: Tensor | None) -> None:
        """Queue a part for `export.peer`: this rank's shard of latents [start, stop), and with the last the state.

        It leaves once the peer asks for the snapshot; where the peer has more ranks, each of this rank's receivers gets
        its share. Sent is notified when the peer has all of it; LinkLost, with
        the request's id, if the link breaks, or nobody asks within 30 s. The tensors belong to the transfer layer
        from here on; the current stream may still be computing them. Any thread may call it.
        """
        if export.last != (state is not None):
            raise ValueError(f"snapshot {export.request_id}: the state goes with the last part and with no other")
        me, ranks = self._me, export.ranks or self._me.ranks
        computed = once_computed(latent_rows.device)
        first, count = me.rank * ranks // me.ranks, max(1, ranks // me.ranks)
        parts = {
            (export.peer, first + n): Part(export.start, export.stop, rows, heads, computed)
            for n, (rows, heads) in enumerate(shares_of(latent_rows, state, count))
        }
        self._outgoing.put(export.request_id, parts, time.monotonic())

    # Weights

    def borrow(self, host: str, port: int, identity: str) -> Borrowing:
        """Take weights from the same rank of another worker, in the calling thread; LinkBroken."""
        return Borrowing(self._me, host, port, identity)

    @property
    def lending(self) -> Lending:
        """The weights that this rank lends to others."""
        return self._outgoing.lending

    @property
    def sent(self) -> Moved:
        """Totals of what was sent so far."""
        return self._outgoing.moved

    @property
    def received(self) -> Moved:
        """Totals of what was received and wanted so far."""
        return self._incoming.moved

    @property
    def channels(self) -> dict[str, int]:
        """The number of links over which snapshots can come, by channel."""
        return self._incoming.channels()

    @property
    def pending(self) -> int:
        """The number of snapshots in transfer; 0 if nothing is held."""
        return len(self._incoming) + len(self._outgoing)

    def close(self) -> None:
        """Close all links and end the threads; a second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        # Wakes the accepting thread, which closing alone would not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._incoming.close()
        self._outgoing.close()
        self._threads.join(_JOIN_S)

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                pass
            except OSError:
                # Out of descriptors, or closing: in both cases don't retry at once.
                self._closing.wait(_TICK_S)
            else:
                self._outgoing.accept(connection)
            self._outgoing.expire(time.monotonic())
