"""Bookkeeping of arriving snapshots and their parts. No sockets, no tensors.

A receiver asks for a snapshot under a serial number of its own, and every part names the serial it answers. So no part
comes before it was asked for. A part that is in flight when its snapshot is given up names an unknown serial and is
dropped, so nothing has to be remembered about earlier snapshots.
"""

import itertools
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


class PartError(RuntimeError):
    """A part can't belong to its snapshot, so its link can't be trusted."""


@dataclass(frozen=True, slots=True)
class Span:
    """The description of a part: latents [start, stop), and whether it has the linear state.

    `row`: shape and dtype of one latent row, the same in every part of a snapshot.
    """

    start: int
    stop: int
    last: bool
    row: tuple[object, ...]


@dataclass(slots=True)
class Share(Generic[T]):
    """What has arrived of a snapshot from one rank of its sender.

    have: the latents before it are here. skip: latents of the first part that come before those that were asked for.
    parts: (tokens, what holds them) in order. state: comes with the last part; then the share is whole.
    """

    have: int
    skip: int = 0
    row: tuple[object, ...] | None = None
    parts: list[tuple[int, T]] = field(default_factory=list)
    state: T | None = None


@dataclass(slots=True)
class _Arrival(Generic[T]):
    request_id: str
    peer: str
    tokens: int
    shares: list[Share[T]]

    @property
    def whole(self) -> bool:
        return all(share.state is not None for share in self.shares)


class Inbox(Generic[T]):
    """Snapshots expected and not yet taken; `T` is what holds the bytes of one part."""

    def __init__(self) -> None:
        self._serials = itertools.count()
        self._arrivals: dict[int, _Arrival[T]] = {}
        self._by_id: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def expect(self, request_id: str, peer: str, tokens: int, start: int = 0, shares: int = 1) -> int:
        """Await latents [start, tokens) and the state of a snapshot; the serial to ask `peer` for it with.

        shares: ranks of the peer that each send a share of it. ValueError if it is awaited already.
        """
        if request_id in self._by_id:
            raise ValueError(f"snapshot {request_id} is expected already")
        serial = next(self._serials)
        self._arrivals[serial] = _Arrival(request_id, peer, tokens, [Share(start) for _ in range(shares)])
        self._by_id[request_id] = serial
        return serial

    def begin(self, serial: int, peer: str, span: Span, at: int = 0) -> bool:
        """Whether a part of share `at` that starts to come is wanted; False: read it and drop it.

        PartError if it doesn't continue where the share's last part ended, or reaches beyond the snapshot's end.
        """
        arrival = self._arrivals.get(serial)
        if arrival is None or arrival.peer != peer or at >= len(arrival.shares):
            return False
        share = arrival.shares[at]
        name = f"snapshot {arrival.request_id}: part [{span.start}, {span.stop})"
        if share.state is not None:
            raise PartError(f"{name} came after the last one")
        # The first part may begin early: a sender's host memory holds latents in pieces of its own.
        if span.start != share.have and (share.row is not None or span.start > share.have):
            raise PartError(f"{name} came where one from {share.have} on was due")
        if not span.start <= span.stop <= arrival.tokens or (span.start == span.stop and not span.last):
            raise PartError(f"{name} is not within the {arrival.tokens} tokens expected")
        if span.last and span.stop != arrival.tokens:
            raise PartError(f"{name} brings the state after {span.stop} of {arrival.tokens} tokens")
        if share.row not in (None, span.row):
            raise PartError(f"{name} has rows {span.row}, earlier ones had {share.row}")
        return True

    def finish(self, serial: int, span: Span, latents: T, state: T | None, at: int = 0) -> str | None:
        """Keep a part `begin` wanted, unless it was given up meanwhile; the request's id if all has come now."""
        arrival = self._arrivals.get(serial)
        if arrival is None:
            return None
        share = arrival.shares[at]
        if share.row is None:
            share.skip = share.have - span.start
        if span.stop > span.start:
            share.parts.append((span.stop - span.start, latents))
        share.have, share.row, share.state = span.stop, span.row, state
        return arrival.request_id if arrival.whole else None

    def take(self, request_id: str) -> tuple[str, list[Share[T]]]:
        """Hand out and forget a whole snapshot: the peer it came from, and the shares in the order of that one's ranks.

        KeyError if it has not wholly come.
        """
        serial = self._by_id.get(request_id, -1)
        arrival = self._arrivals.get(serial)
        if arrival is None or not arrival.whole:
            raise KeyError(f"snapshot {request_id} has not wholly come")
        self._forget(serial)
        return arrival.peer, arrival.shares

    def discard(self, request_id: str) -> tuple[str, int] | None:
        """Give a snapshot up; the peer and serial it was asked for with, if it is still to come."""
        serial = self._by_id.get(request_id)
        if serial is None:
            return None
        arrival = self._forget(serial)
        return None if arrival.whole else (arrival.peer, serial)

    def lose(self, peer: str) -> tuple[str, ...]:
        """Forget incomplete snapshots from a peer, in the order in which they were expected; complete ones are kept."""
        lost = [s for s, a in self._arrivals.items() if a.peer == peer and not a.whole]
        return tuple(self._forget(s).request_id for s in lost)

    def awaited(self, peer: str) -> list[tuple[int, str]]:
        """(serial, request id) of all snapshots still to come from a peer, in the order in which they were expected."""
        return [(s, a.request_id) for s, a in self._arrivals.items() if a.peer == peer and not a.whole]

    def _forget(self, serial: int) -> _Arrival[T]:
        arrival = self._arrivals.pop(serial)
        del self._by_id[arrival.request_id]
        return arrival
