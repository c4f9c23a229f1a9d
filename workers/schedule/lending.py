"""Kept snapshots that peers have asked for: which wait for memory on the ranks, and which are leaving. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workers.cache.kept import Kept


@dataclass(frozen=True, slots=True)
class Lent:
    """A copy of `kept` for a request that is computed at `peer`, which has its first `have` latents.

    ranks: of the peer; 0: as many as here.
    """

    request_id: str
    peer: str
    kept: Kept
    have: int
    ranks: int = 0

    @property
    def tokens(self) -> int:
        """Latents that leave."""
        return self.kept.position - self.have


class Lending:
    """What is asked for leaves in that order. A snapshot that waits is pinned: it is not evicted."""

    def __init__(self) -> None:
        self._waiting: list[Lent] = []
        self._leaving: dict[str, Lent] = {}

    def __contains__(self, request_id: str) -> bool:
        """Whether a copy for the request waits or is leaving."""
        return request_id in self._leaving or any(lent.request_id == request_id for lent in self._waiting)

    @property
    def leaving(self) -> Iterator[int]:
        """Latents of each copy that the ranks have memory for."""
        return (lent.tokens for lent in self._leaving.values())

    def ask(self, lent: Lent) -> None:
        """A peer wants a copy."""
        lent.kept.pins += 1
        self._waiting.append(lent)

    def next(self, fits: Callable[[int], bool]) -> Lent | None:
        """The copy that leaves now, if one waits and the ranks have memory for it; its pin is the caller's to undo."""
        if not self._waiting or not fits(self._waiting[0].tokens):
            return None
        lent = self._waiting.pop(0)
        self._leaving[lent.request_id] = lent
        return lent

    def ended(self, request_id: str) -> Lent | None:
        """A copy has wholly left, or never will; None if none was leaving for the request."""
        return self._leaving.pop(request_id, None)

    def call_off(self, request_id: str) -> None:
        """The peer wants no copy any more. One that is leaving ends when the ranks have heard so too."""
        self.forget(lambda lent: lent.request_id == request_id)

    def drop(self, peer: str) -> list[str]:
        """The peer has gone, and what was to go to it with it: the requests whose copies were leaving."""
        self.forget(lambda lent: lent.peer == peer)
        gone = [request_id for request_id, lent in self._leaving.items() if lent.peer == peer]
        for request_id in gone:
            del self._leaving[request_id]
        return gone

    def forget(self, which: Callable[[Lent], bool]) -> list[Lent]:
        """Those that wait and are not to leave any more."""
        gone = [lent for lent in self._waiting if which(lent)]
        for lent in gone:
            lent.kept.pins -= 1
            self._waiting.remove(lent)
        return gone
