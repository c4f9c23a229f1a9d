"""The indices of a variable-length batch's sequences, computed once per step for all layers."""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Keep:
    """A copy of row `row`'s linear state after its first `count` (>= 1) tokens of the step goes into `slot`.

    The slot belongs to no row of the step and to no other copy.
    """

    row: int
    count: int
    slot: int


@dataclass(frozen=True, slots=True)
class Singles:
    """The rows of one token, S of them, which references compute together.

    tokens: [S] int64, or None if every row is single. slots, starts: [S] int64. fresh: [S] bool, those that start
    at 0, or None if none does.
    """

    tokens: Tensor | None
    slots: Tensor
    starts: Tensor
    fresh: Tensor | None


@dataclass(frozen=True, slots=True)
class Blocks:
    """The rows cut into runs of at most `size` tokens, N in all: what a kernel's programs share out.

    rows, firsts: [N] int32, each run's row and its first token counted from the row's start. several: how many
    runs lie in rows of more than one; bases: [B] int32, how many of these come before each such row, -1 elsewhere.
    """

    size: int
    rows: Tensor
    firsts: Tensor
    bases: Tensor
    several: int

    @property
    def count(self) -> int:
        """N."""
        return self.rows.shape[0]


@dataclass(frozen=True)
class Rows:
    """B rows of tokens laid end to end, T in all.

    slots: [B] int64. positions: [T] int64. counts: each row's tokens in this step. known_starts: its tokens before the
    step, or None where the device alone knows. What else a layer reads is made when it is first asked for. What kernels
    read comes from `slots` and `positions` alone where all counts are equal, so a captured step serves whatever these
    are refilled with.
    """

    slots: Tensor
    positions: Tensor
    known_starts: tuple[int, ...] | None
    counts: tuple[int, ...]
    keeps: tuple[Keep, ...] = ()
    _blocks: dict[int, Blocks] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Each row's tokens before this step; waits for the device where it alone knows them."""
        return tuple(self.row_starts.tolist()) if self.known_starts is None else self.known_starts

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Each row's first token among the T."""
        return tuple(accumulate(self.counts, initial=0))[:-1]

    @cached_property
    def longer(self) -> tuple[int, ...]:
        """The rows with more than one token."""
        return tuple(i for i, n in enumerate(self.counts) if n > 1)

    @cached_property
    def longest(self) -> int:
        """The largest number of tokens in a row."""
        return max(self.counts)

    @cached_property
    def singles(self) -> Singles:
        """Rows with one token."""
        device = self.slots.device
        singles = [i for i, n in enumerate(self.counts) if n == 1]
        starts = [self.starts[i] for i in singles]
        tokens, slots = None, self.slots
        if self.longer:
            tokens = to_device([self.offsets[i] for i in singles], torch.int64, device)
            slots = self.slots[to_device(singles, torch.int64, device)]
        fresh = torch.tensor([s == 0 for s in starts], device=device) if 0 in starts else None
        return Singles(tokens, slots, to_device(starts, torch.int64, device), fresh)

    @cached_property
    def token_offsets(self) -> Tensor:
        """[B + 1] int32: each row's first token among the T, and T."""
        rows, device = len(self.counts), self.slots.device
        if self._equal:
            return torch.arange(0, self.longest * rows + 1, self.longest, dtype=torch.int32, device=device)
        return to_device([*self.offsets, sum(self.counts)], torch.int32, device)

    @cached_property
    def row_starts(self) -> Tensor:
        """[B] int64: the positions of the rows' first tokens."""
        if self.longest == 1:
            return self.positions
        return self.positions[self.token_offsets[:-1].long()]

    @cached_property
    def kept(self) -> Tensor:
        """[3, K] int32: row, count and slot of each of `keeps`."""
        return (
            to_device([[k.row, k.count, k.slot] for k in self.keeps], torch.int32, self.slots.device).t().contiguous()
        )

    def blocks(self, size: int) -> Blocks:
        """The rows in runs of `size` tokens."""
        if size not in self._blocks:
            self._blocks[size] = self._cut(size)
        return self._blocks[size]

    @property
    def _equal(self) -> bool:
        return self.longest * len(self.counts) == sum(self.counts)

    def _cut(self, size: int) -> Blocks:
        runs = [-(-n // size) for n in self.counts]
        total, device = sum(runs), self.slots.device
        index = torch.arange(total, dtype=torch.int32, device=device)
        if self._equal:
            each = runs[0]
            if each == 1:
                return Blocks(size, index, torch.zeros_like(index), torch.full_like(index, -1), 0)
            return Blocks(size, index // each, index % each * size, index[::each].contiguous(), total)
        before = list(accumulate(runs, initial=0))[:-1]
        several = [n if n > 1 else 0 for n in runs]
        bases = [b if n else -1 for b, n in zip(accumulate(several, initial=0), several, strict=False)]
        table = to_device([runs, before, bases], torch.int32, device)
        rows = torch.arange(len(runs), device=device).repeat_interleave(table[0].long(), output_size=total)
        return Blocks(size, rows.int(), (index - table[1, rows]) * size, table[2], sum(several))


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


@dataclass(frozen=True)
class Pages:
    """The latent pages the rows read and the places they write.

    table: [slots, max_pages] int32. write_at: [T] int64, page * page_size + offset of each token.
    """

    rows: Rows
    table: Tensor
    page_size: int
    write_at: Tensor

    @cached_property
    def apart(self) -> tuple[Rows, "Pages"]:
        """`spread` of the rows."""
        return spread(self.rows, self)

    @cached_property
    def alone(self) -> tuple[tuple[int, Tensor], ...]:
        """(row, its page ids) of each row that is computed by itself: the longer ones, or the only one."""
        rows = self.rows
        alone = rows.longer or ((0,) if len(rows.counts) == 1 else ())
        ends = {i: -(-(rows.starts[i] + rows.counts[i]) // self.page_size) for i in alone}
        # Reading a slot as a number on the host would wait for the device.
        return tuple((i, self.table.index_select(0, rows.slots[i : i + 1])[0, : ends[i]].long()) for i in alone)

    @cached_property
    def together(self) -> SinglePages | None:
        """The singles' pages otherwise."""
        rows = self.rows
        if len(self.alone) == len(rows.counts):
            return None
        singles, size, device = rows.singles, self.page_size, self.table.device
        counts = singles.starts // size + 1
        total = sum(s // size + 1 for s, n in zip(rows.starts, rows.counts, strict=True) if n == 1)
        ends = counts.cumsum(0)
        which = torch.arange(counts.shape[0], device=device).repeat_interleave(counts, output_size=total)
        index = torch.arange(total, device=device) - (ends - counts)[which]
        place = index[:, None] * size + torch.arange(size, device=device)
        return SinglePages(
            ids=self.table[singles.slots[which], index].long(),
            rows=which,
            last=ends - 1,
            unused=place > singles.starts[which, None],
        )


def spread(rows: Rows, pages: Pages) -> tuple[Rows, Pages]:
    """The same tokens as rows of one token each, which attend to the same latents."""
    known = rows.known_starts
    starts = known and tuple(s + n for s, count in zip(known, rows.counts, strict=True) for n in range(count))
    tokens = sum(rows.counts)
    slots = rows.slots.repeat_interleave(rows.token_offsets.diff(), output_size=tokens)
    apart = Rows(slots, rows.positions, starts, (1,) * tokens)
    return apart, Pages(apart, pages.table, pages.page_size, pages.write_at)


def make_rows(
    slots: Tensor,
    positions: Tensor,
    starts: tuple[int, ...] | None,
    counts: tuple[int, ...],
    keeps: tuple[Keep, ...] = (),
) -> Rows:
    """Rows of a batch; slots [B] int64, positions [T] int64. ValueError for a copy its row doesn't reach.

    starts: None where the device alone knows them.
    """
    for keep in keeps:
        if not 1 <= keep.count <= counts[keep.row]:
            raise ValueError(
                f"row {keep.row} has {counts[keep.row]} tokens; its state after {keep.count} can't be kept"
            )
    return Rows(slots, positions, starts, counts, keeps)


def make_pages(rows: Rows, page_table: Tensor, page_size: int) -> Pages:
    """Pages of a batch. page_table: [slots, max_pages] int32."""
    slots = rows.slots
    if rows.longer:
        counts = rows.token_offsets.diff()
        slots = slots.repeat_interleave(counts, output_size=rows.positions.shape[0])
    write_at = page_table[slots, rows.positions // page_size].long() * page_size + rows.positions % page_size
    return Pages(rows, page_table, page_size, write_at)


def to_device(values: list[int] | list[list[int]], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy on the device, which doesn't wait for the device's earlier work."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
