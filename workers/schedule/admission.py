"""Lets waiting sequences begin: at zero, from a kept snapshot, or with a snapshot pulled from a peer. Pure."""

from collections.abc import Sequence as Seq
from dataclasses import replace

from wire.protocol import Miss
from workers.cache.moves import Copy
from workers.cache.totals import Origin
from workers.schedule.beginning import Beginning, find
from workers.schedule.builder import StepBuilder
from workers.schedule.lending import Lent
from workers.schedule.limits import Limits
from workers.schedule.places import Places
from workers.schedule.rates import Rates
from workers.schedule.roster import Roster
from workers.schedule.sequence import Sequence, State
from workers.schedule.step import Discard, Install


class Admission:
    """Gives slots and pages to waiting sequences, in line. rates: measure the time that a kept snapshot saves."""

    def __init__(self, limits: Limits, roster: Roster, places: Places, rates: Rates) -> None:
        self._limits = limits
        self._roster = roster
        self._places = places
        self._cache = places.cache
        self._keeping = places.keeping
        self._rates = rates

    def admit(self, priority: int, step: StepBuilder, now: float, *, behind: bool) -> bool:
        """Admit the waiting sequences of a priority.

        behind: those whose tenants have more than their share, or the others. False if one found no places, so that
        worse priorities get none meanwhile.
        """
        all_placed = True
        roster = self._roster
        for seq in [s for s in roster.queue if s.priority == priority and s.behind == behind]:
            if seq.source is not None or seq.state is State.DISPLACED:
                if seq.state is State.QUEUED and (self._window_full(priority) or self._staging_full(seq.coming)):
                    continue
                if not self._place_pulled(seq, step, now):
                    return False
                continue
            if not step.budget:
                all_placed = False
                continue
            beginning = find(seq, self._cache, roster.active)
            kept = beginning.kept
            from_host = kept.position if kept is not None and kept.slot < 0 else None
            if beginning.awaited or (from_host is not None and self._staging_full(from_host)):
                continue
            if self._place(seq, beginning, step, now):
                continue
            # The snapshot that it begins from holds pages beside its own. If nothing else will free any, it begins at
            # zero.
            if kept is None or roster.active or roster.pulling or roster.held:
                return False
            if not self._place(seq, replace(beginning, kept=None), step, now):
                return False
        return all_placed

    def install(self, request_id: str, generated: tuple[int, ...], now: float) -> None:
        """A snapshot has arrived completely: continue after it. Unknown ids (aborted meanwhile) are ignored.

        generated: what was sampled after it already. One that has lost its places meanwhile is computed here when
        there is room: what lies in staging memory does not wait for that.
        """
        seq = self._roster.pulling.pop(request_id, None)
        if seq is None:
            return
        source, host = seq.source, seq.fetching is not None
        position = source.position if source else seq.fetching.position if seq.fetching else 0
        seq.tokens.extend(generated)
        seq.source = None
        self._keeping.unpin(seq)
        seq.transfer_s = now - (seq.header_at or seq.started)
        if generated:
            seq.first_token = now
        if seq.state is State.DISPLACED:
            self._places.discards.append(Discard(request_id))
            seq.state = State.QUEUED
            return
        pages = tuple(seq.pages[seq.have // self._limits.page_size : self._places.pages_for(position)])
        self._places.installs.append(Install(request_id, seq.slot, pages, seq.have, host))
        seq.computed = position
        if not generated:
            self._begun(seq, seq.fetched_from if host else "peer", position)
            self._keeping.arrived(request_id, position)
        self._roster.activate(seq)

    def not_coming(self, request_id: str, missed: Miss, *, damaged: bool) -> list[Lent]:
        """The kept snapshot that a sequence waits for can't be had, so the sequence is computed here."""
        seq = self._roster.pulling.pop(request_id, None)
        if seq is None:
            queued = self._roster.sequences.get(request_id)
            if queued is not None and queued.state is State.QUEUED and queued.source is not None:
                queued.source, queued.missed = None, missed
            return []
        kept = seq.fetching
        seq.missed = missed if seq.source else None
        seq.source = None
        self._keeping.unpin(seq)
        lost = self._keeping.lost(kept, seq.fetched_from == "disk") if damaged and kept is not None else []
        self._places.discards.append(Discard(request_id, leaving=False))
        if seq.state is State.PULLING:
            self._places.free(seq)
            self._roster.enqueue(seq)
        seq.state = State.QUEUED
        return lost

    def _window_full(self, priority: int) -> bool:
        """Whether the window of snapshots in transfer is full; those of worse priorities do not count."""
        return sum(s.priority <= priority for s in self._roster.pulling.values()) >= self._limits.window

    def _staging_full(self, tokens: int) -> bool:
        """Whether the ranks have no memory for one more snapshot, whatever its priority."""
        return self._limits.staging.full((s.coming for s in self._roster.pulling.values()), tokens)

    def _place(self, seq: Sequence, beginning: Beginning, step: StepBuilder, now: float) -> bool:
        """Begin a sequence from a kept snapshot, or at zero."""
        kept, size = beginning.kept, self._limits.page_size
        shared: Seq[int] = ()
        fetched = False
        if kept is not None:
            self._keeping.pin(kept)
            whole = kept.position // size
            fetched = kept.slot < 0
            shared = self._cache.index.resident(seq.known, kept.position) if fetched else kept.pages[:whole]
        # A sequence that is preempted for it may be kept on the device meanwhile, as the same snapshot that is on the
        # host.
        if not self._places.take(seq, shared, now):
            if kept is not None:
                self._keeping.let_go(kept)
            return False
        seq.keeps = beginning.keeps
        seq.missed = seq.missed or beginning.missed
        if kept is not None:
            kept.used = now
            kept.uses += 1
            self._cache.unpark(kept)
        if kept is not None and fetched:
            seq.fetching, seq.fetched_from = kept, "host" if kept in self._cache.host else "disk"
            kept.pins += 1
            self._roster.pulling[seq.request_id] = seq
            step.fetch(seq, *self._cache.below_device(kept, seq.have))
            seq.state = State.PULLING
            return True
        if kept is not None:
            tail = (kept.pages[whole], seq.pages[whole]) if kept.tail else (-1, -1)
            step.copy(Copy(kept.slot, seq.slot, *tail))
            seq.computed = kept.position
        self._begun(seq, "device" if kept else None, seq.computed)
        self._roster.activate(seq)
        step.compute(seq)
        return True

    def _place_pulled(self, seq: Sequence, step: StepBuilder, now: float) -> bool:
        """Take a slot and pages for a snapshot to be pulled, or for one in transfer whose sequence was preempted."""
        if seq.state is State.DISPLACED:
            return self._replace(seq, now)
        assert seq.source is not None
        # The last page is not shared, because a hand-off brings at least one latent.
        shared = self._cache.index.resident(seq.known, seq.source.position - 1)
        if not self._places.take(seq, shared, now):
            return False
        self._roster.pulling[seq.request_id] = seq
        step.expect(seq)
        seq.state = State.PULLING
        return True

    def _replace(self, seq: Sequence, now: float) -> bool:
        """Take a slot and pages again for a snapshot in transfer; pages that it was to share may be gone."""
        size = self._limits.page_size
        have = self._cache.index.resident(seq.known, seq.have)[: seq.have // size]
        if len(have) * size < seq.have:
            return True  # it can't be installed, so it is computed here once it has come
        if not self._places.take(seq, have, now):
            return False
        seq.state = State.PULLING
        return True

    def _begun(self, seq: Sequence, origin: Origin | None, begin: int) -> None:
        """Record that a sequence begins after `begin` tokens; the first time, these count as cached."""
        if not seq.begun:
            seq.begun, seq.begin, seq.origin = True, begin, origin
            self._cache.totals.began(origin, seq.begin, seq.prompt_tokens, seq.missed or "new", self._rates.token_s)
