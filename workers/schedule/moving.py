"""Moves answers to other workers, and keeps their states here until those workers have them. Pure."""

from msgspec import structs

from wire.protocol import SeqOutput
from workers.cache.kept import Kept
from workers.cache.pins import Pins
from workers.schedule.places import Places
from workers.schedule.results import Results
from workers.schedule.roster import Roster
from workers.schedule.sequence import Sequence, State


class Moving:
    """Answers that move. pins: the snapshots kept for other workers, by request. Call its methods between two steps."""

    def __init__(self, roster: Roster, places: Places, results: Results) -> None:
        self._roster = roster
        self._places = places
        self._results = results
        self.pins = Pins()

    def answers(self) -> list[Sequence]:
        """The sequences whose answers this worker computes, also those that wait."""
        return [seq for seq in self._roster.sequences.values() if not seq.handoff]

    def announce(self, seq: Sequence, until: float, now: float) -> SeqOutput | None:
        """Keep the computed part of a sequence that is to continue elsewhere; returns the output that tells its router.

        The next worker takes that while the sequence goes on here. None if nothing can be kept.
        """
        kept = self._keep(seq, until, now)
        if kept is None:
            return None
        return SeqOutput(seq.request_id, seq.generated, kept_tokens=kept.position, leaving=True)

    def move(self, seq: Sequence, until: float, now: float) -> SeqOutput:
        """End a sequence that continues at another worker, and keep its state for it."""
        kept = self._keep(seq, until, now)
        output = self._results.end(seq, "moved", now)
        return structs.replace(output, kept_tokens=kept.position) if kept is not None else output

    def _keep(self, seq: Sequence, until: float, now: float) -> Kept | None:
        places = self._places
        if seq.state is not State.RUNNING or not seq.computed or places.installs_for(seq.request_id):
            return None
        places.keeping.save(seq, now)
        kept = places.cache.index.at(seq.known, seq.computed)
        if kept is not None and kept.slot >= 0:
            self.pins.pin(seq.request_id, kept, until)
        return kept
