"""Holds all sequences of a worker, by state. Pure."""

import bisect

from workers.schedule.sequence import Sequence, State


def place_in_line(seq: Sequence) -> tuple[int, bool, int]:
    """Orders sequences: by priority, then those of tenants within their share, then by arrival."""
    return seq.priority, seq.behind, seq.order


class Roster:
    """Each sequence is in the lists of its state.

    sequences: all, by request id. queue: QUEUED and DISPLACED ones, in line. active: RUNNING ones, in line. held: HELD
    ones. pulling: PULLING and DISPLACED ones, by request id. sending: how many are SENDING.
    """

    def __init__(self) -> None:
        self.sequences: dict[str, Sequence] = {}
        self.queue: list[Sequence] = []
        self.active: list[Sequence] = []
        self.held: list[Sequence] = []
        self.pulling: dict[str, Sequence] = {}
        self.sending = 0
        self._order = 0

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence; ValueError if its id is taken."""
        if seq.request_id in self.sequences:
            raise ValueError(f"request {seq.request_id} is here already")
        seq.order = self._order
        self._order += 1
        self.sequences[seq.request_id] = seq
        self.enqueue(seq)

    def enqueue(self, seq: Sequence) -> None:
        """Put a sequence into the queue for a slot and pages."""
        bisect.insort(self.queue, seq, key=place_in_line)

    def activate(self, seq: Sequence) -> None:
        """Let a sequence run."""
        seq.state = State.RUNNING
        bisect.insort(self.active, seq, key=place_in_line)

    def yielding(self, priority: int) -> list[Sequence]:
        """The sequences of worse priorities that have a slot and pages, in line.

        A snapshot that is about to be sent is freed soon anyway.
        """
        worse = [s for s in (*self.active, *self.pulling.values()) if s.priority > priority and s.slot >= 0]
        worse += [s for s in self.held if s.priority > priority and s.peer is None]
        return sorted(worse, key=place_in_line)

    def pulling_from(self, peer: str) -> list[str]:
        """The requests whose snapshots are being pulled from `peer`, or are still to be pulled."""
        return [s.request_id for s in self.sequences.values() if s.source is not None and s.source.peer == peer]
