"""Allocates a worker's slots and pages to sequences, and frees them. Pure."""

from collections.abc import Sequence as Seq

from workers.cache.allocator import Allocator
from workers.cache.cache import PrefixCache
from workers.schedule.batch import Batch
from workers.schedule.keeping import Keeping
from workers.schedule.limits import Limits
from workers.schedule.roster import Roster, place_in_line
from workers.schedule.sequence import Sequence, State
from workers.schedule.step import Discard, Install


class Places:
    """The slots and pages of a worker, and their owners.

    installs, discards: of snapshots, for the next plan. preempted: how often a sequence lost its places. ahead: whether
    the step that is planned is one ahead: then none is preempted, and `wanted` says that one should be. batch: the
    sequences that go on from step to step while steps are planned ahead.
    """

    def __init__(self, limits: Limits, roster: Roster) -> None:
        self._limits = limits
        self._roster = roster
        self.pages = Allocator("page", limits.pages)
        self.slots = Allocator("slot", limits.slots)
        # One slot between is left to captured steps.
        self.cache = PrefixCache(self.pages, limits.page_size, limits.slots + 1, limits.cache)
        self.keeping = Keeping(self.cache)
        self.installs: list[Install] = []
        self.discards: list[Discard] = []
        self.preempted = 0
        self.ahead = False
        self.wanted = False
        self.batch: Batch | None = None

    def pages_for(self, tokens: int) -> int:
        """The number of pages that hold so many tokens."""
        return -(-tokens // self._limits.page_size)

    def installs_for(self, request_id: str) -> bool:
        """Whether the next plan installs a snapshot for a request."""
        return any(install.request_id == request_id for install in self.installs)

    # Taking

    def take(self, seq: Sequence, shared: Seq[int], now: float) -> bool:
        """Give a waiting sequence its slot and the pages for its tokens and the next one, if there is room.

        shared: pages that hold its first latents already.
        """
        need = self.pages_for(len(seq.tokens) + 1) - len(shared)
        self.pages.share(shared)
        if not self._make_room(need, seq.priority, now):
            self.pages.give(shared)
            return False
        self._roster.queue.remove(seq)
        seq.slot = self.slots.take(1)[0]
        seq.pages = [*shared, *self.pages.take(need)]
        seq.have = len(shared) * self._limits.page_size
        if not seq.started:
            seq.started = now
            seq.queue_s = now - seq.arrived
        return True

    def grow(self, seq: Sequence, now: float) -> bool:
        """Get a page for the next token, if necessary by preempting the last in line; False if that is `seq` itself."""
        while len(seq.pages) < self.pages_for(seq.computed + 1):
            if self.cache.make_pages(1, now):
                seq.pages += self.pages.take(1)
                continue
            if self.ahead:
                self.wanted = True
                return False
            victim = max((*self._roster.active, *self._roster.yielding(seq.priority)), key=place_in_line)
            self.preempt(victim, now)
            if victim is seq:
                return False
        return True

    def _make_room(self, pages: int, priority: int, now: float) -> bool:
        """Free a slot and pages by evicting kept snapshots and then preempting worse priorities, if that suffices."""
        # Each running sequence may need a page within the next steps; without spare pages, admitting would lead to
        # preemption.
        pages += sum(s.priority <= priority for s in self._roster.active)
        if self.slots.free and self.cache.make_pages(pages, now):
            return True
        yielding = self._roster.yielding(priority)
        if self.ahead and yielding:
            self.wanted = True
            return False
        there = self.pages.free + self.pages.reclaimable
        if there + sum(self.pages.owned(s.pages) for s in yielding) < pages or not (self.slots.free or yielding):
            return False
        while not self.slots.free or not self.cache.make_pages(pages, now):
            if not yielding:
                return False
            self.preempt(yielding.pop(), now)
        return True

    # Giving back

    def preempt(self, seq: Sequence, now: float) -> None:
        """Preempt a sequence: it goes back to the queue without places.

        When there is room it continues from its kept state: all that it has computed, unless its pages were needed too
        and host memory has no copy.
        """
        self.preempted += 1
        if seq.state is State.RUNNING and seq.computed and not self.installs_for(seq.request_id):
            self.keeping.save(seq, now)
        self.free(seq)
        if seq.state is State.PULLING:
            seq.state = State.DISPLACED
        else:
            if seq.state is State.RUNNING:
                self._roster.active.remove(seq)
                self._call_off_install(seq)
            else:
                self._roster.held.remove(seq)
            seq.computed = 0
            seq.keeps = []
            seq.prompt_logprobs.clear()
            seq.state = State.QUEUED
        self._roster.enqueue(seq)

    def remove(self, request_id: str) -> Sequence | None:
        """Forget a sequence and free what it holds; None if there is none of that id."""
        roster = self._roster
        seq = roster.sequences.pop(request_id, None)
        if seq is None:
            return None
        match seq.state:
            case State.QUEUED:
                roster.queue.remove(seq)
            case State.PULLING | State.DISPLACED:
                del roster.pulling[request_id]
                self.discards.append(Discard(request_id))
                if seq.state is State.DISPLACED:
                    roster.queue.remove(seq)
                self.keeping.unpin(seq)
            case State.RUNNING:
                roster.active.remove(seq)
                self._call_off_install(seq)
            case State.HELD:
                roster.held.remove(seq)
            case State.SENDING:
                roster.sending -= 1
        if seq.exported:  # the transfer layer has parts of it, and the rest will never come
            self.discards.append(Discard(request_id))
        self.free(seq)
        return seq

    def free(self, seq: Sequence) -> None:
        """Free a sequence's slot and pages."""
        self.pages.give(seq.pages)
        if self.batch is not None:
            self.batch.lose(seq)
        seq.pages = []
        seq.pages_on_ranks = 0
        seq.epoch += 1
        if seq.slot >= 0:
            self.slots.give([seq.slot])
            seq.slot = -1
        seq.admitted_on_ranks = False

    def _call_off_install(self, seq: Sequence) -> None:
        """Cancel a snapshot's installation that is in no plan yet, because its slot and pages may be reused."""
        kept = [i for i in self.installs if i.request_id != seq.request_id]
        if len(kept) < len(self.installs):
            self.installs[:] = kept
            self.discards.append(Discard(seq.request_id))
