"""Decides what a worker computes next. Pure: no clock, no sockets, no tensors; time is passed in.

There are no prefill and decode modes: each sequence has tokens not yet computed, and a step spends one token budget
over them. Priorities are strict: sequences that wait at a better one go before all that run at a worse one, for the
budget, pages and slots; if none are free, worse ones are preempted. Waiting does not improve a priority. Within a
priority those with a single token go first, then in order of arrival. Ranks run plans in order, so pages and slots
freed while a plan is under way may go to the next plan at once.
"""

import bisect
import itertools
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace

from msgspec import structs

from wire.digest import PageDigests
from wire.protocol import Finish, Load, Mark, Miss, SeqOutput, TokenLogprob
from workers.cache.allocator import Allocator
from workers.cache.cache import PrefixCache
from workers.cache.kept import Kept
from workers.cache.moves import Copy
from workers.cache.pins import Pins
from workers.cache.totals import Origin
from workers.schedule.batch import Batch
from workers.schedule.beginning import Beginning, find
from workers.schedule.builder import InFlight, Size, StepBuilder
from workers.schedule.drafting import Drafting
from workers.schedule.going import Going, going_on
from workers.schedule.keeping import Keeping, PullError
from workers.schedule.lending import Lent
from workers.schedule.limits import Limits
from workers.schedule.outputs import batch_outputs, ended_output, sampled_output
from workers.schedule.sequence import Sequence, State
from workers.schedule.step import Ahead, Discard, Install, StepResult


def _queue_key(seq: Sequence) -> tuple[int, bool, int]:
    return seq.priority, seq.behind, seq.order


class Scheduler:
    """Owns every sequence of a worker, and its pages and slots.

    After any mix of calls: a slot belongs to one sequence or is free, a page has a reference for each sequence and
    each kept snapshot that holds it, and a sequence that has ended holds none.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pages = Allocator("page", limits.pages)
        self.slots = Allocator("slot", limits.slots)
        # One slot between is left to captured steps.
        self.cache = PrefixCache(self.pages, limits.page_size, limits.slots + 1, limits.cache)
        self.sequences: dict[str, Sequence] = {}
        self._queue: list[Sequence] = []
        self._active: list[Sequence] = []  # RUNNING sequences, in the queue's order
        self._held: list[Sequence] = []
        self._pulling: dict[str, Sequence] = {}  # PULLING or DISPLACED sequences
        self._sending = 0  # SENDING sequences
        self.keeping = Keeping(self.cache)
        self.drafting = Drafting(limits, self.pages)
        self.moving = Pins()  # snapshots of sequences that moved to other workers, by request
        self._discards: list[Discard] = []
        self._installs: list[Install] = []
        self._going: Going | None = None  # while a step is planned ahead
        self._batch: Batch | None = None  # while steps are planned ahead: what goes on from one to the next
        self._wants_places = False  # places of sequences whose results are not known
        self.steps = 0
        self.preempted = 0
        self._order = 0
        self._step_s = 0.0
        self._token_s = 0.0  # seconds of a prompt's token, smoothed
        self._decode_s = 0.0  # seconds of a step without prompts, smoothed
        self._decode_rows = 0.0  # and how many sequences it has

    # Events from outside

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence; ValueError if its id is taken."""
        if seq.request_id in self.sequences:
            raise ValueError(f"request {seq.request_id} is here already")
        seq.order = self._order
        self._order += 1
        seq.most = min(seq.prompt_tokens + seq.sampling.max_tokens, self.limits.max_model_len)
        seq.digests = PageDigests(self.limits.page_size, seq.scope)
        if self.limits.answer_tokens and not (seq.handoff or seq.warm):
            seq.keep_at = len(seq.tokens) + self.limits.answer_tokens
        self.sequences[seq.request_id] = seq
        bisect.insort(self._queue, seq, key=_queue_key)

    def remove(self, request_id: str) -> Sequence | None:
        """Forget a sequence and free what it holds; None if there is none of that id."""
        seq = self.sequences.pop(request_id, None)
        if seq is None:
            return None
        match seq.state:
            case State.QUEUED:
                self._queue.remove(seq)
            case State.PULLING | State.DISPLACED:
                del self._pulling[request_id]
                self._discards.append(Discard(request_id))
                if seq.state is State.DISPLACED:
                    self._queue.remove(seq)
                self.keeping.unpin(seq)
            case State.RUNNING:
                self._active.remove(seq)
                self._call_off_install(seq)
            case State.HELD:
                self._held.remove(seq)
            case State.SENDING:
                self._sending -= 1
        if seq.exported:  # the transfer layer has parts of it, and the rest will never come
            self._discards.append(Discard(request_id))
        self._free(seq)
        return seq

    def pull(self, request_id: str, peer: str, have: int = 0, ranks: int = 0) -> None:
        """`peer` has room for the snapshot of a sequence that is here; PullError if it can't have it.

        have: the first latents, which the peer holds already. ranks: of the peer; 0: as many as here.
        """
        seq = self.sequences[request_id]
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
        """A session is deleted: it is pinned no more, and its files go as far as no other session needs them."""
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
        return self._end(seq, "handoff", now)

    def install(self, request_id: str, generated: tuple[int, ...], now: float) -> None:
        """A snapshot has arrived completely: continue after it. Unknown ids (aborted meanwhile) are ignored.

        generated: what was sampled after it already. One that has lost its places meanwhile is computed here when
        there is room: what lies in staging memory does not wait for that.
        """
        seq = self._pulling.pop(request_id, None)
        if seq is None:
            return
        source, host = seq.source, seq.fetching is not None
        position = source.position if source else seq.fetching.position if seq.fetching else 0
        seq.tokens.extend(generated)
        seq.source = None
        self.keeping.unpin(seq)
        seq.transfer_s = now - (seq.header_at or seq.started)
        if generated:
            seq.first_token = now
        if seq.state is State.DISPLACED:
            self._discards.append(Discard(request_id))
            seq.state = State.QUEUED
            return
        pages = tuple(seq.pages[seq.have // self.limits.page_size : self._pages_for(position)])
        self._installs.append(Install(request_id, seq.slot, pages, seq.have, host))
        seq.computed = position
        seq.state = State.RUNNING
        if not generated:
            self._begun(seq, seq.fetched_from if host else "peer", position)
            self.keeping.arrived(request_id, position)
        self._activate(seq)

    def not_coming(self, request_id: str, missed: Miss = "peer", *, damaged: bool = False) -> list[Lent]:
        """A kept snapshot can't be had: the sequence is computed here instead.

        missed: why, of a peer's. damaged: nor later, from host memory; copies of it that peers wait for in vain are
        returned.
        """
        seq = self._pulling.pop(request_id, None)
        if seq is None:
            queued = self.sequences.get(request_id)
            if queued is not None and queued.state is State.QUEUED and queued.source is not None:
                queued.source, queued.missed = None, missed
            return []
        kept = seq.fetching
        seq.missed = missed if seq.source else None
        seq.source = None
        self.keeping.unpin(seq)
        lost = self.keeping.lost(kept, seq.fetched_from == "disk") if damaged and kept is not None else []
        self._discards.append(Discard(request_id, leaving=False))
        if seq.state is State.PULLING:
            self._free(seq)
            bisect.insort(self._queue, seq, key=_queue_key)
        seq.state = State.QUEUED
        return lost

    def pulling_from(self, peer: str) -> list[str]:
        """Requests whose snapshots are on the way from `peer`, or are to come from it."""
        return [s.request_id for s in self.sequences.values() if s.source is not None and s.source.peer == peer]

    def fail(self, request_id: str, reason: str, now: float) -> SeqOutput | None:
        """End a sequence with an error; None if there is none of that id."""
        seq = self.sequences.get(request_id)
        return self._end(seq, "error", now, reason) if seq else None

    def call_off(self, request_id: str, now: float) -> SeqOutput | None:
        """End a sequence whose end its router already knows; None if there is none with this id."""
        seq = self.sequences.get(request_id)
        return self._end(seq, "abort", now) if seq else None

    def answered_here(self) -> list[Sequence]:
        """Sequences whose answer is computed here, whatever they wait for."""
        return [seq for seq in self.sequences.values() if not seq.handoff]

    def announce(self, seq: Sequence, until: float, now: float) -> SeqOutput | None:
        """Keep what is computed so far of a sequence that is to go on elsewhere, and tell its router.

        The next worker takes that while the sequence goes on here. Between two steps. None if nothing can be kept.
        """
        kept = self._keep_for_others(seq, until, now)
        if kept is None:
            return None
        return SeqOutput(seq.request_id, seq.generated, kept_tokens=kept.position, leaving=True)

    def move(self, seq: Sequence, until: float, now: float) -> SeqOutput:
        """End a sequence that continues at another worker, and keep its state for it. Call between two steps."""
        kept = self._keep_for_others(seq, until, now)
        output = self._end(seq, "moved", now)
        return structs.replace(output, kept_tokens=kept.position) if kept is not None else output

    def _keep_for_others(self, seq: Sequence, until: float, now: float) -> Kept | None:
        if seq.state is not State.RUNNING or not seq.computed:
            return None
        if any(install.request_id == seq.request_id for install in self._installs):
            return None
        self.keeping.save(seq, now)
        kept = self.cache.index.at(seq.known, seq.computed)
        if kept is not None and kept.slot >= 0:
            self.moving.pin(seq.request_id, kept, until)
        return kept

    def overdue(self, now: float) -> list[SeqOutput]:
        """End the sequences whose snapshots nobody pulled in time."""
        late = [s for s in self._held if s.peer is None and now - s.held_at > self.limits.hold_s]
        reason = f"no decode worker took the snapshot within {self.limits.hold_s:g} s"
        return [self._end(seq, "error", now, reason) for seq in late]

    # Deciding a step

    def plan(self, now: float) -> InFlight:
        """The next step; its plan is `empty` if there is nothing to do. Answer one that has rows with `update`.

        The results of all steps before are known.
        """
        self._wants_places = False
        self._batch = None
        return self._plan(now, None, self._active)

    def plan_ahead(self, behind: InFlight, now: float) -> InFlight | None:
        """The step after one that is under way, the only one; None where that one's results must be known first.

        Sequences that decode there go on here. Others begin as far as there is room: none is preempted.
        """
        if self._wants_places:
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
        if going.running < len(self._active):
            busy = {*going.busy, *(behind.batch.seqs if behind.batch is not None else ())}
            rest = [seq for seq in self._active if seq not in busy]
        return self._plan(now, going, rest)

    def follow(self, ahead: InFlight, behind: InFlight, result: StepResult) -> InFlight:
        """A step planned ahead, with the rows that go on there. result: of the step before, `update`d already."""
        assert ahead.plan.ahead is not None
        # The ranks commit what they have verified by themselves.
        self.drafting.planned()
        over = {at for at, _ in result.failures}.union(result.stopped)
        ended = set(ahead.plan.ahead.ended)
        batch, at = behind.batch, 0
        if batch is not None:
            at = len(batch)
            if over or ended:
                batch.leave(over, ended)
        for row, (seq, epoch) in zip(behind.plan.rows, behind.owners, strict=True):
            if row.sample and at not in over and row.slot not in ended:
                batch = batch or Batch(row.drafts, self.limits.page_size)
                batch.join(seq, row.slot, ahead.plan.step, here=seq.epoch == epoch)
            at += row.sample
        self._batch = batch
        if not batch:
            return ahead
        return replace(ahead, batch=batch, of_batch=Size(len(batch), len(batch) * (1 + batch.drafts), batch.context))

    def _plan(self, now: float, going: Going | None, rest: Seq[Sequence]) -> InFlight:
        """Plan a step. going: what goes on from the step under way. rest: the running sequences that are not in it."""
        self._going = going
        step = StepBuilder(
            self.limits.max_step_tokens - (going.count * (1 + going.drafts) if going else 0),
            self.limits.page_size,
            lambda seq, position: self.cache.reserve(seq.known, position, now),
            self._may_leave,
        )
        self.keeping.lend(step, lambda tokens: not self.limits.staging.full(self._leaving(), tokens))
        drafts = 0 if going else self.drafting.each(self._active, step.budget)
        admitting = True
        others = (*rest, *self._queue) if going else self.sequences.values()
        for priority in sorted({s.priority for s in others}):
            later = self._continue(priority, rest, step, drafts, now)
            # If there is no room for one, those after it wait too, so that a long prompt is not overtaken for ever.
            admitting = admitting and self._admit(priority, step, now, behind=False)
            for seq in later:
                if step.budget and seq.state is State.RUNNING:
                    step.compute(seq)
            admitting = admitting and self._admit(priority, step, now, behind=True)
        self._export_held(step)
        self.keeping.keep_arrived(self._installs, self.sequences, step, now)
        in_flight = step.plan(
            self.steps,
            self.drafting.commits(),
            self.keeping.saves,
            self.cache.take_changes(),
            self.cache.disk.take_changes(),
            self._discards,
            self._installs,
            self._ahead(going) if going else None,
        )
        self.keeping.planned()
        self.drafting.planned()
        self._discards.clear()
        self._installs.clear()
        self._going = None
        self.steps += 1
        return in_flight

    def _ahead(self, going: Going) -> Ahead:
        pages = []
        for seq, _ in going.short:
            pages.append((seq.slot, seq.pages_on_ranks, tuple(seq.pages[seq.pages_on_ranks :])))
            seq.pages_on_ranks = len(seq.pages)
        return Ahead(going.ended, tuple(pages))

    def update(self, in_flight: InFlight, result: StepResult, now: float) -> list[SeqOutput]:
        """Take a step's results; what they mean for each sequence. Sequences ended meanwhile are passed over."""
        self._measure(in_flight, result)
        outputs: list[SeqOutput] = []
        failures = dict(result.failures)
        rows = sampled = 0
        if in_flight.batch is not None:
            rows = sampled = len(in_flight.batch)
            outputs += self._update_batch(in_flight.batch, result, failures, now)
        for index, (row, (seq, epoch)) in enumerate(zip(in_flight.plan.rows, in_flight.owners, strict=True), rows):
            at = sampled
            sampled += row.sample
            if seq.epoch != epoch:
                for _, slot in row.keeps:
                    self.cache.release(slot)
                continue
            # How many drafts of a row are accepted is known only after its tokens are taken.
            seq.computed = computed = row.start + len(row.token_ids)
            if computed <= seq.prompt_tokens:
                self.cache.index.note(seq.known, computed)
            if row.keeps:
                for count, slot in row.keeps:
                    self.cache.keep(seq.known, row.start + count, seq.pages, slot, now, state_in=slot)
            if seq.keeps:
                seq.keeps = [p for p in seq.keeps if p > computed]
            if result.prompt_logprobs:
                seq.prompt_logprobs.extend(result.prompt_logprobs[index])
            if row.sample:
                outputs.append(self._sampled(seq, row.drafts, result, at, failures, now))
            elif seq.handoff and seq.pending == 0:  # computed again after its first token was sent
                self._hold(seq, now)
        return outputs

    def _update_batch(
        self, batch: Batch, result: StepResult, failures: Mapping[int, str], now: float
    ) -> list[SeqOutput]:
        """What a step gave the sequences that go on in it."""
        rows: Iterable[tuple[Sequence, tuple[int, ...], tuple[TokenLogprob, ...]]]
        rows = zip(batch.seqs, result.tokens, result.logprobs or itertools.repeat(()), strict=False)
        apart = {*failures, *result.stopped, *map(batch.seqs.index, batch.ending(result.step))}
        gone = {at for at, seq in enumerate(batch.seqs) if seq in batch.gone} if batch.gone else ()
        if apart or gone:
            rows = (row for at, row in enumerate(rows) if at not in apart and at not in gone)
        rows = list(rows)
        outputs = batch_outputs(rows)
        batch.gained(len(batch))
        if batch.drafts:
            batch.gained(self.drafting.verified_batch(rows, batch.drafts))
        for at in sorted(apart.difference(gone)):
            if at < len(batch):
                seq = batch.seqs[at]
                seq.computed += 1
                outputs.append(self._sampled(seq, batch.drafts, result, at, failures, now))
        return outputs

    @property
    def load(self) -> Load:
        """Figures for routers."""
        totals, waiting = self.cache.totals, self._queue
        # Those that go on from step to step are answered here, and have no more than a token to compute.
        all_go_on = self._batch is not None and self._batch.present == len(self._active)
        others: Seq[Sequence] = () if all_go_on else self._active
        prompts = [s for s in others if s.pending > 1]
        return Load(
            queued=len(waiting),
            queued_tokens=sum(s.pending for s in waiting if s.source is None) + sum(s.pending for s in prompts),
            running=len(self._active),
            free_pages=self.pages.free + self.pages.reclaimable,
            free_slots=self.slots.free,
            transferring=sum(s.state is State.PULLING for s in self._pulling.values()) + self._sending,
            step_s=self._step_s,
            token_s=self._token_s,
            kept=len(self.cache.index),
            hit_tokens=sum(totals.hit_tokens.values()),
            missed_tokens=sum(totals.missed_tokens.values()),
            decode_s=self._decode_s,
            decode_rows=self._decode_rows,
            answering=len(self._active) - sum(s.handoff for s in others),
            behind=sum(s.behind for s in waiting) + sum(s.behind for s in prompts),
            hits=sum(totals.hits.values()),
            misses=tuple(totals.misses.values()),
            tiers=tuple(self.cache.held.values()),
            saved_s=totals.saved_s,
        )

    # Inside

    def _measure(self, in_flight: InFlight, result: StepResult) -> None:
        self._step_s = seconds = result.elapsed_s
        batch, more = in_flight.batch, in_flight.plan.rows
        going = [batch.drafts] * len(batch) if batch is not None else []
        rows = len(going) + len(more)
        tokens = len(going) + sum([len(r.token_ids) for r in more])
        if tokens > rows:
            weight = 1.0 if not self._token_s else tokens / (tokens + self.limits.max_step_tokens)
            self._token_s += weight * (seconds / tokens - self._token_s)
        elif tokens:
            self.drafting.speculation.took([*going, *(r.drafts for r in more)], seconds)
            # A sequence that gains several tokens waits less for each of them.
            each = seconds * len(result.tokens) / max(sum(map(len, result.tokens)), 1) if result.tokens else seconds
            weight = 0.1 if self._decode_s else 1.0
            self._decode_s += weight * (each - self._decode_s)
            self._decode_rows += weight * (rows - self._decode_rows)

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.page_size)

    def _free(self, seq: Sequence) -> None:
        self.pages.give(seq.pages)
        if self._batch is not None:
            self._batch.lose(seq)
        seq.pages = []
        seq.pages_on_ranks = 0
        seq.epoch += 1
        if seq.slot >= 0:
            self.slots.give([seq.slot])
            seq.slot = -1
        seq.admitted_on_ranks = False

    def _activate(self, seq: Sequence) -> None:
        bisect.insort(self._active, seq, key=_queue_key)

    def _call_off_install(self, seq: Sequence) -> None:
        """Cancel the installation of a snapshot that no plan has installed yet, because its places may be reused."""
        kept = [i for i in self._installs if i.request_id != seq.request_id]
        if len(kept) < len(self._installs):
            self._installs = kept
            self._discards.append(Discard(seq.request_id))

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
            if step.budget and seq.state is State.RUNNING and self._grow(seq, now):
                if seq.computed >= seq.keep_at:  # so that another worker can continue there if this one dies
                    seq.keep_at = seq.computed + self.limits.answer_tokens
                    if self.keeping.save(seq, now):
                        seq.told = seq.computed
                step.compute(seq, self.drafting.fitting(seq, drafts) if drafts else 0)
        for seq in several:
            if step.budget and not seq.behind and seq.state is State.RUNNING:
                step.compute(seq)
        return [seq for seq in several if seq.behind]

    def _admit(self, priority: int, step: StepBuilder, now: float, *, behind: bool) -> bool:
        """Admit the waiting sequences of a priority.

        behind: those whose tenants have more than their share, or the others. False if one found no places, so that
        worse priorities get none meanwhile.
        """
        all_placed = True
        for seq in [s for s in self._queue if s.priority == priority and s.behind == behind]:
            if seq.source is not None or seq.state is State.DISPLACED:
                if seq.state is State.QUEUED and (self._window_full(priority) or self._staging_full(seq.coming)):
                    continue
                if not self._place_pulled(seq, step, now):
                    return False
                continue
            if not step.budget:
                all_placed = False
                continue
            beginning = find(seq, self.cache, self._active)
            kept = beginning.kept
            from_host = kept.position if kept is not None and kept.slot < 0 else None
            if beginning.awaited or (from_host is not None and self._staging_full(from_host)):
                continue
            if self._place(seq, beginning, step, now):
                continue
            # The snapshot that it begins from holds pages beside its own. If nothing else will free any, it begins at
            # zero.
            if kept is None or self._active or self._pulling or self._held:
                return False
            if not self._place(seq, replace(beginning, kept=None), step, now):
                return False
        return all_placed

    def _window_full(self, priority: int) -> bool:
        """Whether the window of snapshots in transfer is full; those of worse priorities do not count."""
        return sum(s.priority <= priority for s in self._pulling.values()) >= self.limits.window

    def _staging_full(self, tokens: int) -> bool:
        """Whether the ranks have no memory for a further snapshot, at any priority."""
        return self.limits.staging.full((s.coming for s in self._pulling.values()), tokens)

    def _place(self, seq: Sequence, beginning: Beginning, step: StepBuilder, now: float) -> bool:
        """Begin a sequence from a kept snapshot, or at zero."""
        kept, size = beginning.kept, self.limits.page_size
        shared: Seq[int] = ()
        fetched = False
        if kept is not None:
            self.keeping.pin(kept)
            whole = kept.position // size
            fetched = kept.slot < 0
            shared = self.cache.index.resident(seq.known, kept.position) if fetched else kept.pages[:whole]
        # A sequence that is preempted for it may be kept on the device meanwhile, as the same snapshot that is on the
        # host.
        if not self._take(seq, shared, now):
            if kept is not None:
                self.keeping.let_go(kept)
            return False
        seq.keeps = beginning.keeps
        seq.missed = seq.missed or beginning.missed
        if kept is not None:
            kept.used = now
            kept.uses += 1
            self.cache.unpark(kept)
        if kept is not None and fetched:
            seq.fetching, seq.fetched_from = kept, "host" if kept in self.cache.host else "disk"
            kept.pins += 1
            self._pulling[seq.request_id] = seq
            step.fetch(seq, *self.cache.below_device(kept, seq.have))
            seq.state = State.PULLING
            return True
        if kept is not None:
            tail = (kept.pages[whole], seq.pages[whole]) if kept.tail else (-1, -1)
            step.copy(Copy(kept.slot, seq.slot, *tail))
            seq.computed = kept.position
        self._begun(seq, "device" if kept else None, seq.computed)
        seq.state = State.RUNNING
        self._activate(seq)
        step.compute(seq)
        return True

    def _place_pulled(self, seq: Sequence, step: StepBuilder, now: float) -> bool:
        """Take places for a snapshot that is to come, or that is on its way and had lost its places."""
        if seq.state is State.DISPLACED:
            return self._replace(seq, now)
        assert seq.source is not None
        # The last page is not shared, because a hand-off brings at least one latent.
        shared = self.cache.index.resident(seq.known, seq.source.position - 1)
        if not self._take(seq, shared, now):
            return False
        self._pulling[seq.request_id] = seq
        step.expect(seq)
        seq.state = State.PULLING
        return True

    def _replace(self, seq: Sequence, now: float) -> bool:
        """Take places again for a snapshot on its way; pages that it was to share may be gone from the device."""
        have = self.cache.index.resident(seq.known, seq.have)[: seq.have // self.limits.page_size]
        if len(have) * self.limits.page_size < seq.have:
            return True  # it can't be installed, so it is computed here once it has come
        if not self._take(seq, have, now):
            return False
        seq.state = State.PULLING
        return True

    def _take(self, seq: Sequence, shared: Seq[int], now: float) -> bool:
        """Give a waiting sequence its slot and the pages for its tokens and the next one, if there is room.

        shared: pages that hold its first latents already.
        """
        need = self._pages_for(len(seq.tokens) + 1) - len(shared)
        self.pages.share(shared)
        if not self._make_room(need, seq.priority, now):
            self.pages.give(shared)
            return False
        self._queue.remove(seq)
        seq.slot = self.slots.take(1)[0]
        seq.pages = [*shared, *self.pages.take(need)]
        seq.have = len(shared) * self.limits.page_size
        if not seq.started:
            seq.started = now
            seq.queue_s = now - seq.arrived
        return True

    def _make_room(self, pages: int, priority: int, now: float) -> bool:
        """Free a slot and pages by evicting kept snapshots, then preempting worse priorities, if that is enough."""
        # Each running sequence may need a page within the next steps; without spare pages, admitting would lead to
        # preemption.
        pages += sum(s.priority <= priority for s in self._active)
        if self.slots.free and self.cache.make_pages(pages, now):
            return True
        yielding = self._yielding(priority)
        if self._going and yielding:
            self._wants_places = True
            return False
        there = self.pages.free + self.pages.reclaimable
        if there + sum(self.pages.owned(s.pages) for s in yielding) < pages or not (self.slots.free or yielding):
            return False
        while not self.slots.free or not self.cache.make_pages(pages, now):
            if not yielding:
                return False
            self._preempt(yielding.pop(), now)
        return True

    def _yielding(self, priority: int) -> list[Sequence]:
        """The sequences with places at worse priorities, in line.

        A snapshot that is about to be sent is freed soon anyway.
        """
        worse = [s for s in (*self._active, *self._pulling.values()) if s.priority > priority and s.slot >= 0]
        worse += [s for s in self._held if s.priority > priority and s.peer is None]
        return sorted(worse, key=_queue_key)

    def _grow(self, seq: Sequence, now: float) -> bool:
        """Make room for the next token by preempting the last in line; False if that is `seq` itself."""
        while len(seq.pages) < self._pages_for(seq.computed + 1):
            if self.cache.make_pages(1, now):
                seq.pages += self.pages.take(1)
                continue
            if self._going:
                self._wants_places = True
                return False
            victim = max((*self._active, *self._yielding(seq.priority)), key=_queue_key)
            self._preempt(victim, now)
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence, now: float) -> None:
        """Preempt a sequence: it goes back to the queue without places.

        When there is room it continues from its kept state: all that it has computed, unless its pages were needed too
        and host memory has no copy.
        """
        self.preempted += 1
        if seq.state is State.RUNNING and seq.computed and all(i.request_id != seq.request_id for i in self._installs):
            self.keeping.save(seq, now)
        self._free(seq)
        if seq.state is State.PULLING:
            seq.state = State.DISPLACED
        else:
            if seq.state is State.RUNNING:
                self._active.remove(seq)
                self._call_off_install(seq)
            else:
                self._held.remove(seq)
            seq.computed = 0
            seq.keeps = []
            seq.prompt_logprobs.clear()
            seq.state = State.QUEUED
        bisect.insort(self._queue, seq, key=_queue_key)

    def _hold(self, seq: Sequence, now: float) -> None:
        """Hold a sequence whose prompt is computed until its snapshot is pulled, unless that was already sent."""
        self._active.remove(seq)
        if seq.exported == seq.computed:
            self._send_off(seq)
        else:
            seq.state = State.HELD
            seq.held_at = now
            self._held.append(seq)

    def _export_held(self, step: StepBuilder) -> None:
        for seq in [s for s in self._held if self._may_leave(s)]:
            step.export(seq, seq.prompt_tokens)
            self._held.remove(seq)
            self._send_off(seq)

    def _may_leave(self, seq: Sequence) -> bool:
        """Take memory on the ranks for a whole snapshot that a peer pulls, so that one that has begun never waits."""
        if seq.leaves or seq.peer is None:
            return seq.leaves
        # Sequences that only wait for this go first, because they hold slots and pages.
        if seq.state is not State.HELD and any(s.peer is not None for s in self._held):
            return False
        seq.leaves = not self.limits.staging.full(self._leaving(), seq.prompt_tokens)
        return seq.leaves

    def _leaving(self) -> list[int]:
        """Tokens of all snapshots that the ranks hold memory for until they are sent."""
        handed_off = (s.prompt_tokens for s in self.sequences.values() if s.leaves)
        return [*handed_off, *self.keeping.lending.leaving]

    def _send_off(self, seq: Sequence) -> None:
        """Free a sequence's places: the ranks copy its snapshot out within the plan that exports it."""
        seq.state = State.SENDING
        self._sending += 1
        self._free(seq)

    def _begun(self, seq: Sequence, origin: Origin | None, begin: int) -> None:
        """A sequence begins after `begin` tokens; the first time, these count as cached."""
        if not seq.begun:
            seq.begun, seq.begin, seq.origin = True, begin, origin
            self.cache.totals.began(origin, seq.begin, seq.prompt_tokens, seq.missed or "new", self._token_s)

    def _sampled(
        self, seq: Sequence, drafts: int, result: StepResult, at: int, failures: Mapping[int, str], now: float
    ) -> SeqOutput:
        """Take what a row sampled, whose tokens but the drafts count as computed already."""
        if failures and at in failures:
            return self._end(seq, "error", now, failures[at], unservable=True)
        output = sampled_output(seq, result, at, now)
        if drafts:
            self.drafting.verified(seq, drafts, len(output.token_ids), len(result.tokens[at]) - 1)
        if output.finish:
            if not (seq.handoff or seq.warm):
                self.keeping.save(seq, now)
            self.remove(seq.request_id)
        elif seq.handoff:
            self._hold(seq, now)
        elif seq.told:
            output = structs.replace(output, kept_tokens=seq.told)
            seq.told = 0
        return output

    def _end(
        self, seq: Sequence, finish: Finish, now: float, error: str | None = None, *, unservable: bool = False
    ) -> SeqOutput:
        output = ended_output(seq, finish, now, error, unservable)
        self.remove(seq.request_id)
        return output
