"""Connections to a worker: routers, decode workers that pull from it, and those that save and load files."""

import asyncio
import time
from collections.abc import Callable

from wire.codec import CLUSTER, WireError
from wire.handshake import accept
from wire.liveness import detect_dead_host
from wire.protocol import (
    Abort,
    Attach,
    CancelPull,
    Drain,
    Find,
    Found,
    Hello,
    KeptEvent,
    Move,
    Park,
    Parked,
    Pin,
    Pull,
    Submit,
    Unpin,
    WorkerInfo,
)
from workers.cache.kept import Kept
from workers.leader.clients import Client, Clients
from workers.leader.files import Files
from workers.leader.handoffs import HandOffs
from workers.leader.requests import Requests
from workers.schedule.scheduler import Scheduler


class Callers:
    """Serves one connection after another. on_drain: called when an operator wants the worker to end."""

    def __init__(
        self,
        info: WorkerInfo,
        secret: str,
        scheduler: Scheduler,
        handoffs: HandOffs,
        requests: Requests,
        files: Files,
        clients: Clients,
        wake: Callable[[], None],
        on_drain: Callable[[], None],
    ) -> None:
        self._info = info
        self._secret = secret
        self._scheduler = scheduler
        self._handoffs = handoffs
        self._requests = requests
        self._files = files
        self._clients = clients
        self._wake = wake
        self._on_drain = on_drain
        scheduler.cache.on_change = lambda kept: clients.kept(self._event_of(kept))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection to its end."""
        client: Client | None = None
        try:
            detect_dead_host(writer.get_extra_info("socket"))
            await accept(reader, writer, self._secret)
            hello = await CLUSTER.read(reader)
            if not isinstance(hello, Hello):
                raise WireError(f"the first message must be Hello, not {type(hello).__name__}")
            if hello.kind == "file":
                await self._files.serve(reader, writer)
                return
            client = Client(hello.name, hello.kind, writer)
            self._clients.join(client)
            if hello.kind == "worker":
                self._handoffs.giving.puller_joined(client)
            client.tell(self._info)
            client.kept.extend(map(self._event_of, self._scheduler.cache.index))
            while True:
                self._handle(client, await CLUSTER.read(reader))
        except (OSError, EOFError, WireError):
            pass
        finally:
            writer.close()
            if client is not None:
                self._requests.forget(client)

    def _handle(self, client: Client, message: object) -> None:
        match message:
            case Submit():
                client.seen += 1
                self._requests.submit(client, message)
            case Pull():
                self._requests.perform(self._handoffs.giving.asked(client, message, time.monotonic()))
            case Find():
                entry = self._requests.resumable.find(message.key)
                client.tell(Found(message.key, entry.request_id, entry.body) if entry else Found(message.key, "", b""))
            case Attach():
                self._requests.attach(client, message.request_id)
            case Abort():
                self._requests.abort(client, message.request_id)
            case CancelPull(kept=True):
                self._handoffs.giving.kept_cancelled(message.request_id)
            case CancelPull():
                self._requests.release(message.request_id)
                self._requests.perform(self._handoffs.giving.cancelled(message.request_id))
            case Pin() | Unpin() | Park():
                self._session(client, message)
            case Move():
                self._handoffs.moving.copied(message.request_id)
            case Drain():
                self._on_drain()
            case _:
                raise WireError(f"{type(message).__name__} does not come from a router or a decode worker")
        self._wake()

    def _session(self, client: Client, message: Pin | Unpin | Park) -> None:
        now = time.monotonic()
        match message:
            case Pin():
                self._scheduler.pin(message.session, message.marks, now, now + message.ttl_s, again=message.again)
            case Unpin():
                self._scheduler.unpin(message.session)
            case Park():
                client.tell(Parked(message.call, self._scheduler.park(message.mark, now)))

    def _event_of(self, kept: Kept) -> KeptEvent:
        return KeptEvent(kept.position, kept.digest, self._scheduler.cache.tier(kept))
