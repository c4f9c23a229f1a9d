"""Decides which rows of a step attend in expanded form, and which in absorbed form.

Absorbed, a query is projected into the latent and attends to the latents themselves: 2 (2 rank + rope) operations a
query, key and head, and nothing a key. Expanded, each latent becomes a key and a value of every head first: 2 rank
(nope + v) operations a key and head, then 2 (nope + rope + v) a query, key and head. A row of several hundred tokens
repays the expansion; a decoding row never does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.varlen import Pages, Rows, make_rows, to_device

# Shorter rows gain little, because each expanded row needs launches of its own.
LEAST = 128


@dataclass(frozen=True, slots=True)
class Widths:
    """Channels of a head's key without rope, of the roped key, of a head's value, and of the latent."""

    nope: int
    rope: int
    v: int
    rank: int


@dataclass(frozen=True, slots=True)
class LongRow:
    """A row in expanded form: tokens first … first + count - 1 of the step, at positions start …; its page ids [P]."""

    first: int
    count: int
    start: int
    pages: Tensor


@dataclass(frozen=True, slots=True)
class ShortRows:
    """Rows in absorbed form that are computed together. tokens: [S] int64, which of the step's, or None for all."""

    tokens: Tensor | None
    rows: Rows
    pages: Pages


@dataclass(frozen=True, slots=True)
class Forms:
    """A step's rows by form.

    Rows of one token are apart from short rows of several: each kind is split over the GPU by its own number, so that
    a decoding row at 128k tokens is spread as widely beside prompts as it is in a decode step.
    """

    long: tuple[LongRow, ...]
    short: tuple[ShortRows, ...]


def repays(start: int, count: int, widths: Widths) -> bool:
    """Whether `count` queries at positions start … take fewer operations in expanded form.

    Both forms project once per query (absorbed) or per new key (expanded), which is the same, so what is left of the
    expansion are the `start` keys of before.
    """
    pairs = count * start + count * (count + 1) // 2
    saved = 2 * (2 * widths.rank - widths.nope - widths.v)
    return count >= LEAST and pairs * saved > start * 2 * widths.rank * (widths.nope + widths.v)


def forms(rows: Rows, pages: Pages, widths: Widths) -> Forms:
    """Divide a step's rows."""
    chosen = [i for i in rows.longer if rows.counts[i] >= LEAST and repays(rows.starts[i], rows.counts[i], widths)]
    taken = set(chosen)
    several = [i for i in rows.longer if i not in taken]
    single = [i for i, n in enumerate(rows.counts) if n == 1]
    short = [which for which in (single, several) if which]
    if not chosen and len(short) == 1:
        return Forms((), (ShortRows(None, rows, pages),))
    ids = dict(pages.alone)
    long = tuple(LongRow(rows.offsets[i], rows.counts[i], rows.starts[i], ids[i]) for i in chosen)
    return Forms(long, tuple(_subset(rows, pages, which) for which in short))


def _subset(rows: Rows, pages: Pages, which: list[int]) -> ShortRows:
    device = rows.slots.device
    places = [p for i in which for p in range(rows.offsets[i], rows.offsets[i] + rows.counts[i])]
    tokens = to_device(places, torch.int64, device)
    some = make_rows(
        rows.slots[to_device(which, torch.int64, device)],
        rows.positions[tokens],
        tuple(rows.starts[i] for i in which),
        tuple(rows.counts[i] for i in which),
    )
    return ShortRows(tokens, some, Pages(some, pages.table, pages.page_size, pages.write_at[tokens]))
