"""Copies the states of long answers to other workers, so that little is computed again when their worker dies."""

import itertools
from collections.abc import Callable

from router.relay.fleet import Fleet, Standing, identity, pressure
from router.relay.leg import Link
from router.relay.prefixes import marks_at
from router.relay.stream import SequenceStream
from router.relay.warming import Warming, pulling
from wire.protocol import WorkerInfo

# A worker that is fuller than this has no room for what it may never need.
_ROOM = 0.8


def peer_for(fleet: Fleet, owner: WorkerInfo, tokens: int, before: str | None) -> Standing | None:
    """The worker that is to hold a copy of so many tokens' snapshot of `owner`'s; None if no worker has room.

    before: the worker that holds an earlier copy of the same sequence. It needs only what has come since, and goes
    first; then workers of other nodes, then the emptiest.
    """
    there = [
        (s.worker_id != before, s.state.info.node == owner.node, pressure(s.state, tokens), s.worker_id, s)
        for group in fleet.groups
        for s in (*group.decodes, *group.prefills)
        if s.identity == identity(owner) and s.worker_id != owner.worker_id
        if s.capacity > tokens and owner.worker_id not in s.cut and pressure(s.state, tokens) <= _ROOM
    ]
    return min(there)[-1] if there else None


class Copies:
    """Makes one router's copies, one at a time for each sequence."""

    def __init__(self, name: str, fleet: Callable[[], Fleet], link: Callable[[str], Link]) -> None:
        self._name = name
        self._fleet = fleet
        self._link = link
        self._count = itertools.count()
        self._under_way: dict[SequenceStream, Warming] = {}
        self._at: dict[SequenceStream, str] = {}

    def copy(self, stream: SequenceStream, owner: WorkerInfo, position: int) -> None:
        """Have another worker pull the snapshot of `position` tokens that a sequence's worker keeps."""
        if stream in self._under_way:
            return
        peer = peer_for(self._fleet(), owner, position + 1, self._at.get(stream))
        if peer is None:
            return
        request_id, scope = f"{self._name}-copy-{next(self._count)}", stream.prefix_scope
        later = stream.priority + 1  # requests that clients wait for come first
        submit = pulling(request_id, stream.token_ids, scope, owner, position, later)
        (mark,) = marks_at(submit.token_ids, (position,), owner.page_size, scope)
        warming = self._under_way[stream] = Warming(self._link(peer.worker_id), submit, 1)

        def over(_: object) -> None:
            if self._under_way.get(stream) is warming:
                del self._under_way[stream]
                if not warming.done.cancelled() and warming.done.result() is None:
                    stream.copied, self._at[stream] = mark, peer.worker_id

        warming.done.add_done_callback(over)

    def drop(self, stream: SequenceStream) -> None:
        """Stop copying for a sequence that is over. Its copies stay kept as other snapshots do."""
        self._at.pop(stream, None)
        if (warming := self._under_way.pop(stream, None)) is not None:
            warming.cancel()
