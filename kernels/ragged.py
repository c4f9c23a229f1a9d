"""Where the sequences of a ragged batch lie, worked out once a step for all layers."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """B rows of tokens laid end to end. Rows of one token ("singles") are computed together, longer ones alone.

    slots: [B] int64. starts, counts, offsets: per row, tokens before this step, in this step, and the row's
    first token among the T. longer: indices of rows with more than one token. single_tokens: [S] int64, the
    singles' tokens, or None if every row is single. single_slots: [S]. single_fresh: [S] bool, singles that
    start at 0, or None if none does.
    """

    slots: Tensor
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    offsets: tuple[int, ...]
    longer: tuple[int, ...]
    single_tokens: Tensor | None
    single_slots: Tensor
    single_fresh: Tensor | None
    single_starts: Tensor


@dataclass(frozen=True, slots=True)
class Pages:
    """The latent pages the rows read and the places they write.

    write_at: [T] int64, page * page_size + offset of each token. alone: (row, its page ids) of each row computed
    by itself: the longer ones, or the only one. together: the singles' pages otherwise.
    """

    write_at: Tensor
    alone: tuple[tuple[int, Tensor], ...]
    together: "SinglePages | None"


@dataclass(frozen=True, slots=True)
class SinglePages:
    """The S singles' P pages, row by row.

    ids: [P]. rows: [P], which single. last: [S], index into P of each single's last page. unused: [P, page_size]
    bool, places beyond the single's own token.
    """

    ids: Tensor
    rows: Tensor
    last: Tensor
    unused: Tensor


def make_rows(slots: Tensor, starts: tuple[int, ...], counts: tuple[int, ...]) -> Rows:
    """Rows of a batch; slots [B] int64."""
    device = slots.device
    offsets = tuple(accumulate(counts, initial=0))[:-1]
    singles = [i for i, n in enumerate(counts) if n == 1]
    if len(singles) == len(counts):
        tokens, single_slots = None, slots
    else:
        tokens = torch.tensor([offsets[i] for i in singles], dtype=torch.int64, device=device)
        single_slots = slots[torch.tensor(singles, dtype=torch.int64, device=device)]
    single_starts = [starts[i] for i in singles]
    fresh = torch.tensor([s == 0 for s in single_starts], device=device) if 0 in single_starts else None
    return Rows(
        slots=slots,
        starts=starts,
        counts=counts,
        offsets=offsets,
        longer=tuple(i for i, n in enumerate(counts) if n > 1),
        single_tokens=tokens,
        single_slots=single_slots,
        single_fresh=fresh,
        single_starts=torch.tensor(single_starts, dtype=torch.int64, device=device),
    )


def make_pages(rows: Rows, positions: Tensor, page_table: Tensor, page_size: int) -> Pages:
    """Pages of a batch. positions: [T] int64; page_table: [slots, max_pages] int32."""
    device = positions.device
    slots = rows.slots
    if rows.single_tokens is not None:
        counts = torch.tensor(rows.counts, device=device)
        slots = slots.repeat_interleave(counts, output_size=positions.shape[0])
    write_at = page_table[slots, positions // page_size].long() * page_size + positions % page_size

    alone = rows.longer or ((0,) if len(rows.counts) == 1 else ())
    ends = [-(-(start + count) // page_size) for start, count in zip(rows.starts, rows.counts, strict=True)]
    return Pages(
        write_at=write_at,
        alone=tuple((i, page_table[rows.slots[i], : ends[i]].long()) for i in alone),
        together=_single_pages(rows, page_table, page_size) if len(alone) < len(rows.counts) else None,
    )


def _single_pages(rows: Rows, page_table: Tensor, page_size: int) -> SinglePages:
    device = page_table.device
    counts = rows.single_starts // page_size + 1
    total = sum(s // page_size + 1 for s, n in zip(rows.starts, rows.counts, strict=True) if n == 1)
    ends = counts.cumsum(0)
    singles = torch.arange(counts.shape[0], device=device).repeat_interleave(counts, output_size=total)
    index = torch.arange(total, device=device) - (ends - counts)[singles]
    place = index[:, None] * page_size + torch.arange(page_size, device=device)
    return SinglePages(
        ids=page_table[rows.single_slots[singles], index].long(),
        rows=singles,
        last=ends - 1,
        unused=place > rows.single_starts[singles, None],
    )
