"""What a worker computes next. Pure: no clock, no sockets, no tensors; time is passed in.

There are no prefill and decode modes: each sequence has tokens not yet computed, and a step spends one token
budget over them. Priorities are strict: what waits at a better one goes before all that runs at a worse one, in the
budget and for pages and slots, which are taken away where none are free; nothing ages into a better one. Within a
priority those with a single token go first, then in order of arrival. Ranks run plans in order, so pages and slots
freed while a plan is under way may go to the next plan at once.
"""

import bisect

from wire.protocol import Finish, Load, SeqOutput, Timings
from workers.schedule.allocator import Allocator
from workers.schedule.builder import StepBuilder
from workers.schedule.limits import Limits
from workers.schedule.sequence import Sequence, State
from workers.schedule.step import Discard, Install, StepPlan, StepResult


def _queue_key(seq: Sequence) -> tuple[int, int]:
    return seq.priority, seq.order


class Scheduler:
    """Owns every sequence of a worker, and its pages and slots.

    After any mix of calls: a page or slot belongs to one sequence or is free, and a sequence that has ended
    holds none.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pages = Allocator("page", limits.pages)
        self.slots = Allocator("slot", limits.slots)
        self.sequences: dict[str, Sequence] = {}
        self._queue: list[Sequence] = []
        self._active: list[Sequence] = []  # RUNNING, in the queue's order
        self._held: list[Sequence] = []
        self._pulling: dict[str, Sequence] = {}  # PULLING or PARKED
        self._discards: list[Discard] = []
        self._installs: list[Install] = []
        self.steps = 0
        self._order = 0
        self._computing: list[Sequence] = []  # in the step under way, one a row
        self._step_s = 0.0

    # What comes from outside

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence; ValueError if its id is taken."""
        if seq.request_id in self.sequences:
            raise ValueError(f"request {seq.request_id} is here already")
        seq.order = self._order
        self._order += 1
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
            case State.PULLING | State.PARKED:
                del self._pulling[request_id]
                self._discards.append(Discard(request_id))
                if seq.state is State.PARKED:
                    self._queue.remove(seq)
            case State.RUNNING:
                self._active.remove(seq)
                self._call_off_install(seq)
            case State.HELD:
                self._held.remove(seq)
            case State.SENDING:
                pass
        if seq.exported:  # parts of it are with the transfer layer, and the rest will never come
            self._discards.append(Discard(request_id))
        self._free(seq)
        return seq

    def pull(self, request_id: str, peer: str) -> bool:
        """`peer` has room for the snapshot of a sequence to be handed off; False if there is none of that id."""
        seq = self.sequences.get(request_id)
        if seq is None or not seq.handoff:
            return False
        seq.peer = peer
        return True

    def sent(self, request_id: str, now: float) -> SeqOutput | None:
        """A snapshot has wholly left; the sequence ends here.

        A rank may be that quick that the step is not committed yet: then `gone` is set, for a second call.
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
        """A pulled snapshot has wholly come: continue after it. Unknown ids (aborted meanwhile) are ignored.

        One that has lost its places meanwhile is computed here when there is room: what lies in staging memory
        does not wait for that.
        """
        seq = self._pulling.pop(request_id, None)
        if seq is None:
            return
        seq.tokens.extend(generated)
        seq.source = None
        seq.transfer_s = now - seq.header_at
        seq.first_token = now
        if seq.state is State.PARKED:
            self._discards.append(Discard(request_id))
            seq.state = State.QUEUED
            return
        self._installs.append(Install(request_id, seq.slot, tuple(seq.pages)))
        seq.computed = seq.prompt_tokens
        seq.state = State.RUNNING
        self._activate(seq)

    def pulling_from(self, peer: str) -> list[str]:
        """Requests whose snapshots are on the way from `peer`, or are to come from it."""
        return [s.request_id for s in self.sequences.values() if s.source == peer]

    def fail(self, request_id: str, reason: str, now: float) -> SeqOutput | None:
        """End a sequence with an error; None if there is none of that id."""
        seq = self.sequences.get(request_id)
        return self._end(seq, "error", now, reason) if seq else None

    def call_off(self, request_id: str, now: float) -> SeqOutput | None:
        """End a sequence whose fate its router knows from elsewhere; None if there is none of that id."""
        seq = self.sequences.get(request_id)
        return self._end(seq, "abort", now) if seq else None

    def overdue(self, now: float) -> list[SeqOutput]:
        """End the snapshots nobody pulled in time."""
        late = [s for s in self._held if s.peer is None and now - s.held_at > self.limits.hold_s]
        reason = f"no decode worker took the snapshot within {self.limits.hold_s:g} s"
        return [self._end(seq, "error", now, reason) for seq in late]

    # Deciding a step

    def plan(self, now: float) -> StepPlan:
        """The next step; `empty` if there is nothing to do. Answer a plan that has rows with `commit`."""
        step = StepBuilder(self.limits.max_step_tokens, self.limits.page_size)
        admitting = True
        for priority in sorted({s.priority for s in self.sequences.values()}):
            self._continue(priority, step)
            # Where there is no room for one, those behind it wait too: a long prompt is not overtaken for ever.
            admitting = admitting and self._admit(priority, step, now)
        self._export_held(step)
        self._computing = step.computing
        plan = step.plan(self.steps, self._discards, self._installs)
        self._discards.clear()
        self._installs.clear()
        self.steps += 1
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> list[SeqOutput]:
        """Take a step's results; what they mean for each sequence. Sequences ended meanwhile are passed over."""
        self._step_s = result.elapsed_s
        outputs: list[SeqOutput] = []
        sampled = 0
        failures = dict(result.failures)
        for index, (row, seq) in enumerate(zip(plan.rows, self._computing, strict=True)):
            at = sampled
            sampled += row.sample
            if self.sequences.get(seq.request_id) is not seq or seq.slot != row.slot:
                continue
            seq.computed = row.start + len(row.token_ids)
            seq.prompt_logprobs.extend(result.prompt_logprobs[index] if result.prompt_logprobs else ())
            if row.sample and at in failures:
                outputs.append(self._end(seq, "error", now, failures[at]))
            elif row.sample:
                outputs.append(self._sampled(seq, result, at, now))
            elif seq.handoff and seq.pending == 0:  # computed anew after its first token had left
                self._hold(seq, now)
        return outputs

    @property
    def load(self) -> Load:
        """Figures for routers."""
        return Load(
            queued=len(self._queue),
            queued_tokens=sum(s.pending for s in self._queue if s.source is None)
            + sum(s.pending for s in self._active if s.pending > 1),
            running=len(self._active),
            free_pages=self.pages.free,
            free_slots=self.slots.free,
            transferring=sum(s.state in (State.PULLING, State.SENDING) for s in self.sequences.values()),
            step_s=self._step_s,
        )

    # Inside

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.page_size)

    def _free(self, seq: Sequence) -> None:
        self.pages.give(seq.pages)
        seq.pages = []
        seq.pages_on_ranks = 0
        if seq.slot >= 0:
            self.slots.give([seq.slot])
            seq.slot = -1
        seq.admitted_on_ranks = False

    def _activate(self, seq: Sequence) -> None:
        bisect.insort(self._active, seq, key=_queue_key)

    def _call_off_install(self, seq: Sequence) -> None:
        """Its snapshot has come and no plan has installed it yet: its places may be another's by then."""
        kept = [i for i in self._installs if i.request_id != seq.request_id]
        if len(kept) < len(self._installs):
            self._installs = kept
            self._discards.append(Discard(seq.request_id))

    def _continue(self, priority: int, step: StepBuilder) -> None:
        """Rows for what runs at a priority."""
        for seq in [s for s in self._active if s.priority == priority and s.pending == 1]:
            if step.budget and seq.state is State.RUNNING and self._grow(seq):
                step.compute(seq)
        for seq in [s for s in self._active if s.priority == priority and s.pending > 1]:
            if step.budget:
                step.compute(seq)

    def _admit(self, priority: int, step: StepBuilder, now: float) -> bool:
        """Places for what waits at a priority; False if one found none: what is worse does not take them meanwhile."""
        all_placed = True
        for seq in [s for s in self._queue if s.priority == priority]:
            pulled = seq.source is not None
            if pulled and seq.state is State.QUEUED:
                # Pulls of worse priorities are no reason to wait.
                ahead = sum(s.priority <= priority for s in self._pulling.values())
                if ahead >= self.limits.window:
                    continue
            elif not pulled and not step.budget:
                all_placed = False
                continue
            if not self._take(seq, now):
                return False
            if not pulled:
                seq.state = State.RUNNING
                self._activate(seq)
                step.compute(seq)
                continue
            if seq.state is State.QUEUED:
                self._pulling[seq.request_id] = seq
                step.expect(seq)
            seq.state = State.PULLING
        return all_placed

    def _take(self, seq: Sequence, now: float) -> bool:
        """Give a waiting sequence its slot and the pages for its tokens and the next one, if there is room."""
        need = self._pages_for(len(seq.tokens) + 1)
        if not self._make_room(need, seq.priority):
            return False
        self._queue.remove(seq)
        seq.slot = self.slots.take(1)[0]
        seq.pages = self.pages.take(need)
        if not seq.started:
            seq.started = now
            seq.queue_s = now - seq.arrived
        return True

    def _make_room(self, pages: int, priority: int) -> bool:
        """Free a slot and so many pages at the cost of worse priorities, if those hold enough."""
        # Each running sequence may want a page within the next steps; without them, admitting means preempting.
        pages += sum(s.priority <= priority for s in self._active)
        if self.slots.free and self.pages.free >= pages:
            return True
        yielding = self._yielding(priority)
        if self.pages.free + sum(len(s.pages) for s in yielding) < pages or not (self.slots.free or yielding):
            return False
        while not self.slots.free or self.pages.free < pages:
            self._preempt(yielding.pop())
        return True

    def _yielding(self, priority: int) -> list[Sequence]:
        """What holds places at a worse priority, last in line last. A snapshot about to be sent is free soon anyway."""
        worse = [s for s in (*self._active, *self._pulling.values()) if s.priority > priority and s.slot >= 0]
        worse += [s for s in self._held if s.priority > priority and s.peer is None]
        return sorted(worse, key=_queue_key)

    def _grow(self, seq: Sequence) -> bool:
        """Make room for the token about to be computed, at the cost of the last in line; False if that is `seq`."""
        while len(seq.pages) < self._pages_for(seq.computed + 1):
            if self.pages.free:
                seq.pages += self.pages.take(1)
                continue
            victim = max((*self._active, *self._yielding(seq.priority)), key=_queue_key)
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Back to the queue without its places. Its tokens are computed anew, here, when there is room."""
        self._free(seq)
        if seq.state is State.PULLING:
            seq.state = State.PARKED
        else:
            if seq.state is State.RUNNING:
                self._active.remove(seq)
                self._call_off_install(seq)
            else:
                self._held.remove(seq)
            seq.computed = 0
            seq.prompt_logprobs.clear()
            seq.state = State.QUEUED
        bisect.insort(self._queue, seq, key=_queue_key)

    def _hold(self, seq: Sequence, now: float) -> None:
        """Its prompt is computed: the snapshot waits to be pulled, if it has not left with the last tokens."""
        self._active.remove(seq)
        if seq.exported == seq.computed:
            self._send_off(seq)
        else:
            seq.state = State.HELD
            seq.held_at = now
            self._held.append(seq)

    def _export_held(self, step: StepBuilder) -> None:
        for seq in [s for s in self._held if s.peer is not None]:
            step.export(seq, seq.prompt_tokens)
            self._held.remove(seq)
            self._send_off(seq)

    def _send_off(self, seq: Sequence) -> None:
        """The ranks copy the snapshot out within the plan that exports it, so its places are free from there on."""
        seq.state = State.SENDING
        self._free(seq)

    def _sampled(self, seq: Sequence, result: StepResult, at: int, now: float) -> SeqOutput:
        token = result.token_ids[at]
        logprob = result.logprobs[at] if result.logprobs else None
        seq.tokens.append(token)
        first = seq.generated == 1
        if first:
            seq.first_token = now
            seq.prefill_s = now - seq.started
        finish = self._finish(seq, token)
        prompt_logprobs = (None, *seq.prompt_logprobs) if first and seq.sampling.prompt_logprobs is not None else ()
        output = SeqOutput(
            request_id=seq.request_id,
            offset=seq.generated - 1,
            token_ids=(token,),
            logprobs=(logprob,) if logprob else (),
            prompt_logprobs=prompt_logprobs,
            finish=finish,
            timings=self._timings(seq, now) if finish else None,
        )
        if finish:
            self.remove(seq.request_id)
        elif seq.handoff:
            self._hold(seq, now)
        return output

    def _finish(self, seq: Sequence, token: int) -> Finish | None:
        if token in seq.sampling.stop_token_ids and seq.generated > seq.sampling.min_tokens:
            return "stop"
        if seq.generated >= seq.sampling.max_tokens or len(seq.tokens) >= self.limits.max_model_len:
            return "length"
        return None

    def _timings(self, seq: Sequence, now: float) -> Timings:
        return Timings(
            queue_s=seq.queue_s,
            prefill_s=seq.prefill_s,
            transfer_s=seq.transfer_s,
            decode_s=now - seq.first_token if seq.first_token and not seq.handoff else 0.0,
        )

    def _end(self, seq: Sequence, finish: Finish, now: float, error: str | None = None) -> SeqOutput:
        output = SeqOutput(
            request_id=seq.request_id,
            offset=seq.generated,
            finish=finish,
            error=error,
            timings=self._timings(seq, now),
        )
        self.remove(seq.request_id)
        return output
