"""Moves pieces of tensors from files into memory: on a CPU without an extra copy, on a GPU through pinned buffers."""

import mmap
import os
import threading
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from workers.model.files import Entry, WeightError
from workers.model.loader import DTYPES
from workers.model.upload import BLOCK_BYTES, Block, CudaLane, upload

# The bytes of mapped pages that a copy may hold at once.
_BLOCK_BYTES = 32 << 20

Spans = tuple[tuple[int, int], ...]


class Files:
    """The open files of one folder. `fill` may run in several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lanes = threading.local()
        self._descriptors: dict[str, int] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._lock = threading.Lock()

    def fill(self, file: str, entry: Entry, spans: Spans, out: Tensor) -> int:
        """Read the part `spans` of a stored tensor into `out`, which has its shape; returns the bytes read."""
        size = entry.bytes // max(1, prod(entry.shape))
        counts = [stop - start for start, stop in spans]
        rows, width = (counts[0], prod(entry.shape[1:])) if spans else (1, 1)
        first = spans[0][0] if spans else 0
        whole_rows = prod(counts[1:]) == width
        # The kernel's own read-ahead is too small to keep a fast disk busy.
        start, length = entry.start + first * width * size, rows * width * size
        os.posix_fadvise(self._descriptor(file), start, length, os.POSIX_FADV_WILLNEED)
        flat = out if spans else out.view(1)
        if out.is_cuda:
            upload(self._own_lane(out.device), self.blocks(file, entry, spans, flat))
            return length
        if whole_rows and out.device.type == "cpu" and out.is_contiguous() and out.dtype == DTYPES[entry.dtype]:
            self.read(file, start, out)
            return length
        step = max(1, _BLOCK_BYTES // max(1, width * size))
        for row in range(0, rows, step):
            count = min(step, rows - row)
            self._copy(file, entry, first + row, count, spans[1:], flat[row : row + count])
        return prod(counts) * size

    def read(self, file: str, start: int, out: Tensor) -> None:
        """Fill a contiguous CPU tensor with the bytes from `start` on."""
        view = memoryview(out.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        descriptor = self._descriptor(file)
        done = 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done:]], start + done)
            except OSError as error:
                raise WeightError(f"{self._folder / file} can't be read at byte {start + done}: {error}") from error
            if count == 0:
                raise WeightError(f"{self._folder / file} ends at byte {start + done}: it was cut off while loading")
            done += count

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            for mapped in self._maps.values():
                mapped.close()
            self._descriptors.clear()
            self._maps.clear()

    def _own_lane(self, device: torch.device) -> CudaLane:
        """The lane of this thread."""
        if not hasattr(self._lanes, "lane"):
            self._lanes.lane = CudaLane(device)
        lane: CudaLane = self._lanes.lane
        return lane

    def blocks(self, file: str, entry: Entry, spans: Spans, out: Tensor) -> Iterator[Block]:
        """Cut the part `spans` of a tensor into blocks of whole rows, of which `out` takes its columns."""
        shape, dtype = entry.shape or (1,), DTYPES[entry.dtype]
        row = entry.bytes // shape[0]
        first, last = spans[0] if spans else (0, 1)
        step = max(1, BLOCK_BYTES // max(1, row))
        for at in range(first, last, step):
            count = min(step, last - at)

            def place(copied: Tensor, into: Tensor = out[at - first : at - first + count], count: int = count) -> None:
                whole = copied.view(dtype).view(count, *shape[1:])
                into.copy_(whole[(slice(None), *(slice(*s) for s in spans[1:]))])

            yield Block(count * row, partial(self.read, file, entry.start + at * row), place)

    def _copy(self, file: str, entry: Entry, row: int, count: int, inner: Spans, out: Tensor) -> None:
        """Copy with strides or a conversion directly from the page cache, whose pages are released afterwards."""
        mapped = self._map(file)
        width = prod(entry.shape[1:])
        size = entry.bytes // prod(entry.shape)
        start, length = entry.start + row * width * size, count * width * size
        rows = torch.frombuffer(mapped, dtype=DTYPES[entry.dtype], count=count * width, offset=start)
        out.copy_(rows.view(count, *entry.shape[1:])[(slice(None), *(slice(*s) for s in inner))])
        del rows
        page = start // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, page, start + length - page)

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._descriptors:
                try:
                    self._descriptors[file] = os.open(self._folder / file, os.O_RDONLY)
                except OSError as error:
                    raise WeightError(f"{self._folder / file} can't be opened: {error}") from error
            return self._descriptors[file]

    def _map(self, file: str) -> mmap.mmap:
        descriptor = self._descriptor(file)
        with self._lock:
            if file not in self._maps:
                # The mapping is private because torch wants writable buffers; nothing is written.
                self._maps[file] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
            return self._maps[file]
