"""Moves pieces of tensors from files into memory, without a copy of them in between."""

import mmap
import os
import threading
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from workers.model.files import Entry, WeightError
from workers.model.loader import DTYPES

# Mapped pages a copy may hold at once.
_BLOCK_BYTES = 32 << 20

Spans = tuple[tuple[int, int], ...]


class Files:
    """Open files of one folder. `fill` may run in several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptors: dict[str, int] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._lock = threading.Lock()

    def fill(self, file: str, entry: Entry, spans: Spans, out: Tensor) -> int:
        """Put the part `spans` of a stored tensor into `out`, of its shape; the bytes that were read."""
        size = entry.bytes // max(1, prod(entry.shape))
        counts = [stop - start for start, stop in spans]
        rows, width = (counts[0], prod(entry.shape[1:])) if spans else (1, 1)
        first = spans[0][0] if spans else 0
        whole_rows = prod(counts[1:]) == width
        if whole_rows and out.device.type == "cpu" and out.is_contiguous() and out.dtype == DTYPES[entry.dtype]:
            start = entry.start + first * width * size
            self.read(file, start, out)
            return rows * width * size
        step = max(1, _BLOCK_BYTES // max(1, width * size))
        flat = out if spans else out.view(1)
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

    def _copy(self, file: str, entry: Entry, row: int, count: int, inner: Spans, out: Tensor) -> None:
        """Strided or converting copies go through the page cache's own pages, given back afterwards."""
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
                # A private mapping: torch wants its buffers writable, and nothing is written.
                self._maps[file] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
            return self._maps[file]
