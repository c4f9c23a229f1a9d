"""Sends the snapshots of this worker's prompts to the workers that continue them. Pure."""

from workers.schedule.builder import StepBuilder
from workers.schedule.keeping import PullError
from workers.schedule.limits import Limits
from workers.schedule.places import Places
from workers.schedule.roster import Roster
from workers.schedule.sequence import Sequence, State


class Departures:
    """Decides when a handed-off sequence leaves. It keeps its slot and pages until a peer pulls its snapshot."""

    def __init__(self, limits: Limits, roster: Roster, places: Places) -> None:
        self._limits = limits
        self._roster = roster
        self._places = places

    def pull(self, request_id: str, peer: str, have: int, ranks: int) -> None:
        """`peer` has room for the snapshot of a sequence that is here; PullError if it can't have it."""
        seq = self._roster.sequences[request_id]
        if not seq.handoff:
            raise PullError("the request is answered here: its snapshot is not sent")
        if seq.peer is not None:
            raise PullError(f"its snapshot goes to {seq.peer} already")
        # At least one latent is sent with the state: a peer with all of a prompt's latents would continue from a kept
        # snapshot.
        if not 0 <= have < seq.prompt_tokens:
            raise PullError(f"a peer that holds {have} latents can't have a snapshot of {seq.prompt_tokens} tokens")
        seq.peer, seq.peer_ranks = peer, ranks
        seq.exported = have

    def hold(self, seq: Sequence, now: float) -> None:
        """Hold a sequence whose prompt is computed until its snapshot is pulled, unless it was already sent."""
        self._roster.active.remove(seq)
        if seq.exported == seq.computed:
            self._send_off(seq)
        else:
            seq.state = State.HELD
            seq.held_at = now
            self._roster.held.append(seq)

    def export(self, step: StepBuilder) -> None:
        """Send with this plan the held snapshots for which a peer, and the ranks, have room."""
        for seq in [s for s in self._roster.held if self.may_leave(s)]:
            step.export(seq, seq.prompt_tokens)
            self._roster.held.remove(seq)
            self._send_off(seq)

    def may_leave(self, seq: Sequence) -> bool:
        """Reserve the ranks' memory for a whole snapshot that a peer pulls, so that it never waits once begun."""
        if seq.leaves or seq.peer is None:
            return seq.leaves
        # Sequences that only wait for this go first, because they hold slots and pages.
        if seq.state is not State.HELD and any(s.peer is not None for s in self._roster.held):
            return False
        seq.leaves = self.fits(seq.prompt_tokens)
        return seq.leaves

    def fits(self, tokens: int) -> bool:
        """Whether the ranks have memory for one more snapshot of so many tokens until it is sent."""
        handed_off = (s.prompt_tokens for s in self._roster.sequences.values() if s.leaves)
        return not self._limits.staging.full([*handed_off, *self._places.keeping.lending.leaving], tokens)

    def overdue(self, now: float) -> list[Sequence]:
        """The sequences whose snapshots nobody pulled in time."""
        return [s for s in self._roster.held if s.peer is None and now - s.held_at > self._limits.hold_s]

    def _send_off(self, seq: Sequence) -> None:
        """Free a sequence's slot and pages; the ranks copy its snapshot within the plan that exports it."""
        seq.state = State.SENDING
        self._roster.sending += 1
        self._places.free(seq)
