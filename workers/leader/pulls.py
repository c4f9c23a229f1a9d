"""The decode workers that pull from this worker, and the requests that they asked for. Pure."""

from dataclasses import dataclass
from typing import Protocol

from wire.protocol import Header, Pull, PullRefused


class Puller(Protocol):
    """A decode worker's connection; `name` is the worker's id."""

    name: str

    def tell(self, message: Header | PullRefused, /) -> None:
        """Queue a message for the decode worker."""


@dataclass(frozen=True, slots=True)
class _Asked:
    puller: Puller
    at: float
    have: int
    ranks: int


class Pulls:
    """Requests that decode workers asked for, including those that have not arrived here yet."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}
        self._workers: dict[str, Puller] = {}

    def join(self, puller: Puller) -> None:
        """A decode worker connected; it may be its second connection."""
        self._workers[puller.name] = puller

    def leave(self, puller: Puller) -> bool:
        """A connection ended: forget what it asked for. Returns whether its worker has no other connection."""
        for request_id in [i for i, asked in self._asked.items() if asked.puller is puller]:
            del self._asked[request_id]
        if self._workers.get(puller.name) is not puller:
            return False
        del self._workers[puller.name]
        return True

    def worker(self, name: str) -> Puller | None:
        """A decode worker's newest connection; None if it has none."""
        return self._workers.get(name)

    def ask(self, pull: Pull, puller: Puller, now: float) -> None:
        """A decode worker wants a request's snapshot."""
        self._asked[pull.request_id] = _Asked(puller, now, pull.have, pull.ranks)

    def by(self, request_id: str) -> tuple[str, int, int] | None:
        """The name of the worker that wants a request, the latents that it has, and its ranks.

        None if no worker does.
        """
        asked = self._asked.get(request_id)
        return (asked.puller.name, asked.have, asked.ranks) if asked else None

    def drop(self, request_id: str) -> None:
        """Forget a request that was sent or is no longer wanted."""
        self._asked.pop(request_id, None)

    def take(self, request_id: str) -> Puller | None:
        """Forget a request, and return the connection that wanted it; None if none did."""
        asked = self._asked.pop(request_id, None)
        return asked.puller if asked else None

    def asked_before(self, moment: float) -> list[str]:
        """The requests that were asked for before `moment`."""
        return [request_id for request_id, asked in self._asked.items() if asked.at < moment]
