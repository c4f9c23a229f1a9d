"""What a worker computes next. Pure: no clock, no sockets, no tensors; time is passed in.

There are no prefill and decode modes: each sequence has tokens not yet computed, and a step spends one token
budget over them, sequences with a single token first. Ranks run plans in order, so pages and slots freed while
a plan is under way may go to the next plan at once.
"""

import bisect
from dataclasses import dataclass

from workers.engine.cache import Pool
from workers.engine.sequence import Sequence, State
from workers.engine.step import Admit, Discard, Expect, Export, Install, Row, StepPlan, StepResult
from workers.protocol import Finish, Load, SeqOutput, Timings


@dataclass(frozen=True, slots=True)
class Limits:
    """A worker's sizes. window: snapshots pulled at once. hold_s: how long a snapshot waits to be pulled."""

    pages: int
    page_size: int
    slots: int
    max_model_len: int
    max_step_tokens: int
    window: int
    hold_s: float

    def __post_init__(self) -> None:
        if self.max_step_tokens < self.slots:
            raise ValueError(
                f"max_step_tokens {self.max_step_tokens} is below slots {self.slots}: "
                "a step must have room for a token of every sequence"
            )
        if self.pages * self.page_size < self.max_model_len:
            raise ValueError(
                f"{self.pages} pages of {self.page_size} tokens hold less than one sequence of "
                f"max_model_len {self.max_model_len}: raise pages or lower max_model_len"
            )


def _queue_key(seq: Sequence) -> tuple[int, int]:
    return seq.priority, seq.order


class Scheduler:
    """Owns every sequence of a worker, and its pages and slots.

    After any mix of calls: a page or slot belongs to one sequence or is free, and a sequence that has ended
    holds none.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pages = Pool("page", limits.pages)
        self.slots = Pool("slot", limits.slots)
        self.sequences: dict[str, Sequence] = {}
        self._queue: list[Sequence] = []
        self._active: list[Sequence] = []  # RUNNING, in order of arrival
        self._held: list[Sequence] = []
        self._pulling: dict[str, Sequence] = {}
        self._discards: list[Discard] = []
        self._installs: list[Install] = []
        self.steps = 0
        self._order = 0
        self._in_step: list[Sequence] = []
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
            case State.PULLING:
                del self._pulling[request_id]
                self._installs = [i for i in self._installs if i.request_id != request_id]
                self._discards.append(Discard(request_id))
            case State.RUNNING:
                self._active.remove(seq)
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
        """A pulled snapshot has wholly come: continue after it. Unknown ids (aborted meanwhile) are ignored."""
        seq = self._pulling.pop(request_id, None)
        if seq is None:
            return
        self._installs.append(Install(request_id, seq.slot, tuple(seq.pages)))
        seq.computed = seq.prompt_tokens
        seq.tokens.extend(generated)
        seq.source = None
        seq.transfer_s = now - seq.header_at
        seq.first_token = now
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
        late = [s for s in self._held if s.peer is None and now - s.first_token > self.limits.hold_s]
        reason = f"no decode worker took the snapshot within {self.limits.hold_s:g} s"
        return [self._end(seq, "error", now, reason) for seq in late]

    # Deciding a step

    def plan(self, now: float) -> StepPlan:
        """The next step; `empty` if there is nothing to do. Answer a plan that has rows with `commit`."""
        rows: list[Row] = []
        admits: list[Admit] = []
        exports: list[Export] = []
        self._in_step = []
        budget = self.limits.max_step_tokens
        for seq in [s for s in self._active if s.pending == 1]:
            if seq.state is State.RUNNING and self._grow(seq):
                rows.append(self._row(seq, 1, admits, exports))
                budget -= 1
        for seq in [s for s in self._active if s.pending > 1]:
            if budget == 0:
                break
            count = min(budget, seq.pending)
            rows.append(self._row(seq, count, admits, exports))
            budget -= count
        expects: list[Expect] = []
        for seq in list(self._queue):
            if seq.source is not None:
                if len(self._pulling) < self.limits.window:
                    if not self._take(seq, now):
                        break
                    seq.state = State.PULLING
                    self._pulling[seq.request_id] = seq
                    expects.append(Expect(seq.request_id, seq.source, seq.prompt_tokens))
            elif budget > 0:
                if not self._take(seq, now):
                    break
                seq.state = State.RUNNING
                self._activate(seq)
                count = min(budget, seq.pending)
                rows.append(self._row(seq, count, admits, exports))
                budget -= count
        self._export_held(exports)
        plan = StepPlan(
            step=self.steps,
            discards=tuple(self._discards),
            expects=tuple(expects),
            installs=tuple(self._installs),
            admits=tuple(admits),
            rows=tuple(rows),
            exports=tuple(exports),
        )
        self._discards.clear()
        self._installs.clear()
        self.steps += 1
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> list[SeqOutput]:
        """Take a step's results; what they mean for each sequence. Sequences ended meanwhile are passed over."""
        self._step_s = result.elapsed_s
        outputs: list[SeqOutput] = []
        sampled = 0
        for index, (row, seq) in enumerate(zip(plan.rows, self._in_step, strict=True)):
            at = sampled
            sampled += row.sample
            if self.sequences.get(seq.request_id) is not seq or seq.slot != row.slot:
                continue
            seq.computed = row.start + len(row.token_ids)
            seq.prompt_logprobs.extend(result.prompt_logprobs[index] if result.prompt_logprobs else ())
            if row.sample:
                outputs.append(self._sampled(seq, result, at, now))
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
            transferring=len(self._pulling) + sum(s.state is State.SENDING for s in self.sequences.values()),
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

    def _take(self, seq: Sequence, now: float) -> bool:
        """Give a queued sequence its slot and the pages for its tokens and the next one, if there is room.

        Where there is not, those behind it wait too: nothing starves.
        """
        need = self._pages_for(len(seq.tokens) + 1)
        # Each running sequence may want a page within the next steps; without them, admitting means preempting.
        if self.slots.free == 0 or self.pages.free < need + len(self._active):
            return False
        self._queue.remove(seq)
        seq.slot = self.slots.take(1)[0]
        seq.pages = self.pages.take(need)
        if not seq.started:
            seq.started = now
            seq.queue_s = now - seq.arrived
        return True

    def _grow(self, seq: Sequence) -> bool:
        """Make room for the token about to be computed, at the cost of the last in line; False if that is `seq`."""
        while len(seq.pages) < self._pages_for(seq.computed + 1):
            if self.pages.free:
                seq.pages += self.pages.take(1)
                continue
            victim = max((s for s in self._active if s not in self._in_step), key=_queue_key)
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Back to the queue; its tokens are computed anew, here, when there is room."""
        self._active.remove(seq)
        self._free(seq)
        seq.computed = 0
        seq.prompt_logprobs.clear()
        seq.state = State.QUEUED
        bisect.insort(self._queue, seq, key=_queue_key)

    def _row(self, seq: Sequence, count: int, admits: list[Admit], exports: list[Export]) -> Row:
        start, stop = seq.computed, seq.computed + count
        sample = stop == len(seq.tokens)
        if not seq.admitted_on_ranks:
            history = tuple(seq.tokens) if seq.needs_history else ()
            admits.append(Admit(seq.slot, seq.sampling, history, seq.prompt_tokens))
            seq.admitted_on_ranks = True
        next_ids: tuple[int, ...] = ()
        if seq.sampling.prompt_logprobs is not None and seq.generated == 0:
            next_ids = tuple(seq.tokens[start + 1 : min(stop + 1, seq.prompt_tokens)])
        row = Row(
            slot=seq.slot,
            start=start,
            token_ids=tuple(seq.tokens[start:stop]),
            page_offset=seq.pages_on_ranks,
            new_pages=tuple(seq.pages[seq.pages_on_ranks :]),
            sample=sample,
            next_ids=next_ids,
        )
        seq.pages_on_ranks = len(seq.pages)
        self._in_step.append(seq)
        if seq.handoff and seq.peer is not None:
            exports.append(self._export(seq, stop, last=sample))
        return row

    def _export(self, seq: Sequence, stop: int, last: bool) -> Export:
        assert seq.peer is not None
        size = self.limits.page_size
        pages = tuple(seq.pages[seq.exported // size : self._pages_for(stop)])
        export = Export(seq.request_id, seq.peer, seq.slot, pages, seq.exported, stop, last)
        seq.exported = stop
        return export

    def _export_held(self, exports: list[Export]) -> None:
        for seq in [s for s in self._held if s.peer is not None]:
            exports.append(self._export(seq, seq.computed, last=True))
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
            self._active.remove(seq)
            if seq.exported == seq.computed:
                self._send_off(seq)
            else:
                seq.state = State.HELD
                self._held.append(seq)
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
