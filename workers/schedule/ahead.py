"""Steps that are planned while the one before them runs: which sequences go on there, and as which rows. Pure."""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from workers.schedule.sequence import Sequence
from workers.schedule.step import Ahead, Row, StepResult

# Of a row that sampled: the tokens it gained, the last of them, and whether it ended with that.
Outcome = tuple[int, int, bool]
_NO_PAGES: tuple[int, tuple[int, ...]] = (0, ())


@dataclass(frozen=True, slots=True)
class Going:
    """Which sequences of a step that is under way have a row in the next one too.

    busy: all that have a row in the present step. count: how many of them go on, with `drafts` each. ended: slots of
    those that do not, as far as that is known before the results. short: sequences that need more pages, and how many.
    """

    busy: frozenset[Sequence]
    count: int
    drafts: int
    ended: tuple[int, ...]
    short: tuple[tuple[Sequence, int], ...]


def going_on(
    rows: Iterable[Row], owners: Iterable[tuple[Sequence, int]], sequences: Mapping[str, Sequence], page_size: int
) -> Going | None:
    """Which sequences of a step's rows go on in the next one; None where its results must be known to tell.

    owners: of each row its sequence, and the epoch in which it was planned.
    """
    busy: list[Sequence] = []
    ended: list[int] = []
    short: list[tuple[Sequence, int]] = []
    count, drafts, far, size = 0, -1, 0, page_size
    for row, (seq, epoch) in zip(rows, owners, strict=True):
        if sequences.get(seq.request_id) is not seq or seq.epoch != epoch:
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
        if row.start + far > len(seq.pages) * size:
            short.append((seq, -(-(row.start + far) // size) - len(seq.pages)))
    return Going(frozenset(busy), count, drafts, tuple(ended), tuple(short)) if count else None


def outcomes(result: StepResult) -> list[Outcome]:
    """What came of each row that sampled."""
    if not (result.stopped or result.failures):
        return [(len(tokens), tokens[-1], False) for tokens in result.tokens]
    failed = {at for at, _ in result.failures}
    over = failed.union(result.stopped)
    return [(0 if at in failed else len(t), t[-1], at in over) for at, t in enumerate(result.tokens)]


def rows_ahead(before: Seq[Row], came: Seq[Outcome], ahead: Ahead, more: Seq[Row]) -> tuple[list[Row], list[int]]:
    """The rows of a step that was planned ahead, and where each comes from: its index in `before`, or -1 - its index in
    `more`.

    before: the rows of the step before that sampled. more: rows of sequences that were not in it.
    """
    ended = set(ahead.ended)
    pages = {slot: (first, new) for slot, first, new in ahead.pages}
    rows: list[Row] = []
    places: list[int] = []
    for at, (row, (gained, last, over)) in enumerate(zip(before, came, strict=True)):
        slot = row.slot
        if over or slot in ended:
            continue
        first, new = pages.get(slot, _NO_PAGES)
        rows.append(Row(slot, row.start + gained, (last,), first, new, True, drafts=row.drafts))
        places.append(at)
    if more:
        rows += more
        places += range(-1, -1 - len(more), -1)
        # Rows with drafts come first.
        order = sorted(range(len(rows)), key=lambda at: not rows[at].drafts)
        rows, places = [rows[at] for at in order], [places[at] for at in order]
    return rows, places
