"""A worker's connections to the workers it pulls snapshots from."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from wire.codec import CLUSTER, WireError
from wire.handshake import call
from wire.liveness import SILENT_S, AwakeClock, detect_dead_host
from wire.logs import describe
from wire.protocol import CancelPull, Header, Hello, PeerRef, Pull, PullRefused, WorkerInfo
from wire.tls import connect

_CONNECT_S = 2.0
# Seconds until an unreachable worker is tried again, growing up to a limit; then the worker is forgotten.
_AGAIN_S, _LONGEST_S, _FORGET_S = 1.0, 16.0, 600.0


class PeerRefused(RuntimeError):
    """The peer can't be connected.

    mismatch: its snapshots would not fit here. away: it does not answer now, but may be reachable later.
    """

    def __init__(self, reason: str, *, mismatch: bool = False, away: bool = False) -> None:
        super().__init__(reason)
        self.mismatch = mismatch
        self.away = away


@dataclass(slots=True, eq=False)
class Peer:
    """A connected worker. heard: when its last message arrived, by the leader's clock."""

    ref: PeerRef
    info: WorkerInfo
    writer: asyncio.StreamWriter
    heard: float
    reading: asyncio.Task[None] | None = field(default=None)

    def send(self, message: Pull | CancelPull) -> None:
        """Queue a message. The reading side notices a dead connection."""
        self.writer.write(CLUSTER.encode(message))


def peer_mismatch(own: WorkerInfo, peer: WorkerInfo) -> str | None:
    """The reason why `own` can't continue snapshots of `peer`; None if it can."""
    for name in ("weights_id", "layout", "page_size"):
        mine, theirs = getattr(own, name), getattr(peer, name)
        if mine != theirs:
            return (
                f"{name} of {peer.worker_id} is {theirs}, of {own.worker_id} {mine}: snapshots can't move between them"
            )
    return None


class Peers:
    """Connects peers when they are first needed, and again after a connection was closed.

    A peer that does not answer is refused at once until it answers again.
    """

    def __init__(
        self,
        own: WorkerInfo,
        secret: str,
        awake: AwakeClock,
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
        self._awake = awake
        self._away: dict[str, asyncio.Task[None]] = {}  # tasks that try to reach a worker again

    @property
    def unreachable(self) -> tuple[str, ...]:
        """The ids of the workers that are unreachable now."""
        return tuple(self._away)

    def known(self, worker_id: str) -> Peer | None:
        """The peer if it is connected now, else None."""
        return self._peers.get(worker_id)

    async def connect(self, ref: PeerRef) -> Peer:
        """Connect and check a peer; PeerRefused if that fails. Concurrent callers share one attempt."""
        if peer := self._peers.get(ref.worker_id):
            return peer
        if ref.worker_id in self._away:
            raise PeerRefused(f"worker {ref.worker_id} is out of reach", away=True)
        try:
            return await self._attempt(ref)
        except PeerRefused as error:
            if error.away:
                self._try_again(ref)
            raise

    def check(self) -> None:
        """Drop the peers that have sent nothing for too long."""
        for worker_id, peer in list(self._peers.items()):
            if self._awake.s - peer.heard > SILENT_S:
                # Recorded first, so that routers learn it together with the failed requests.
                self._try_again(peer.ref)
                self.drop_lost(worker_id, f"said nothing for {SILENT_S:g} s")

    def _try_again(self, ref: PeerRef) -> None:
        if ref.worker_id not in self._away:
            task = asyncio.create_task(self._regain(ref))
            self._away[ref.worker_id] = task
            task.add_done_callback(lambda _: self._away.pop(ref.worker_id, None))

    async def _regain(self, ref: PeerRef) -> None:
        pause, until = _AGAIN_S, self._awake.s + _FORGET_S
        while self._awake.s < until:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_S)
            try:
                await self._attempt(ref)
            except PeerRefused as error:
                if error.away:
                    continue
            return

    async def _attempt(self, ref: PeerRef) -> Peer:
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
        for task in (*self._connecting.values(), *self._away.values()):
            task.cancel()
        for worker_id in list(self._peers):
            self.drop(worker_id)

    async def _open(self, ref: PeerRef) -> Peer:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await connect(ref.host, ref.port)
                detect_dead_host(writer.get_extra_info("socket"))
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
            # A refused connection means that the worker has ended; an unreachable host may come back.
            away = isinstance(error, OSError) and not isinstance(error, ConnectionError)
            raise PeerRefused(f"worker {ref.worker_id} can't be reached: {describe(error)}", away=away) from error
        except PeerRefused:
            if writer is not None:
                writer.close()
            raise
        peer = Peer(ref, info, writer, self._awake.s)
        self._peers[ref.worker_id] = peer
        self._on_link(info)
        peer.reading = asyncio.create_task(self._read(peer, reader))
        return peer

    async def _read(self, peer: Peer, reader: asyncio.StreamReader) -> None:
        worker_id = peer.ref.worker_id
        reason = "closed its connection"
        try:
            while True:
                message = await CLUSTER.read(reader)
                peer.heard = self._awake.s
                if isinstance(message, Header | PullRefused):
                    self._on_message(worker_id, message)
        except (OSError, EOFError):
            pass
        except WireError as error:
            reason = str(error)
        if self._peers.get(worker_id) is peer:
            self.drop_lost(worker_id, reason)

    def drop_lost(self, worker_id: str, reason: str) -> None:
        """The peer or a link to it is gone: close the connection and report the loss."""
        peer = self._peers.pop(worker_id, None)
        if peer is not None:
            peer.writer.close()
            if peer.reading is not None and peer.reading is not asyncio.current_task():
                peer.reading.cancel()
            self._on_lost(worker_id, f"worker {worker_id} {reason}")
