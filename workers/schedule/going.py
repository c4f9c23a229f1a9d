"""Decides which sequences of a running step continue in the step that is planned meanwhile. Pure."""

from dataclasses import dataclass

from workers.schedule.batch import Batch, Changes
from workers.schedule.builder import InFlight
from workers.schedule.sequence import Sequence
from workers.schedule.step import StepPlan, StepResult


@dataclass(frozen=True, slots=True)
class Going:
    """Which sequences of a step that is under way have a row in the next one too.

    count: how many of them go on, with `drafts` each. running: how many have a row in the present step and have not
    lost their places; busy: these, of the step's own rows. changes: of its batch. ended: slots of those that do not go
    on, as far as that is known before the results. short: sequences that need more pages, and how many.
    """

    count: int
    drafts: int
    running: int
    busy: tuple[Sequence, ...]
    changes: Changes | None
    ended: tuple[int, ...]
    short: tuple[tuple[Sequence, int], ...]


def going_on(step: InFlight, page_size: int) -> Going | None:
    """Which sequences of a step go on in the next one; None if its results must be known first."""
    batch, changes = step.batch, None
    busy: list[Sequence] = []
    ended: list[int] = []
    short: list[tuple[Sequence, int]] = []
    drafts, far, count, running = -1, 0, 0, 0
    if batch is not None:
        changes = batch.changes(step.plan.step)
        if changes is None:
            return None
        ended += changes.ended
        short += changes.short
        drafts, far, running = batch.drafts, 2 * (1 + batch.drafts), batch.present
        count = running - len(changes.last)
    for row, (seq, epoch) in zip(step.plan.rows, step.owners, strict=True):
        if seq.epoch != epoch:
            ended.append(row.slot)
            continue
        if not row.sample or len(row.token_ids) != 1 or seq.handoff or seq.keeps or len(seq.tokens) >= seq.keep_at:
            return None
        if drafts < 0:
            drafts = row.drafts
            far = 2 * (1 + drafts)
        busy.append(seq)
        left = seq.most - len(seq.tokens)
        if left <= 1 and not drafts:
            ended.append(row.slot)
            continue
        # How far drafts take a sequence is not known: near its end it waits for the results.
        if row.drafts != drafts or left < far:
            return None
        count += 1
        if row.start + far > len(seq.pages) * page_size:
            short.append((seq, -(-(row.start + far) // page_size) - len(seq.pages)))
    if not count:
        return None
    return Going(count, drafts, running + len(busy), tuple(busy), changes, tuple(ended), tuple(short))


def gone_on(step: InFlight, result: StepResult, following: StepPlan, page_size: int) -> Batch | None:
    """The sequences of a step that have gone on in the one planned behind it; None or empty if none has.

    result: of the step, taken already.
    """
    assert following.ahead is not None
    over = {at for at, _ in result.failures}.union(result.stopped)
    ended = set(following.ahead.ended)
    batch, at = step.batch, 0
    if batch is not None:
        at = len(batch)
        if over or ended:
            batch.leave(over, ended)
    for row, (seq, epoch) in zip(step.plan.rows, step.owners, strict=True):
        if row.sample and at not in over and row.slot not in ended:
            batch = batch or Batch(row.drafts, page_size)
            batch.join(seq, row.slot, following.step, here=seq.epoch == epoch)
        at += row.sample
    return batch
