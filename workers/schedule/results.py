"""Applies a step's results to its sequences. Pure."""

import itertools
from collections.abc import Iterable, Mapping

from msgspec import structs

from wire.protocol import Finish, SeqOutput, TokenLogprob
from workers.schedule.batch import Batch
from workers.schedule.builder import InFlight
from workers.schedule.departures import Departures
from workers.schedule.drafting import Drafting
from workers.schedule.outputs import batch_outputs, ended_output, sampled_output
from workers.schedule.places import Places
from workers.schedule.sequence import Sequence
from workers.schedule.step import StepResult


class Results:
    """Applies results to sequences, and ends sequences."""

    def __init__(self, places: Places, departures: Departures, drafting: Drafting) -> None:
        self._places = places
        self._cache = places.cache
        self._departures = departures
        self._drafting = drafting

    def take(self, step: InFlight, result: StepResult, now: float) -> list[SeqOutput]:
        """Apply a step's result; returns the outputs. Sequences that were preempted meanwhile are skipped."""
        outputs: list[SeqOutput] = []
        failures = dict(result.failures)
        rows = sampled = 0
        if step.batch is not None:
            rows = sampled = len(step.batch)
            outputs += self._of_batch(step.batch, result, failures, now)
        for index, (row, (seq, epoch)) in enumerate(zip(step.plan.rows, step.owners, strict=True), rows):
            at = sampled
            sampled += row.sample
            if seq.epoch != epoch:
                for _, slot in row.keeps:
                    self._cache.release(slot)
                continue
            # How many drafts of a row are accepted is known only after its tokens are taken.
            seq.computed = computed = row.start + len(row.token_ids)
            if computed <= seq.prompt_tokens:
                self._cache.index.note(seq.known, computed)
            for count, slot in row.keeps:
                self._cache.keep(seq.known, row.start + count, seq.pages, slot, now, state_in=slot)
            if seq.keeps:
                seq.keeps = [p for p in seq.keeps if p > computed]
            if result.prompt_logprobs:
                seq.prompt_logprobs.extend(result.prompt_logprobs[index])
            if row.sample:
                outputs.append(self._sampled(seq, row.drafts, result, at, failures, now))
            elif seq.handoff and seq.pending == 0:  # computed again after its first token was sent
                self._departures.hold(seq, now)
        return outputs

    def end(
        self, seq: Sequence, finish: Finish, now: float, error: str | None = None, *, unservable: bool = False
    ) -> SeqOutput:
        """End a sequence outside any step, or without a token."""
        output = ended_output(seq, finish, now, error, unservable)
        self._places.remove(seq.request_id)
        return output

    def _of_batch(self, batch: Batch, result: StepResult, failures: Mapping[int, str], now: float) -> list[SeqOutput]:
        """Apply a step's result to the sequences of its batch; returns their outputs."""
        going: Iterable[tuple[Sequence, tuple[int, ...], tuple[TokenLogprob, ...]]]
        going = zip(batch.seqs, result.tokens, result.logprobs or itertools.repeat(()), strict=False)
        apart = {*failures, *result.stopped, *map(batch.seqs.index, batch.ending(result.step))}
        gone = {at for at, seq in enumerate(batch.seqs) if seq in batch.gone} if batch.gone else ()
        if apart or gone:
            going = (row for at, row in enumerate(going) if at not in apart and at not in gone)
        rows = list(going)
        outputs = batch_outputs(rows)
        batch.gained(len(batch))
        if batch.drafts:
            batch.gained(self._drafting.verified_batch(rows, batch.drafts))
        for at in sorted(apart.difference(gone)):
            if at < len(batch):
                seq = batch.seqs[at]
                seq.computed += 1
                outputs.append(self._sampled(seq, batch.drafts, result, at, failures, now))
        return outputs

    def _sampled(
        self, seq: Sequence, drafts: int, result: StepResult, at: int, failures: Mapping[int, str], now: float
    ) -> SeqOutput:
        """Take what a row sampled, whose tokens but the drafts count as computed already."""
        if at in failures:
            return self.end(seq, "error", now, failures[at], unservable=True)
        output = sampled_output(seq, result, at, now)
        if drafts:
            self._drafting.verified(seq, drafts, len(output.token_ids), len(result.tokens[at]) - 1)
        if output.finish:
            if not (seq.handoff or seq.warm):
                self._places.keeping.save(seq, now)
            self._places.remove(seq.request_id)
        elif seq.handoff:
            self._departures.hold(seq, now)
        elif seq.told:
            output = structs.replace(output, kept_tokens=seq.told)
            seq.told = 0
        return output
