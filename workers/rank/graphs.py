"""Decode steps as CUDA graphs: forward passes of one token a row, captured once for each size of batch.

Launched one by one, a decode step's hundreds of small kernels take the host longer than the GPU. A captured step reads
its rows from tensors that stay where they are and are refilled; a batch between two sizes is filled up with rows that
belong to nobody: they have a state slot and a latent page of their own.
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
# Makes work repeatable: what repeats it, and the tensor its result then lies in.
Capture = Callable[[Work], tuple[Callable[[], object], Tensor]]

_STRIDE = 8


@dataclass(frozen=True, slots=True)
class _Captured:
    """A step of one size. inputs: [3, size] int64, each row's token, position and slot. hidden: [size, hidden]."""

    inputs: Tensor
    replay: Callable[[], object]
    hidden: Tensor


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
    """The decode steps of one model on one set of caches, whose last slot and last page are nobody's.

    page_table: [slots, max_pages] int32, as every step's. All ranks make theirs at the same time.
    """

    def __init__(self, model: LingModel, caches: Caches, page_table: Tensor, capture: Capture) -> None:
        self._model = model
        self._caches = caches
        self._page_table = page_table
        self._scrap = page_table.shape[0] - 1
        page_table[self._scrap] = caches.latent.shape[1] - 1
        self._sizes = batch_sizes(self._scrap)
        # Captured steps read positions instead: this is for work that is repeated by being called again.
        self._starts: tuple[int, ...] = ()
        # The largest first: the smaller ones then find room in its memory.
        self._steps = {size: self._captured(size, capture) for size in reversed(self._sizes)}

    def serves(self, rows: Sequence[Row]) -> bool:
        """Whether every row is one token that leads to the next; a slot's worth of rows at most."""
        return bool(rows) and all(len(r.token_ids) == 1 and r.sample and not r.next_ids and not r.keeps for r in rows)

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states [rows, hidden] of rows it `serves`, good until the next call. ValueError for too many rows."""
        size = size_for(len(rows), self._sizes)
        if size is None:
            raise ValueError(f"{len(rows)} rows in a step of a worker with {self._scrap} slots")
        step, spare = self._steps[size], size - len(rows)
        self._starts = (*(r.start for r in rows), *[0] * spare)
        inputs = ([r.token_ids[0] for r in rows], [r.start for r in rows], [r.slot for r in rows])
        padded = [[*values, *[pad] * spare] for values, pad in zip(inputs, (0, 0, self._scrap), strict=True)]
        step.inputs.copy_(torch.tensor(padded), non_blocking=True)
        step.replay()
        return step.hidden[: len(rows)]

    def _captured(self, size: int, capture: Capture) -> _Captured:
        inputs = torch.zeros(3, size, dtype=torch.int64, device=self._page_table.device)
        inputs[2] = self._scrap
        self._starts = (0,) * size

        def work() -> Tensor:
            batch = Batch(
                token_ids=inputs[0],
                positions=inputs[1],
                slots=inputs[2],
                starts=self._starts,
                counts=(1,) * size,
                page_table=self._page_table,
            )
            return self._model.forward(batch, self._caches)

        replay, hidden = capture(work)
        # What can't be repeated fails here, and no kernel of the head is compiled while somebody waits.
        replay()
        self._model.logits(hidden)
        return _Captured(inputs, replay, hidden)
