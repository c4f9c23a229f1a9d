"""Drafts the next tokens with the MTP layer, in the same way on every rank, and keeps that layer's latents.

The layer's latent at position p needs the model's hidden state at p and the token at p + 1. So it is computed one token
late: its inputs for the latest positions wait in a small window for each slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.varlen import to_device
from workers.model.batch import Batch, Caches
from workers.model.ling import LingModel
from workers.rank.latest import Fed
from workers.schedule.step import Commit, Row

# The most positions that wait for the layer: sequences that do not draft need one pass for so many tokens.
_WINDOW = 16


@dataclass(frozen=True, slots=True)
class _Part:
    """One sequence's positions start, start + 1, … for the layer. ids: the next token of each. hidden: [n, hidden]."""

    slot: int
    start: int
    ids: Tensor
    hidden: Tensor


class Drafter:
    """The windows of all slots. page_table: [slots, max_pages] int32, as every step's.

    Hidden states of tokens that are given up are overwritten, as are their latents: nothing is undone.
    """

    def __init__(self, model: LingModel, caches: Caches, page_table: Tensor) -> None:
        slots, device = page_table.shape[0], page_table.device
        self._model = model
        self._caches = caches
        self._page_table = page_table
        self._hidden = torch.zeros(slots, _WINDOW, model.config.hidden_size, dtype=caches.latent.dtype, device=device)
        self._ids = torch.zeros(slots, _WINDOW, dtype=torch.int64, device=device)
        self._waiting = [0] * slots

    def admit(self, slot: int) -> None:
        """Reset a slot for a new sequence."""
        self._waiting[slot] = 0

    def commit(self, commits: Sequence[Commit]) -> None:
        """Put the accepted positions of the latest verified rows into the windows."""
        for commit in commits:
            self._waiting[commit.slot] = commit.tokens

    def draft(self, rows: Sequence[Row]) -> Tensor:
        """Draft the likeliest tokens after each row's own: [rows, most drafts] int64, undefined past a row's `drafts`.

        Rows' sequences have computed at least one token here.
        """
        device = self._page_table.device
        own = to_device([row.token_ids[0] for row in rows], torch.int64, device)
        parts = []
        for i, row in enumerate(rows):
            n = self._waiting[row.slot]
            ids = torch.cat((self._ids[row.slot, 1:n], own[i : i + 1]))
            parts.append(_Part(row.slot, row.start - n, ids, self._hidden[row.slot, :n]))
        hidden = self._last(parts)
        known = [row.start for row in rows]
        starts = to_device(known, torch.int64, device)
        return self._run([row.slot for row in rows], [row.drafts for row in rows], starts, hidden, known)

    def feed(self, before: Sequence[Row], fed: Fed) -> Tensor:
        """Draft the likeliest tokens after those that the device has sampled and the host has not read.

        Returns [rows, drafts] int64. before: each row in the step before, which verified equally many drafts.
        """
        device, count = fed.tokens.device, before[0].count
        slots = [row.slot for row in before]
        at = to_device(slots, torch.int64, device)
        # How many positions were accepted is not known here, so the layer computes all that were verified. Later steps
        # overwrite the latents of rejected ones.
        ids = torch.cat((self._ids[at, 1:count], fed.tokens[:, None]), 1)
        last = fed.gained[:, None] - 1
        ids.scatter_(1, last, fed.tokens[:, None])
        positions = [row.start + n for row in before for n in range(count)]
        hidden = self._ahead(
            slots, (count,) * len(slots), ids.flatten(), self._hidden[at, :count].flatten(0, 1),
            to_device(positions, torch.int64, device), tuple(row.start for row in before),
        )  # fmt: skip
        hidden = hidden.view(len(slots), count, -1)[torch.arange(len(slots), device=device), last[:, 0]]
        return self._run(slots, [row.drafts for row in before], fed.places.starts, hidden)

    def _run(
        self, slots: list[int], most: list[int], starts: Tensor, hidden: Tensor, known: list[int] | None = None
    ) -> Tensor:
        """Draft up to `most` tokens a row: [rows, the most of any] int64, undefined past a row's own.

        starts: [rows] int64, the position before each row's first draft; known: the same on the host, if it knows them.
        hidden: [rows, hidden], the layer's there.
        """
        device = starts.device
        drafts = torch.zeros(len(slots), max(most), dtype=torch.int64, device=device)
        going = list(range(len(slots)))
        for n in range(max(most)):
            drafts[to_device(going, torch.int64, device), n] = ids = self._model.logits(hidden).argmax(-1)
            left = [i for i in going if most[i] > n + 1]
            if not left:
                break
            if len(left) < len(going):
                places = to_device([at for at, i in enumerate(going) if i in left], torch.int64, device)
                ids, hidden, starts, going = ids[places], hidden[places], starts[places], left
            at = None if known is None else tuple(known[i] + n for i in going)
            hidden = self._ahead([slots[i] for i in going], (1,) * len(going), ids, hidden, starts + n, at)
        return drafts

    def take(self, rows: Sequence[Row], ids: Tensor, hidden: Tensor) -> None:
        """Take what a step has computed. ids [T], hidden [T, hidden]: of all its rows' tokens, including drafts."""
        due: list[_Part] = []
        kept: list[tuple[int, int, int]] = []  # slot, place in its window, which of the step's tokens
        first = 0
        for row in rows:
            count, waiting = row.count, self._waiting[row.slot]
            if row.drafts:
                kept += [(row.slot, n, first + n) for n in range(count)]
                self._waiting[row.slot] = count
            elif count == 1 and row.sample and waiting < _WINDOW:
                kept.append((row.slot, waiting, first))
                self._waiting[row.slot] += 1
            else:
                due.append(self._part(row, ids[first : first + count], hidden[first : first + count]))
                self._waiting[row.slot] = int(row.sample)
                if row.sample:
                    kept.append((row.slot, 0, first + count - 1))
            first += count
        if due:
            self._last([part for part in due if len(part.ids)])
        if kept:
            slots, places, tokens = to_device([list(entry) for entry in kept], torch.int64, ids.device).unbind(1)
            self._hidden[slots, places] = hidden[tokens]
            self._ids[slots, places] = ids[tokens]

    def _part(self, row: Row, ids: Tensor, hidden: Tensor) -> _Part:
        """The positions of a row that have a next token, after those of its sequence that wait."""
        n = self._waiting[row.slot]
        after = [] if row.follows < 0 else [to_device([row.follows], torch.int64, ids.device)]
        ids = torch.cat((self._ids[row.slot, :n], ids, *after))[1:]
        hidden = torch.cat((self._hidden[row.slot, :n], hidden))[: len(ids)]
        return _Part(row.slot, row.start - n, ids, hidden)

    def _last(self, parts: Sequence[_Part]) -> Tensor:
        """Run the layer over each part's positions; returns its hidden states [parts, hidden] at each part's last."""
        counts = tuple(len(part.ids) for part in parts)
        if not counts:
            return self._hidden[:0, 0]
        ids, hidden = torch.cat([part.ids for part in parts]), torch.cat([part.hidden for part in parts])
        slots, starts = [part.slot for part in parts], tuple(part.start for part in parts)
        positions = [start + n for start, count in zip(starts, counts, strict=True) for n in range(count)]
        out = self._ahead(slots, counts, ids, hidden, to_device(positions, torch.int64, ids.device), starts)
        return out[to_device(list(counts), torch.int64, out.device).cumsum(0) - 1]

    def _ahead(
        self,
        slots: list[int],
        counts: tuple[int, ...],
        ids: Tensor,
        hidden: Tensor,
        positions: Tensor,
        starts: tuple[int, ...] | None,
    ) -> Tensor:
        batch = Batch(
            token_ids=ids,
            positions=positions,
            slots=to_device(slots, torch.int64, ids.device),
            starts=starts,
            counts=counts,
            page_table=self._page_table,
        )
        return self._model.ahead(batch, hidden, self._caches)
