"""Tracks copies of kept snapshots for peers: those that wait for the ranks' memory, and those being sent. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workers.cache.kept import Kept


@dataclass(frozen=True, slots=True)
class Lent:
    """A copy of `kept` for a request at `peer`, which has its first `have` latents.

    ranks: of the peer; 0: as many as here.
    """

    request_id: str
    peer: str
    kept: Kept
    have: int
    ranks: int = 0

    @property
    def tokens(self) -> int:
        """The number of latents to send."""
        return self.kept.position - self.have


class Lending:
    """Sends copies in the order in which they were asked for.

    A waiting snapshot is pinned, so that it is not evicted.
    """

    def __init__(self) -> None:
        self._waiting: list[Lent] = []
        self._leaving: dict[str, Lent] = {}

    def __contains__(self, request_id: str) -> bool:
        """Whether a copy for the request waits or is being sent."""
        return request_id in self._leaving or any(lent.request_id == request_id for lent in self._waiting)

    @property
    def leaving(self) -> Iterator[int]:
        """The latents of each copy that is being sent."""
        return (lent.tokens for lent in self._leaving.values())

    def ask(self, lent: Lent) -> None:
        """Add a copy for a peer."""
        lent.kept.pins += 1
        self._waiting.append(lent)

    def next(self, fits: Callable[[int], bool]) -> Lent | None:
        """The next copy to send, if one waits and the ranks have memory for it. The caller has to unpin it."""
        if not self._waiting or not fits(self._waiting[0].tokens):
            return None
        lent = self._waiting.pop(0)
        self._leaving[lent.request_id] = lent
        return lent

    def ended(self, request_id: str) -> Lent | None:
        """A copy was sent, or never will be; returns it, None if none was being sent for the request."""
        return self._leaving.pop(request_id, None)

    def call_off(self, request_id: str) -> None:
        """Drop a copy that the peer no longer wants. One that is being sent ends when the ranks learn of it."""
        self.forget(lambda lent: lent.request_id == request_id)

    def drop(self, peer: str) -> list[str]:
        """Drop the copies for a peer that is gone. Returns the requests whose copies were being sent."""
        self.forget(lambda lent: lent.peer == peer)
        gone = [request_id for request_id, lent in self._leaving.items() if lent.peer == peer]
        for request_id in gone:
            del self._leaving[request_id]
        return gone

    def forget(self, which: Callable[[Lent], bool]) -> list[Lent]:
        """Drop waiting copies; returns them."""
        gone = [lent for lent in self._waiting if which(lent)]
        for lent in gone:
            lent.kept.pins -= 1
            self._waiting.remove(lent)
        return gone
