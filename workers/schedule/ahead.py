"""Steps that are planned while the one before them runs: which sequences go on there, and as which rows. Pure."""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from workers.schedule.limits import Limits
from workers.schedule.sequence import Sequence
from workers.schedule.step import Ahead, Row, StepResult

# Of a row that sampled: the tokens it gained, the last of them, and whether it ended with that.
Outcome = tuple[int, int, bool]


@dataclass(frozen=True, slots=True)
class Going:
    """Sequences that go on behind a step that is under way.

    busy: all that have a row in that step. count: those that go on, with `drafts` each. ended: slots of the rows that
    do not, as far as it is known before the results. short: sequences that need more pages, and how many.
    """

    busy: frozenset[Sequence]
    count: int
    drafts: int
    ended: tuple[int, ...]
    short: tuple[tuple[Sequence, int], ...]


def going_on(
    rows: Iterable[tuple[Row, Sequence, int]], sequences: Mapping[str, Sequence], limits: Limits
) -> Going | None:
    """Which sequences of a step's rows go on in the next one; None where its results must be known to tell.

    rows: each with its sequence and the epoch in which it was planned.
    """
    busy: list[Sequence] = []
    ended: list[int] = []
    short: list[tuple[Sequence, int]] = []
    count, drafts, size = 0, -1, limits.page_size
    for row, seq, epoch in rows:
        if sequences.get(seq.request_id) is not seq or seq.epoch != epoch:
            ended.append(row.slot)
            continue
        if not row.sample or len(row.token_ids) != 1 or seq.handoff or seq.keeps:
            return None
        if drafts < 0:
            drafts = row.drafts
        busy.append(seq)
        most = 1 + drafts
        left = min(seq.sampling.max_tokens - seq.generated, limits.max_model_len - len(seq.tokens))
        if left <= 1 and not drafts:
            ended.append(row.slot)
            continue
        # How far drafts take a sequence is not known: near its end it waits for the results.
        if row.drafts != drafts or left < 2 * most:
            return None
        count += 1
        missing = -(-(row.start + 2 * most) // size) - len(seq.pages)
        if missing > 0:
            short.append((seq, missing))
    return Going(frozenset(busy), count, drafts, tuple(ended), tuple(short)) if count else None


def outcomes(result: StepResult) -> list[Outcome]:
    """What came of each row that sampled."""
    over = {*result.stopped, *(at for at, _ in result.failures)}
    failed = {at for at, _ in result.failures}
    return [(0 if at in failed else len(t), t[-1], at in over) for at, t in enumerate(result.tokens)]


def rows_ahead(before: Seq[Row], came: Seq[Outcome], ahead: Ahead, more: Seq[Row]) -> tuple[tuple[Row, int], ...]:
    """The rows of a step that was planned ahead, each with its index among the rows `before` that sampled, or -1 - its
    index in `more`.

    before: the rows of the step before that sampled. more: rows of sequences that were not in it.
    """
    ended = set(ahead.ended)
    pages: dict[int, tuple[int, list[int]]] = {}
    for slot, place, page in ahead.pages:
        pages.setdefault(slot, (place, []))[1].append(page)
    rows: list[tuple[Row, int]] = []
    for at, (row, (gained, last, over)) in enumerate(zip(before, came, strict=True)):
        if over or row.slot in ended:
            continue
        place, new = pages.get(row.slot, (0, ()))
        rows.append((Row(row.slot, row.start + gained, (last,), place, tuple(new), True, drafts=row.drafts), at))
    rows += [(row, -1 - at) for at, row in enumerate(more)]
    if any(row.drafts for row in more):
        rows.sort(key=lambda entry: not entry[0].drafts)
    return tuple(rows)
