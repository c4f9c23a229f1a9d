"""Bookkeeping of the parts of snapshots that wait to be sent, by link. No sockets, no tensors, no clock.

A part is sent only after its receiver has asked for the snapshot (`want`) over a link; asking and queueing may happen
in either order. The caller numbers links: a peer that connects again gets a new number.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

P = TypeVar("P")
T = TypeVar("T")


@dataclass(slots=True)
class _Departure(Generic[P, T]):
    request_id: str
    peer: P
    since: float
    link: int | None = None
    serial: int = -1
    parts: deque[tuple[T, bool]] = field(default_factory=deque)
    begun: bool = False  # whether a part was queued; before that the snapshot was only asked for
    last_left: bool = False


@dataclass(slots=True)
class _Link(Generic[P]):
    peer: P
    serials: dict[int, str] = field(default_factory=dict)
    turns: deque[int] = field(default_factory=deque)  # a serial for each part that may be sent, in order


class Outbox(Generic[P, T]):
    """Snapshots to be sent; `P` names a receiver, and `T` is one part.

    patience: the seconds that a snapshot may wait to be asked for, and its last part to be acknowledged.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._departures: dict[tuple[P, str], _Departure[P, T]] = {}
        self._links: dict[int, _Link[P]] = {}

    def __len__(self) -> int:
        return len(self._departures)

    @property
    def receivers(self) -> set[P]:
        """The receivers that have queued snapshots."""
        return {peer for peer, _ in self._departures}

    def leaves(self, request_id: str) -> bool:
        """Whether parts of a request's snapshot were queued that some receiver has not acknowledged yet."""
        return any(d.begun for d in self._departures.values() if d.request_id == request_id)

    def open(self, link: int, peer: P) -> None:
        """A link to `peer` is open."""
        self._links[link] = _Link(peer)

    def put(self, request_id: str, peer: P, part: T, last: bool, now: float) -> int | None:
        """Queue a part; the link it may leave over, None while the peer has not asked for the snapshot."""
        departure = self._departures.setdefault((peer, request_id), _Departure(request_id, peer, since=now))
        departure.parts.append((part, last))
        departure.begun = True
        if departure.link is not None:
            self._links[departure.link].turns.append(departure.serial)
        return departure.link

    def want(self, link: int, request_id: str, serial: int, now: float) -> None:
        """The peer at the other end of `link` asks for a snapshot, under its own serial."""
        at = self._links[link]
        departure = self._departures.setdefault((at.peer, request_id), _Departure(request_id, at.peer, since=now))
        if departure.link is not None:
            self._links[departure.link].serials.pop(departure.serial, None)
        departure.link, departure.serial = link, serial
        at.serials[serial] = request_id
        at.turns.extend([serial] * len(departure.parts))

    def unwant(self, link: int, serial: int) -> str | None:
        """The peer gave up a snapshot; returns its id if parts of it were queued or sent."""
        departure = self._asked(link, serial)
        if departure is None:
            return None
        self._forget(departure)
        return departure.request_id if departure.begun else None

    def next(self, link: int, now: float) -> tuple[int, T] | None:
        """The next part to send over `link` and the serial that it answers; None if there is none."""
        at = self._links.get(link)
        while at is not None and at.turns:
            serial = at.turns.popleft()
            departure = self._asked(link, serial)
            if departure is not None:
                part, last = departure.parts.popleft()
                departure.last_left = last
                departure.since = now
                return serial, part
        return None

    def acknowledged(self, link: int, serial: int) -> str | None:
        """The peer has a whole snapshot: forget it and return its id; None if it was given up here."""
        departure = self._asked(link, serial)
        if departure is None:
            return None
        self._forget(departure)
        return departure.request_id

    def discard(self, request_id: str) -> None:
        """Give up a snapshot for all receivers."""
        for departure in [d for d in self._departures.values() if d.request_id == request_id]:
            self._forget(departure)

    def close(self, link: int) -> tuple[str, ...]:
        """Forget what was asked for over a broken link; returns the ids of snapshots with queued or sent parts."""
        at = self._links.pop(link, None)
        if at is None:
            return ()
        lost = [d for d in self._departures.values() if d.link == link]
        for departure in lost:
            del self._departures[departure.peer, departure.request_id]
        return tuple(d.request_id for d in lost if d.begun)

    def drop(self, peer: P) -> None:
        """Forget everything for a peer that is gone."""
        for departure in [d for d in self._departures.values() if d.peer == peer]:
            self._forget(departure)

    def overdue(self, now: float) -> dict[P, tuple[str, ...]]:
        """Forget what nobody asked for or acknowledged in time; returns request ids by peer."""
        late = [
            d for d in self._departures.values()
            if (d.link is None or d.last_left) and now - d.since > self._patience
        ]  # fmt: skip
        by_peer: dict[P, tuple[str, ...]] = {}
        for departure in late:
            self._forget(departure)
            by_peer[departure.peer] = (*by_peer.get(departure.peer, ()), departure.request_id)
        return by_peer

    def _asked(self, link: int, serial: int) -> _Departure[P, T] | None:
        at = self._links.get(link)
        request_id = at.serials.get(serial) if at else None
        return self._departures[at.peer, request_id] if at and request_id is not None else None

    def _forget(self, departure: _Departure[P, T]) -> None:
        del self._departures[departure.peer, departure.request_id]
        if departure.link is not None:
            del self._links[departure.link].serials[departure.serial]
