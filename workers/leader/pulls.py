"""Who pulls snapshots from this worker: its connected decode workers, and the request that each asked for. Pure."""

from dataclasses import dataclass
from typing import Protocol

from wire.protocol import Header, Pull, PullRefused


class Puller(Protocol):
    """A decode worker's connection; `name` is the worker's id."""

    name: str

    def tell(self, message: Header | PullRefused, /) -> None:
        """Queue a message for it."""


@dataclass(frozen=True, slots=True)
class _Asked:
    puller: Puller
    at: float
    have: int
    ranks: int


class Pulls:
    """Requests that decode workers asked for, whether they are here yet or not."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}
        self._workers: dict[str, Puller] = {}

    def join(self, puller: Puller) -> None:
        """A decode worker connected; it may be its second connection."""
        self._workers[puller.name] = puller

    def leave(self, puller: Puller) -> bool:
        """A connection ended, and what it asked for with it; whether its worker has no other."""
        for request_id in [i for i, asked in self._asked.items() if asked.puller is puller]:
            del self._asked[request_id]
        if self._workers.get(puller.name) is not puller:
            return False
        del self._workers[puller.name]
        return True

    def worker(self, name: str) -> Puller | None:
        """A decode worker's newest connection; None if it has gone."""
        return self._workers.get(name)

    def ask(self, pull: Pull, puller: Puller, now: float) -> None:
        """A decode worker wants a request's snapshot."""
        self._asked[pull.request_id] = _Asked(puller, now, pull.have, pull.ranks)

    def by(self, request_id: str) -> tuple[str, int, int] | None:
        """The name of who wants it, how many latents that has, and its ranks; None if nobody does."""
        asked = self._asked.get(request_id)
        return (asked.puller.name, asked.have, asked.ranks) if asked else None

    def drop(self, request_id: str) -> None:
        """It was sent, or is wanted no more."""
        self._asked.pop(request_id, None)

    def take(self, request_id: str) -> Puller | None:
        """Forget that it is wanted; the connection that wanted it, None if nobody did."""
        asked = self._asked.pop(request_id, None)
        return asked.puller if asked else None

    def asked_before(self, moment: float) -> list[str]:
        """What was asked for earlier than that."""
        return [request_id for request_id, asked in self._asked.items() if asked.at < moment]
