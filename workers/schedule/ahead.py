"""Makes, on the ranks, the rows of a step that was planned while the previous one ran. Pure."""

from collections.abc import Sequence as Seq

from workers.schedule.step import Ahead, Row, StepResult

# Of a row that sampled: the tokens it gained, the last of them, and whether it ended with that.
Outcome = tuple[int, int, bool]
_NO_PAGES: tuple[int, tuple[int, ...]] = (0, ())


def outcomes(result: StepResult) -> list[Outcome]:
    """The outcome of each row that sampled: number of tokens, last token, and whether its sequence ended."""
    if not (result.stopped or result.failures):
        return [(len(tokens), tokens[-1], False) for tokens in result.tokens]
    failed = {at for at, _ in result.failures}
    over = failed.union(result.stopped)
    return [(0 if at in failed else len(t), t[-1], at in over) for at, t in enumerate(result.tokens)]


def rows_ahead(before: Seq[Row], came: Seq[Outcome], ahead: Ahead, more: Seq[Row]) -> list[Row]:
    """The rows of a step that was planned ahead, as the ranks make them.

    before: the rows of the step before that sampled. more: rows of sequences that were not in it.
    """
    ended = set(ahead.ended)
    pages = {slot: (first, new) for slot, first, new in ahead.pages}
    rows: list[Row] = []
    for row, (gained, last, over) in zip(before, came, strict=True):
        slot = row.slot
        if over or slot in ended:
            continue
        first, new = pages.get(slot, _NO_PAGES)
        rows.append(Row(slot, row.start + gained, (last,), first, new, True, drafts=row.drafts))
    if more:
        rows += more
        rows.sort(key=lambda row: not row.drafts)  # those with drafts come first
    return rows
