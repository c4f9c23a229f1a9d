"""Decode steps as CUDA graphs: forward passes of equal rows, captured once for each size of batch.

Launched one by one, a decode step's hundreds of small kernels take the host longer than the GPU. A captured step reads
its rows from tensors that stay where they are and are refilled; a batch between two sizes is filled up with padding
rows, which have a state slot and a latent page of their own. Rows have one token, or, where a worker speculates, one
and as many drafts as it ever takes; any other step is launched kernel by kernel.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.model.batch import Batch, Caches
from workers.model.ling import LingModel
from workers.schedule.step import Row

Work = Callable[[], Tensor]
# Captures work: returns what repeats it, and the tensor that then has its result.
Capture = Callable[[Work], tuple[Callable[[], object], Tensor]]

_STRIDE = 8


@dataclass(frozen=True, slots=True)
class _Captured:
    """A step of `size` rows of `width` tokens. ids, positions: [size * width]; slots: [size]; one int64 tensor holds
    positions and slots, `places`. hidden: [size * width, hidden]."""

    ids: Tensor
    places: Tensor
    replay: Callable[[], object]
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class Places:
    """The positions of rows that only the device knows. starts: [rows] int64, their first positions.

    ended: [rows] bool, the rows whose sequences have ended. They become padding, so that their states do not change.
    """

    starts: Tensor
    ended: Tensor

    def positions(self, width: int) -> Tensor:
        """[rows, width] int64: the positions of so many tokens a row."""
        return self.starts[:, None] + torch.arange(width, device=self.starts.device)


def batch_sizes(slots: int) -> tuple[int, ...]:
    """The sizes captured for `slots` sequences at most, ascending: 1, 2, 4, multiples of 8, and `slots` itself."""
    return tuple(sorted({n for n in (1, 2, 4, *range(_STRIDE, slots, _STRIDE)) if n < slots} | {slots}))


def size_for(rows: int, sizes: Sequence[int]) -> int | None:
    """The smallest of ascending `sizes` that holds so many rows; None if none does."""
    at = bisect_left(sizes, rows)
    return sizes[at] if at < len(sizes) else None


def captures(device: torch.device) -> Capture:
    """CUDA graphs that share one pool of memory, so none may be replayed beside another."""
    pool = torch.cuda.graph_pool_handle()
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def capture(work: Work) -> tuple[Callable[[], object], Tensor]:
        beside.wait_stream(torch.cuda.current_stream(device))
        # Kernels are compiled, and libraries get their memory, when they are first called: not while capturing.
        with torch.cuda.stream(beside):
            work()
        torch.cuda.current_stream(device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads (collectives' watchdogs, transfers) may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            hidden = work()
        return graph.replay, hidden

    return capture


class DecodeGraphs:
    """The decode steps of one model on one set of caches, whose last slot and last page are for padding rows.

    page_table: [slots, max_pages] int32, as every step's. drafts: a row's in steps that verify, 0 for no such steps.
    All ranks make theirs at the same time.
    """

    def __init__(self, model: LingModel, caches: Caches, page_table: Tensor, capture: Capture, drafts: int = 0) -> None:
        self._model = model
        self._caches = caches
        self._page_table = page_table
        self._scrap = page_table.shape[0] - 1
        page_table[self._scrap] = caches.latent.shape[1] - 1
        self._sizes = batch_sizes(self._scrap)
        self._widths = (1, 1 + drafts) if drafts else (1,)
        # The largest first: the smaller ones then find room in its memory.
        self._steps = {
            (size, width): self._captured(size, width, capture)
            for size in reversed(self._sizes)
            for width in reversed(self._widths)
        }

    def serves(self, rows: Sequence[Row]) -> bool:
        """Whether every row is one token, with equally many drafts, that leads to the next."""
        return (
            bool(rows)
            and rows[0].count in self._widths
            and all(
                len(r.token_ids) == 1 and r.drafts == rows[0].drafts and r.sample and not r.next_ids and not r.keeps
                for r in rows
            )
        )

    def __call__(self, rows: Sequence[Row], ids: Tensor, places: Places | None = None) -> Tensor:
        """Hidden states [T, hidden] of rows it `serves`, good until the next call. ValueError for too many rows.

        ids: [T] int64, the rows' tokens and drafts. places: replaces the rows' starts if only the device knows them.
        """
        size, width = size_for(len(rows), self._sizes), rows[0].count
        if size is None:
            raise ValueError(f"{len(rows)} rows in a step of a worker with {self._scrap} slots")
        step, spare = self._steps[size, width], size - len(rows)
        positions = [row.start + n for row in rows for n in range(width)] + [*range(width)] * spare
        slots = [*(r.slot for r in rows), *[self._scrap] * spare]
        step.places.copy_(torch.tensor([*positions, *slots]), non_blocking=True)
        if places is not None:
            step.places[: len(ids)].view(len(rows), width).copy_(places.positions(width))
            step.places[size * width :][: len(rows)].masked_fill_(places.ended, self._scrap)
        step.ids[: len(ids)].copy_(ids)
        step.replay()
        return step.hidden[: len(ids)]

    def _captured(self, size: int, width: int, capture: Capture) -> _Captured:
        device, tokens = self._page_table.device, size * width
        ids = torch.zeros(tokens, dtype=torch.int64, device=device)
        places = torch.tensor([*[n for _ in range(size) for n in range(width)], *[self._scrap] * size]).to(device)

        def work() -> Tensor:
            batch = Batch(
                token_ids=ids,
                positions=places[:tokens],
                slots=places[tokens:],
                starts=None,
                counts=(width,) * size,
                page_table=self._page_table,
                verified=size if width > 1 else 0,
            )
            return self._model.forward(batch, self._caches)

        replay, hidden = capture(work)
        # Work that can't be captured fails here, and no kernel of the head is compiled while a request waits.
        replay()
        self._model.logits(hidden)
        return _Captured(ids, places, replay, hidden)
