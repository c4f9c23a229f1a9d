"""Loads a rank's weights as a list of reads: first all are named and checked, then bytes are fetched in parallel."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from workers.model.files import WeightError
from workers.model.values import fault

# Tensors are fetched in pieces of so many bytes, so that threads share large tensors and progress is visible.
_PIECE_BYTES = 64 << 20
_THREADS = min(8, os.cpu_count() or 1)
_MOST_PROBLEMS = 10

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I32": torch.int32,
    "I64": torch.int64,
}
FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor in a source. dtype: safetensors' name. shape: None if the source makes any shape."""

    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Read:
    """Put `spans` (start and stop in each dimension) of tensor `name`, whose whole shape is `shape`, into `out`."""

    out: Tensor
    name: str
    shape: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return self.out.numel() * self.out.element_size()

    def pieces(self) -> "list[Read]":
        """The same read in pieces of bounded size along the first dimension."""
        if self.bytes <= _PIECE_BYTES:
            return [self]
        start, stop = self.spans[0]
        step = max(1, (stop - start) * _PIECE_BYTES // self.bytes)
        return [
            Read(self.out[a - start : a - start + step], self.name, self.shape, ((a, b), *self.spans[1:]))
            for a, b in ((a, min(a + step, stop)) for a in range(start, stop, step))
        ]


class Source(Protocol):
    """Where weights come from."""

    def find(self, name: str) -> SourceTensor | None:
        """The tensor with this name; None if there is none."""

    def missing(self, name: str) -> str:
        """A message that names the tensor and says why `find` returns None."""

    def where(self, name: str) -> str:
        """The place of an existing tensor, for messages."""

    def fill(self, read: Read) -> int:
        """Do a read, from any thread; returns the bytes taken from the source."""

    def order(self, read: Read) -> tuple[str, int]:
        """Order reads so that they go through the source sequentially."""

    def close(self) -> None:
        """Close files."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes fetched so far and in all (in the dtype in memory), and seconds since the start."""

    done: int
    total: int
    seconds: float

    def __str__(self) -> str:
        rate = self.done / max(self.seconds, 1e-9) / 1e9
        unit, name = (1e9, "GB") if self.total >= 1e9 else (1e6, "MB")
        return f"{self.done / unit:.2f} of {self.total / unit:.2f} {name} in {self.seconds:.1f} s, {rate:.2f} GB/s"


class Loader:
    """Collects a model's reads and their problems; nothing is fetched before `run`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.reads: list[Read] = []
        self.problems: list[str] = []
        self._after: list[Callable[[], None]] = []

    def find(self, name: str) -> SourceTensor | None:
        """The source's tensor with this name; None if there is none."""
        return self.source.find(name)

    def read(
        self, out: Tensor, name: str, shape: tuple[int, ...], *part: slice, kinds: tuple[str, ...] = FLOATS
    ) -> None:
        """Put `part` (a slice a dimension, unmentioned ones whole) of a tensor that must have `shape` and one of the
        dtypes `kinds` into `out`, of that part's shape and any dtype and strides."""
        stored = self.find(name)
        if stored is None:
            self.refuse(self.source.missing(name))
            return
        if stored.shape is not None and stored.shape != shape:
            found = list(stored.shape)
            self.refuse(
                f"{name} in {self.source.where(name)} has shape {found}, expected {list(shape)} by config.json; "
                "take both from one release"
            )
            return
        if stored.dtype not in kinds:
            self.refuse(f"{name} is stored as {stored.dtype}; served are {', '.join(kinds)}")
            return
        slices = (*part, *[slice(None)] * (len(shape) - len(part)))
        spans = tuple(s.indices(n)[:2] for s, n in zip(slices, shape, strict=True))
        self.reads.append(Read(out, name, shape, spans))

    def refuse(self, problem: str) -> None:
        """Note why the weights can't be served."""
        if problem not in self.problems:
            self.problems.append(problem)

    def after(self, action: Callable[[], None]) -> None:
        """Call `then` once all reads are done.

        It must not change what was read, because other workers may be sent that.
        """
        self._after.append(action)

    def look_at(self, whole: Tensor, name: str) -> None:
        """Check the values in `whole` once all reads are done; WeightError names the tensor at fault.

        name: of any of the tensors that are read into `whole`; all are of one kind.
        """
        # The meta device holds no values.
        if not whole.is_meta:
            self.after(partial(self._look, whole, name))

    def _look(self, whole: Tensor, name: str) -> None:
        if fault(name, whole) is None:
            return
        memory = whole.untyped_storage().data_ptr()
        for read in self.reads:
            if read.out.untyped_storage().data_ptr() == memory and (why := fault(read.name, read.out)) is not None:
                raise WeightError(
                    f"{read.name} in {self.source.where(read.name)} {why}; copy or convert the file again"
                )

    def run(self, progress: Callable[[Progress], None] | None = None) -> Progress:
        """Fetch everything. `progress` is called from this thread as pieces come in, and once at the end."""
        raise_problems(self.problems)
        start = time.monotonic()
        pieces = [p for r in self.reads for p in r.pieces()]
        pieces.sort(key=self.source.order)
        total = in_threads([(partial(self.source.fill, p), p.bytes) for p in pieces], progress)
        self.finish()
        end = Progress(total, total, time.monotonic() - start)
        if progress is not None:
            progress(end)
        return end

    def finish(self) -> None:
        """Make the calls that wait until all reads are done, however they were done."""
        for action in self._after:
            action()


def in_threads(
    jobs: Sequence[tuple[Callable[[], object], int]], progress: Callable[[Progress], None] | None = None
) -> int:
    """Do all jobs in threads; returns the sum of their bytes. The first error ends it.

    jobs: each with its bytes. progress: called from this thread after each job except the last.
    """
    start = time.monotonic()
    total = sum(size for _, size in jobs)
    done = 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="weights") as pool:
        futures = {pool.submit(job): size for job, size in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                done += futures[future]
                if progress is not None and done < total:
                    progress(Progress(done, total, time.monotonic() - start))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return total


def raise_problems(problems: list[str]) -> None:
    """Raise WeightError with the first problems, one per line, if there are any."""
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        tail = [f"and {more} more"] if more > 0 else []
        raise WeightError("\n".join(problems[:_MOST_PROBLEMS] + tail))
