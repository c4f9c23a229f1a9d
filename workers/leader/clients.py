"""Holds a leader's clients, routers and pulling decode workers, and the router that owns each request."""

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from wire.codec import CLUSTER
from wire.protocol import Beat, Found, Header, KeptEvent, Load, Parked, PullRefused, SeqOutput, StepOutputs, WorkerInfo

# A client that stops reading is disconnected at so many buffered bytes.
_MAX_UNREAD = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Client:
    """One connection. seen: submissions received from it. kept: events of the prefix cache to send to it."""

    name: str
    kind: Literal["router", "worker"]
    writer: asyncio.StreamWriter
    seen: int = 0
    outbox: list[SeqOutput] = field(default_factory=list)
    kept: list[KeptEvent] = field(default_factory=list)

    def tell(self, message: WorkerInfo | StepOutputs | Header | PullRefused | Parked | Found | Beat) -> None:
        """Queue a message. The reading side notices a connection that has ended."""
        self.writer.write(CLUSTER.encode(message))
        if self.writer.transport.get_write_buffer_size() > _MAX_UNREAD:
            self.writer.transport.abort()

    def flush(self, step: int, load: Load) -> None:
        """Send its waiting outputs and events with the worker's figures."""
        self.tell(StepOutputs(step, self.seen, load, tuple(self.outbox), tuple(self.kept)))
        self.outbox.clear()
        self.kept.clear()


class Clients:
    """All connections, and the owner of each request."""

    def __init__(self) -> None:
        self._all: set[Client] = set()
        self._owners: dict[str, Client] = {}

    def join(self, client: Client) -> None:
        """Add a connection."""
        self._all.add(client)

    def leave(self, client: Client) -> list[str]:
        """Remove a connection that ended; returns the requests that it owned."""
        self._all.discard(client)
        return [request_id for request_id, owner in self._owners.items() if owner is client]

    def own(self, request_id: str, client: Client) -> None:
        """Send a request's outputs to this client from now on."""
        self._owners[request_id] = client

    def owner(self, request_id: str) -> Client | None:
        """The client that owns a request; None if nobody does."""
        return self._owners.get(request_id)

    def disown(self, request_id: str) -> None:
        """Send a request's outputs to nobody from now on."""
        self._owners.pop(request_id, None)

    def publish(self, outputs: list[SeqOutput], step: int, load: Load) -> None:
        """Send the outputs, in one message to each router that owns some of them."""
        owners = self._owners
        clients = [owners.get(output.request_id) for output in outputs]
        for client in set(clients):
            if client is not None:
                client.outbox += (output for output, owner in zip(outputs, clients, strict=True) if owner is client)
                client.flush(step, load)
        for output in outputs:
            if output.finish:
                owners.pop(output.request_id, None)

    def kept(self, event: KeptEvent) -> None:
        """Queue an event of the prefix cache for every router's next message."""
        for client in self._all:
            if client.kind == "router":
                client.kept.append(event)

    def beat(self, step: int, load: Load) -> None:
        """Send every client a sign of life; routers get fresh figures, even if nothing is computed."""
        for client in self._all:
            if client.kind == "router":
                client.flush(step, load)
            else:
                client.tell(Beat())

    def close(self) -> None:
        """End every connection."""
        for client in list(self._all):
            client.writer.close()
