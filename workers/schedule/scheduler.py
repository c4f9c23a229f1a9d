"""Decides what a worker computes next. Pure: no clock, no sockets, no tensors; time is passed in.

There are no prefill and decode modes: each sequence has tokens not yet computed, and a step spends one token budget
over them. Priorities are strict: sequences that wait at a better one go before all that run at a worse one, for the
budget, pages and slots; if none are free, worse ones are preempted. Waiting does not improve a priority. Within a
priority those with a single token go first, then in order of arrival. Ranks run plans in order, so pages and slots
freed while a plan is under way may go to the next plan at once.
"""

from collections.abc import Sequence as Seq
from dataclasses import replace

from wire.digest import PageDigests
from wire.protocol import Load, Mark, Miss, SeqOutput
from workers.schedule.admission import Admission
from workers.schedule.builder import InFlight, Size, StepBuilder
from workers.schedule.departures import Departures
from workers.schedule.drafting import Drafting
from workers.schedule.going import Going, going_on, gone_on
from workers.schedule.lending import Lent
from workers.schedule.limits import Limits
from workers.schedule.load import load_of
from workers.schedule.moving import Moving
from workers.schedule.places import Places
from workers.schedule.rates import Rates
from workers.schedule.results import Results
from workers.schedule.roster import Roster
from workers.schedule.sequence import Sequence, State
from workers.schedule.step import Ahead, StepResult


class Scheduler:
    """Owns every sequence of a worker, and its pages and slots.

    After any mix of calls: a slot belongs to one sequence or is free, a page has a reference for each sequence and
    each kept snapshot that holds it, and a sequence that has ended holds none. moving: answers that go on elsewhere.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._roster = Roster()
        self.sequences = self._roster.sequences
        self._places = Places(limits, self._roster)
        self.pages, self.slots = self._places.pages, self._places.slots
        self.cache, self.keeping = self._places.cache, self._places.keeping
        self.drafting = Drafting(limits, self.pages)
        self._rates = Rates(limits.max_step_tokens)
        self._admission = Admission(limits, self._roster, self._places, self._rates)
        self._departures = Departures(limits, self._roster, self._places)
        self._results = Results(self._places, self._departures, self.drafting)
        self.moving = Moving(self._roster, self._places, self._results)
        self.steps = 0

    @property
    def preempted(self) -> int:
        """The number of preemptions so far."""
        return self._places.preempted

    @property
    def load(self) -> Load:
        """The worker's load, for routers."""
        return load_of(self._roster, self._places, self._rates)

    # Events from outside

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence; ValueError if its id is taken."""
        self._roster.add(seq)
        seq.most = min(seq.prompt_tokens + seq.sampling.max_tokens, self.limits.max_model_len)
        seq.digests = PageDigests(self.limits.page_size, seq.scope)
        if self.limits.answer_tokens and not (seq.handoff or seq.warm):
            seq.keep_at = len(seq.tokens) + self.limits.answer_tokens

    def remove(self, request_id: str) -> Sequence | None:
        """Forget a sequence and free what it holds; None if there is none of that id."""
        return self._places.remove(request_id)

    def pull(self, request_id: str, peer: str, have: int = 0, ranks: int = 0) -> None:
        """`peer` has room for the snapshot of a sequence that is here; PullError if it can't have it.

        have: the first latents, which the peer holds already. ranks: of the peer; 0: as many as here.
        """
        self._departures.pull(request_id, peer, have, ranks)

    def pin(self, session: str, marks: Seq[Mark], now: float, until: float, *, again: bool = False) -> None:
        """Pin a session to the first of these snapshots that is kept, and release its previous pin.

        again: only if it has none, and it is not used now.
        """
        if again and session in self.cache.pins:
            return
        found = (self.cache.index.by_digest(mark.position, mark.digest) for mark in marks)
        if (kept := next((k for k in found if k is not None), None)) is not None:
            self.cache.pins.pin(session, kept, until)
            if not again:
                kept.used = now
                self.cache.disk.use(kept)
            self.cache.save(kept, now)
        else:
            self.cache.pins.release(session)

    def unpin(self, session: str) -> None:
        """Unpin a deleted session and erase those of its files that no other session needs."""
        kept = self.cache.pins.release(session)
        if kept is not None:
            self.cache.forget_files(kept)

    def park(self, mark: Mark, now: float) -> str | None:
        """Move a kept snapshot off the device. Returns the reason if it has to stay; None also if it is not there."""
        kept = self.cache.index.by_digest(mark.position, mark.digest)
        return self.cache.park(kept, now) if kept is not None else None

    def sent(self, request_id: str, now: float) -> SeqOutput | None:
        """A snapshot was sent completely; its sequence ends here.

        If a rank sends it before the step's results came, `gone` is set, and a second call follows.
        """
        seq = self.sequences.get(request_id)
        if seq is None:
            return None
        if seq.state is not State.SENDING:
            seq.gone = True
            return None
        seq.transfer_s = now - seq.first_token
        seq.exported = 0
        return self._results.end(seq, "handoff", now)

    def install(self, request_id: str, generated: tuple[int, ...], now: float) -> None:
        """A snapshot has arrived completely: continue after it. Unknown ids (aborted meanwhile) are ignored.

        generated: what was sampled after it already.
        """
        self._admission.install(request_id, generated, now)

    def not_coming(self, request_id: str, missed: Miss = "peer", *, damaged: bool = False) -> list[Lent]:
        """A kept snapshot can't be had: the sequence is computed here instead.

        missed: why, of a peer's. damaged: nor later, from host memory; copies of it that peers wait for in vain are
        returned.
        """
        return self._admission.not_coming(request_id, missed, damaged=damaged)

    def pulling_from(self, peer: str) -> list[str]:
        """Requests whose snapshots are on the way from `peer`, or are to come from it."""
        return self._roster.pulling_from(peer)

    def fail(self, request_id: str, reason: str, now: float) -> SeqOutput | None:
        """End a sequence with an error; None if there is none of that id."""
        seq = self.sequences.get(request_id)
        return self._results.end(seq, "error", now, reason) if seq else None

    def call_off(self, request_id: str, now: float) -> SeqOutput | None:
        """End a sequence whose end its router already knows; None if there is none with this id."""
        seq = self.sequences.get(request_id)
        return self._results.end(seq, "abort", now) if seq else None

    def overdue(self, now: float) -> list[SeqOutput]:
        """End the sequences whose snapshots nobody pulled in time."""
        reason = f"no decode worker took the snapshot within {self.limits.hold_s:g} s"
        return [self._results.end(seq, "error", now, reason) for seq in self._departures.overdue(now)]

    # Deciding a step

    def plan(self, now: float) -> InFlight:
        """The next step; its plan is `empty` if there is nothing to do. Answer one that has rows with `update`.

        The results of all steps before are known.
        """
        self._places.wanted = False
        self._places.batch = None
        return self._plan(now, None, self._roster.active)

    def plan_ahead(self, behind: InFlight, now: float) -> InFlight | None:
        """The step after one that is under way, the only one; None where that one's results must be known first.

        Sequences that decode there go on here. Others begin as far as there is room: none is preempted.
        """
        if self._places.wanted:
            return None
        going = going_on(behind, self.limits.page_size)
        if going is None or not self.drafting.stay(going.drafts, going.count, self.limits.max_step_tokens):
            return None
        if not self.cache.make_pages(sum(missing for _, missing in going.short), now):
            return None
        if behind.batch is not None and going.changes is not None:
            behind.batch.planned(behind.plan.step, going.changes)
        for seq, missing in going.short:
            seq.pages += self.pages.take(missing)
        rest: list[Sequence] = []
        if going.running < len(self._roster.active):
            busy = {*going.busy, *(behind.batch.seqs if behind.batch is not None else ())}
            rest = [seq for seq in self._roster.active if seq not in busy]
        return self._plan(now, going, rest)

    def follow(self, ahead: InFlight, behind: InFlight, result: StepResult) -> InFlight:
        """A step planned ahead, with the rows that go on there. result: of the step before, `update`d already."""
        # The ranks commit what they have verified by themselves.
        self.drafting.planned()
        batch = self._places.batch = gone_on(behind, result, ahead.plan, self.limits.page_size)
        if not batch:
            return ahead
        return replace(ahead, batch=batch, of_batch=Size(len(batch), len(batch) * (1 + batch.drafts), batch.context))

    def _plan(self, now: float, going: Going | None, rest: Seq[Sequence]) -> InFlight:
        """Plan a step. going: what goes on from the step under way. rest: the running sequences that are not in it."""
        self._places.ahead = going is not None
        step = StepBuilder(
            self.limits.max_step_tokens - (going.count * (1 + going.drafts) if going else 0),
            self.limits.page_size,
            lambda seq, position: self.cache.reserve(seq.known, position, now),
            self._departures.may_leave,
        )
        self.keeping.lend(step, self._departures.fits)
        drafts = 0 if going else self.drafting.each(self._roster.active, step.budget)
        admitting = True
        others = (*rest, *self._roster.queue) if going else self.sequences.values()
        for priority in sorted({s.priority for s in others}):
            later = self._continue(priority, rest, step, drafts, now)
            # If there is no room for one, those after it wait too, so that a long prompt is not overtaken for ever.
            admitting = admitting and self._admission.admit(priority, step, now, behind=False)
            for seq in later:
                if step.budget and seq.state is State.RUNNING:
                    step.compute(seq)
            admitting = admitting and self._admission.admit(priority, step, now, behind=True)
        self._departures.export(step)
        self.keeping.keep_arrived(self._places.installs, self.sequences, step, now)
        in_flight = step.plan(
            self.steps,
            self.drafting.commits(),
            self.keeping.saves,
            self.cache.take_changes(),
            self.cache.disk.take_changes(),
            self._places.discards,
            self._places.installs,
            self._ahead(going) if going else None,
        )
        self.keeping.planned()
        self.drafting.planned()
        self._places.discards.clear()
        self._places.installs.clear()
        self._places.ahead = False
        self.steps += 1
        return in_flight

    def _ahead(self, going: Going) -> Ahead:
        pages = []
        for seq, _ in going.short:
            pages.append((seq.slot, seq.pages_on_ranks, tuple(seq.pages[seq.pages_on_ranks :])))
            seq.pages_on_ranks = len(seq.pages)
        return Ahead(going.ended, tuple(pages))

    def _continue(
        self, priority: int, running: Seq[Sequence], step: StepBuilder, drafts: int, now: float
    ) -> list[Sequence]:
        """Add rows for the running sequences of a priority, with so many drafts if a sequence can take them.

        Returns those whose prompts are computed after what is yet to be admitted.
        """
        single: list[Sequence] = []
        several: list[Sequence] = []
        for seq in running:
            if seq.priority == priority and (pending := seq.pending):
                (single if pending == 1 else several).append(seq)
        for seq in single:
            if step.budget and seq.state is State.RUNNING and self._places.grow(seq, now):
                if seq.computed >= seq.keep_at:  # so that another worker can continue there if this one dies
                    seq.keep_at = seq.computed + self.limits.answer_tokens
                    if self.keeping.save(seq, now):
                        seq.told = seq.computed
                step.compute(seq, self.drafting.fitting(seq, drafts) if drafts else 0)
        for seq in several:
            if step.budget and not seq.behind and seq.state is State.RUNNING:
                step.compute(seq)
        return [seq for seq in several if seq.behind]

    # Results

    def update(self, in_flight: InFlight, result: StepResult, now: float) -> list[SeqOutput]:
        """Apply a step's results; returns the outputs for routers. Sequences ended meanwhile are skipped."""
        if drafts := self._rates.took(in_flight, result):
            self.drafting.speculation.took(drafts, result.elapsed_s)
        return self._results.take(in_flight, result, now)
