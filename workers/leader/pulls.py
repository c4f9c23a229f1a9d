"""A prefill worker's callers that pull snapshots: who wants which request's, and what they are told of it."""

from dataclasses import dataclass

from wire.protocol import Header, Pull, PullRefused
from workers.leader.clients import Client


@dataclass(frozen=True, slots=True)
class _Puller:
    client: Client
    at: float
    have: int


class Pulls:
    """Requests that decode workers asked for, be they here yet or not."""

    def __init__(self) -> None:
        self._wanted: dict[str, _Puller] = {}
        self._workers: dict[str, Client] = {}

    def join(self, client: Client) -> None:
        """A decode worker connected; it may be its second connection."""
        self._workers[client.name] = client

    def leave(self, client: Client) -> bool:
        """A connection ended, and what it asked for with it; whether its worker has no other."""
        for request_id in [i for i, puller in self._wanted.items() if puller.client is client]:
            del self._wanted[request_id]
        if self._workers.get(client.name) is not client:
            return False
        del self._workers[client.name]
        return True

    def ask(self, pull: Pull, client: Client, now: float) -> None:
        """A client wants a request's snapshot."""
        self._wanted[pull.request_id] = _Puller(client, now, pull.have)

    def by(self, request_id: str) -> tuple[str, int] | None:
        """The name of who wants it, and how many latents that has; None if nobody does."""
        puller = self._wanted.get(request_id)
        return (puller.client.name, puller.have) if puller else None

    def drop(self, request_id: str) -> None:
        """It was had, or is wanted no more."""
        self._wanted.pop(request_id, None)

    def refuse(self, request_id: str, reason: str, told: bool) -> None:
        """Tell who wants it, if anybody does, that it won't come. told: its router knows how it ended."""
        if puller := self._wanted.pop(request_id, None):
            puller.client.tell(PullRefused(request_id, reason, told))

    def asked_before(self, moment: float) -> list[str]:
        """What was asked for earlier than that."""
        return [request_id for request_id, puller in self._wanted.items() if puller.at < moment]

    def head(self, worker: str, header: Header) -> None:
        """Tell a decode worker what a snapshot is of; nothing if it has gone."""
        if client := self._workers.get(worker):
            client.tell(header)
