"""Tracks the snapshots that a worker pulls. One is complete when its header and every rank's part have arrived."""

from dataclasses import dataclass, field

from wire.protocol import Header, WorkerInfo
from workers.schedule.sequence import Sequence


@dataclass(slots=True)
class _Arrival:
    ranks: set[int] = field(default_factory=set)
    header: Header | None = None


class Arrivals:
    """The header and the parts that have arrived of each snapshot."""

    def __init__(self, tp: int) -> None:
        self._tp = tp
        self._awaited: dict[str, _Arrival] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._awaited

    def expect(self, request_id: str, header: Header | None = None) -> None:
        """Expect a snapshot from now on. header: if it is known already."""
        self._awaited[request_id] = _Arrival(header=header)

    def drop(self, request_id: str) -> None:
        """Stop expecting a snapshot."""
        self._awaited.pop(request_id, None)

    def head(self, header: Header) -> Header | None:
        """A header arrived; returns it if the snapshot is complete now, else None."""
        if arrival := self._awaited.get(header.request_id):
            arrival.header = header
        return self._whole(header.request_id)

    def part(self, request_id: str, rank: int) -> Header | None:
        """A rank has its part; returns the header if the snapshot is complete now, else None."""
        if arrival := self._awaited.get(request_id):
            arrival.ranks.add(rank)
        return self._whole(request_id)

    def _whole(self, request_id: str) -> Header | None:
        arrival = self._awaited.get(request_id)
        if arrival is None or arrival.header is None or len(arrival.ranks) < self._tp:
            return None
        del self._awaited[request_id]
        return arrival.header


def header_mismatch(seq: Sequence, header: Header, own: WorkerInfo) -> str | None:
    """The reason why this worker can't continue a snapshot; None if it can."""
    assert seq.source is not None
    position, known = seq.source.position, seq.known
    expected = (position, known.digests.at(known.ids, position).hex(), own.layout, own.weights_id)
    got = (header.position, header.token_hash, header.layout, header.weights_id)
    for name, mine, theirs in zip(("position", "token_hash", "layout", "weights_id"), expected, got, strict=True):
        if mine != theirs:
            return f"its {name} is {theirs}, expected {mine}"
    if seq.source.kept:
        return "it holds sampled tokens" if header.generated else None
    return None if header.generated else "it holds no sampled token"
