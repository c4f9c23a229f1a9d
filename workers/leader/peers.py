"""A decode worker's connections to the prefill workers it pulls snapshots from."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from wire.codec import CLUSTER, WireError
from wire.handshake import call
from wire.logs import describe
from wire.protocol import CancelPull, Header, Hello, PeerRef, Pull, PullRefused, WorkerInfo
from wire.tls import connect

_CONNECT_S = 5.0


class PeerRefused(RuntimeError):
    """The peer can't be reached, or (`mismatch`) its snapshots would not fit here."""

    def __init__(self, reason: str, *, mismatch: bool) -> None:
        super().__init__(reason)
        self.mismatch = mismatch


@dataclass(slots=True, eq=False)
class Peer:
    """One prefill worker, connected."""

    info: WorkerInfo
    writer: asyncio.StreamWriter
    reading: asyncio.Task[None] | None = field(default=None)

    def send(self, message: Pull | CancelPull) -> None:
        """Queue a message; a dead connection is noticed by the reading side."""
        self.writer.write(CLUSTER.encode(message))


def peer_mismatch(own: WorkerInfo, peer: WorkerInfo) -> str | None:
    """Why a snapshot made by `peer` can't continue in `own`; None if it can."""
    for name in ("weights_id", "layout"):
        mine, theirs = getattr(own, name), getattr(peer, name)
        if mine != theirs:
            return (
                f"{name} of {peer.worker_id} is {theirs}, of {own.worker_id} {mine}: snapshots can't move between them"
            )
    if len(own.ranks) != len(peer.ranks):
        return (
            f"{peer.worker_id} has {len(peer.ranks)} ranks and {own.worker_id} {len(own.ranks)}: "
            "give both pools the same tp"
        )
    return None


class Peers:
    """Connects on first need; a peer that went away is connected anew on the next."""

    def __init__(
        self,
        own: WorkerInfo,
        secret: str,
        on_link: Callable[[WorkerInfo], None],
        on_message: Callable[[str, Header | PullRefused], None],
        on_lost: Callable[[str, str], None],
    ) -> None:
        self._own = own
        self._secret = secret
        self._on_link = on_link
        self._on_message = on_message
        self._on_lost = on_lost
        self._peers: dict[str, Peer] = {}
        self._connecting: dict[str, asyncio.Task[Peer]] = {}

    def known(self, worker_id: str) -> Peer | None:
        """The peer, if it is connected now."""
        return self._peers.get(worker_id)

    async def connect(self, ref: PeerRef) -> Peer:
        """The peer, connected and checked; PeerRefused if that fails. Callers at once share one attempt."""
        if peer := self._peers.get(ref.worker_id):
            return peer
        task = self._connecting.get(ref.worker_id)
        if task is None:
            task = asyncio.create_task(self._open(ref))
            self._connecting[ref.worker_id] = task
            task.add_done_callback(lambda _: self._connecting.pop(ref.worker_id, None))
        return await asyncio.shield(task)

    def drop(self, worker_id: str) -> None:
        """Close the connection, without a call to `on_lost`."""
        peer = self._peers.pop(worker_id, None)
        if peer is not None:
            peer.writer.close()
            if peer.reading is not None:
                peer.reading.cancel()

    def close(self) -> None:
        """Close all."""
        for task in self._connecting.values():
            task.cancel()
        for worker_id in list(self._peers):
            self.drop(worker_id)

    async def _open(self, ref: PeerRef) -> Peer:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await connect(ref.host, ref.port)
                await call(reader, writer, self._secret)
                writer.write(CLUSTER.encode(Hello(self._own.worker_id, "worker")))
                info = await CLUSTER.read(reader)
            if not isinstance(info, WorkerInfo):
                raise WireError(f"expected WorkerInfo, got {type(info).__name__}")
            if reason := peer_mismatch(self._own, info):
                raise PeerRefused(reason, mismatch=True)
        except (OSError, TimeoutError, EOFError, WireError) as error:
            if writer is not None:
                writer.close()
            reason = f"prefill worker {ref.worker_id} can't be reached: {describe(error)}"
            raise PeerRefused(reason, mismatch=False) from error
        except PeerRefused:
            if writer is not None:
                writer.close()
            raise
        peer = Peer(info, writer)
        self._peers[ref.worker_id] = peer
        self._on_link(info)
        peer.reading = asyncio.create_task(self._read(ref.worker_id, reader))
        return peer

    async def _read(self, worker_id: str, reader: asyncio.StreamReader) -> None:
        reason = "closed its connection"
        try:
            while True:
                message = await CLUSTER.read(reader)
                if isinstance(message, Header | PullRefused):
                    self._on_message(worker_id, message)
        except (OSError, EOFError):
            pass
        except WireError as error:
            reason = str(error)
        self.drop_lost(worker_id, reason)

    def drop_lost(self, worker_id: str, reason: str) -> None:
        """The peer or a link to it is gone: close what is left and say so."""
        peer = self._peers.pop(worker_id, None)
        if peer is not None:
            peer.writer.close()
            self._on_lost(worker_id, f"prefill worker {worker_id} {reason}")
