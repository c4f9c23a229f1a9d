"""Which snapshots are on their way in, and what of each has come. Plain bookkeeping: no sockets, no tensors.

A receiver asks for a snapshot under a serial number of its own, and every part names the serial it answers. So no
part comes before it was asked for, and one that is still in flight when its snapshot is given up names a serial
nobody knows any more and is dropped: nothing has to be remembered about the past.
"""

import itertools
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


class PartError(RuntimeError):
    """A part that can't belong to its snapshot; the link it came over can't be trusted."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a part says of itself: latents [start, stop), and whether the linear state is with them.

    `row`: shape and dtype of one latent row, the same in every part of a snapshot.
    """

    start: int
    stop: int
    last: bool
    row: tuple[object, ...]


@dataclass(slots=True)
class _Arrival(Generic[T]):
    request_id: str
    peer: str
    tokens: int
    have: int = 0
    skip: int = 0
    whole: bool = False
    row: tuple[object, ...] | None = None
    parts: list[tuple[int, T]] = field(default_factory=list)
    state: T | None = None


class Inbox(Generic[T]):
    """Snapshots expected and not yet taken; `T` is what holds the bytes of one part."""

    def __init__(self) -> None:
        self._serials = itertools.count()
        self._arrivals: dict[int, _Arrival[T]] = {}
        self._by_id: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def expect(self, request_id: str, peer: str, tokens: int, start: int = 0) -> int:
        """Await latents [start, tokens) and the state of a snapshot; the serial to ask `peer` for it with.

        ValueError if it is awaited already.
        """
        if request_id in self._by_id:
            raise ValueError(f"snapshot {request_id} is expected already")
        serial = next(self._serials)
        self._arrivals[serial] = _Arrival(request_id, peer, tokens, start)
        self._by_id[request_id] = serial
        return serial

    def begin(self, serial: int, peer: str, span: Span) -> bool:
        """Whether a part that starts to come is wanted; False: read it and drop it.

        PartError if it doesn't continue where the snapshot's last part ended, or reaches beyond its end.
        """
        arrival = self._arrivals.get(serial)
        if arrival is None or arrival.peer != peer:
            return False
        name = f"snapshot {arrival.request_id}: part [{span.start}, {span.stop})"
        if arrival.whole:
            raise PartError(f"{name} came after the last one")
        # The first part may begin early: a sender's host memory holds latents in pieces of its own.
        if span.start != arrival.have and (arrival.row is not None or span.start > arrival.have):
            raise PartError(f"{name} came where one from {arrival.have} on was due")
        if not span.start <= span.stop <= arrival.tokens or (span.start == span.stop and not span.last):
            raise PartError(f"{name} is not within the {arrival.tokens} tokens expected")
        if span.last and span.stop != arrival.tokens:
            raise PartError(f"{name} brings the state after {span.stop} of {arrival.tokens} tokens")
        if arrival.row not in (None, span.row):
            raise PartError(f"{name} has rows {span.row}, earlier ones had {arrival.row}")
        return True

    def finish(self, serial: int, span: Span, latents: T, state: T | None) -> str | None:
        """Keep a part `begin` wanted, unless it was given up meanwhile; the request's id if all has come now."""
        arrival = self._arrivals.get(serial)
        if arrival is None:
            return None
        if arrival.row is None:
            arrival.skip = arrival.have - span.start
        if span.stop > span.start:
            arrival.parts.append((span.stop - span.start, latents))
        arrival.have = span.stop
        arrival.row = span.row
        if not span.last:
            return None
        arrival.state = state
        arrival.whole = True
        return arrival.request_id

    def take(self, request_id: str) -> tuple[tuple[tuple[int, T], ...], T, int]:
        """Hand out and forget a whole snapshot: its parts as (tokens, latents) in order, its state, and how many of the
        first part's latents come before those that were asked for.

        KeyError if it has not wholly come.
        """
        serial = self._by_id.get(request_id, -1)
        arrival = self._arrivals.get(serial)
        if arrival is None or not arrival.whole or arrival.state is None:
            raise KeyError(f"snapshot {request_id} has not wholly come")
        self._forget(serial)
        return tuple(arrival.parts), arrival.state, arrival.skip

    def discard(self, request_id: str) -> tuple[str, int] | None:
        """Give a snapshot up; the peer and serial it was asked for with, if it is still to come."""
        serial = self._by_id.get(request_id)
        if serial is None:
            return None
        arrival = self._forget(serial)
        return None if arrival.whole else (arrival.peer, serial)

    def lose(self, peer: str) -> tuple[str, ...]:
        """Forget what has not wholly come from a peer, in the order it was expected; whole ones stay."""
        lost = [s for s, a in self._arrivals.items() if a.peer == peer and not a.whole]
        return tuple(self._forget(s).request_id for s in lost)

    def awaited(self, peer: str) -> list[tuple[int, str]]:
        """(serial, request id) of all that is still to come from a peer, in the order it was expected."""
        return [(s, a.request_id) for s, a in self._arrivals.items() if a.peer == peer and not a.whole]

    def _forget(self, serial: int) -> _Arrival[T]:
        arrival = self._arrivals.pop(serial)
        del self._by_id[arrival.request_id]
        return arrival
